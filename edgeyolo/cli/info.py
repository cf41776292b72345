"""``edgeyolo info``: what a model consists of, without running it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeyolo.errors import InputError

if TYPE_CHECKING:
    from edgeyolo.detector import Detector

EPILOG = """\b
Examples:
  edgeyolo info yolo-fastest-1.1.cfg
  edgeyolo info yolov4.cfg --imgsz 1024x576
  edgeyolo info model.onnx
  edgeyolo info yolov3-tiny.cfg --json > layers.json
"""
WEIGHT_BITS = (32, 8, 4)
BIAS_BYTES = 4
"""A bias stays a 32-bit number whatever the weights are."""

MAX_WIDTH = 1000
"""Characters of a table row, if a hostile cfg makes it that long."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What is printed: a table, then facts.

    Args:
        columns: (title, right-aligned) of the table.
        rows: its cells.
        facts: (name, text) below it.
        document: the same as JSON has it.
    """

    columns: tuple[tuple[str, bool], ...]
    rows: list[list[str]]
    facts: list[tuple[str, str]]
    document: dict[str, Any]


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--imgsz", metavar="SIZE", help="Input size of a .cfg: 416, or 1024x576 (width x height).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
def info(model: Path, imgsz: str | None, as_json: bool) -> None:
    """Print the layers, parameters, sizes and heads of MODEL, a Darknet .cfg or an .onnx file.

    Parameters are counted with batch norm folded; MACs are per picture; sizes are the weights at 32, 8 and 4 bits plus
    biases at 32. No weights file is needed.
    """
    suffix = model.suffix.lower()
    if suffix == ".cfg":
        summary = _summarise_cfg(model, imgsz)
    elif suffix == ".onnx":
        if imgsz is not None:
            raise InputError("an ONNX file has its input size inside", where="--imgsz", got=imgsz)
        summary = _summarise_onnx(model)
    else:
        raise InputError("unknown kind of model", where=model, got=suffix or "no suffix", allowed=".cfg, .onnx")
    if as_json:
        click.echo(json.dumps(summary.document, indent=1))
    else:
        _print(summary)


def _summarise_cfg(path: Path, imgsz: str | None) -> Summary:
    from edgeyolo.frontend.darknet import describe_darknet

    described = describe_darknet(path, imgsz)
    rows = [
        [
            str(layer.index),
            layer.kind,
            str(layer.filters) if layer.filters else "",
            layer.size,
            f"{_shape(layer.input)} -> {_shape(layer.output)}",
            f"{layer.params:,}" if layer.params else "",
            f"{layer.macs:,}" if layer.macs else "",
        ]
        for layer in described.layers
    ]
    params = sum(layer.params for layer in described.layers)
    biases = sum(layer.biases for layer in described.layers)
    macs = sum(layer.macs for layer in described.layers)
    sizes = _sizes(params - biases, biases)
    facts = [
        ("parameters", f"{params:,} ({biases:,} of them biases)"),
        ("MACs", f"{macs:,} ({2 * macs / 1e9:.3f} BFLOPs)"),
        ("size", _sizes_text(sizes)),
        ("activations", f"{described.peak_values:,} values alive at one time"),
    ]
    facts += _detector_facts(described.detector) if described.detector else []
    document = {
        "model": str(path),
        "layers": [dataclasses.asdict(layer) for layer in described.layers],
        "totals": {"parameters": params, "biases": biases, "macs": macs, "bytes": sizes},
        "peak_values": described.peak_values,
        "detector": dataclasses.asdict(described.detector) if described.detector else None,
        "notes": list(described.notes),
    }
    facts += [("note", note) for note in described.notes]
    columns = (("", True), ("type", False), ("filters", True), ("size/stride", False), ("input -> output", False))
    return Summary((*columns, ("parameters", True), ("MACs", True)), rows, facts, document)


def _summarise_onnx(path: Path) -> Summary:
    """Count the operators; parameters are all initializers, whatever they are used for."""
    from edgeyolo.frontend.onnx_file import load_onnx

    model, detector = load_onnx(path)
    counts = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph)
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    parameters = sum(tensor.size for tensor in tensors)
    nbytes = sum(tensor.nbytes for tensor in tensors)
    inputs = {str(v.name): str(v.shape) for v in model.graph.inputs if v.name not in model.graph.initializers}
    outputs = {str(v.name): str(v.shape) for v in model.graph.outputs}
    facts = [
        ("nodes", str(sum(counts.values()))),
        ("parameters", f"{parameters:,} in {len(tensors)} tensors, {nbytes:,} bytes"),
        *(("input", f"{name} {shape}") for name, shape in inputs.items()),
        *(("output", f"{name} {shape}") for name, shape in outputs.items()),
        *_detector_facts(detector),
    ]
    document = {
        "model": str(path),
        "operators": dict(counts.most_common()),
        "totals": {"parameters": parameters, "bytes": nbytes},
        "inputs": inputs,
        "outputs": outputs,
        "detector": dataclasses.asdict(detector),
        "notes": [],
    }
    rows = [[name, str(count)] for name, count in counts.most_common()]
    return Summary((("operator", False), ("nodes", True)), rows, facts, document)


def _shape(shape: tuple[int, int, int]) -> str:
    """Width, height and channels in columns, the order in which Darknet prints them."""
    return f"{shape[2]:4} x{shape[1]:4} x{shape[0]:4}"


def _sizes(weights: int, biases: int) -> dict[str, int]:
    """Bytes of all parameters for each width of the weights."""
    return {str(bits): (weights * bits + 7) // 8 + biases * BIAS_BYTES for bits in WEIGHT_BITS}


def _sizes_text(sizes: dict[str, int]) -> str:
    return ", ".join(f"{size / 1e6:.3f} MB at {bits} bit" for bits, size in sizes.items())


def _detector_facts(detector: Detector) -> list[tuple[str, str]]:
    """Input, heads and class names, one line each."""
    pre = detector.preprocess
    channels = "RGB" if pre.channels == 3 else "grey"
    facts = [("picture", f"{pre.width} x {pre.height} {channels}, {pre.resize}, pixel x 1/{1 / pre.scale:g}")]
    for head in detector.heads:
        parts = [f"{head.output}: {head.kind}", f"{head.classes} classes"]
        if head.anchors:
            anchors = " ".join(f"{w:g},{h:g}" for w, h in head.anchors)
            parts += [f"stride {head.stride[0]:g}x{head.stride[1]:g}", f"anchors {anchors}"]
        facts.append(("head", ", ".join(parts)))
    if any(head.anchors for head in detector.heads):
        facts.append(("suppression", f"{detector.nms_kind}, beta {detector.beta_nms:g}"))
    return facts


def _printable(text: str) -> str:
    """Replace control characters: text from files must not steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _print(summary: Summary) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title, right in summary.columns:
        table.add_column(title, justify="right" if right else "left", no_wrap=True)
    for row in summary.rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, width=MAX_WIDTH)
    console.width = console.measure(table).maximum  # columns stay whole in a pipe and in a narrow terminal
    console.print(table)
    width = max((len(name) for name, _ in summary.facts), default=0)
    for name, text in summary.facts:
        console.print(f"{name:{width}}  {_printable(text)}")
