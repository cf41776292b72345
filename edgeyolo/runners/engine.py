"""Run the C99 integer engine: compile its sources on this machine and execute a program image with them.

The compiled ``selftest`` runs as a process of its own. That costs a few milliseconds a picture, but needs no copy of C
structures in Python, works for another machine under an emulator, and a fault in it cannot take Python down.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeyolo.errors import EdgeYoloError, InputError
from edgeyolo.program import Tensor
from edgeyolo.program_image import decode_program

Codes = npt.NDArray[Any]

FLAGS = ("-O3", "-std=c99")
COMPILE_SECONDS, RUN_SECONDS = 300, 600
BENCH = "bench.c"
"""A program of its own beside the self test."""


@dataclass(frozen=True)
class Timing:
    """Nanoseconds of one inference: median and minimum of many, and the median per operation; bytes of the arena."""

    median_ns: int
    min_ns: int
    per_op_ns: tuple[int, ...]
    arena_bytes: int


def compile_engine(
    folder: Path, sources: Path | None = None, *, cc: str | None = None, flags: tuple[str, ...] = FLAGS
) -> Path:
    """Compile the engine and its self test into ``folder``; returns the executable.

    Args:
        folder: an existing folder.
        sources: where the engine's ``*.c`` are; None takes those installed with this package.
        cc: compiler command, default ``$CC`` or ``cc``.
        flags: compiler and linker flags.

    Raises InputError if there is no compiler, there are no sources or they do not compile.
    """
    command = shlex.split(cc or os.environ.get("CC") or "cc")
    if not command or shutil.which(command[0]) is None:
        raise InputError(
            "there is no C compiler", got=" ".join(command), hint="install gcc or clang, or set CC to a C99 compiler"
        )
    if sources is None:
        with as_file(files("edgeyolo.targets.engine")) as installed:
            return compile_engine(folder, installed, cc=cc, flags=flags)
    units = sorted(str(path.resolve()) for path in sources.glob("*.c") if path.name != BENCH)
    if not units:
        raise InputError("the engine's sources are missing", where=sources, hint="export the bundle again")
    target = folder / "selftest"
    _execute([*command, *flags, "-o", str(target), *units], "the engine does not compile", COMPILE_SECONDS)
    return target


def _execute(command: list[str], what: str, seconds: float) -> str:
    """Run a command and return what it prints. Raises InputError with ``what`` and its messages if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(what, where=command[0], got=str(error)[:500]) from error
    if done.returncode != 0:
        got = (done.stderr or done.stdout).strip()[:2000] or f"exit status {done.returncode}"
        raise InputError(what, where=command[0], got=got)
    return done.stdout


def is_own_engine(sources: Path) -> bool:
    """Whether a bundle's ``engine`` folder holds exactly the C files that are installed with this package.

    Only then is it safe to compile and run them without asking: a stranger's bundle may hold any program.
    """
    own = {item.name: item.read_bytes() for item in files("edgeyolo.targets.engine").iterdir() if _is_c(item.name)}
    theirs = {path.name: path for path in sources.iterdir() if _is_c(path.name)} if sources.is_dir() else {}
    # The size comes first: what is read is as long as our own file, and a plain file.
    return own.keys() == theirs.keys() and all(
        path.is_file() and path.stat().st_size == len(own[name]) and path.read_bytes() == own[name]
        for name, path in theirs.items()
    )


def _is_c(name: str) -> bool:
    return name.endswith((".c", ".h"))


class EngineRunner:
    """A program image loaded into the engine as compiled for this machine, or for another one under an emulator.

    Args:
        image: the program image.
        sources: a bundle's ``engine`` folder, or None for the sources installed with this package. They are compiled
            and executed: take them from people you trust.
        cc, flags: as for ``compile_engine``.
        executable: what ``compile_engine`` gave, to compile once for many images.
        emulator: command in front of the executable, such as ``("qemu-aarch64-static",)``.

    Raises BundleError for a bad image and InputError as ``compile_engine`` does. Usable as a context manager; the
    temporary files go when it is closed or collected.
    """

    def __init__(
        self,
        image: bytes,
        sources: Path | None = None,
        *,
        cc: str | None = None,
        flags: tuple[str, ...] = FLAGS,
        executable: Path | None = None,
        emulator: tuple[str, ...] = (),
    ) -> None:
        self.program = decode_program(image, "program image")
        self._folder = tempfile.TemporaryDirectory(prefix="edgeyolo-engine-")
        self._path = Path(self._folder.name)
        try:
            executable = executable or compile_engine(self._path, sources, cc=cc, flags=flags)
            self._command = [*emulator, str(executable)]
            (self._path / "program.bin").write_bytes(image)
        except (EdgeYoloError, OSError):
            self.close()
            raise

    def __enter__(self) -> EngineRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the temporary files."""
        self._folder.cleanup()

    def run(self, codes: Codes) -> list[Codes]:
        """Execute once. ``codes``: the input's codes (C, H, W). Returns the outputs' codes in the program's order.

        Raises InputError if the codes do not fit the input tensor, or the engine fails.
        """
        written = {op.output: index for index, op in enumerate(self.program.ops)}
        wanted = [written[i] for i in self.program.outputs if i in written]
        results = iter(self._run(codes, wanted, "--outputs"))
        return [next(results) if i in written else codes for i in self.program.outputs]

    def layers(self, codes: Codes) -> list[Codes]:
        """Like ``run``, but returns what every operation wrote, in the order of the operations."""
        return self._run(codes, range(len(self.program.ops)))

    def time(self, codes: Codes, repeats: int) -> Timing:
        """Execute ``repeats`` times within one process and measure. Raises InputError as ``run`` does."""
        text = self._call("time", codes, str(repeats), "--per-op")
        rows = [line.split() for line in text.splitlines()]
        values = {row[0]: int(row[1]) for row in rows if len(row) == 2}
        per_op = tuple(int(row[2]) for row in rows if row[0] == "op")
        return Timing(values["median_ns"], values["min_ns"], per_op, values["arena_bytes"])

    def _run(self, codes: Codes, wanted: Iterable[int], *options: str) -> list[Codes]:
        """What the operations ``wanted`` wrote."""
        with tempfile.TemporaryDirectory(dir=self._path) as name:
            self._call("run", codes, name, *options)
            return [_read(Path(name, f"{i:03d}.bin"), self.program.tensors[self.program.ops[i].output]) for i in wanted]

    def _call(self, mode: str, codes: Codes, *arguments: str) -> str:
        tensor = self.program.tensors[self.program.input]
        if codes.shape != tensor.shape or codes.dtype != tensor.qtype.dtype:
            raise InputError(
                "the input codes do not fit",
                got=f"{codes.dtype} {codes.shape}",
                allowed=f"{tensor.qtype.dtype} {tensor.shape}",
            )
        source = self._path / "input.bin"
        source.write_bytes(codes.astype(codes.dtype.newbyteorder("<")).tobytes())
        command = [*self._command, mode, str(self._path / "program.bin"), str(source), *arguments]
        return _execute(command, "the engine refuses to run", RUN_SECONDS)


def _read(path: Path, tensor: Tensor) -> Codes:
    dtype = tensor.qtype.dtype
    data = path.read_bytes()
    if len(data) != tensor.nbytes:
        raise InputError("the engine wrote a layer of the wrong size", where=tensor.name, got=len(data))
    return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(tensor.shape)
