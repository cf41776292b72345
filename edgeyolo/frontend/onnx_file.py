"""Read an ONNX file from anywhere: ours with detector metadata, or a stranger's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from edgeyolo.detector import METADATA_KEY, Detector, Head, Preprocess
from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.passes.graph import write_detector
from edgeyolo.passes.layer_names import LayerNames

MAX_BYTES = 1 << 31
"""protobuf's own limit."""


def load_onnx(path: Path, names: tuple[str, ...] = ()) -> tuple[ir.Model, Detector]:
    """Parse and check an ONNX file.

    Returns the graph and its detector facts; a file without our metadata gets what its input's shape says: RGB or grey
    pixels / 255, raw outputs of unknown meaning.

    Raises:
        InputError: unreadable, not ONNX, refers to other files, or has no static NCHW input.
    """
    model = read_onnx(path)
    text = model.metadata_props.get(METADATA_KEY)
    detector = Detector.from_json(text) if text else _guess(model, path)
    if names and detector.classes not in (0, len(names)):
        raise InputError("wrong number of class names", where=path, got=len(names), allowed=detector.classes)
    if names:
        detector = dataclasses.replace(detector, names=names)
    if len({node.name for node in model.graph}) < sum(1 for _ in model.graph) or not all(n.name for n in model.graph):
        LayerNames()(model)  # layers are told apart by their names; a file that has them keeps them
    write_detector(model, detector)
    return model, detector


def read_onnx(path: Path) -> ir.Model:
    """Parse and check an ONNX file of any kind.

    Raises:
        InputError: unreadable, not ONNX, or refers to other files.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(
                "the ONNX file is too large", where=path, got=path.stat().st_size, allowed=f"{MAX_BYTES} bytes"
            )
        proto = onnx.load_model_from_string(path.read_bytes())
        _refuse_other_files(proto, path)
        onnx.checker.check_model(proto)
        onnx.shape_inference.infer_shapes(proto)  # shapes that contradict each other end here
        model = ir.from_proto(proto)
        ir.to_proto(model)  # tensors are parsed when they are used: use them all
    except OSError as error:
        raise InputError("cannot read the model", where=path, got=error.strerror) from error
    except InputError:
        raise
    except Exception as error:  # protobuf, the checker and the parser raise many private types
        raise InputError("this is not a valid ONNX file", where=path, got=str(error)[:300]) from error
    if not any(entry.domain in ("", "ai.onnx") for entry in proto.opset_import):
        raise InputError("the model imports no standard operators", where=path)
    return model


def _refuse_other_files(proto: onnx.ModelProto, path: Path) -> None:
    """Nothing outside the file is ever read: external tensors are refused wherever they stand."""
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(proto)):
        raise InputError(
            "the weights are in another file",
            where=path,
            hint="save it as one file: onnx.save(onnx.load(path), new_path)",
        )


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor of a protobuf message: initializers, attributes, subgraphs, functions, sparse ones."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if isinstance(value, Iterable) else [value]:
                yield from _tensors(item)


def _guess(model: ir.Model, path: Path) -> Detector:
    """The least that shapes say."""
    inputs = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    if len(inputs) != 1:
        raise UnsupportedError("the model must have one input", where=path, got=[v.name for v in inputs])
    shape = list(inputs[0].shape) if inputs[0].shape is not None else []
    if len(shape) != 4 or not all(isinstance(d, int) for d in shape[1:]) or shape[1] not in (1, 3):
        raise InputError(
            "the input must be (N, C, H, W) with static C, H, W and 1 or 3 channels",
            where=path,
            got=f"{inputs[0].name}: {shape}",
            hint="export the model with a fixed input size",
        )
    channels, height, width = (int(str(d)) for d in shape[1:])
    heads = tuple(Head(str(v.name), kind="raw") for v in model.graph.outputs)
    return Detector("onnx", Preprocess(width, height, channels), heads)
