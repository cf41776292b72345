"""What a cfg says about its outputs: which layers they are, anchors, strides, class names, preprocessing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from edgeyolo.detector import Detector, Head, Preprocess
from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.frontend.darknet.cfg import MAX_LIST, Section, integer, integers, read_bytes, real, reals, text
from edgeyolo.frontend.darknet.plan import MAX_SIDE
from edgeyolo.frontend.darknet.spec import DetectionHead, Identity, Layer, Pair, Softmax

MAX_CLASSES = 1 << 16
MAX_NAMES_BYTES = 1 << 20
_ENTRIES = {"yolo": 5, "region": 5, "Gaussian_yolo": 9}
"""Values per anchor before the classes."""


def cfg_size(net: Section) -> Pair:
    """The cfg's own input (height, width)."""
    return integer(net, "height", 0, 1, MAX_SIDE), integer(net, "width", 0, 1, MAX_SIDE)


def parse_imgsz(imgsz: str) -> Pair:
    """``416`` or ``1024x576`` (width x height) to (height, width). Raises InputError on anything else."""
    match = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", imgsz.strip())
    if match is None:
        raise InputError(
            "not an input size", where="--imgsz", got=imgsz[:40], allowed="416 or 1024x576 (width x height)"
        )
    width, height = int(match[1]), int(match[2] or match[1])
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise InputError("the input size is out of range", where="--imgsz", got=imgsz, allowed=f"1 to {MAX_SIDE}")
    return height, width


