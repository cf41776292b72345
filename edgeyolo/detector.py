"""What makes a network a detector: input preprocessing, heads, anchors and class names.

These facts are read once by a front end and ride in the ONNX file's ``metadata_props`` and in a bundle's manifest, so
that nothing downstream has to guess them from a file name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from edgeyolo.errors import InputError

METADATA_KEY = "edgeyolo.detector"
MAX_NAMES_BYTES = 1 << 20
MAX_JSON_BYTES = 1 << 24
# What metadata from a file may say: far beyond any detector, and small enough that nothing sized by it hurts.
MAX_SIDE = 32767
MAX_HEADS = 64
MAX_ANCHORS = 1024
MAX_CLASSES = 1 << 16
MAX_TEXT = 1024
MAX_NUMBER = 1e6
MIN_POSITIVE = 1e-6
RESIZES = ("stretch", "letterbox")
BOX_KINDS = ("yolo", "gaussian_yolo", "region")
HEAD_KINDS = (*BOX_KINDS, "classifier", "raw")
NMS_KINDS = ("default", "greedynms", "diounms")

Check = Callable[[Any], Any]
Record = TypeVar("Record")


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
        """Parse ``to_json``'s text, which may come from anywhere: every type and range is checked.

        Raises InputError that names the key, if it is not such a text.
        """
        try:
            if len(text) > MAX_JSON_BYTES:
                raise ValueError(f"{len(text)} characters instead of at most {MAX_JSON_BYTES}")
            return _detector(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise InputError(
                "the detector metadata cannot be used", got=str(error)[:300], hint="export the model again"
            ) from error


def _integer(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{_short(value)} is not an integer from {low} to {high}")
        return value

    return check


def _number(low: float, high: float = MAX_NUMBER) -> Check:
    def check(value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high:  # which NaN is not
            raise ValueError(f"{_short(value)} is not a number from {low:g} to {high:g}")
        return float(value)

    return check


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{_short(value)} is not true or false")
    return value


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > MAX_TEXT:
        raise ValueError(f"{_short(value)} is not a text of at most {MAX_TEXT} characters")
    return value


def _word(*allowed: str) -> Check:
    def check(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"{_short(value)} is not one of {', '.join(allowed)}")
        return str(value)

    return check


def _many(element: Check, low: int, high: int) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or not low <= len(value) <= high:
            raise ValueError(f"{_short(value)} is not a list of {low} to {high} entries")
        return tuple(element(entry) for entry in value)

    return check


def _words(value: Any) -> dict[str, str]:
    if type(value) is not dict or len(value) > MAX_HEADS:
        raise ValueError(f"{_short(value)} is not an object of at most {MAX_HEADS} texts")
    return {_text(key): _text(entry) for key, entry in value.items()}


def _record(cls: type[Record], checks: dict[str, Check]) -> Callable[[Any], Record]:
    """Reads a dataclass: no unknown key, none missing that has no default, every value as ``checks`` wants it."""
    required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]

    def check(data: Any) -> Record:
        if type(data) is not dict:
            raise ValueError(f"{_short(data)} is not an object")
        unknown, missing = [key for key in data if key not in checks], [key for key in required if key not in data]
        if unknown or missing:
            raise ValueError(f"unknown keys {_short(unknown)}, missing keys {missing}")
        values = {}
        for key, value in data.items():
            try:
                values[key] = checks[key](value)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
        return cls(**values)

    return check


def _short(value: object) -> str:
    """The beginning of a value from a file."""
    return repr(value)[:60]


def _head(data: Any) -> Head:
    head = _record(Head, _HEAD)(data)
    if head.kind in BOX_KINDS and not (head.anchors and head.classes):
        raise ValueError(f"{head.kind} without anchors or classes")
    return head


_POSITIVE = _number(MIN_POSITIVE)
_PAIR = _many(_POSITIVE, 2, 2)
_PREPROCESS = {
    "width": _integer(1, MAX_SIDE),
    "height": _integer(1, MAX_SIDE),
    "channels": _integer(1, 3),
    "resize": _word(*RESIZES),
    "fill": _integer(0, 255),
    "scale": _POSITIVE,
}
_HEAD = {
    "output": _text,
    "kind": _word(*HEAD_KINDS),
    "stride": _PAIR,
    "anchors": _many(_PAIR, 0, MAX_ANCHORS),
    "classes": _integer(0, MAX_CLASSES),
    "scale_x_y": _number(-MAX_NUMBER),
    "new_coords": _flag,
    "softmax": _flag,
}
_DETECTOR = {
    "source": _text,
    "preprocess": _record(Preprocess, _PREPROCESS),
    "heads": _many(_head, 0, MAX_HEADS),
    "names": _many(_text, 0, MAX_CLASSES),
    "nms_kind": _word(*NMS_KINDS),
    "beta_nms": _number(-MAX_NUMBER),
    "extra": _words,
}
_detector = _record(Detector, _DETECTOR)


def read_names(path: Path) -> tuple[str, ...]:
    """Class names from a file, one a line, blank lines left out. Raises InputError if it cannot be read."""
    try:
        if path.stat().st_size > MAX_NAMES_BYTES:
            raise InputError("the file of class names is too large", where=path, allowed=f"{MAX_NAMES_BYTES} bytes")
        return tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, ValueError) as error:
        raise InputError("cannot read the class names", where=path, got=str(error)) from error
