"""The bundle: a folder with ``manifest.json``, payload and golden data; all that runners, verify and benchmark read.

docs/bundle-format.md is the normative text. A bundle is hostile until read: every size is bounded, every path stays
inside the folder, every file has the size and SHA-256 that the manifest states. The same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edgeyolo.detector import Detector
from edgeyolo.errors import BundleError, InputError
from edgeyolo.output import FORMAT, MANIFEST, MAX_MANIFEST_BYTES

VERSION = 1
PROGRAM = "program.bin"
"""The engine's program image."""
MODEL = "model.onnx"
"""The QDQ file: the oracle."""
MAX_FILES = 20_000
MAX_TEXT = 200
"""Characters of a message that come from one place of a manifest."""
MAX_FILE_BYTES = 1 << 30
REQUIRED = {"format": str, "version": int, "tool": str, "target": str, "source": dict, "detector": dict, "files": dict}


@dataclass(frozen=True, eq=False)
class Bundle:
    """An opened, checked bundle.

    Args:
        path: its folder.
        manifest: the parsed manifest.
        detector: preprocessing, heads and names.
    """

    path: Path
    manifest: dict[str, Any]
    detector: Detector

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Read and check the manifest and every file it lists.

        Raises:
            InputError: no bundle there. BundleError: damaged, inconsistent or hostile; all offending files are listed.
        """
        manifest = _read_manifest(path)
        offenders = [text for name, entry in manifest["files"].items() if (text := _offence(path, name, entry))]
        if offenders:
            raise BundleError(
                "the bundle is damaged",
                where=path,
                got="; ".join(text[:MAX_TEXT] for text in offenders[:20]),
                hint="export it again or copy it anew",
            )
        try:
            facts = json.dumps(manifest["detector"])
        except RecursionError as error:
            raise BundleError("the manifest's detector is nested too deeply", where=path) from error
        return cls(path, manifest, Detector.from_json(facts))

    def read(self, name: str) -> bytes:
        """The bytes of a listed file. Raises BundleError if the manifest does not list it."""
        if name not in self.manifest["files"]:
            raise BundleError("the bundle does not list this file", where=self.path, got=name)
        return (self.path / name).read_bytes()

    def names(self, prefix: str) -> list[str]:
        """Listed files whose name starts with ``prefix``, sorted."""
        return sorted(name for name in self.manifest["files"] if name.startswith(prefix))


def read_target(path: Path) -> str:
    """The target that the bundle in the folder ``path`` is for; its files are not looked at.

    Raises InputError or BundleError as ``Bundle.open`` does.
    """
    return str(_read_manifest(path)["target"])


def write_manifest(folder: Path, facts: dict[str, Any], detector: Detector) -> None:
    """List every file below ``folder`` with size and SHA-256, and write the manifest last.

    Args:
        folder: the bundle under construction.
        facts: the manifest's other entries, JSON-able.
        detector: the input and output contract.
    """
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path.read_bytes())}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **facts,
        "detector": json.loads(detector.to_json()),
        "files": files,
    }
    text = json.dumps(manifest, sort_keys=True, indent=1) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        if not path.is_dir() or (file.exists() and not file.is_file()):
            raise InputError("no bundle here", where=path, hint="give the folder that export wrote")
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError("the manifest is too large", where=file, allowed=f"{MAX_MANIFEST_BYTES} bytes")
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("the bundle has no readable manifest", where=file, got=error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise BundleError("the manifest is not JSON", where=file, got=str(error)[:200]) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError("this is not a bundle's manifest", where=file)
    if manifest.get("version") != VERSION:
        raise BundleError(
            "unknown bundle version",
            where=file,
            got=repr(manifest.get("version"))[:MAX_TEXT],
            allowed=VERSION,
            hint="export it again",
        )
    wrong = [key for key, kind in REQUIRED.items() if not isinstance(manifest.get(key), kind)]
    if wrong:
        raise BundleError("the manifest is incomplete", where=file, got=f"missing or mistyped: {', '.join(wrong)}")
    if len(manifest["files"]) > MAX_FILES:
        raise BundleError("the manifest lists too many files", where=file, allowed=MAX_FILES)
    return manifest


def _offence(folder: Path, name: str, entry: object) -> str | None:
    """What is wrong with one listed file, or None."""
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or pure.as_posix() != name:
        return f"{name!r} leaves the bundle"
    size, digest = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
    if type(size) is not int or type(digest) is not str:
        return f"{name!r}: no size and hash"
    path = folder / name
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            return f"{name!r} leaves the bundle"
        if not path.is_file():
            return f"{name!r}: missing"
        found = path.stat().st_size
        if found != size or found > MAX_FILE_BYTES:
            return f"{name!r}: {found} bytes instead of {size}"
        if sha256(path.read_bytes()) != digest:
            return f"{name!r}: its content does not match its SHA-256"
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
        return f"{name!r}: {error}"
    return None
