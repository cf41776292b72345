"""The embedded default: a detector of handwritten digits that comes with the package, and where its pictures come from.

``digits.md`` is its card: how it was designed and trained, and what was measured. Nothing is downloaded: the pictures
are generated (``edgeyolo.datasets.scenes``).
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

_FOLDER = Path(str(files("edgeyolo.assets")))
CFG, WEIGHTS, NAMES = (_FOLDER / f"digits.{suffix}" for suffix in ("cfg", "weights", "names"))
CALIBRATION = Path(str(files("edgeyolo.calibration"))) / "scenes.toml"
"""Recipe of its calibration pictures; no labels are used."""
DATA = "scenes:val"
"""Labelled pictures that neither training nor calibration saw."""
