"""Execute a typed graph node by node, so that every float16 value is rounded and overflows as on a device.

ONNX Runtime computes float16 in float32 on a CPU, and carries float32 from node to node: in a session of the whole
graph nothing between two nodes is rounded, and nothing overflows. In a session of one node both ends are float16.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.ort import Arrays, open_session, run
from edgeyolo.passes.graph import constant
from edgeyolo.quant.walk import standalone


class TypedGraph:
    """A session per node; what depends on constants alone is computed once."""

    def __init__(self, model: ir.Model) -> None:
        self._input = str(model.graph.inputs[0].name)
        self._outputs = [str(value.name) for value in model.graph.outputs]
        self._known: Arrays = {}
        self._steps = []
        opset = model.graph.opset_imports[""]
        for node in model.graph:
            if all(constant(value) is not None for value in node.outputs):
                continue
            reads = [str(v.name) for v in node.inputs if v is not None and constant(v) is None]
            session = open_session(standalone(node, opset, {}), optimise=False, threads=1)
            if set(reads) <= set(self._known):
                self._known |= run(session, {name: self._known[name] for name in reads})
            else:
                self._steps.append((session, reads))

    def __call__(self, feed: npt.NDArray[np.float32], names: Sequence[str] | None = None) -> Arrays:
        """The outputs, or the values called ``names``, for a batch of inputs."""
        values = {**self._known, self._input: feed}
        for session, reads in self._steps:
            values |= run(session, {name: values[name] for name in reads})
        return {name: values[name] for name in (self._outputs if names is None else names)}
