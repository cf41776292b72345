"""``edgeyolo inspect``: what TensorRT made of the layers."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeyolo.errors import BundleError, InputError, printable

if TYPE_CHECKING:
    from rich.console import Console

    from edgeyolo.engine_layers import EngineLayers, Layer, Plan, Verdict

EPILOG = """\b
Examples:
  edgeyolo inspect out/yf-trt                    every engine that build.sh built in it
  edgeyolo inspect out/yf-trt/engines/model-int8-trt10.3.0.engine --all
  edgeyolo inspect layers.json --json            of trtexec --exportLayerInfo=layers.json

Without a bundle around it, every convolution of an engine that uses int8 is expected to be int8, except those that end
in an output of the engine. Exit codes: 0 nothing is flagged, 1 something is, 2 the input cannot be used.
"""
SUFFIX = ".layers.json"
FIRST = 20
"""Layers that are printed without --all."""
MAX_CELL = 48
"""Characters of a table's cell: the types in a kernel's name stand within them."""
MAX_WIDTH = 1000
MAX_FILES = 100


@dataclass(frozen=True)
class Report:
    """One engine: where its layers were read, the layers, what is wanted of them, and the verdict."""

    source: Path
    engine: EngineLayers
    plan: Plan | None
    verdict: Verdict


@click.command(epilog=EPILOG)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--all", "full", is_flag=True, help=f"Print every layer, not only the first {FIRST}.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, with every layer, and nothing else.")
@click.pass_context
def inspect(context: click.Context, path: Path, full: bool, as_json: bool) -> None:
    """Print the layers of a TensorRT engine, and flag the convolutions that should be int8 and are not.

    PATH is a bundle, an engine file, or the JSON that trtexec --exportLayerInfo writes. An engine without its
    .layers.json beside it is loaded, which needs its TensorRT and its GPU.
    """
    try:
        reports = _reports(path)
    except OSError as error:
        raise InputError("the input cannot be read", where=error.filename or path, got=error.strerror) from error
    if as_json:
        click.echo(json.dumps({"engines": [_document(report) for report in reports]}, indent=1))
    else:
        for report in reports:
            _print(report, full=full)
    if any(report.verdict.flagged for report in reports):
        context.exit(1)


def _reports(path: Path) -> list[Report]:
    from edgeyolo.engine_layers import judge

    is_folder = path.is_dir()
    plan = _plan(path if is_folder else path.absolute().parent.parent, required=is_folder)
    reports = []
    for file in _layer_files(path) if is_folder else [path]:
        source, engine = _read(file)
        reports.append(Report(source, engine, plan, judge(engine, plan)))
    return reports


def _layer_files(bundle: Path) -> list[Path]:
    """Layer files of the engines in a bundle, the newest first."""
    from edgeyolo.runners.tensorrt import ENGINES

    found = sorted((bundle / ENGINES).glob(f"*{SUFFIX}"), key=lambda file: (-file.stat().st_mtime, file.name))
    if not found or len(found) > MAX_FILES:
        raise InputError(
            "no engine of this bundle has its layers beside it" if not found else "too many layer files",
            where=bundle / ENGINES,
            allowed=f"1 to {MAX_FILES} files *{SUFFIX}",
            hint="run build.sh on the device; or edgeyolo build there, and give the engine file" if not found else None,
        )
    return found


def _plan(folder: Path, *, required: bool) -> Plan | None:
    """What the bundle ``folder`` wants; None where it is none and needs not be."""
    from edgeyolo.bundle import Bundle
    from edgeyolo.engine_layers import Plan

    if not required and not _is_bundle(folder):
        return None
    manifest = Bundle.open(folder).manifest
    if manifest["target"] != "tensorrt":
        raise InputError("this bundle is not for TensorRT", where=folder, got=manifest["target"][:40])
    layers = manifest.get("layers")
    int8, floats = (layers.get("int8"), layers.get("float")) if isinstance(layers, dict) else (None, None)
    if (
        not isinstance(int8, list)
        or not isinstance(floats, dict)
        or not all(isinstance(text, str) for text in (*int8, *floats.values()))
    ):
        raise BundleError(
            "the manifest does not say which layers are int8",
            where=folder,
            allowed="layers.int8, a list of names, and layers.float, names with reasons",
            hint="export it again",
        )
    return Plan(tuple(dict.fromkeys(int8)), floats)


def _is_bundle(folder: Path) -> bool:
    """Whether there is a manifest of ours: many other things have a manifest.json."""
    from edgeyolo.output import FORMAT, MANIFEST, MAX_MANIFEST_BYTES

    try:
        with (folder / MANIFEST).open("rb") as file:
            manifest = json.loads(file.read(MAX_MANIFEST_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def _read(path: Path) -> tuple[Path, EngineLayers]:
    """The layers of a layer file or of an engine, and the file that they came from."""
    from edgeyolo.engine_layers import MAX_BYTES, parse_layers

    beside = path.with_suffix(SUFFIX)
    source = path if path.suffix == ".json" or not beside.is_file() else beside
    if not source.is_file():
        raise InputError("no such file", where=source, allowed="a bundle, an engine or a layer file")
    with source.open("rb") as file:
        start = file.read(64)
        if source.suffix == ".json" or start.lstrip().startswith(b"{"):
            return source, parse_layers(start + file.read(MAX_BYTES), source)
    from edgeyolo.runners.tensorrt import open_engine

    with open_engine(path) as engine:
        return path, parse_layers(engine.inspect(), path)


def _counts(layers: tuple[Layer, ...]) -> dict[str, int]:
    return dict(Counter(layer.precision for layer in layers).most_common())


def _copies(layers: tuple[Layer, ...]) -> int:
    from edgeyolo.engine_layers import COPY

    return sum(layer.role == COPY for layer in layers)


def _document(report: Report) -> dict[str, Any]:
    layers, plan, verdict = report.engine.layers, report.plan, report.verdict
    convolutions = set(verdict.convolutions)
    return {
        "source": str(report.source),
        "expected": None if plan is None else {"int8": list(plan.int8), "float": plan.floats},
        "bindings": list(report.engine.bindings),
        "layers": [
            {
                "name": layer.name,
                "type": layer.kind,
                "convolution": layer in convolutions,
                "precision": layer.precision,
                "inputs": [t.precision for t in layer.inputs],
                "outputs": [t.precision for t in layer.outputs],
                "weights": layer.weights,
                "tactic": layer.tactic,
                "onnx": list(layer.onnx),
            }
            for layer in layers
        ],
        "summary": {
            "layers": _counts(layers),
            "convolutions": _counts(verdict.convolutions),
            "copies": _copies(layers),
            "flagged": len(verdict.flagged),
        },
        "flagged": [
            {"nodes": list(f.nodes), "layer": f.layer, "precision": f.precision, "reason": f.reason}
            for f in verdict.flagged
        ],
    }


def _print(report: Report, *, full: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    layers = report.engine.layers
    shown = layers if full else layers[:FIRST]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("", "layer", "type", "inputs -> outputs", "weights", "kernel", "ONNX nodes"):
        table.add_column(title, justify="left" if title else "right", no_wrap=True)
    planned = set() if report.plan is None else {*report.plan.int8, *report.plan.floats}
    for index, layer in enumerate(shown):
        ends = [" ".join(dict.fromkeys(t.precision for t in side)) or "-" for side in (layer.inputs, layer.outputs)]
        nodes = ", ".join(sorted(layer.onnx, key=lambda node: node not in planned))  # weights and Q/DQ behind the layer
        cells = (layer.name, layer.kind, " -> ".join(ends), layer.weights or "", layer.tactic, nodes)
        table.add_row(str(index), *(Text(_cell(cell)) for cell in cells))
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, width=MAX_WIDTH)
    console.width = console.measure(table).maximum  # columns stay whole in a pipe and in a narrow terminal
    console.print(_line(str(report.source)))
    console.print(table)
    if len(shown) < len(layers):
        console.print(f"{len(layers) - len(shown)} more layers: --all prints them, --json has them in full.")
    _print_summary(report, console)


def _print_summary(report: Report, console: Console) -> None:
    layers, plan, verdict = report.engine.layers, report.plan, report.verdict
    console.print(f"layers        {len(layers)}: {_counted(layers)}")
    console.print(f"convolutions  {len(verdict.convolutions)}: {_counted(verdict.convolutions)}")
    console.print(f"copies        {_copies(layers)} that only change type or layout")
    if plan is None:
        console.print("expected      no bundle says it: int8 everywhere but at the outputs, if the engine has int8")
    else:
        console.print(f"expected      {len(plan.int8)} int8, {len(plan.floats)} float, by the bundle")
    if not verdict.flagged:
        console.print(
            "Every convolution that should be int8 is int8."
            if plan is None or plan.int8
            else "The bundle wants no int8."
        )
        return
    console.print(f"\nNot int8 ({len(verdict.flagged)}):", style="red")
    for flag in verdict.flagged:
        inside = "" if flag.layer is None or flag.nodes == (flag.layer,) else f"; in the layer {flag.layer}"
        console.print(_line(f"  {', '.join(flag.nodes)}: {flag.precision}; {flag.reason}{inside}"))


def _counted(layers: tuple[Layer, ...]) -> str:
    return ", ".join(f"{count} {precision}" for precision, count in _counts(layers).items()) or "none"


def _cell(text: str) -> str:
    """``text`` in one short line."""
    return _line(text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 3]}...")


def _line(text: str) -> str:
    """Without control characters and line ends: names come from others' files."""
    return printable(text[:MAX_WIDTH].replace("\n", "?"))
