"""The manifest of a bundle: what is written is read back, the same input gives the same bytes, damage is named."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_surgery import edit_manifest, repair
from tiny_models import tree

from edgeyolo.bundle import Bundle, sha256, write_manifest
from edgeyolo.detector import Detector, Head, Preprocess
from edgeyolo.errors import BundleError, InputError

DETECTOR = Detector(
    "darknet",
    Preprocess(96, 64, 3, "letterbox", 114, 1 / 256),
    (
        Head("coarse", "yolo", (32.0, 16.0), ((10.5, 14.0), (23.0, 27.25)), 2, 1.05, True),
        Head("fine", "gaussian_yolo", (8.0, 8.0), ((4.0, 5.0),), 2),
    ),
    ("person", 'ключ \u2028 "quoted"'),
    "diounms",
    0.7,
    {"note": "x"},
)
FACTS: dict[str, object] = {"tool": "edgeyolo 1.2.3", "target": "fpga", "source": {"name": "a.cfg", "sha256": "0" * 64}}


def write(folder: Path, facts: dict[str, object] = FACTS) -> Path:
    (folder / "deep/er").mkdir(parents=True)
    (folder / "a.bin").write_bytes(bytes(range(256)))
    (folder / "deep/er/empty").write_bytes(b"")
    write_manifest(folder, facts, DETECTOR)
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "bundle")


def damage(bundle: Path) -> str:
    """The message with which opening must fail."""
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    return str(caught.value)


def test_what_is_written_is_read_back(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.detector == DETECTOR
    assert opened.read("a.bin") == bytes(range(256)) and opened.read("deep/er/empty") == b""
    assert opened.names("deep/") == ["deep/er/empty"] and opened.names("") == ["a.bin", "deep/er/empty"]
    assert {key: opened.manifest[key] for key in FACTS} == FACTS


def test_the_manifest_lists_size_and_hash_of_everything_but_itself(bundle: Path) -> None:
    files = json.loads((bundle / "manifest.json").read_text("utf-8"))["files"]
    assert files == {
        "a.bin": {"bytes": 256, "sha256": sha256(bytes(range(256)))},
        "deep/er/empty": {"bytes": 0, "sha256": sha256(b"")},
    }


def test_the_same_input_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "again", dict(reversed(FACTS.items())))
    os.utime(again / "a.bin", (1, 1))
    assert tree(bundle) == tree(again)


def test_only_listed_files_can_be_read(bundle: Path) -> None:
    (bundle / "extra").write_text("x", "utf-8")
    opened = Bundle.open(bundle)
    for name in ("extra", "../secret", "/etc/passwd", "manifest.json"):
        with pytest.raises(BundleError, match="does not list"):
            opened.read(name)


def test_every_damaged_file_is_named(bundle: Path) -> None:
    (bundle / "a.bin").write_bytes(bytes(255))
    (bundle / "deep/er/empty").unlink()
    message = damage(bundle)
    assert "'a.bin': 255 bytes instead of 256" in message and "'deep/er/empty': missing" in message


def test_a_changed_byte_is_found_by_its_hash(bundle: Path) -> None:
    (bundle / "a.bin").write_bytes(bytes(255) + b"!")
    assert "'a.bin': its content does not match its SHA-256" in damage(bundle)
    repair(bundle)
    Bundle.open(bundle)


def test_what_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x", "utf-8")
    (tmp_path / "odd/manifest.json").mkdir(parents=True)
    for name in ("nowhere", "empty", "file", "odd"):
        with pytest.raises(InputError):
            Bundle.open(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_never_waited_for(bundle: Path) -> None:
    (bundle / "a.bin").unlink()
    os.mkfifo(bundle / "a.bin")
    assert "'a.bin': missing" in damage(bundle)
    (bundle / "manifest.json").unlink()
    os.mkfifo(bundle / "manifest.json")
    with pytest.raises(InputError, match="no bundle here"):
        Bundle.open(bundle)


def test_versions_and_formats_of_the_future_are_refused(bundle: Path) -> None:
    edit_manifest(bundle, lambda m: m.update(version=2))
    assert "unknown bundle version" in damage(bundle)
    edit_manifest(bundle, lambda m: m.update(version=1, format="other"))
    assert "not a bundle's manifest" in damage(bundle)


@pytest.mark.parametrize("key", ["tool", "target", "source", "detector", "files"])
def test_a_manifest_without_a_required_entry_is_refused(bundle: Path, key: str) -> None:
    edit_manifest(bundle, lambda m: m.pop(key))
    assert f"missing or mistyped: {key}" in damage(bundle)


def test_detector_facts_survive_json_exactly() -> None:
    odd = replace(DETECTOR, preprocess=Preprocess(1, 32767, 1, scale=1 / 255), heads=(), names=())
    for detector in (DETECTOR, odd):
        again = Detector.from_json(detector.to_json())
        assert again == detector and again.to_json() == detector.to_json()


def test_a_copy_of_a_bundle_is_the_same_bundle(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "copy")
    assert Bundle.open(tmp_path / "copy").manifest == Bundle.open(bundle).manifest
