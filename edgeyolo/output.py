"""Write results so that nobody ever sees half of one: beside the target first, then rename."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgeyolo.errors import InputError

MANIFEST = "manifest.json"
FORMAT = "edgeyolo-bundle"
"""What a bundle's manifest says under ``format``."""
MAX_MANIFEST_BYTES = 1 << 25


@contextmanager
def new_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside ``target`` that becomes ``target`` when the block ends without an error.

    Args:
        target: the folder to make.
        force: replace an existing one; only an empty folder or an earlier bundle is ever replaced.

    Raises:
        InputError: the target exists, or the disk refuses (full, read-only, no permission). Nothing is left behind.
    """
    target = target.absolute()
    check_free(target, force=force)
    with _made_parents(target):
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            temporary.chmod(0o755)
            yield temporary
            _replace(temporary, target)
        finally:
            if temporary.exists():
                shutil.rmtree(temporary, ignore_errors=True)


def check_free(target: Path, *, force: bool) -> None:
    """Refuse an output folder that cannot be made, or that exists, unless ``force`` and it is empty or a bundle."""
    _check_parent(target)
    if not os.path.lexists(target):
        return
    if not _replaceable(target):
        raise InputError(
            "the output exists and is not a bundle; it is left alone",
            where=target,
            hint="choose another folder with -o",
        )
    if not force:
        raise InputError("the output folder exists", where=target, hint="choose another one with -o, or add --force")


def check_free_file(target: Path, *, force: bool) -> None:
    """Refuse an output file that cannot be made, or that exists, unless ``force``; a folder is never replaced."""
    _check_parent(target)
    if target.is_dir():
        raise InputError("the output is a folder", where=target, hint="choose another one with -o")
    if os.path.lexists(target) and not force:
        raise InputError("the output file exists", where=target, hint="choose another one with -o, or add --force")


def _check_parent(target: Path) -> None:
    """Find out before the work, not after it, that nothing can be written there."""
    parent = next((folder for folder in target.absolute().parents if os.path.lexists(folder)), target)
    if not parent.is_dir():
        raise InputError("the output cannot be made: this is not a folder", where=parent)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError("the output cannot be made: no permission to write here", where=parent)


def _replaceable(target: Path) -> bool:
    """Whether ``target`` is a folder, and empty or a bundle."""
    try:
        return not target.is_symlink() and target.is_dir() and (not any(target.iterdir()) or _is_bundle(target))
    except OSError:
        return False


def _is_bundle(folder: Path) -> bool:
    """Whether the manifest is one of ours: many other things have a manifest.json."""
    with (folder / MANIFEST).open("rb") as file:
        text = file.read(MAX_MANIFEST_BYTES)
    with suppress(ValueError, RecursionError):
        manifest = json.loads(text)
        return isinstance(manifest, dict) and manifest.get("format") == FORMAT
    return False


@contextmanager
def _made_parents(target: Path) -> Iterator[None]:
    """Make the folders above ``target``; if the block fails, those made are removed and OSError becomes InputError."""
    missing = [folder for folder in target.parents if not os.path.lexists(folder)]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise InputError("cannot write the output", where=target, got=error.strerror or repr(error)) from error
        raise


def _replace(temporary: Path, target: Path) -> None:
    """Put ``temporary`` in the place of ``target``; the old one goes only after the new one stands."""
    if not os.path.lexists(target):
        temporary.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent)) / "old"
    target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        old.rename(target)
        raise
    finally:
        shutil.rmtree(old.parent, ignore_errors=True)


def write_file(target: Path, data: bytes, *, force: bool = False) -> None:
    """Write one file whole or not at all. Raises InputError if it exists (without ``force``) or cannot be written."""
    target = target.absolute()
    check_free_file(target, force=force)
    with _made_parents(target):
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            temporary.chmod(0o644)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
