"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import good_bundle, tiny  # noqa: F401 - fixtures

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real weights and pictures, or a skip with the reason."""
    if not DATA.is_dir():
        pytest.skip(f"the development data set is not at {DATA}")
    return DATA
