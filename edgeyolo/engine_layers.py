r"""What TensorRT made of a network: reads its engine inspector's JSON, and judges which convolutions are not int8.

The JSON is ``{"Layers": [...], "Bindings": [names]}``, made by ``trtexec --exportLayerInfo`` or by ``EngineInspector``.
What a layer says depends on the version and on the part of TensorRT that made it:

    8.4, 8.5       Name "conv + act", LayerType CaskConvolution, Weights {"Type": "Int8"}, ParameterType Convolution;
                   tensors with "Format/Datatype", a sentence such as "Row major linear FP32"
    8.6 on         the same with Metadata "[ONNX Layer: conv]\x1e[ONNX Layer: act]" (\x1e, \x1f or nothing between)
    10 on          tensors may have "Format" and "Datatype"; more types: CaskJitConv, CaskGemmConvolution; the compiler
                   inside (Myelin) says neither Weights nor ParameterType: LayerType correlation, gemm, kgen, fusion
    dynamic batch  the format of a tensor is "N/A due to dynamic shapes": weights or the kernel's name must tell

Nothing of it is documented. This reader relies on as little as it can, and says "?" where it cannot tell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgeyolo.errors import InputError

MAX_BYTES = 1 << 26
"""Size of a layer file; the largest known detectors need some hundred KiB."""
UNKNOWN = "?"
DETAIL = "build with trtexec --profilingVerbosity=detailed (build.sh does), or with ProfilingVerbosity.DETAILED"

CONVOLUTION, OTHER, POINTWISE, COPY = "convolution", "other", "pointwise", "copy"
ROLES = (CONVOLUTION, OTHER, POINTWISE, COPY)
"""Of layers that name the same ONNX node, the one with the earliest role is taken to compute it."""

_TYPES = {
    name: re.compile(rf"\bk?(?:{words})\b", re.IGNORECASE)
    for name, words in {
        "int8": "int8",
        "fp16": "fp16|half|float16",
        "fp32": "fp32|float|float32|tf32",
        "bf16": "bf16|bfloat16",
        "fp8": "fp8",
        "int4": "int4",
        "fp4": "fp4",
        "uint8": "uint8",
        "int32": "int32",
        "int64": "int64",
        "bool": "bool",
    }.items()
}
"""Our name of a type -> how TensorRT writes it, alone or within a sentence."""
_KERNELS = {
    "int8": re.compile(r"int8|imma|(?<![a-z0-9])i8(?!\d)"),
    "fp8": re.compile(r"e4m3|e5m2"),
    "fp16": re.compile(r"f16f16|fp16|hmma|h16816"),
    "fp32": re.compile(r"f32f32|fp32|scudnn|sgemm"),
}
"""Our name of a type -> what stands in the names of its kernels."""
_CONV_KIND = re.compile(r"conv(?!er)|^correlation$", re.IGNORECASE)
_CONV_KERNEL = re.compile(r"fprop|dgrad", re.IGNORECASE)
_COPY_NAME = re.compile(r"__myl_(?:Move?|Cast?)+_")
_COPIES = ("Reformat", "NoOp")


@dataclass(frozen=True)
class Tensor:
    """An input or output of a layer: its name and precision."""

    name: str
    precision: str


@dataclass(frozen=True)
class Layer:
    """One layer of an engine: a kernel, mostly.

    Args:
        name: TensorRT's.
        kind: TensorRT's type of layer.
        role: one of ``ROLES``.
        inputs, outputs: its tensors.
        weights: precision of its weights; None where nothing is said.
        tactic: name of the kernel; empty where nothing is said.
        onnx: names of the ONNX nodes in it, weights and Q/DQ included; empty for most copies.
    """

    name: str
    kind: str
    role: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    weights: str | None
    tactic: str
    onnx: tuple[str, ...]

    @property
    def precision(self) -> str:
        """Type of the weights; else of the first input that has one; else what the kernel's name says; else ``?``."""
        stated = [self.weights or UNKNOWN, *(t.precision for t in self.inputs)]
        return next((p for p in [*stated, _kernel(self.tactic)] if p != UNKNOWN), UNKNOWN)