def largest_stride(layers: Sequence[Layer]) -> Pair:
    """Picture pixels per pixel of the coarsest feature map, (vertical, horizontal)."""
    pairs = [layer.pixel for layer in layers] or [(Fraction(1), Fraction(1))]
    return max(-(-p[0] // 1) for p in pairs), max(-(-p[1] // 1) for p in pairs)


def check_size(size: Pair, step: Pair) -> None:
    """Raise InputError, naming the nearest legal sizes, unless ``size`` is a multiple of ``step``."""
    if size[0] % step[0] == 0 and size[1] % step[1] == 0:
        return
    (heights, widths) = ([side // s * s, (side // s + 1) * s] for side, s in zip(size, step, strict=True))
    legal = [f"{w}x{h}" for w, h in zip(widths, heights, strict=True) if 0 < w <= MAX_SIDE and 0 < h <= MAX_SIDE]
    raise InputError(
        f"the input must be a multiple of the largest stride, {step[1]}x{step[0]}",
        where="--imgsz",
        got=f"{size[1]}x{size[0]}",
        allowed=", ".join(legal) or None,
    )


def find_outputs(layers: Sequence[Layer]) -> tuple[tuple[int, ...], bool]:
    """The layers whose results leave the network, and whether it is a classifier.

    The inputs of all detection heads, or else the last layer, with dropout and cost left out.
    """
    heads = tuple(layer.sources[0] for layer in layers if isinstance(layer.spec, DetectionHead))
    if heads:
        return heads, False
    last = next((layer for layer in reversed(layers) if not isinstance(layer.spec, Identity)), None)
    return ((last.index,) if last else ()), True


def read_names(path: Path) -> tuple[str, ...]:
    """Class names, one a line. Raises InputError if the file cannot be read."""
    lines = read_bytes(path, "names file", MAX_NAMES_BYTES).decode("utf-8-sig", errors="replace").splitlines()
    return tuple(line.strip() for line in "\n".join(lines).rstrip().splitlines())


def make_detector(
    sections: Sequence[Section], layers: Sequence[Layer], size: Pair, names: tuple[str, ...], *, region_sigmoid: bool
) -> Detector:
    """All detector facts of a planned network.

    Args:
        sections, layers: the cfg and its plan; section i + 1 is layer i.
        size: (height, width) of the input.
        names: class names, or () when unknown.
        region_sigmoid: pjreddie's rule that [region] without softmax=1 takes the sigmoid of its classes.

    Raises:
        InputError: channels, classes, masks, anchors or names that do not fit together.
    """
    net = sections[0]
    outputs, classifier = find_outputs(layers)
    if classifier:
        heads: tuple[Head, ...] = (_classifier(sections, layers, outputs),)
    else:
        found = [layer for layer in layers if isinstance(layer.spec, DetectionHead)]
        heads = tuple(_head(sections[layer.index + 1], layer, size, region_sigmoid) for layer in found)
    last = sections[[i for i, s in enumerate(sections) if s.kind in _ENTRIES][-1]] if not classifier else net
    if names and any(len(names) != head.classes for head in heads):
        raise InputError(
            "the names file does not fit", got=f"{len(names)} names", allowed=f"{heads[0].classes} classes"
        )
    resize = "letterbox" if integer(net, "letter_box", 0) else "stretch"
    return Detector(
        source="darknet",
        preprocess=Preprocess(width=size[1], height=size[0], channels=integer(net, "channels", 0), resize=resize),
        heads=heads,
        names=names,
        nms_kind=text(last, "nms_kind", "default"),
        beta_nms=real(last, "beta_nms", 0.6),
    )


def _classifier(sections: Sequence[Section], layers: Sequence[Layer], outputs: tuple[int, ...]) -> Head:
    if not outputs:
        raise InputError("the network has no layers", where=sections[0].file)
    last = layers[outputs[0]]
    if last.output[1:] != (1, 1) or (isinstance(last.spec, Softmax) and last.spec.groups != 1):
        raise UnsupportedError(
            "the network ends neither in a detection head nor in class scores",
            where=sections[last.index + 1].where(),
            got=f"output {last.output}",
            allowed="[yolo], [Gaussian_yolo], [region], or a last layer of 1x1 pixels",
        )
    return Head("logits", "classifier", classes=last.output[0], softmax=isinstance(last.spec, Softmax))


def _head(section: Section, layer: Layer, size: Pair, region_sigmoid: bool) -> Head:
    kind = section.kind
    classes = integer(section, "classes", 20, 1, MAX_CLASSES)
    total = integer(section, "num", 1, 1, MAX_LIST)
    mask = (integers(section, "mask") if kind != "region" else ()) or tuple(range(total))
    per_anchor = _ENTRIES[kind] + classes
    channels, rows, cols = layer.input
    if channels != len(mask) * per_anchor:
        raise InputError(
            f"the layer before [{kind}] has the wrong number of filters",
            where=section.where("classes"),
            got=f"{channels} filters",
            allowed=f"{len(mask)} anchors x {per_anchor} = {len(mask) * per_anchor}",
        )
    stride = (size[1] / cols, size[0] / rows)
    softmax = kind == "region" and integer(section, "softmax", 0) != 0
    if kind == "region" and not softmax and not region_sigmoid:
        raise UnsupportedError("[region] without softmax=1 leaves its classes raw", where=section.where("softmax"))
    return Head(
        output=f"{kind.lower()}_{section.index}",
        kind=kind.lower(),
        stride=stride,
        anchors=_anchors(section, mask, stride if kind == "region" else (1.0, 1.0)),
        classes=classes,
        scale_x_y=real(section, "scale_x_y", 1.0) if kind != "region" else 1.0,
        new_coords=kind == "yolo" and integer(section, "new_coords", 0) != 0,
        softmax=softmax,
    )


def _anchors(section: Section, mask: tuple[int, ...], unit: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    """The masked anchors times ``unit``: [region] counts in grid cells, [yolo] in pixels."""
    values = reals(section, "anchors")
    pairs = list(zip(values[::2], values[1::2], strict=False))
    if any(not 0 <= i < len(pairs) for i in mask) or any(min(pairs[i]) <= 0 for i in mask):
        raise InputError(
            "the mask asks for anchors that are not there",
            where=section.where("anchors"),
            got=f"mask {mask[:20]} of {len(pairs)} anchors",
            allowed="positive widths and heights for every mask entry",
        )
    return tuple((pairs[i][0] * unit[0], pairs[i][1] * unit[1]) for i in mask)
