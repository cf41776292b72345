"""Build an engine in a process of its own: TensorRT parses what others made, and a crash must not take us along."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeyolo.errors import InputError
from edgeyolo.targets.jetson import tensorrt_api

MODEL, PLAN, ANSWER, CACHE = "model.onnx", "plan", "answer.json", "timing.cache"
REQUEST = "request.json"
SECONDS = 7200
"""A Jetson needs minutes for a large network; hours are a hang."""


@dataclass(frozen=True)
class Plan:
    """A serialised engine, the module and version that built it, and what was measured, where it is to be kept."""

    data: bytes
    module: str
    version: str
    timing_cache: bytes | None


def build_apart(model: bytes, options: tensorrt_api.BuildOptions, modules: tuple[str, ...]) -> Plan:
    """Build the engine of a serialised ONNX model with the first of ``modules`` that there is.

    Raises InputError: none is there, it refuses the model or the options, or it crashes.
    """
    with tempfile.TemporaryDirectory(prefix="edgeyolo-") as name:
        folder = Path(name)
        (folder / MODEL).write_bytes(model)
        cache = options.timing_cache
        if cache is not None and cache.is_file():
            shutil.copyfile(cache, folder / CACHE)
        request = {**asdict(options), "timing_cache": cache and CACHE}
        (folder / REQUEST).write_text(json.dumps({"options": request, "modules": modules}), "utf-8")
        command = [sys.executable, "-m", __name__, name]
        # -m puts the working folder in front of all modules, and that may be a stranger's bundle.
        try:
            done = subprocess.run(
                command, cwd=name, capture_output=True, text=True, errors="replace", check=False, timeout=SECONDS
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise InputError("TensorRT does not finish", got=f"{SECONDS} s", hint="build it with build.sh") from error
        if not (folder / ANSWER).is_file():
            reason = f"signal {-done.returncode}" if done.returncode < 0 else done.stderr.strip()[-300:]
            what = "TensorRT crashed on this model"
            raise InputError(what, got=reason, hint="edgeyolo lint says what is unusual in it")
        answer = json.loads((folder / ANSWER).read_text("utf-8"))
        if "error" in answer:
            raise InputError(**answer["error"])
        measured = (folder / CACHE).read_bytes() if (folder / CACHE).is_file() else None
        return Plan((folder / PLAN).read_bytes(), answer["module"], answer["version"], measured)


def main(folder: Path) -> None:
    """The other process: read request and model from ``folder``, leave the plan and the answer there."""
    asked = json.loads((folder / REQUEST).read_text("utf-8"))
    request, modules = asked["options"], asked["modules"]
    path = request.pop("timing_cache")
    listed = {key: tuple(value) if isinstance(value, list) else value for key, value in request.items()}
    options = tensorrt_api.BuildOptions(**listed, timing_cache=path and folder / path)
    try:
        trt = tensorrt_api.load(modules)
        (folder / PLAN).write_bytes(tensorrt_api.build_engine((folder / MODEL).read_bytes(), options, trt))
        answer: dict[str, Any] = {"module": trt.__name__, "version": trt.__version__}
    except tensorrt_api.TensorRTError as error:
        keys = ("what", "where", "got", "allowed", "hint")
        values = {key: getattr(error, key) for key in keys}
        answer = {"error": {key: value if value is None else str(value) for key, value in values.items()}}
    except (TypeError, ValueError, OverflowError) as error:  # numbers from a manifest that the bindings cannot take
        answer = {"error": {"what": "TensorRT cannot take these options", "got": str(error)[:300]}}
    (folder / ANSWER).write_text(json.dumps(answer), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