@dataclass(frozen=True)
class EngineLayers:
    """All layers in the order of execution, and the names of the engine's inputs and outputs."""

    layers: tuple[Layer, ...]
    bindings: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a bundle wants: ONNX nodes that shall be int8, and those that shall not, with the reason."""

    int8: tuple[str, ...]
    floats: dict[str, str]


@dataclass(frozen=True)
class Flag:
    """Convolutions that should be int8 and are not.

    Args:
        nodes: their names in the ONNX graph; TensorRT's name where that is not known.
        layer: the layer that computes them; None where none says so.
        precision: what they got.
        reason: why they should be int8, or why this cannot be seen.
    """

    nodes: tuple[str, ...]
    layer: str | None
    precision: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """The layers that are convolutions, and the flags."""

    convolutions: tuple[Layer, ...]
    flagged: tuple[Flag, ...]


def parse_layers(data: bytes | str, where: object) -> EngineLayers:
    """Read the JSON of an engine inspector, which may come from anywhere.

    Args:
        data: at most ``MAX_BYTES``.
        where: for messages.

    Raises:
        InputError: not such JSON, or without the detail that is needed.
    """
    if len(data) > MAX_BYTES:
        raise InputError("the layer file is too large", where=where, got=f"{len(data)} bytes", allowed=MAX_BYTES)
    try:
        # Not strict: some versions write the separator of Metadata, a control character, as it is.
        found = json.loads(data, strict=False)
    except (ValueError, RecursionError) as error:
        raise InputError("the layers are not JSON", where=where, got=str(error)[:200]) from error
    rows = found.get("Layers") if isinstance(found, dict) else None
    if not isinstance(rows, list):
        allowed = 'JSON of an engine inspector: {"Layers": [...]}'
        raise InputError("this is not a layer file", where=where, allowed=allowed)
    if not rows or any(isinstance(row, str) for row in rows):
        got = "names only" if rows else "no layer"
        raise InputError("the engine was built without the details of its layers", where=where, got=got, hint=DETAIL)
    layers = []
    for index, row in enumerate(rows):
        try:
            layers.append(_layer(row))
        except (TypeError, KeyError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise InputError("a layer cannot be read", where=f"{where}, layer {index}", got=reason[:200]) from error
    return EngineLayers(tuple(layers), _bindings(found.get("Bindings"), where))


def judge(engine: EngineLayers, plan: Plan | None) -> Verdict:
    """Find the convolutions that should be int8 and are not.

    Args:
        engine: from ``parse_layers``.
        plan: the bundle's. None: in an engine that has any int8, every convolution should be int8, except those that
            end in an output of the engine.
    """
    if plan is not None:
        return _judge_by_plan(engine, plan)
    convolutions = tuple(layer for layer in engine.layers if layer.role == CONVOLUTION)
    if not any("int8" in (layer.precision, *(t.precision for t in layer.outputs)) for layer in engine.layers):
        return Verdict(convolutions, ())
    ends = _ends(engine)
    wrong = [c for c in convolutions if c.precision != "int8" and not ends.intersection(t.name for t in c.outputs)]
    flags = (Flag(c.onnx or (c.name,), c.name, c.precision, "other layers of the engine are int8") for c in wrong)
    return Verdict(convolutions, tuple(flags))


def _judge_by_plan(engine: EngineLayers, plan: Plan) -> Verdict:
    holders: dict[str, list[Layer]] = {}
    for layer in engine.layers:
        for name in layer.onnx:
            holders.setdefault(name, []).append(layer)
    computing = {name: _computing(holders.get(name, ())) for name in (*plan.int8, *plan.floats)}
    wrong: dict[Layer, list[str]] = {}
    lost = []
    for name in plan.int8:
        if not computing[name]:
            lost.append(Flag((name,), None, UNKNOWN, "planned as int8, but no layer of the engine names it"))
        for layer in computing[name]:
            if layer.precision != "int8":
                wrong.setdefault(layer, []).append(name)
    known = {layer for layers in computing.values() for layer in layers}
    convolutions = tuple(layer for layer in engine.layers if layer.role == CONVOLUTION or layer in known)
    flags = [Flag(tuple(names), layer.name, layer.precision, "planned as int8") for layer, names in wrong.items()]
    return Verdict(convolutions, (*flags, *lost))


def _computing(layers: Iterable[Layer]) -> list[Layer]:
    """Those of the layers that name a node which compute it: copies and activations behind it may name it too."""
    found = [layer for layer in layers if layer.role != COPY]
    best = min((ROLES.index(layer.role) for layer in found), default=0)
    return [layer for layer in found if layer.role == ROLES[best]]


def _ends(engine: EngineLayers) -> set[str]:
    """Names of the tensors that are an output of the engine, or become one through copies only."""
    ends = set(engine.bindings)
    for layer in reversed(engine.layers):
        if layer.role == COPY and ends.intersection(t.name for t in layer.outputs):
            ends.update(t.name for t in layer.inputs)
    return ends


def _layer(entry: object) -> Layer:
    """One entry of "Layers". Raises TypeError and KeyError."""
    row: dict[str, Any] = _typed(entry, dict, "the layer")
    name, kind = _text(row, "Name"), _text(row, "LayerType")
    tactic, parameters, metadata = (_text(row, key, "") for key in ("TacticName", "ParameterType", "Metadata"))
    weights = row.get("Weights", row.get("ConvWeights"))  # the latter where a pooling is in the same kernel
    role = _role(name, kind, parameters, tactic)
    return Layer(
        name,
        kind,
        role,
        _tensors(row, "Inputs"),
        _tensors(row, "Outputs"),
        None if weights is None else _precision(_text(_typed(weights, dict, "Weights"), "Type", "")),
        tactic,
        _onnx(metadata, "" if role == COPY else name),
    )


def _role(name: str, kind: str, parameters: str, tactic: str) -> str:
    if kind in _COPIES or _COPY_NAME.match(name):
        return COPY
    if _CONV_KIND.search(parameters) or _CONV_KIND.search(kind) or _CONV_KERNEL.search(tactic):
        return CONVOLUTION
    return POINTWISE if kind == "kgen" or kind.startswith("PointWise") else OTHER


def _onnx(metadata: str, name: str) -> tuple[str, ...]:
    """ONNX nodes of a layer: from its metadata, else from a name such as "conv + PWN(act) || conv + PWN(a, b)"."""
    parts = [part.rstrip("\x1e\x1f \n").removesuffix("]") for part in metadata.split("[ONNX Layer: ")[1:]]
    parts = parts or [_unwrapped(part) for part in re.split(r" \+ | \|\| |, ", name)]
    return tuple(dict.fromkeys(part for part in parts if part))


def _unwrapped(part: str) -> str:
    """A node's name without what is left of "PWN(...)" around it."""
    part = re.sub(r"^(?:PWN\()+", "", part)
    surplus = max(part.count(")") - part.count("("), 0)
    return part[: len(part) - min(surplus, len(part) - len(part.rstrip(")")))]


