"""``edgeyolo lint``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgeyolo.lower.tensorrt.lint import Finding

SHOWN = 5
"""Findings of one kind that are printed without --all."""

EPILOG = """\b
Examples:
  edgeyolo lint model_int8.onnx --target tensorrt
  edgeyolo lint model_int8.onnx --target tensorrt --json

For any ONNX file with QuantizeLinear and DequantizeLinear, whoever made it. Refused: TensorRT will not build it. Slow:
a pair that is missing, or one too many, with what it breaks. Note: worth knowing.

Exit codes: 0 nothing but notes, 1 something is refused or slow, 2 the file cannot be read.
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", required=True, type=click.Choice(["tensorrt"]), help="For whom.")
@click.option("--all", "show_all", is_flag=True, help="Print every finding, not a few of each kind.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
@click.pass_context
def lint(context: click.Context, model: Path, target: str, show_all: bool, as_json: bool) -> None:
    """Explain what TensorRT refuses or runs slowly in the Q/DQ pairs of MODEL (.onnx)."""
    from edgeyolo.errors import InputError
    from edgeyolo.frontend.onnx_file import read_onnx
    from edgeyolo.lower.tensorrt.lint import lint as find
    from edgeyolo.lower.tensorrt.pairs import strip_pairs

    if not model.is_file():
        raise InputError("no such model", where=model, allowed=".onnx")
    graph = read_onnx(model)
    try:
        quantised = strip_pairs(graph)
        findings = find(graph)
    except InputError:
        raise
    except Exception as error:  # a hostile graph can break anything that reads it
        raise InputError("this graph cannot be read", where=model, got=repr(error)[:300]) from error
    has_pairs = bool(quantised.edges or quantised.outputs)
    if as_json:
        rows = [finding.to_json() for finding in findings]
        click.echo(json.dumps({"model": str(model), "quantised": has_pairs, "findings": rows}, indent=1))
    else:
        _print(findings, has_pairs, show_all)
    if any(finding.severity != "note" for finding in findings):
        context.exit(1)


def _print(findings: list[Finding], has_pairs: bool, show_all: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from edgeyolo.errors import printable
    from edgeyolo.lower.tensorrt.lint import SEVERITIES

    console = Console(highlight=False, markup=False, emoji=False)
    if not has_pairs:
        console.print("No Q/DQ pairs: TensorRT 11 runs this graph in the types it has; no layer will be int8.")
    if findings:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for column in ("", "rule", "what", "do"):
            table.add_column(column, overflow="fold")
        counts: Counter[tuple[str, str]] = Counter()
        for finding in findings:
            kind = (finding.severity, finding.rule)
            counts[kind] += 1
            if show_all or counts[kind] <= SHOWN:
                table.add_row(finding.severity, finding.rule, printable(finding.text), printable(finding.fix))
            elif counts[kind] == SHOWN + 1:
                more = sum((f.severity, f.rule) == kind for f in findings) - SHOWN
                table.add_row(finding.severity, finding.rule, f"... and {more} more (--all)", "")
        console.print(table)
    for severity, meaning in SEVERITIES.items():
        console.print(f"{sum(f.severity == severity for f in findings)} {severity}: {meaning}")
