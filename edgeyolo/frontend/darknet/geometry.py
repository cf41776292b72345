"""One section to one layer: the geometry of every layer type, in plain integers.

Every default is Darknet's (``parse_*`` in AlexeyAB/darknet src/parser.c, ``make_*_layer`` in src/*_layer.c).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.frontend.darknet.cfg import MAX_LIST, Section, integer, integers, real, text
from edgeyolo.frontend.darknet.keys import HEADS
from edgeyolo.frontend.darknet.spec import (
    Activation,
    BatchNorm,
    Conv,
    DetectionHead,
    GlobalAverage,
    Identity,
    Layer,
    Pair,
    Pool,
    Reorg,
    Route,
    Sam,
    ScaleChannels,
    Shape,
    Shortcut,
    Softmax,
    Spec,
    Upsample,
    elements,
)

MAX_KERNEL = 1024
"""Largest window side and stride."""


def plan_layer(section: Section, layers: Mapping[int, Layer], sampled: bool) -> Layer:
    """The layer that ``section`` describes, given all layers before it (-1 is the picture).

    Raises InputError or UnsupportedError for an impossible or undefined geometry.
    """
    previous = layers[section.index - 1]
    if isinstance(previous.spec, DetectionHead) and section.kind != "route":
        raise UnsupportedError(f"a layer reads a [{previous.kind}] layer's boxes", where=section.where())
    if section.kind == "shortcut":
        return _shortcut(section, previous, layers, sampled)
    if section.kind == "route":
        return _route(section, layers)
    if section.kind in ("scale_channels", "sam"):
        return _product(section, previous, layers)
    return _PLANNERS[section.kind](section, previous)


def _make(
    section: Section,
    sources: Sequence[Layer],
    spec: Spec,
    output: Shape | None = None,
    *,
    pixel: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1)),
    weights: int = 0,
    biases: int = 0,
    macs: int = 0,
) -> Layer:
    first = sources[0]
    if output is not None and min(output) < 1:
        raise InputError("the layer has no output", where=section.where(), got=f"input {first.output}, output {output}")
    return Layer(
        section.index,
        section.kind,
        spec,
        tuple(s.index for s in sources),
        tuple(s.output for s in sources),
        output or first.output,
        (first.pixel[0] * pixel[0], first.pixel[1] * pixel[1]),
        weights,
        biases,
        macs,
    )


def _flag(section: Section, key: str) -> bool:
    return integer(section, key, 0) != 0


def _strides(section: Section) -> Pair:
    """(vertical, horizontal); stride_x or stride_y below 1 stands for stride."""
    stride = integer(section, "stride", 1, 1, MAX_KERNEL)
    vertical = integer(section, "stride_y", -1, hi=MAX_KERNEL)
    horizontal = integer(section, "stride_x", -1, hi=MAX_KERNEL)
    return (vertical if vertical >= 1 else stride, horizontal if horizontal >= 1 else stride)


def _fractions(pair: Pair) -> tuple[Fraction, Fraction]:
    return Fraction(pair[0]), Fraction(pair[1])


def _convolutional(section: Section, previous: Layer) -> Layer:
    channels, height, width = previous.output
    filters, groups = integer(section, "filters", 1, 1), integer(section, "groups", 1, 1)
    size, stride = integer(section, "size", 1, 1, MAX_KERNEL), _strides(section)
    dilation = integer(section, "dilation", 1, 1) if size > 1 else 1
    padding = size // 2 if _flag(section, "pad") else integer(section, "padding", 0, 0)
    if channels % groups or filters % groups:
        raise InputError(
            "groups do not divide the channels",
            where=section.where("groups"),
            got=f"{channels} to {filters}, {groups} groups",
        )
    # Darknet sizes the output without the dilation but pads by padding * dilation: legal where both agree.
    rows, cols = height + 2 * padding - size, width + 2 * padding - size
    grown = 2 * padding * (dilation - 1) - (dilation - 1) * (size - 1)
    output = (filters, rows // stride[0] + 1, cols // stride[1] + 1)
    if min(rows, cols) < 0:
        raise InputError("the kernel is larger than its padded input", where=section.where("size"), got=previous.output)
    if output[1:] != ((rows + grown) // stride[0] + 1, (cols + grown) // stride[1] + 1):
        raise UnsupportedError("dilation without pad=1 is not defined in Darknet", where=section.where("dilation"))
    weights = filters * (channels // groups) * size * size
    spec = Conv(
        filters,
        groups,
        (size, size),
        stride,
        padding * dilation,
        dilation,
        _flag(section, "batch_normalize") or _flag(section, "cbn"),
        text(section, "activation", "logistic"),
    )
    macs = weights * output[1] * output[2]
    pixel = _fractions(stride)
    return _make(section, [previous], spec, output, pixel=pixel, weights=weights, biases=filters, macs=macs)


def _connected(section: Section, previous: Layer) -> Layer:
    outputs = integer(section, "output", 1, 1)
    _, height, width = previous.output
    normalize, activation = _flag(section, "batch_normalize"), text(section, "activation", "logistic")
    spec = Conv(outputs, 1, (height, width), (1, 1), 0, 1, normalize, activation)
    weights = outputs * elements(previous.output)
    return _make(section, [previous], spec, (outputs, 1, 1), weights=weights, biases=outputs, macs=weights)


def _pool(section: Section, previous: Layer) -> Layer:
    channels, height, width = previous.output
    stride = _strides(section)
    size = integer(section, "size", integer(section, "stride", 1, 1), 1, MAX_KERNEL)
    padding = integer(section, "padding", size - 1, 0)
    if (padding + 1) // 2 >= size:
        raise InputError("a window would cover padding only", where=section.where("padding"), got=padding)
    before = padding // 2
    if min(height, width) + padding < size:
        raise InputError("the window is larger than its padded input", where=section.where("size"), got=previous.output)
    rows, cols = (height + padding - size) // stride[0] + 1, (width + padding - size) // stride[1] + 1
    below = max(0, (rows - 1) * stride[0] + size - before - height)
    right = max(0, (cols - 1) * stride[1] + size - before - width)
    spec = Pool(size, stride, (before, before, below, right), section.kind == "local_avgpool")
    return _make(section, [previous], spec, (channels, rows, cols), pixel=_fractions(stride))


def _upsample(section: Section, previous: Layer) -> Layer:
    stride = integer(section, "stride", 2, 1, MAX_KERNEL)
    channels, height, width = previous.output
    output = (channels, height * stride, width * stride)
    pixel = (Fraction(1, stride), Fraction(1, stride))
    return _make(section, [previous], Upsample(stride, real(section, "scale", 1.0)), output, pixel=pixel)


def _reorg(section: Section, previous: Layer) -> Layer:
    stride, reverse = integer(section, "stride", 1, 1, MAX_KERNEL), _flag(section, "reverse")
    channels, height, width = previous.output
    area = stride * stride
    if reverse:
        output, factor = (channels // area, height * stride, width * stride), Fraction(1, stride)
    else:
        output, factor = (channels * area, height // stride, width // stride), Fraction(stride)
    # [reorg] walks the memory with its input's shape, [reorg3d] with its output's.
    grid = previous.output if section.kind == "reorg" else output
    if elements(output) != elements(previous.output) or grid[0] % area:
        raise UnsupportedError("stride does not divide the shape", where=section.where("stride"), got=previous.output)
    return _make(section, [previous], Reorg(stride, reverse, grid), output, pixel=(factor, factor))


def _softmax(section: Section, previous: Layer) -> Layer:
    groups, temperature = integer(section, "groups", 1, 1), real(section, "temperature", 1.0)
    if elements(previous.output) % groups:
        raise InputError("groups do not divide the values", where=section.where("groups"), got=previous.output)
    if not temperature > 0:
        raise InputError("temperature must be positive", where=section.where("temperature"), got=temperature)
    return _make(section, [previous], Softmax(groups, temperature))


def _global_average(section: Section, previous: Layer) -> Layer:
    return _make(section, [previous], GlobalAverage(), (previous.output[0], 1, 1))


def _batchnorm(section: Section, previous: Layer) -> Layer:
    channels = previous.output[0]
    return _make(section, [previous], BatchNorm(), weights=channels, biases=channels, macs=elements(previous.output))


def _activation(section: Section, previous: Layer) -> Layer:
    return _make(section, [previous], Activation(text(section, "activation", "linear")))


def _identity(section: Section, previous: Layer) -> Layer:
    return _make(section, [previous], DetectionHead() if section.kind in HEADS else Identity())


_PLANNERS: dict[str, Callable[[Section, Layer], Layer]] = {
    "convolutional": _convolutional,
    "connected": _connected,
    "maxpool": _pool,
    "local_avgpool": _pool,
    "avgpool": _global_average,
    "upsample": _upsample,
    "reorg": _reorg,
    "reorg3d": _reorg,
    "softmax": _softmax,
    "batchnorm": _batchnorm,
    "activation": _activation,
    **dict.fromkeys(("dropout", "cost", "empty", *HEADS), _identity),
}


def _references(section: Section, key: str, layers: Mapping[int, Layer]) -> list[Layer]:
    """The layers that ``key`` names: absolute, or relative to this one if negative."""
    numbers = integers(section, key)
    if not 1 <= len(numbers) <= MAX_LIST:
        raise InputError(f"{key} must name 1 to {MAX_LIST} layers", where=section.where(key), got=len(numbers))
    found = []
    for number in numbers:
        index = number if number >= 0 else section.index + number
        if not 0 <= index < section.index:
            allowed = f"layers 0 to {section.index - 1}, or -1 to {-section.index}" if section.index else None
            raise InputError("no such layer before this one", where=section.where(key), got=number, allowed=allowed)
        if isinstance(layers[index].spec, DetectionHead):
            raise UnsupportedError(f"a layer reads a [{layers[index].kind}] layer's boxes", where=section.where(key))
        found.append(layers[index])
    return found


def _route(section: Section, layers: Mapping[int, Layer]) -> Layer:
    sources = _references(section, "layers", layers)
    groups, group_id = integer(section, "groups", 1, 1), integer(section, "group_id", 0, 0)
    if any(s.output[1:] != sources[0].output[1:] for s in sources):
        got = ", ".join(f"{s.name} {s.output}" for s in sources)
        raise InputError("the routed layers differ in height or width", where=section.where("layers"), got=got)
    if group_id >= groups or any(s.output[0] % groups for s in sources):
        got = f"group {group_id} of {groups}, channels {[s.output[0] for s in sources]}"
        raise InputError("groups do not divide the channels", where=section.where("groups"), got=got)
    channels = sum(s.output[0] for s in sources) // groups
    return _make(section, sources, Route(groups, group_id), (channels, *sources[0].output[1:]))


def _shortcut(section: Section, previous: Layer, layers: Mapping[int, Layer], sampled: bool) -> Layer:
    others = _references(section, "from", layers)
    kind = text(section, "weights_type", "none")
    per_source = {"none": 0, "per_channel": previous.output[0]}.get(kind, 1)
    # Old versions of the program spell the key without "at".
    spelling = "weights_normalization" if "weights_normalization" in section.options else "weights_normalizion"
    normalization = text(section, spelling, "none").removeprefix("avg_")
    spatial = [o for o in others if o.output[1:] != previous.output[1:]]
    if spatial and per_source:
        raise UnsupportedError("a weighted shortcut of layers that differ in size", where=section.where("from"))
    if sampled:
        for other in spatial:
            _check_sampling(section, previous.output, other.output)
    spec = Shortcut(per_source, normalization, text(section, "activation", "linear"), sampled)
    return _make(section, [previous, *others], spec, weights=per_source * (len(others) + 1))


def _check_sampling(section: Section, to: Shape, other: Shape) -> None:
    """Sampling needs one integer factor, the same in both directions."""
    up, down = (max(1, to[2] // other[2]), max(1, other[2] // to[2]))
    if (other[1] * up, other[2] * up) != (to[1] * down, to[2] * down):
        raise UnsupportedError("shortcut sizes without a common factor", where=section.where("from"), got=(to, other))


def _product(section: Section, previous: Layer, layers: Mapping[int, Layer]) -> Layer:
    sources = _references(section, "from", layers)
    scaled, given = sources[0], previous.output
    per_pixel = section.kind == "scale_channels" and _flag(section, "scale_wh")
    if section.kind == "sam":
        wanted = scaled.output
    else:
        wanted = (1, *scaled.output[1:]) if per_pixel else (scaled.output[0], 1, 1)
    if len(sources) != 1 or given != wanted:
        raise InputError("the layers' shapes do not fit", where=section.where("from"), got=given, allowed=wanted)
    activation = text(section, "activation", "linear")
    spec = Sam(activation) if section.kind == "sam" else ScaleChannels(per_pixel, activation)
    layer = _make(section, [previous, scaled], spec, scaled.output, macs=elements(scaled.output))
    return replace(layer, pixel=scaled.pixel)
