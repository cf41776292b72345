"""What makes a network a detector: input preprocessing, heads, anchors and class names.

These facts are read once by a front end and ride in the ONNX file's ``metadata_props`` and in a bundle's manifest, so
that nothing downstream has to guess them from a file name.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeyolo.errors import InputError

METADATA_KEY = "edgeyolo.detector"
MAX_NAMES_BYTES = 1 << 20


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes the network's input, ``x = pixel * scale`` in NCHW order.

    Args:
        width, height: network input in pixels.
        channels: 3 (RGB order) or 1 (grey).
        resize: ``stretch`` (plain resize) or ``letterbox`` (keep the aspect ratio, pad evenly).
        fill: pixel value of the letterbox bars.
        scale: multiplier of the 8-bit pixel value, 1/255 as trained, 1/256 in a pow2 quantised model.
    """

    width: int
    height: int
    channels: int = 3
    resize: str = "stretch"
    fill: int = 127
    scale: float = 1 / 255


@dataclass(frozen=True)
class Head:
    """One raw output and how to read it.

    Args:
        output: name of the graph output, (N, len(anchors) * entries, grid_h, grid_w) raw values; for a classifier (N,
        classes).
        kind: ``yolo`` (entries = x y w h obj + classes), ``gaussian_yolo`` (entries = x sx y sy w sw h sh obj +
        classes),
            ``region`` (YOLOv2: as yolo; softmax over the classes if ``softmax``), ``classifier``, ``raw`` (unknown
            meaning).
        stride: network pixels per grid cell, (horizontal, vertical), from the shapes.
        anchors: (width, height) in network pixels, already selected by the mask.
        scale_x_y: x, y = scale * sigmoid - 0.5 * (scale - 1).
        new_coords: no sigmoid in the head (the network already has it); w = 4 * t**2 * anchor.
    """

    output: str
    kind: str = "yolo"
    stride: tuple[float, float] = (1.0, 1.0)
    anchors: tuple[tuple[float, float], ...] = ()
    classes: int = 0
    scale_x_y: float = 1.0
    new_coords: bool = False
    softmax: bool = False


@dataclass(frozen=True)
class Detector:
    """A network's detector facts.

    Args:
        source: the format it came from: ``darknet``, ``yolo-pt``, ``onnx``.
        preprocess: the input contract.
        heads: one per raw output, in graph output order.
        names: class names, or () when unknown.
        nms_kind: ``greedynms`` (Darknet: suppresses on DIoU), ``diounms`` or ``default`` (plain IoU).
        beta_nms: DIoU exponent of Darknet's ``beta_nms`` (its default is 0.6).
    """

    source: str
    preprocess: Preprocess
    heads: tuple[Head, ...] = ()
    names: tuple[str, ...] = ()
    nms_kind: str = "default"
    beta_nms: float = 0.6
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.heads[0].classes if self.heads else len(self.names)

    def class_name(self, index: int) -> str:
        """The name of class ``index``, or its number when names are unknown."""
        return self.names[index] if index < len(self.names) else str(index)

    def to_json(self) -> str:
        """Canonical JSON text; ``from_json`` is its inverse."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Detector:
        """Parse ``to_json``'s text. Raises InputError if it is not such a text."""
        try:
            data: dict[str, Any] = json.loads(text)
            heads = tuple(
                Head(**{**h, "stride": tuple(h["stride"]), "anchors": tuple(tuple(a) for a in h["anchors"])})
                for h in data.pop("heads")
            )
            preprocess = Preprocess(**data.pop("preprocess"))
            return cls(preprocess=preprocess, heads=heads, names=tuple(data.pop("names")), **data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                "the detector metadata cannot be read", got=repr(error), hint="export the model again"
            ) from error


def read_names(path: Path) -> tuple[str, ...]:
    """Class names from a file, one a line, blank lines left out. Raises InputError if it cannot be read."""
    try:
        if path.stat().st_size > MAX_NAMES_BYTES:
            raise InputError("the file of class names is too large", where=path, allowed=f"{MAX_NAMES_BYTES} bytes")
        return tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, ValueError) as error:
        raise InputError("cannot read the class names", where=path, got=str(error)) from error
