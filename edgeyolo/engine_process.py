"""Build an engine in a process of its own: TensorRT parses what others made, and a crash must not take us along."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeyolo.errors import InputError
from edgeyolo.targets.jetson import tensorrt_api

MODEL, PLAN, ANSWER = "model.onnx", "plan", "answer.json"


@dataclass(frozen=True)
class Plan:
    """A serialised engine, and the module and version that built it."""

    data: bytes
    module: str
    version: str


def build_apart(model: bytes, options: tensorrt_api.BuildOptions, modules: tuple[str, ...]) -> Plan:
    """Build the engine of a serialised ONNX model with the first of ``modules`` that there is.

    Raises InputError: none is there, it refuses the model or the options, or it crashes.
    """
    with tempfile.TemporaryDirectory(prefix="edgeyolo-") as name:
        folder = Path(name)
        (folder / MODEL).write_bytes(model)
        request = {**asdict(options), "timing_cache": options.timing_cache and str(options.timing_cache.absolute())}
        command = [sys.executable, "-m", __name__, name, json.dumps(request), *modules]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if not (folder / ANSWER).is_file():
            reason = f"signal {-done.returncode}" if done.returncode < 0 else done.stderr.strip()[-300:]
            what = "TensorRT crashed on this model"
            raise InputError(what, got=reason, hint="edgeyolo lint says what is unusual in it")
        answer = json.loads((folder / ANSWER).read_text("utf-8"))
        if "error" in answer:
            raise InputError(**answer["error"])
        return Plan((folder / PLAN).read_bytes(), answer["module"], answer["version"])


def main(folder: Path, request: dict[str, Any], modules: list[str]) -> None:
    """The other process: read the model from ``folder``, leave the plan and the answer there."""
    path = request.pop("timing_cache")
    listed = {key: tuple(value) if isinstance(value, list) else value for key, value in request.items()}
    options = tensorrt_api.BuildOptions(**listed, timing_cache=path and Path(path))
    try:
        trt = tensorrt_api.load(modules)
        (folder / PLAN).write_bytes(tensorrt_api.build_engine((folder / MODEL).read_bytes(), options, trt))
        answer: dict[str, Any] = {"module": trt.__name__, "version": trt.__version__}
    except tensorrt_api.TensorRTError as error:
        keys = ("what", "where", "got", "allowed", "hint")
        values = {key: getattr(error, key) for key in keys}
        answer = {"error": {key: value if value is None else str(value) for key, value in values.items()}}
    (folder / ANSWER).write_text(json.dumps(answer), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:])
