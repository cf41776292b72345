"""The files of onnxruntime-web that the page needs, and where they are.

They are too large for the repository: ``python -m edgeyolo.serve.fetch_runtime`` puts them beside this module before a
wheel is built.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from edgeyolo.errors import InputError

VERSION = "1.30.0"
"""Of the npm package ``onnxruntime-web``."""
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""What npm calls the hash of that package's archive."""
BACKENDS = {
    "wasm": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}
"""Files of each backend. The one with WebGPU is larger and on the CPU slower."""
FETCH = "python -m edgeyolo.serve.fetch_runtime"


def runtime_folder() -> Path:
    """Where the files are that ship with the package."""
    return Path(str(files("edgeyolo.serve"))) / "runtime"


def find_runtime(folder: Path | None) -> dict[str, Path]:
    """The files by name: all of WebAssembly's, and WebGPU's where they are.

    Args:
        folder: the user's own ``onnxruntime-web/dist``; None: what ships with the package.

    Raises InputError if there is no runtime.
    """
    place = folder or runtime_folder()
    found = {name: place / name for names in BACKENDS.values() for name in names if (place / name).is_file()}
    missing = [name for name in BACKENDS["wasm"] if name not in found]
    if missing:
        raise InputError(
            "onnxruntime-web is not there, which the page runs the model with", where=place,
            got=f"no {', '.join(missing)}",
            hint=f"{FETCH} (needs npm), or --runtime node_modules/onnxruntime-web/dist",
        )  # fmt: skip
    return found
