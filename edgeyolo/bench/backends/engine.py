"""The C99 integer engine as a shared library in this process, so that nothing but the inference is timed.

The sources are those installed with this package, whatever the bundle brings along.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeyolo.bench.backends.source import check_bundle, check_one_thread
from edgeyolo.bundle import PROGRAM
from edgeyolo.detector import Detector
from edgeyolo.errors import InputError
from edgeyolo.program_image import decode_program
from edgeyolo.qtype import TensorQuant
from edgeyolo.runners.engine import FLAGS, compile_engine
from edgeyolo.runners.integer import input_codes

SHARED = (*FLAGS, "-fPIC", "-shared")
_OK, _ARENA_TOO_SMALL = 0, 8


class Model(ctypes.Structure):
    """``ey_model`` of engine.h."""

    _fields_ = (
        ("image", ctypes.c_void_p),
        ("arena", ctypes.c_void_p),
        ("arena_bytes", ctypes.c_size_t),
        *((name, ctypes.c_uint32) for name in ("tensors", "ops", "outputs", "input", "scratch", "state")),
    )


class Tensor(ctypes.Structure):
    """``ey_tensor`` of engine.h."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("c", "h", "w", "bits", "is_signed", "code_bytes")),
        *((name, ctypes.c_int32) for name in ("frac", "lo", "hi")),
        *((name, ctypes.c_uint32) for name in ("offset", "bytes", "first", "last")),
    )


class Backend:
    """A bundle for fpga."""

    def __init__(self) -> None:
        self.detector: Detector | None = None
        self._model = Model()

    def load(self, path: Path, threads: int = 1, weights: Path | None = None) -> None:
        """See the protocol; the engine is compiled here. Raises InputError for more than one thread too."""
        bundle = check_bundle("engine", path, "fpga")
        check_one_thread("engine", threads)
        self._image = bundle.read(PROGRAM)
        self._program = replace(decode_program(self._image, str(path / PROGRAM)), detector=bundle.detector)
        self.detector = bundle.detector
        with tempfile.TemporaryDirectory(prefix="edgeyolo-engine-") as folder:
            self._library = ctypes.CDLL(str(compile_engine(Path(folder), flags=SHARED)))
        if self._load(None, 0) != _ARENA_TOO_SMALL:
            raise InputError("the engine refuses the program", where=path / PROGRAM)
        self._arena = np.empty(-(-self._model.arena_bytes // 4), np.int32)  # which aligns it to 4
        self._check(self._load(self._arena.ctypes.data, self._model.arena_bytes))
        # What every pixel value becomes; a network that reads raw pixels needs no conversion at all.
        preprocess = replace(bundle.detector.preprocess, channels=1)
        every = replace(self._program, detector=replace(bundle.detector, preprocess=preprocess))
        self._codes = input_codes(every, np.arange(256, dtype=np.uint8))
        self._raw = self._codes.dtype == np.uint8 and bool((self._codes == np.arange(256)).all())

    def set_inputs(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Take (C, H, W) network pixels into the arena; every inference consumes them."""
        codes = np.ascontiguousarray(pixels if self._raw else self._codes[pixels])
        data = ctypes.c_void_p(codes.ctypes.data)
        self._check(self._library.ey_set_input(ctypes.byref(self._model), data, ctypes.c_size_t(codes.nbytes)))

    def infer(self) -> None:
        """Run all operations."""
        self._check(self._library.ey_infer(ctypes.byref(self._model), None, None))

    def outputs(self) -> list[npt.NDArray[np.float32]]:
        """Raw heads (C, grid_h, grid_w) float32: codes * 2**-frac."""
        heads = []
        for index, number in enumerate(self._program.outputs):
            tensor, found, codes = self._program.tensors[number], Tensor(), ctypes.c_void_p()
            where = (ctypes.byref(found), ctypes.byref(codes))
            self._check(self._library.ey_get_output(ctypes.byref(self._model), ctypes.c_uint32(index), *where))
            data = np.frombuffer(ctypes.string_at(codes, found.bytes), tensor.qtype.dtype).reshape(tensor.shape)
            heads.append(TensorQuant.pow2(tensor.qtype, tensor.frac).dequantise(data))
        return heads

    def version(self) -> str:
        """Of the compiler: the engine is as fast as what compiled it."""
        command = [*shlex.split(os.environ.get("CC") or "cc"), "--version"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
        return f"{done.stdout.partition(chr(10))[0]} {' '.join(FLAGS)}"

    def _load(self, arena: int | None, size: int) -> int:
        image = (ctypes.c_char_p(self._image), ctypes.c_size_t(len(self._image)))
        status = self._library.ey_load(
            ctypes.byref(self._model), *image, ctypes.c_void_p(arena), ctypes.c_size_t(size)
        )  # fmt: skip
        return int(status)

    @staticmethod
    def _check(status: int) -> None:
        if status != _OK:
            raise InputError("the engine refuses to run", got=f"status {status}", allowed="an input for every run")
