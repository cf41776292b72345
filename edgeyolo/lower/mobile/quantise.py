"""From a float graph and pictures to integers for ONNX Runtime's CPU kernels, and which layers are worth leaving float.

The steps and refinements are those of lower/tensorrt; where the integers stand and which scales they have is different.
"""

from __future__ import annotations

import glob
from collections.abc import Collection

import onnx_ir as ir

from edgeyolo.lower.mobile.insert import insert_integers
from edgeyolo.lower.mobile.placement import place
from edgeyolo.lower.mobile.scales import channel_peaks, choose_scales
from edgeyolo.lower.tensorrt.quantise import Form, Int8Config, Int8Result, Track, quantise_int8
from edgeyolo.passes.graph import constant, conv_groups
from edgeyolo.quant.calibrate import Pixels
from edgeyolo.quant.plan import conv_roles

WIDE = (17, 32)
"""Channels that a convolution makes, or reads, from which on its int8 kernel may pay for what surrounds it.

Float kernels for x86 fill up to 16 results with zeros, and int8 kernels with fewer than 16 are not the fast ones.
"""
MOBILE = Form(place, choose_scales, insert_integers, channel_peaks)


def quantise_mobile(
    model: ir.Model, pictures: Collection[Pixels], config: Int8Config, track: Track = lambda items, _: items
) -> Int8Result:
    """Quantise a float graph; ``encode`` makes other formats of the result, which is S8S8.

    Arguments and errors are those of ``quantise_int8``.
    """
    return quantise_int8(model, pictures, config, track, MOBILE)


def candidates(model: ir.Model) -> dict[tuple[str, ...], str]:
    """Choices of ``keep_float`` worth measuring on a processor, the plain one first, each with the reason.

    Args:
        model: float graph; layers have names.
    """
    found: dict[tuple[str, ...], str] = {
        (): "int8 everywhere",
        ("head",): "8 bits limit the boxes that the heads say",
    }
    if any("depthwise" in played for played in conv_roles(model).values()):
        found["head", "depthwise"] = "depthwise layers multiply little for every value that they convert"
    for side, what in enumerate(("makes", "reads")):
        if narrow := _leading(model, side):
            reason = f"no layer up to there {what} {WIDE[side]} channels, and pictures are still large there"
            found.setdefault(("head", *narrow), reason)
    return found


def _leading(model: ir.Model, side: int) -> list[str]:
    """Patterns for the layers in front of the first dense one with WIDE output (0) or input (1) channels, if any.

    Heads do not count: ``head`` means them.
    """
    roles, names = conv_roles(model), list[str]()
    for node in model.graph:
        weight = constant(node.inputs[1]) if node.op_type == "Conv" else None
        if weight is None or "head" in roles[str(node.name)]:
            continue
        if conv_groups(node) == 1 and weight.shape[side] >= WIDE[side]:
            return names
        names.append(glob.escape(str(node.name)))
    return []
