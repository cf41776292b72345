"""The device that an engine runs on: CUDA calls, memory, and whether an engine belongs to this device and this bundle.

Beside an engine ``X.engine`` stands ``X.json``, written by whatever built it: the model's sha256, the TensorRT and the
GPU. It is read as data and compared before the engine itself is touched.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.jetson import tensorrt_api as api
else:  # in a bundle the module lies beside this file, elsewhere in the same package
    api = importlib.import_module(__package__ + ".tensorrt_api" if __package__ else "tensorrt_api")

CUDA = ("cuda.bindings.runtime", "cuda.cudart")
"""The module of cuda-python from 12.6 on, and the older one."""
SIDECAR = {
    "model_sha256": (str,),
    "file": (str,),
    "precision": (str,),
    "tensorrt": (str,),
    "rtx": (bool,),
    "gpu": (str, type(None)),
    "compute_capability": (str, list, type(None)),
}
"""What this reader needs of a sidecar, with the types that JSON gives."""
MODELS = ("model.onnx", "typed.onnx")


class Cuda:
    """cuda-python's runtime functions, called by name; an error code becomes a TensorRTError."""

    def __init__(self) -> None:
        failures = []
        for name in CUDA:
            try:
                self.api: Any = importlib.import_module(name)
                return
            except ImportError as error:
                failures.append(f"{name}: {error}")
        raise api.TensorRTError(
            "cuda-python cannot be imported",
            got="; ".join(failures),
            allowed=" or ".join(CUDA),
            hint="pip install cuda-python, of the CUDA version that nvcc --version shows",
        )

    def __call__(self, function: str, *arguments: Any) -> Any:
        """Result of ``function``; None where it has none."""
        error, *values = getattr(self.api, function)(*arguments)
        if int(error) != 0:
            said = self.api.cudaGetErrorString(error)[1].decode()
            raise api.TensorRTError(
                "CUDA failed",
                where=function,
                got=said,
                hint="nvidia-smi (tegrastats on a Jetson) shows the GPU and its free memory",
            )
        return values[0] if values else None

    def gpu(self) -> tuple[str, str]:
        """Name and compute capability of the GPU, such as ``8.7``."""
        found = self("cudaGetDeviceProperties", 0)
        return found.name.decode().rstrip("\0"), f"{found.major}.{found.minor}"


class Buffer:
    """Page-locked host memory and device memory of one tensor; both only grow."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.host = self.device = self._host_size = self._device_size = 0

    def grow_host(self, size: int) -> None:
        """Hold at least ``size`` bytes; what was inside is lost where it grows."""
        if size > self._host_size or not self.host:
            self._free_host()
            self.host, self._host_size = int(self._cuda("cudaHostAlloc", max(size, 1), 0)), size

    def grow_device(self, size: int) -> None:
        """The same on the device, where growing changes the address."""
        if size > self._device_size or not self.device:
            self._free_device()
            self.device, self._device_size = int(self._cuda("cudaMalloc", max(size, 1))), size

    def holds(self, size: int) -> bool:
        """Whether both are there and have ``size`` bytes."""
        return bool(self.host and self.device) and size <= min(self._host_size, self._device_size)

    def view(self, dtype: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """The host memory as an array, not a copy."""
        size = count(shape) * np.dtype(dtype).itemsize
        memory = (ctypes.c_uint8 * max(size, 1)).from_address(self.host)
        found: npt.NDArray[Any] = np.frombuffer(memory, np.uint8)[:size].view(dtype).reshape(shape)
        return found

    def _free_host(self) -> None:
        if self.host:
            address, self.host, self._host_size = self.host, 0, 0
            self._cuda("cudaFreeHost", address)

    def _free_device(self) -> None:
        if self.device:
            address, self.device, self._device_size = self.device, 0, 0
            self._cuda("cudaFree", address)

    def free(self) -> None:
        """Give both back."""
        self._free_host()
        self._free_device()


def count(shape: tuple[int, ...]) -> int:
    """Number of elements."""
    return int(np.prod(shape, dtype=np.int64))


def rebuild(path: Path) -> str:
    """The next step where the engine ``path`` cannot be used."""
    return f"build it on this device: run build.sh in {path.absolute().parent.parent}"


def read_sidecar(path: Path) -> dict[str, Any] | None:
    """What was written down when the engine ``path`` was built; None where nothing was.

    Raises:
        TensorRTError: the file is not what build.sh writes.
    """
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return None
    try:
        found = json.loads(beside.read_text("utf-8"))
    except ValueError:
        found = None
    note = found if isinstance(found, dict) else {}
    wrong = [key for key, kinds in SIDECAR.items() if key not in note or not isinstance(note[key], kinds)]
    if wrong or note["file"] not in MODELS:
        raise api.TensorRTError(
            "the note beside the engine cannot be used",
            where=beside,
            got=f"missing or of another type: {', '.join(wrong)}" if wrong else f"file {note['file']!r}",
            allowed=", ".join(SIDECAR),
            hint=rebuild(path),
        )
    return note


def check_sidecar(path: Path, sidecar: dict[str, Any], trt: Any, gpu: str, capability: str) -> None:
    """Compare what the engine ``path`` was built from and for with the bundle around it and this device.

    Raises:
        TensorRTError: every difference.
    """
    rows = []
    model = path.absolute().parent.parent / sidecar["file"]
    if model.is_file():
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        if digest != sidecar["model_sha256"]:
            rows.append(f"built from a {sidecar['file']} with sha256 {sidecar['model_sha256']}, here it is {digest}")
    here = ".".join(map(str, api.version(trt)))
    if sidecar["tensorrt"].split(".")[:3] != here.split("."):
        rows.append(f"built by TensorRT {sidecar['tensorrt']}, here is {here}")
    built_for = sidecar["compute_capability"]
    if built_for is not None and capability not in (built_for if isinstance(built_for, list) else [built_for]):
        rows.append(f"built for compute capability {built_for}, this GPU has {capability}")
    elif sidecar["gpu"] not in (None, gpu):
        rows.append(f"built on {sidecar['gpu']!r}, here is {gpu!r}")
    if rows:
        raise api.TensorRTError(
            "the engine does not belong here",
            where=path,
            got="\n       ".join(rows),
            allowed="an engine of this model, this TensorRT and this kind of GPU",
            hint=rebuild(path),
        )
