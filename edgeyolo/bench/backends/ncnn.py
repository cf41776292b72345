"""ncnn on the CPU in float32, with the model converted by pnnx when it is loaded."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeyolo.bench.backends.source import cannot_execute, check_file, network_input, read_onnx
from edgeyolo.detector import Detector

SECONDS = 600
"""A conversion that takes longer has failed."""


class Backend:
    """An ``.onnx`` file."""

    def __init__(self) -> None:
        self._ncnn: Any = importlib.import_module("ncnn")
        self.detector: Detector | None = None
        self._results: list[Any] = []

    def load(self, path: Path, threads: int = 1, weights: Path | None = None) -> None:
        """See the protocol; the load time has the conversion in it."""
        self.detector, present, names = read_onnx(check_file("ncnn", path, ".onnx"))
        self._path = path
        self._names = [f"out{present.index(name)}" for name in names]  # pnnx numbers them in the file's order
        self._net = net = self._ncnn.Net()
        net.opt.num_threads = threads
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        net.opt.use_bf16_storage = False
        with tempfile.TemporaryDirectory(prefix="edgeyolo-ncnn-") as name:
            param, data = _convert(path, self.detector, Path(name))
            kinds = {line.split()[0] for line in param.read_text("utf-8").splitlines()[2:]}
            unknown = sorted(kind for kind in kinds if self._ncnn.layer_to_index(kind) < 0)
            if unknown:
                raise cannot_execute("ncnn", path, f"pnnx left operators that ncnn does not have: {', '.join(unknown)}")
            if net.load_param(str(param)) or net.load_model(str(data)):
                raise cannot_execute("ncnn", path, "it does not load what pnnx made")

    def set_inputs(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Take (C, H, W) network pixels."""
        assert self.detector is not None
        self._input = network_input(pixels, self.detector)[0]

    def infer(self) -> None:
        """Execute once. Raises InputError if a layer fails."""
        with self._net.create_extractor() as extractor:
            extractor.input("in0", self._ncnn.Mat(self._input))
            found = [extractor.extract(name) for name in self._names]
        if any(status for status, _ in found):
            raise cannot_execute("ncnn", self._path, f"status {[status for status, _ in found]}")
        self._results = [mat for _, mat in found]

    def outputs(self) -> list[npt.NDArray[np.float32]]:
        """See the protocol."""
        return [np.array(mat) for mat in self._results]

    def version(self) -> str:
        """Of ncnn."""
        return str(self._ncnn.__version__)


def _convert(path: Path, detector: Detector, folder: Path) -> tuple[Path, Path]:
    """Let pnnx write its files into ``folder``; those that ncnn reads. Raises InputError with pnnx's last words."""
    spec = importlib.util.find_spec("pnnx")  # importing it would import torch; the program in it does without
    assert spec is not None and spec.submodule_search_locations
    program = Path(spec.submodule_search_locations[0]) / "pnnx"
    copy = shutil.copyfile(path, folder / "model.onnx")  # it writes beside what it reads
    size = detector.preprocess
    command = [str(program), copy.name, "fp16=0", f"inputshape=[1,{size.channels},{size.height},{size.width}]f32"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise cannot_execute("pnnx", path, error) from error
    param, data = folder / "model.ncnn.param", folder / "model.ncnn.bin"
    if done.returncode or not (param.is_file() and data.is_file()):
        raise cannot_execute("pnnx", path, f"exit status {done.returncode}: {done.stderr.strip()[-300:]}")
    return param, data
