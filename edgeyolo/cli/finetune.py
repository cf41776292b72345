"""``edgeyolo finetune``: an export for fpga whose integers are trained a little before they are written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgeyolo import assets
from edgeyolo.cli.export import ONLY_FOR, export

if TYPE_CHECKING:
    from collections.abc import Collection

    from edgeyolo.progress import Log
    from edgeyolo.quant.calibrate import Pixels
    from edgeyolo.quant.quantise import QuantResult

EPILOG = """\b
Examples:
  edgeyolo finetune --bits 4
  edgeyolo finetune yolo.cfg --weights yolo.weights --calib pictures/ --bits 4 --minutes 10 -o out/fpga

It quantises as `edgeyolo export --target fpga` does and takes the same options. Then the float net teaches the integer
program on the calibration pictures, which need no labels; one of four, 16 at most, is held out and judges. Only
integers change: bits, exponents and kinds of files stay. Where nothing beats the start, the start is written. With
--steps, the same seed and the same number of threads (OMP_NUM_THREADS) the same bytes are written every time.

Exit codes: those of export.
"""
IDLE = {name for name, targets in ONLY_FOR.items() if "fpga" not in targets} | {"target", "diagnose"}
"""Parameters of export that mean nothing here."""
RESTATED = {"model", "output"}
"""Those that have another text here."""
OWN = ("minutes", "steps", "batch", "weight_lr", "bias_lr", "seed", "device")


def _own_options(command: Any) -> Any:
    """What export does not have, or says otherwise."""
    for option in reversed([
        click.option(
            "-o", "--output", type=click.Path(path_type=Path), help="Bundle folder [default: out/MODEL-finetune]."
        ),
        click.option("--minutes", default=5.0, show_default=True, help="How long to train."),
        click.option("--steps", type=int, help="Updates, instead of --minutes: the same result every time."),
        click.option("--batch", default=2, show_default=True, help="Pictures in one update."),
        click.option(
            "--weight-lr", default=0.0005, show_default=True, help="Codes by which an update moves a weight at most."
        ),
        click.option(
            "--bias-lr", default=0.01, show_default=True, help="Output codes by which an update moves a bias at most."
        ),
        click.option("--seed", default=0, show_default=True, help="Of the order of the pictures."),
        click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]), help="Where."),
    ]):  # fmt: skip
        command = option(command)
    return command


@click.command(epilog=EPILOG)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@_own_options
def finetune(model: Path | None, **options: Any) -> None:
    """Quantise MODEL for fpga, then let the float net teach the integers: an opt-in polish of `export`."""
    from edgeyolo.cli.export import run_export
    from edgeyolo.errors import InputError
    from edgeyolo.finetune.polish import polish
    from edgeyolo.finetune.settings import FinetuneSettings

    context = click.get_current_context()
    if options["steps"] is not None and context.get_parameter_source("minutes") is ParameterSource.COMMANDLINE:
        raise InputError("--minutes and --steps exclude each other", hint="give the one that shall end the training")
    settings = FinetuneSettings(**{name: options.pop(name) for name in OWN})
    options |= {str(p.name): p.get_default(context) for p in export.params if p.name in IDLE}
    options["target"] = "fpga"
    options["output"] = options["output"] or Path("out") / f"{(model or assets.CFG).stem}-finetune"

    def tune(quant: QuantResult, pictures: Collection[Pixels], log: Log) -> QuantResult:
        return polish(quant, pictures, settings, log)

    run_export(model, options, tune)


finetune.params[1:1] = [param for param in export.params if param.name not in IDLE | RESTATED]
