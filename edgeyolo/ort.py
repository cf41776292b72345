"""ONNX Runtime sessions on the CPU, the one place that creates them to run something.

With optimisations off, float arithmetic on integers is exact while every accumulator fits 24 bits: that is the oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgeyolo.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime

Arrays = dict[str, npt.NDArray[Any]]


def model_bytes(model: ir.Model) -> bytes:
    """The serialised ONNX file of ``model``."""
    import onnx_ir as ir

    data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return data


def open_session(
    model: ir.Model | bytes | Path, *, optimise: bool = True, threads: int = 0, spinning: bool = True
) -> onnxruntime.InferenceSession:
    """Open a CPU session.

    Args:
        model: a graph, its serialised bytes, or a file.
        optimise: ORT's graph optimisations; off gives the exact oracle.
        threads: intra-op threads, 0 for all cores.
        spinning: threads without work wait at full load, which is quicker where nothing else runs.

    Raises:
        InputError: onnxruntime is not installed, or it cannot load the model.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise InputError("ONNX Runtime is not installed", hint="pip install 'edgeyolo[onnx]'") from error
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised; nothing needs to be printed as well
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source: Any = str(model) if isinstance(model, Path) else model if isinstance(model, bytes) else model_bytes(model)
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT raises many private types
        where = model if isinstance(model, Path) else None
        raise InputError("ONNX Runtime cannot load the model", where=where, got=str(error)[:500]) from error


def run(
    session: onnxruntime.InferenceSession, feeds: Arrays | npt.NDArray[Any], names: Sequence[str] | None = None
) -> Arrays:
    """Run once; ``feeds`` may be the single input's array. Returns the outputs called ``names``, or all of them.

    Raises InputError if the model cannot be executed on these inputs.
    """
    if not isinstance(feeds, dict):
        feeds = {session.get_inputs()[0].name: feeds}
    names = [output.name for output in session.get_outputs()] if names is None else list(names)
    try:
        results = session.run(names, feeds)
    except Exception as error:  # ORT raises many private types
        raise InputError("ONNX Runtime cannot run the model", got=str(error)[:500]) from error
    return dict(zip(names, map(np.asarray, results), strict=True))