def _tensors(row: dict[str, Any], key: str) -> tuple[Tensor, ...]:
    found = []
    for item in _typed(row.get(key, []), list, key):
        tensor = _typed(item, dict, f"a tensor of {key}")
        texts = [_text(tensor, part, "") for part in ("Datatype", "Format/Datatype", "Format")]
        precision = next((p for p in map(_precision, texts) if p != UNKNOWN), UNKNOWN)
        found.append(Tensor(_text(tensor, "Name", ""), precision))
    return tuple(found)


def _bindings(found: object, where: object) -> tuple[str, ...]:
    """Names of inputs and outputs; some tools write them as objects."""
    items = found if isinstance(found, list) else []
    names = [item.get("Name") if isinstance(item, dict) else item for item in items]
    if found is not None and (not isinstance(found, list) or not all(isinstance(name, str) for name in names)):
        raise InputError("the bindings cannot be read", where=where, allowed="a list of names")
    return tuple(map(str, names))


def _typed(value: object, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{what} is not {'an object' if kind is dict else 'a list' if kind is list else 'text'}")
    return value


def _text(row: dict[str, Any], key: str, default: str | None = None) -> str:
    """Text under ``key``; KeyError where it is missing and there is no default."""
    return str(_typed(row[key] if default is None else row.get(key, default), str, key))


def _precision(text: str) -> str:
    return next((name for name, words in _TYPES.items() if words.search(text)), UNKNOWN)


def _kernel(tactic: str) -> str:
    return next((name for name, words in _KERNELS.items() if words.search(tactic.lower())), UNKNOWN)
