"""Golden data of a mobile bundle: pictures, what the float network makes of them, and what the int8 network does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.export.device_files import FLOOR_DB, FP32_DB, GOLDEN_INDEX, MARGIN_DB, golden_name, noise_db, npy_bytes
from edgeyolo.images import Pixels
from edgeyolo.lower.mobile.formats import encode
from edgeyolo.ort import Arrays, open_session, run
from edgeyolo.passes.graph import read_detector
from edgeyolo.quant.calibrate import to_float

PARTS = {"fp32": "output", "fp16": "output", "int8": "int8"}
"""Which golden values a variant is compared with: float16 with those of float32, int8 with its own."""
DEFINING = ("fp32", "int8")
"""Variants whose golden values are their own."""
NEAREST_DB = 100.0
"""No variant is promised to be nearer to float32: there the order of float sums begins to count."""
EXACT = "U8U8"
"""The format whose kernels saturate nowhere: what they differ by from the definition is rounding."""


def mobile_golden(variants: Mapping[str, ir.Model], pictures: Sequence[Pixels]) -> dict[str, bytes]:
    """Path -> content. ONNX Runtime without optimisations says what is right.

    Tolerances are measured: what float16 and ONNX Runtime's fused int8 kernels make of the same pictures, and
    ``MARGIN_DB``. How far the variants are from float32, as they are defined, is measured too.
    """
    detector, contents = read_detector(variants["fp32"]), dict[str, bytes]()
    names = [str(value.name) for value in variants["fp32"].graph.outputs]
    feeds = [to_float(pixels, detector) for pixels in pictures]
    right = {variant: _run(model, feeds) for variant, model in variants.items()}
    for number, feed in enumerate(feeds):
        contents[golden_name(number, "input")] = npy_bytes(feed)
        for variant in DEFINING:
            part, values = PARTS[variant], right[variant][number]
            contents |= {golden_name(number, f"{part}-{i}"): npy_bytes(values[name]) for i, name in enumerate(names)}
    fused = _run(encode(variants["int8"], EXACT), feeds, optimise=True)
    tolerances = {
        "fp32": FP32_DB,
        "fp16": _tolerance(right["fp32"], _run(variants["fp16"], feeds, optimise=True)),
        "int8": _tolerance(right["int8"], fused),
    }
    # Of int8 only: how far float16 is from float32 depends on whether a processor computes in it.
    distance = {"int8": round(_worst_db(right["fp32"], right["int8"], NEAREST_DB), 1)}
    index = {"tolerance_db": tolerances, "distance_db": distance, "outputs": names, "pictures": len(feeds)}
    return contents | {GOLDEN_INDEX: (json.dumps(index, indent=1, sort_keys=True) + "\n").encode()}


def _run(model: ir.Model, feeds: Sequence[npt.NDArray[np.float32]], *, optimise: bool = False) -> list[Arrays]:
    session = open_session(model, optimise=optimise)
    return [run(session, feed) for feed in feeds]


def _tolerance(expected: Sequence[Arrays], got: Sequence[Arrays]) -> float:
    return round(max(FLOOR_DB, _worst_db(expected, got, FP32_DB + MARGIN_DB) - MARGIN_DB), 1)


def _worst_db(expected: Sequence[Arrays], got: Sequence[Arrays], most: float) -> float:
    return max(0.0, min([most, *noise_db(expected, got).values()]))
