"""What a TensorRT bundle holds besides the manifest: the graphs, what builds and runs them, and golden data."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.bundle import MODEL
from edgeyolo.images import Pixels
from edgeyolo.lower.tensorrt.execute import TypedGraph
from edgeyolo.ort import Arrays, model_bytes, open_session, run
from edgeyolo.passes.graph import read_detector
from edgeyolo.quant.calibrate import to_float

if TYPE_CHECKING:
    from edgeyolo.export.tensorrt import TensorRTRequest

TYPED = "typed.onnx"
"""The strongly typed graph."""
CONF = "build.conf"
GOLDEN_INDEX = "golden/index.json"
FP32_DB = 40.0
"""Engine against ONNX Runtime in float32: TF32 and other orders of summation leave about 60 dB."""
MARGIN_DB = 6.0
"""An engine may make four times the noise that float16 makes here: its sums are ordered otherwise, and values next to
the border of two codes go either way (ONNX Runtime with and without its optimisations differs as much)."""
FLOOR_DB = 6.0
"""Nothing below it is called equal, whatever a bundle says: a quarter of the signal would be noise."""


def device_files(
    model: ir.Model, typed: ir.Model, request: TensorRTRequest, float32: Sequence[str]
) -> dict[str, bytes]:
    """Path -> content of the graphs and the device's programs.

    Args:
        model, typed: the float32 graph (with pairs for int8) and its typed form.
        request: of the export.
        float32: layers that stay float32.
    """
    contents = {MODEL: model_bytes(model), CONF: build_conf(model, request, float32).encode()}
    if request.precision != "fp32":
        contents[TYPED] = model_bytes(typed)
    for item in files("edgeyolo.targets.jetson").iterdir():
        if item.name == "build.sh" or (item.name.endswith(".py") and item.name != "__init__.py"):
            contents[item.name] = item.read_bytes()
    return contents


def build_conf(model: ir.Model, request: TensorRTRequest, float32: Sequence[str]) -> str:
    """The constants of ``build.sh``, one KEY=value a line."""
    size, batch = read_detector(model).preprocess, request.max_batch or 1
    rows = {
        "NAME": "model",
        "PRECISION": request.precision,
        "BOARD": request.board.name,
        "INPUT": model.graph.inputs[0].name,
        "SHAPE": f"{size.channels}x{size.height}x{size.width}",
        "DYNAMIC": int(request.max_batch is not None),
        "MIN_BATCH": 1,
        "OPT_BATCH": batch,
        "MAX_BATCH": batch,
        "WORKSPACE_MIB": request.board.workspace_mib,
        "DLA": "" if request.dla is None else request.dla,
        "FLOAT_LAYERS": ",".join(float32),
    }
    return "".join(f"{key}={value}\n" for key, value in rows.items())


def golden_files(model: ir.Model, typed: ir.Model, precision: str, pictures: Sequence[Pixels]) -> dict[str, bytes]:
    """Path -> content of the golden data: inputs, and what ONNX Runtime computes for them with ``model``.

    The tolerance is measured: what the typed graph makes of the same pictures in ONNX Runtime, and ``MARGIN_DB``.
    """
    if not pictures:
        return {}
    detector, contents = read_detector(model), dict[str, bytes]()
    session, rounded = open_session(model, optimise=False), TypedGraph(typed)
    names, expected, typed_runs = [str(value.name) for value in model.graph.outputs], list[Arrays](), list[Arrays]()
    for number, pixels in enumerate(pictures):
        feed = to_float(pixels, detector)
        expected.append(run(session, feed))
        typed_runs.append(rounded(feed))
        contents[golden_name(number, "input")] = npy_bytes(feed)
        contents |= {golden_name(number, f"output-{i}"): npy_bytes(expected[-1][name]) for i, name in enumerate(names)}
    measured = min(noise_db(expected, typed_runs).values(), default=np.inf)
    tolerance = round(min(FP32_DB, max(FLOOR_DB, measured - MARGIN_DB)), 1)
    index = {"tolerance_db": {precision: tolerance}, "outputs": names, "pictures": len(pictures)}
    return contents | {GOLDEN_INDEX: (json.dumps(index, indent=1, sort_keys=True) + "\n").encode()}


def golden_name(picture: int, part: str) -> str:
    """Where golden data stands in a bundle; ``part`` is ``input`` or ``output-K``."""
    return f"golden/{picture:03d}/{part}.npy"


def noise_db(expected: Sequence[Arrays], got: Sequence[Arrays]) -> dict[str, float]:
    """Signal to noise ratio in dB of every float output over all pictures, by name; infinite where all is equal."""
    names = [name for name, value in expected[0].items() if value.dtype == np.float32]
    signal = {name: sum(float(np.square(e[name], dtype=np.float64).sum()) for e in expected) for name in names}
    noise = {
        name: sum(
            float(np.square(e[name] - g[name], dtype=np.float64).sum()) for e, g in zip(expected, got, strict=True)
        )
        for name in names
    }
    with np.errstate(divide="ignore"):
        return {n: float(10 * np.log10(np.divide(signal[n], noise[n]))) if noise[n] != 0 else np.inf for n in names}


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    """An array as an ``.npy`` file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()
