"""``edgeyolo verify``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgeyolo.verify import Verdict
    from edgeyolo.verify_noise import Check

EPILOG = """\b
Examples:
  edgeyolo verify out/yf-fpga
  edgeyolo verify out/yf-fpga --pictures holiday/ --json
  edgeyolo verify out/yf-fpga --skip engine        (no C compiler here)
  edgeyolo verify out/yf-trt --engine out/yf-trt/engines/model-int8-trt10.3.0.engine        (on the device)

A bundle for fpga: golden data, ONNX Runtime and the C engine, tolerance 0. A bundle for tensorrt: both graphs in ONNX
Runtime, TensorRT-RTX where it is installed, and an engine on this machine's GPU where one is given. A bundle for
mobile: every variant and every .ort file in this machine's ONNX Runtime.

Exit codes: 0 everything equal, 1 something differs, 2 the bundle or the machine cannot be used.
"""


@click.command(epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--pictures", type=click.Path(path_type=Path), help="Compare on these pictures too.")
@click.option(
    "--skip",
    multiple=True,
    type=click.Choice(["golden", "ort", "engine", "rtx"]),
    help="Leave out what this machine cannot do. Repeatable.",
)
@click.option("--trust-engine", is_flag=True, help="Run the bundle's C engine even if it is not this version's.")
@click.option(
    "--engine", type=click.Path(path_type=Path), help="TensorRT: run this engine too; it must be built on this machine."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
def verify(
    bundle: Path, pictures: Path | None, skip: tuple[str, ...], trust_engine: bool, engine: Path | None, as_json: bool
) -> None:
    """Prove that BUNDLE computes what its quantised ONNX file computes, on everything that executes it here."""
    from edgeyolo.bundle import read_target
    from edgeyolo.errors import InputError
    from edgeyolo.progress import Log

    target = read_target(bundle)
    mine = {"fpga": ("golden", "ort", "engine"), "tensorrt": ("ort", "rtx", "engine"), "mobile": ()}.get(target)
    if mine is None:
        raise InputError(
            "no way to verify a bundle for this target", where=bundle, got=target[:40], hint="export it for a target"
        )
    if wrong := sorted(set(skip) - set(mine)):
        where, allowed = f"--skip, a bundle for {target}", ", ".join(mine)
        raise InputError("there is no such check", where=where, got=", ".join(wrong), allowed=allowed or "none")
    if trust_engine and target != "fpga":
        raise InputError("--trust-engine is about the C engine of a bundle for fpga", hint="leave it out")
    if engine is not None and target != "tensorrt":
        raise InputError("--engine is about a bundle for tensorrt", got=engine, hint="leave it out")
    log = Log(quiet=as_json)
    if target == "tensorrt":
        from edgeyolo.verify_tensorrt import verify_tensorrt

        _judge(bundle, verify_tensorrt(bundle, log, skip=skip, more=pictures, engine=engine), as_json)
    elif target == "mobile":
        from edgeyolo.verify_mobile import verify_mobile

        _judge(bundle, verify_mobile(bundle, log, more=pictures), as_json)
    else:
        _fpga(bundle, pictures, skip, trust_engine, as_json)


def _judge(bundle: Path, checks: list[Check], as_json: bool) -> None:
    """Print the checks. Raises DifferenceError if one failed."""
    from edgeyolo.errors import DifferenceError
    from edgeyolo.verify_noise import FAILED

    failed = [check for check in checks if check.status == FAILED]
    if as_json:
        click.echo(json.dumps({"checks": [asdict(check) for check in checks], "equal": not failed}, indent=1))
    else:
        _print_checks(checks)
    if failed:
        raise DifferenceError(f"the check of {failed[0].name} failed", where=bundle, got=failed[0].detail)


def _print_checks(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table

    from edgeyolo.errors import printable

    table = Table()
    for column in ("check", "result", "detail"):
        table.add_column(column, overflow="fold")
    for check in checks:
        table.add_row(check.name, check.status, printable(check.detail))
    Console(highlight=False, markup=False, emoji=False).print(table)


def _fpga(bundle: Path, pictures: Path | None, skip: tuple[str, ...], trust_engine: bool, as_json: bool) -> None:
    from edgeyolo.errors import DifferenceError
    from edgeyolo.progress import Log
    from edgeyolo.verify import verify as run

    verdict = run(bundle, Log(quiet=as_json), skip=skip, more=pictures, trust_engine=trust_engine)
    if as_json:
        click.echo(json.dumps({**asdict(verdict), "equal": not verdict.differences}, indent=1))
    else:
        _print(verdict, skip)
    if verdict.differences:
        first = verdict.differences[0]
        raise DifferenceError(
            f"{first.contender} differs from the Python integers",
            where=f"picture {first.picture}, layer {first.layer}",
            got=first.detail,
            allowed="0 differing elements",
        )


def _print(verdict: Verdict, skip: tuple[str, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    from edgeyolo.errors import printable
    from edgeyolo.verify import CHECKS

    titles = {
        "golden": "stored golden data",
        "ort": "ONNX Runtime, optimisations off",
        "engine": "C engine, compiled here",
    }
    table = Table(title="Equal to the Python integers? Tolerance 0")
    for column in ("compared with", "elements", "differences"):
        table.add_column(column, justify="left" if column == "compared with" else "right")
    for check in CHECKS:
        wrong = [d for d in verdict.differences if d.contender == check]
        first = f"{len(wrong)} picture(s), first at layer {printable(wrong[0].layer)}" if wrong else "0"
        compared = verdict.elements.get(check, 0)
        missing = "skipped" if check in skip else "none stored"
        table.add_row(titles[check], f"{compared:,}" if compared else "-", first if compared else missing)
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(table)
    console.print(f"{verdict.layers} layers, {verdict.pictures} picture(s).")
    exact, convolutions = verdict.float32_exact, verdict.convolutions
    if exact == convolutions:
        console.print(f"All {exact} convolutions are exact in float32 for any input (24-bit accumulators).")
    else:
        console.print(
            f"{exact} of {convolutions} convolutions are exact in float32 for any input (24-bit accumulators)."
        )
    if skip:
        console.print(f"Not checked: {', '.join(sorted(set(skip)))}.", style="yellow")
