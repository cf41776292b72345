"""Puts the needed files of onnxruntime-web beside this package: ``python -m edgeyolo.serve.fetch_runtime``.

For whoever builds a wheel or works in a checkout. npm fetches the package, and its hash is compared with the one that
is pinned here; nothing of it is executed.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import click

from edgeyolo.errors import EdgeYoloError, InputError
from edgeyolo.output import write_file
from edgeyolo.serve.ortweb import BACKENDS, INTEGRITY, VERSION, runtime_folder

FETCH_SECONDS = 600
MAX_MEMBER_BYTES = 1 << 26


def fetch(folder: Path) -> list[Path]:
    """Write the files of ``BACKENDS`` into ``folder``; returns them.

    Raises InputError: no npm, no such package, another hash, or a file is missing in it.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise InputError("there is no npm, which fetches onnxruntime-web", hint="install npm")
    with tempfile.TemporaryDirectory(prefix="edgeyolo-") as temporary:
        call = [npm, "pack", f"onnxruntime-web@{VERSION}", "--ignore-scripts", "--pack-destination", temporary]
        try:
            subprocess.run(call, capture_output=True, text=True, check=True, timeout=FETCH_SECONDS, cwd=temporary)
        except (OSError, subprocess.SubprocessError) as error:
            got = getattr(error, "stderr", None) or str(error)
            raise InputError("npm cannot fetch onnxruntime-web", got=str(got)[-500:]) from error
        return unpack(Path(temporary) / f"onnxruntime-web-{VERSION}.tgz", folder)


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Take the files out of npm's archive, once its hash is right. Raises InputError."""
    data = archive.read_bytes()
    got = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    if got != INTEGRITY:
        raise InputError("onnxruntime-web has another hash than the pinned one", got=got, allowed=INTEGRITY)
    made = []
    with tarfile.open(archive) as tar:
        for name in (name for names in BACKENDS.values() for name in names):
            member = tar.extractfile(f"package/dist/{name}")
            if member is None:
                raise InputError("a file is missing in onnxruntime-web", where=name)
            write_file(folder / name, member.read(MAX_MEMBER_BYTES), force=True)
            made.append(folder / name)
    return made


def main() -> None:
    """Fetch, and say what there is now."""
    try:
        for path in fetch(runtime_folder()):
            click.echo(f"{path.stat().st_size:>12,} {path}")
    except EdgeYoloError as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
