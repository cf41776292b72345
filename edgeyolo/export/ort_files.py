"""Models in ONNX Runtime's own format (.ort), and the list of operators that a reduced build needs for them.

This does what ``python -m onnxruntime.tools.convert_onnx_models_to_ort`` does: a session with the same options saves
what it has optimised, and the tool's own function lists the operators. Two things are put right. ONNX Runtime never
writes the same bytes twice, because it writes one table of the file, which operator has which types, in the order of a
hash map with a random seed: ``_in_order`` writes it anew. And the list names the temporary files it was made from.

The graph in an .ort file is optimised already, and the device applies nothing more. So it must fit the device:

- NCHWc, a layout whose block size is that of the converting CPU, is left out, on x86 too. There a float .ort file is
  slower than the .onnx file in a full build (yolo-fastest-1.1 with AVX2: 1.6 times), but loads in a third of the time.
- Signed int8 stays signed on ARM; for x86 it becomes unsigned.
- For the CPU provider everything is fused beforehand. Any other provider finds nothing to do in fused operators, so for
  it the file has plain ones, and what it leaves is fused on the device, if the app sets the session's
  ``session.enable_saved_runtime_optimizations``.
- float16 is refused: the converting CPU has no kernels for it, so the file would compute in float32, with conversions
  around, and be larger than that of the float32 model.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgeyolo.errors import InputError
from edgeyolo.mobile import CPU, MobileBoard, choose_provider

CONFIG = "required_operators_and_types.config"
"""For ``--include_ops_by_config`` of ONNX Runtime's build; without ``--enable_reduced_operator_type_support`` the build
ignores the types in it."""
STYLE = "optimization.minimal_build_optimizations"
"""Session option: absent, everything is fused; ``save``: what could be is written down; ``apply``: just that is."""
FLOAT16 = 10
"""``TensorProto.FLOAT16``."""
ALIGNMENT = 16
"""Of the whole flatbuffer; nothing in it needs more."""


def ort_files(models: Mapping[str, bytes], board: MobileBoard, provider: str | None = None) -> dict[str, bytes]:
    """Convert models for ``board``. The same models give the same bytes.

    Args:
        models: ONNX files by the name that their .ort file gets, such as ``int8`` for ``int8.ort``. The metadata stays.
        board: what they are for.
        provider: the execution provider that will run them; default that of the board.

    Returns:
        The files by name: one .ort for each model, and ``CONFIG``, what all of them need.

    Raises InputError for a model with float16, and where ONNX Runtime cannot convert.
    """
    plain, arm = choose_provider(board, provider) != CPU, board.machine == "aarch64"
    _refuse_float16(models)
    with tempfile.TemporaryDirectory() as place:
        paths = {name: Path(place, f"{name}.ort") for name in models}
        fused = {name: Path(place, f"{name}.fused.ort") for name in models if plain}
        for name, data in models.items():
            _convert(name, data, paths[name], "save" if plain else None, arm=arm)
            if plain:  # which of the fusions the device makes depends on its provider, so the list needs both
                _convert(name, data, fused[name], "apply", arm=arm)
        rules = _operators([*paths.values(), *fused.values()], Path(place, CONFIG))
        found = {path.name: _in_order(path.read_bytes()) for path in paths.values()}
    return {**found, CONFIG: "\n".join([f"# {', '.join(sorted(found))}", *rules, ""]).encode()}


def ort_file(name: str, model: bytes, *, arm: bool, plain: bool) -> bytes:
    """One .ort file alone, as ``ort_files`` makes it.

    Args:
        name: for messages.
        model: the ONNX file.
        arm: for an ARM processor, which multiplies signed integers.
        plain: for another provider than the CPU's.

    Raises InputError where ONNX Runtime cannot convert.
    """
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "converted.ort")
        _convert(name, model, path, "save" if plain else None, arm=arm)
        return _in_order(path.read_bytes())


def _refuse_float16(models: Mapping[str, bytes]) -> None:
    import onnx

    graphs = {name: onnx.load_model_from_string(data).graph for name, data in models.items()}
    half = [name for name, graph in graphs.items() if any(t.data_type == FLOAT16 for t in graph.initializer)]
    if half:
        raise InputError(
            "ONNX Runtime cannot keep float16 in an .ort file",
            got=", ".join(half),
            hint="use the .onnx file on the device",
        )


def _convert(name: str, model: bytes, path: Path, style: str | None, *, arm: bool) -> None:
    """Let a session save at ``path`` what it makes of ``model``."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised; nothing needs to be printed as well
    options.optimized_model_filepath = str(path)
    entries = {"session.save_model_format": "ORT", "session.qdqisint8allowed": str(int(arm))}
    for key, value in (entries if style is None else {**entries, STYLE: style}).items():
        options.add_session_config_entry(key, value)
    try:
        ort.InferenceSession(model, options, providers=[CPU], disabled_optimizers=["NchwcTransformer"])
    except Exception as error:  # ORT raises many private types
        raise InputError("ONNX Runtime cannot convert the model", where=name, got=str(error)[:500]) from error


