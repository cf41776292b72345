"""Options that several commands share; there they mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeyolo import assets
from edgeyolo.errors import InputError

_PATH = click.Path(path_type=Path)

MODEL_OPTIONS = (
    click.option("--weights", type=_PATH, help="Weights of a Darknet .cfg."),
    click.option("--names", type=_PATH, help="Class names, one a line."),
    click.option("--imgsz", help="Input size of a .cfg: 416 or 1024x576 (width x height)."),
    click.option(
        "--bn-eps", default="alexeyab", show_default=True, type=click.Choice(["alexeyab", "pjreddie"]),
        help="Whose batch-norm epsilon a .cfg was trained with.",
    ),
)  # fmt: skip
"""What a float model is made of, for export and diagnose."""

QUANT_OPTIONS = (
    click.option("--bits", default=8, show_default=True, help="Weight bits, 2 to 8."),
    click.option("--act-bits", default=8, show_default=True, help="Activation bits, 4 to 16."),
    click.option("--head-bits", type=int, help="Bits of the network's results, 4 to 16 [default: the board's widest]."),
    click.option("--keep", multiple=True, metavar="LAYERS=BITS[/ACT]", help="Other bits for some layers."),
    click.option("--granularity", help="per-channel or per-tensor weight exponents [default: the board's]."),
    click.option(
        "--method", default="mse", show_default=True, help="mse, minmax, percentile, kl (entropy); fpga: nearest."
    ),
    click.option("--equalise/--no-equalise", default=True, help="Cross-layer equalisation, kept where it helps."),
    click.option("--align/--no-align", default=True, help="Channels aligned with powers of two, kept where it helps."),
    click.option("--correct-bias/--no-correct-bias", default=True, help="Bias correction, kept where it helps."),
)
"""How it is quantised, for export and diagnose."""

RECIPE_OPTIONS = (
    click.option("--recipe", default="default", show_default=True, help="fast, default or max: time for accuracy."),
    click.option("--reconstruct/--no-reconstruct", default=True, help="Rebuild every layer, kept where it helps."),
    click.option(
        "--avg-bits", metavar="N|auto", help="Bits per layer so that weights have N on average; auto: --max-drop."
    ),
    click.option("--max-bytes", type=click.IntRange(min=1), help="Bits per layer so that weights and biases fit."),
    click.option("--act-share", default=0.0, help="Share of the activations that may be 16 bit wide, 0 to 1."),
)
"""What diagnose leaves out: it compares many quantisations without reconstruction."""

runner_option = click.option(
    "--runner",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "ort", "integer", "engine", "tensorrt"]),
    help="What executes the model: ONNX Runtime, numpy integers, the C engine, or a TensorRT engine.",
)
"""What detect and eval run a model with."""


def embedded_default(options: dict[str, Any], *, pictures: bool, hint: str) -> Path:
    """The embedded model, for a command without MODEL; completes ``options`` with what belongs to it.

    Args:
        options: of the command; gets weights and names, and with ``pictures`` what is not given of calib and data.
        pictures: whether the command looks at pictures.
        hint: the next step for who gave --weights or --names without MODEL, which raises InputError.
    """
    given = [f"--{key}" for key in ("weights", "names") if options[key] is not None]
    if given:
        got = f"{' and '.join(given)} without MODEL"
        raise InputError("no model given", got=got, allowed=".cfg (with --weights) or .onnx", hint=hint)
    options.update(weights=assets.WEIGHTS, names=assets.NAMES)
    if pictures:
        options["calib"] = options["calib"] or str(assets.CALIBRATION)
        options["data"] = options["data"] or assets.DATA
    return assets.CFG
