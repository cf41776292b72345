"""The noise of every layer of a bundle, from its ``report.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from edgeyolo.bundle import Bundle
from edgeyolo.errors import BundleError

REPORT = "report.json"
MAX_BYTES = 1 << 22
MAX_LAYERS = 5000
MAX_NAME = 1024
MAX_DB = 10_000
"""More than the logarithm of any two float64."""


class Layer(NamedTuple):
    """One quantised value against float: signal-to-noise ratio in dB (channel means removed), shares from 0 to 1."""

    name: str
    qtype: str
    snr_db: float
    clipped: float
    saturated: float


def read_layers(path: Path) -> tuple[Layer, ...]:
    """The layers of the bundle at ``path`` in execution order; none if it is no bundle or has no report.

    Raises BundleError if the report is not one.
    """
    if not path.is_dir():
        return ()
    bundle = Bundle.open(path)
    if REPORT not in bundle.manifest["files"]:
        return ()
    if (path / REPORT).stat().st_size > MAX_BYTES:
        raise BundleError("the bundle's report is too large", where=path / REPORT, allowed=f"{MAX_BYTES} bytes")
    try:
        rows = json.loads(bundle.read(REPORT))
        if type(rows) is not list or len(rows) > MAX_LAYERS:
            raise ValueError(f"not a list of at most {MAX_LAYERS} layers")
        return tuple(_layer(row) for row in rows)
    except (ValueError, RecursionError) as error:
        where, hint = path / REPORT, "export the bundle again"
        raise BundleError("the bundle's report cannot be used", where=where, got=str(error)[:200], hint=hint) from error


def _layer(row: Any) -> Layer:
    """Check one entry."""
    values: list[Any] = [row.get(key) if type(row) is dict else None for key in Layer._fields]
    texts, numbers = values[:2], values[2:]
    if not all(type(text) is str and len(text) <= MAX_NAME for text in texts):
        raise ValueError(f"not a layer: {str(row)[:60]}")
    limits = (MAX_DB, 1, 1)
    if not all(type(v) in (int, float) and -most <= v <= most for v, most in zip(numbers, limits, strict=True)):
        raise ValueError(f"not a layer's figures: {str(row)[:60]}")
    return Layer(*values)
