"""ONNX Runtime on the QDQ file: what every other execution of a bundle has to equal."""

from __future__ import annotations

import onnx_ir as ir

from edgeyolo.lower.fixed import tensor_name
from edgeyolo.ort import model_bytes, open_session, run
from edgeyolo.program import IntegerProgram
from edgeyolo.qtype import TensorQuant
from edgeyolo.quant.calibrate import with_outputs
from edgeyolo.runners.integer import Codes


class Oracle:
    """ONNX Runtime, graph optimisations off, on the QDQ file."""

    def __init__(self, model: ir.Model) -> None:
        quantisers = [n for n in model.graph if n.op_type == "QuantizeLinear"]
        self._codes = {tensor_name(n): str(n.outputs[0].name) for n in quantisers}
        self._session = open_session(model_bytes(with_outputs(model, self._codes.values())), optimise=False)

    def layers(self, program: IntegerProgram, codes: Codes) -> list[Codes]:
        """The output codes of every operation of ``program``, lowered from this model, for its input codes."""
        source = program.tensors[program.input]
        answer = run(self._session, TensorQuant.pow2(source.qtype, source.frac).dequantise(codes)[None])
        names = [program.tensors[op.output].name for op in program.ops]
        return [answer[self._codes[name]][0] for name in names]
