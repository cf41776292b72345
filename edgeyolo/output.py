"""Write results so that nobody ever sees half of one: beside the target first, then rename."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgeyolo.errors import InputError

MANIFEST = "manifest.json"


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
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        temporary.chmod(0o755)
        yield temporary
        _replace(temporary, target)
    except OSError as error:
        raise InputError("cannot write the output", where=target, got=error.strerror or repr(error)) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def check_free(target: Path, *, force: bool) -> None:
    """Refuse an output folder that exists, unless ``force`` and it is empty or an earlier bundle."""
    if not os.path.lexists(target):
        return
    replaceable = target.is_dir() and not target.is_symlink()
    with suppress(OSError):
        replaceable = replaceable and (not any(target.iterdir()) or (target / MANIFEST).is_file())
    if not replaceable:
        raise InputError(
            "the output exists and is not a bundle; it is left alone",
            where=target,
            hint="choose another folder with -o",
        )
    if not force:
        raise InputError("the output folder exists", where=target, hint="choose another one with -o, or add --force")


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
    if target.exists() and not force:
        raise InputError("the output file exists", where=target, hint="choose another one with -o, or add --force")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise InputError("cannot write the output", where=target, got=error.strerror or repr(error)) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as error:
        raise InputError("cannot write the output", where=target, got=error.strerror or repr(error)) from error
    finally:
        temporary.unlink(missing_ok=True)
