"""Which ONNX files a page gets, from what the user named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeyolo.bundle import Bundle, sha256
from edgeyolo.detector import METADATA_KEY, Detector
from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.ort import open_session
from edgeyolo.postprocess import OBJECTNESS
from edgeyolo.runners.onnx import output_names

MAX_MODEL_BYTES = 1 << 28
"""A phone's browser holds the file, its copy in WebAssembly memory and the weights that it packed anew."""
GRAPHS = ("fp32.onnx", "fp16.onnx", "int8.onnx")
"""Of a bundle for mobile."""
QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "QLinearConv")


@dataclass(frozen=True, eq=False)
class Served:
    """A model that the page may load.

    Args:
        name: as people see it, such as ``yf-mobile/int8.onnx``.
        data: the file.
        detector: what its outputs mean.
        outputs: the names of those that are fetched, in the order of ``detector.heads``, or ``boxes`` and ``scores``.
        numbers: ``quantised`` where that is inside, else ``float16`` where that is, else ``float32``.
        artefact_bytes, sha256: of the file.
    """

    name: str
    data: bytes
    detector: Detector
    outputs: tuple[str, ...]
    numbers: str
    artefact_bytes: int
    sha256: str


def all_served(paths: Sequence[Path]) -> list[Served]:
    """What a page gets of all paths; those of one name are called by as many folders as tell them apart."""
    found = [(path.parent.resolve().parts, model) for path in paths for model in served_models(path)]
    named = []
    for folders, model in found:
        others = {other for other, one in found if one.name == model.name} - {folders}
        enough = next(n for n in range(len(folders) + 1) if _last(folders, n) not in {_last(o, n) for o in others})
        named.append(replace(model, name="/".join((*_last(folders, enough), model.name))))
    return named


def _last(folders: tuple[str, ...], count: int) -> tuple[str, ...]:
    return folders[max(0, len(folders) - count) :]


def served_models(path: Path) -> list[Served]:
    """What a page gets of ``path``: an ``.onnx`` that this tool exported, or every graph of a bundle for mobile.

    Raises:
        InputError: it cannot be read or loaded, is too large, or has no graph. UnsupportedError: nobody knows how its
        outputs read as boxes.
    """
    if path.is_dir() and (bundle := Bundle.open(path)).manifest["target"] == "mobile":
        graphs = [name for name in GRAPHS if name in bundle.manifest["files"]]
        if not graphs:
            raise InputError("the bundle has no graph", where=path, allowed=", ".join(GRAPHS), hint="export it again")
        return [_served(path / name, f"{path.name}/{name}") for name in graphs]
    if path.is_dir() or path.suffix.lower() != ".onnx":
        raise InputError(
            "this is nothing that a browser can run", where=path, allowed="an .onnx file, or a bundle for mobile",
            hint="edgeyolo export MODEL --target mobile, or --target onnx",
        )  # fmt: skip
    return [_served(path, path.name)]


def _served(path: Path, name: str) -> Served:
    """One file. Raises InputError, UnsupportedError."""
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise InputError("the model is too large for a browser", where=path, allowed=f"{MAX_MODEL_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise InputError("cannot read the model", where=path, got=error.strerror) from error
    session = open_session(data, threads=1)
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    detector = None if text is None else Detector.from_json(text)
    kinds = {head.kind for head in detector.heads} if detector is not None else set()
    if detector is None or not kinds or not kinds <= set(OBJECTNESS):
        raise UnsupportedError(
            "there is no decoder for this model's outputs, so the page could draw no boxes", where=path,
            got=", ".join(sorted(kinds)) or "no detector metadata", allowed=", ".join(OBJECTNESS),
            hint="export the model with this tool from its .cfg: a foreign ONNX file does not say what heads mean",
        )  # fmt: skip
    _check_input(path, session.get_inputs(), detector)
    outputs = output_names([output.name for output in session.get_outputs()], detector)
    digest = sha256(data)
    return Served(name, data, detector, tuple(outputs), _numbers(data, path), len(data), digest)


def _check_input(path: Path, inputs: list[Any], detector: Detector) -> None:
    """One picture of the detector's size goes in. Raises InputError."""
    p = detector.preprocess
    shape = inputs[0].shape if len(inputs) == 1 else []
    batch = shape[0] if shape else 0  # a name where any number of pictures may go in
    if shape[1:] != [p.channels, p.height, p.width] or (isinstance(batch, int) and batch != 1):
        raise InputError(
            "the model does not take one picture of its detector's size", where=path,
            got="; ".join(f"{i.name} {i.shape}" for i in inputs), allowed=f"[1, {p.channels}, {p.height}, {p.width}]",
            hint="export the model again",
        )  # fmt: skip
    if inputs[0].type != "tensor(float)":
        raise InputError("the model's input is not float32", where=path, got=inputs[0].type, allowed="tensor(float)")


def _numbers(data: bytes, path: Path) -> str:
    """What a graph computes with, as ``Served.numbers`` has it. Raises InputError."""
    import onnx
    import onnx_ir as ir

    try:
        model = ir.from_proto(onnx.load_from_string(data))
    except Exception as error:  # protobuf's; ONNX Runtime looks at the bytes and loads its own format under any name
        raise InputError("this is no ONNX file", where=path, hint="give the .onnx, not a converted .ort") from error
    if any(node.op_type in QUANTISED for node in model.graph.all_nodes()):
        return "quantised"
    kinds = [value.dtype for value in model.graph.initializers.values()]
    return "float16" if ir.DataType.FLOAT16 in kinds else "float32"
