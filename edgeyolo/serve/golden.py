"""Golden data: pictures, and what ONNX Runtime on this machine makes of them. The page compares itself with it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgeyolo.bench.frames import Setting
from edgeyolo.images import Pixels, list_images, load_images, to_input
from edgeyolo.ort import open_session, run
from edgeyolo.postprocess import Detections, decode, detect
from edgeyolo.serve.served import Served

MAX_PICTURES = 8
MAX_SIDE = 1280
"""Larger pictures are made smaller, so that a phone spends no minute on loading them."""


@dataclass(frozen=True)
class Limit:
    """How far a browser may be from the golden data.

    Args:
        least_db: least signal-to-noise ratio of a head.
        share: how many boxes may differ, as a share of the golden ones.
        margin: a box that only one side has counts if its score exceeds the threshold by more: the last bit decides.
    """

    least_db: float
    share: float
    margin: float


LIMITS = {"float32": Limit(60.0, 0.0, 0.01), "float16": Limit(40.0, 0.05, 0.03), "quantised": Limit(20.0, 0.1, 0.1)}
"""By ``Served.numbers``.

float32: sums are added in another order; Chromium's WebAssembly against an x86 CPU agrees to 123 dB on
yolo-fastest-1.1. A term that is left out or weights in a wrong order leave less than 40.
float16: computed in float32 on a CPU (123 dB), but perhaps in float16 on a GPU, whose 11 bits leave noise at every
layer. 40 dB is noise of 1 %, which moves a score by 0.03 at most where logits are about 10.
quantised: a value between two codes falls to either side, and all layers behind it see another input: on the same
model in int8 S8S8 is equal to the last bit, U8S8 agrees to 31.5 dB and U8U8 to 32.5; the same kernels against exact
arithmetic to 23.6; with 26.8 dB one box of 22 differed."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture as the page gets it: the JPEG file and what it decodes to, (H, W, 3) uint8."""

    jpeg: bytes
    image: Pixels

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.image.shape[1], self.image.shape[0]


@dataclass(frozen=True, eq=False)
class Golden:
    """What a model makes of one picture.

    Args:
        pixels: (C, H, W) uint8 network pixels.
        heads: float32, without the batch axis, in the order of ``Served.outputs``.
        detections: boxes in pixels of the picture.
        candidates: boxes above the score threshold before suppression.
    """

    pixels: Pixels
    heads: list[npt.NDArray[np.float32]]
    detections: Detections
    candidates: int

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays that travel as bytes."""
        found = self.detections
        return {
            "shapes": [list(head.shape) for head in self.heads],
            "boxes": found.boxes.tolist(), "scores": found.scores.tolist(), "classes": found.classes.tolist(),
            "candidates": self.candidates,
        }  # fmt: skip


def open_photos(source: Path | None) -> list[Photo]:
    """Up to ``MAX_PICTURES`` pictures of a file, folder or list; generated scenes where there is none.

    Raises InputError, which names all that do not decode.
    """
    if source is None:
        from edgeyolo.datasets import SCENES, load_dataset

        return [_photo(sample.load()) for sample in load_dataset(SCENES).samples]
    return [_photo(pixels) for pixels in load_images(list_images(source)[:MAX_PICTURES], source)]


def _photo(pixels: Pixels) -> Photo:
    """A JPEG file of bounded size, and what it decodes to."""
    image = Image.fromarray(pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95, subsampling=0)
    return Photo(stream.getvalue(), np.array(Image.open(stream)))


def compute_golden(model: Served, photos: Sequence[Photo], setting: Setting) -> list[Golden]:
    """Run ONNX Runtime on this machine's CPU over all pictures. Raises InputError where it cannot."""
    session = open_session(model.data)
    found = []
    for photo in photos:
        pixels = to_input(photo.image, model.detector.preprocess)
        feed = pixels[None].astype(np.float32) * np.float32(model.detector.preprocess.scale)
        results = run(session, feed, model.outputs)
        heads = [np.ascontiguousarray(results[name][0], np.float32) for name in model.outputs]
        detections = detect(heads, model.detector, photo.size, setting.conf, setting.iou, setting.max_det)
        found.append(Golden(pixels, heads, detections, len(decode(heads, model.detector, setting.conf)[1])))
    return found
