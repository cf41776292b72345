"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import one_core  # noqa: F401 - before numpy and torch start threads
import pytest
from tiny_models import good_bundle, tiny  # noqa: F401 - fixtures

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

LONG = frozenset({"test_readme", "test_real_models", "test_tensorrt_real", "test_diagnose", "test_train"})
"""What takes longest comes first, lest one worker be left alone with it at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of ``LONG`` first; all others stay in order."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real weights and pictures, or a skip with the reason."""
    if not DATA.is_dir():
        pytest.skip(f"the development data set is not at {DATA}")
    return DATA
