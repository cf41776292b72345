"""Sections to layers: shapes, sizes and limits in plain integers, so that nothing is allocated for a hostile cfg."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.frontend.darknet.cfg import Section, integer
from edgeyolo.frontend.darknet.geometry import plan_layer
from edgeyolo.frontend.darknet.spec import Input, Layer, Pair, Shape, elements

MAX_SIDE = 16384
"""Pixels of a network input's side."""
MAX_PARAMETERS = 1 << 28
"""1 GiB of float32; VGG-16, the largest of the family, has 1.4e8."""
MAX_LIVE_VALUES = 1 << 28
"""Activations that live at one time, 1 GiB of float32; YOLOv4-p6 at 1280x1280 needs 1e8."""


def plan_network(sections: Sequence[Section], size: Pair, *, sampled_shortcut: bool = False) -> tuple[Layer, ...]:
    """All layers of a cfg with their shapes, for a picture of ``size`` (height, width).

    Args:
        sections: as parsed and checked; [net] first.
        size: height and width of the picture in pixels.
        sampled_shortcut: pjreddie's rule for shortcuts whose sources differ in width and height.

    Raises:
        InputError: an impossible geometry, or a network beyond the limits of this module.
        UnsupportedError: a geometry that Darknet itself does not define.
    """
    net = sections[0]
    channels = integer(net, "channels", 0)
    if channels not in (1, 3):
        raise UnsupportedError("a picture has 1 or 3 channels", where=net.where("channels"), got=channels)
    picture: Shape = (channels, *size)
    if not all(1 <= side <= MAX_SIDE for side in size):
        raise InputError(
            "the input size is out of range", where=net.where("width"), got=size, allowed=f"1 to {MAX_SIDE} pixels"
        )
    if integer(net, "inputs", elements(picture)) not in (0, elements(picture)):
        raise UnsupportedError("a network input that is no picture", where=net.where("inputs"), hint="remove inputs=")
    layers = {-1: Layer(-1, "net", Input(), (), (picture,), picture, (Fraction(1), Fraction(1)))}
    parameters = 0
    for section in sections[1:]:
        layer = plan_layer(section, layers, sampled_shortcut)
        parameters += layer.weights + layer.biases
        if parameters > MAX_PARAMETERS or elements(layer.output) > MAX_LIVE_VALUES:
            raise InputError(
                "the network is too large",
                where=section.where(),
                got=f"{parameters} parameters so far, output {layer.output}",
                allowed=f"{MAX_PARAMETERS} parameters, {MAX_LIVE_VALUES} values",
            )
        layers[layer.index] = layer
    return tuple(layers[i] for i in range(len(sections) - 1))


def last_uses(layers: Sequence[Layer], outputs: Sequence[int]) -> dict[int, int]:
    """For every layer that an output depends on: the last layer that reads it (itself for an output's own use).

    Keys are the layers that must run, -1 included; the picture and outputs that nothing reads later live on to the end.
    """
    needed, last = set(outputs), dict.fromkeys(outputs, len(layers))
    for layer in reversed(layers):
        if layer.index in needed:
            for source in layer.sources:
                needed.add(source)
                last.setdefault(source, layer.index)
    return last


def check_live_values(layers: Sequence[Layer], outputs: Sequence[int], where: str) -> int:
    """Peak number of values alive at one time per picture. Raises InputError beyond MAX_LIVE_VALUES."""
    last = last_uses(layers, outputs)
    live = peak = elements(layers[0].input) if layers else 0
    ends = {last.get(-1, len(layers)): live}
    for layer in layers:
        if layer.index not in last:
            continue
        live += elements(layer.output)
        peak = max(peak, live)
        live -= ends.pop(layer.index, 0)
        ends[last[layer.index]] = ends.get(last[layer.index], 0) + elements(layer.output)
    if peak > MAX_LIVE_VALUES:
        raise InputError("the network's activations are too large", where=where, got=peak, allowed=MAX_LIVE_VALUES)
    return peak