def _operators(models: Iterable[Path], target: Path) -> list[str]:
    """The lines of the list of operators, without comments; the tool writes it to ``target``."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    from onnxruntime.tools.ort_format_model import create_config_from_models

    root.handlers[:] = handlers  # importing it has set up logging for the whole process
    create_config_from_models(models, target, enable_type_reduction=True)
    return [line for line in target.read_text("utf-8").splitlines() if not line.startswith("#")]


def _in_order(data: bytes) -> bytes:
    """An .ort file whose table of operators' types is written in a fixed order.

    A flatbuffer is written from its end, and all references in it are relative. This table is what ONNX Runtime writes
    last, so everything from the model on stays as it is and the table is written anew in front of it. Slots as in
    ONNX Runtime's ``ort.fbs``: the root has version, model, (unused), table.
    """
    import flatbuffers
    from flatbuffers.number_types import SOffsetTFlags
    from flatbuffers.table import Table

    root = Table(data, int.from_bytes(data[:4], "little"))
    model, types = _child(root, 1), _child(root, 3)
    start = min(model.Pos, model.Pos - model.Get(SOffsetTFlags, model.Pos))  # its vtable may stand before it
    builder = flatbuffers.Builder(0)
    builder.Bytes, builder.head, builder.minalign = bytearray(data[start:]), 0, ALIGNMENT
    operators = [
        _object(
            builder,
            _text(builder, operator, 0),
            _vector(builder, [_constraint(builder, constraint) for constraint in _children(operator, 1)]),
        )
        for operator in _children(types, 0)
    ]
    table = _object(builder, _vector(builder, operators))
    version = _text(builder, root, 0)
    builder.Finish(_object(builder, version, len(data) - model.Pos, 0, table), b"ORTM")
    return bytes(builder.Output())


def _constraint(builder: Any, constraint: Any) -> int:
    """Copy one of an operator's types: its name, and the inputs and outputs that have it."""
    from flatbuffers.number_types import Int8Flags, Uint32Flags

    arguments = []
    for argument in _children(constraint, 1):
        builder.StartObject(2)
        builder.PrependInt8Slot(0, argument.GetSlot(4, 0, Int8Flags), 0)
        builder.PrependUint32Slot(1, argument.GetSlot(6, 0, Uint32Flags), 0)
        arguments.append(builder.EndObject())
    return _object(builder, _text(builder, constraint, 0), _vector(builder, arguments))


def _child(table: Any, slot: int) -> Any:
    return type(table)(table.Bytes, table.Indirect(table.Pos + table.Offset(4 + 2 * slot)))


def _children(table: Any, slot: int) -> list[Any]:
    offset = table.Offset(4 + 2 * slot)
    first = table.Vector(offset)
    return [type(table)(table.Bytes, table.Indirect(first + 4 * i)) for i in range(table.VectorLen(offset))]


def _text(builder: Any, table: Any, slot: int) -> int:
    return int(builder.CreateString(table.String(table.Pos + table.Offset(4 + 2 * slot))))


def _vector(builder: Any, items: list[int]) -> int:
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        builder.PrependUOffsetTRelative(item)
    return int(builder.EndVector())


def _object(builder: Any, *fields: int) -> int:
    builder.StartObject(len(fields))
    for slot, field in enumerate(fields):
        builder.PrependUOffsetTRelativeSlot(slot, field, 0)
    return int(builder.EndObject())
