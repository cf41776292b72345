"""Lower a QDQ graph to an integer program.

Every QuantizeLinear ends one operation. Looking back from it to the DequantizeLinear nodes that feed it gives a small
float segment; the segment's shape decides which record it becomes (segments.py finds it, emit.py writes the record).
All segments that have no record are reported in one error.
"""

from __future__ import annotations

from dataclasses import replace

import onnx
import onnx_ir as ir

from edgeyolo.detector import METADATA_KEY, Detector
from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.lower.emit import emit
from edgeyolo.lower.memory import plan_memory
from edgeyolo.lower.segments import Unsupported, activation_quant, find_segment, linear_quant
from edgeyolo.passes.graph import constant
from edgeyolo.program import IntegerProgram, Op, Tensor

MAX_REASON = 300
"""Characters of what is said about a malformed node."""


def lower_fixed(model: ir.Model) -> IntegerProgram:
    """The integer program of a QDQ model with power-of-two scales, batch 1, static shapes.

    Raises:
        UnsupportedError: nodes or scales that the integer program cannot express, all of them listed.
    """
    model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True))
    lowering = _Lowering(model)
    for node in model.graph:
        if node.op_type == "QuantizeLinear" and constant(node.inputs[0]) is None:
            lowering.add(node)
    return lowering.finish()


class _Lowering:
    """The tensors and records so far, and what could not be lowered."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.metadata = model.metadata_props
        self.input: int | None = None
        self.tensors: list[Tensor] = []
        self.ops: list[Op] = []
        self.index: dict[ir.Value, int] = {}
        self.offenders: list[str] = []

    def add(self, quantise: ir.Node) -> None:
        """Lower the operation that ends at this QuantizeLinear."""
        try:
            segment = find_segment(quantise)
            quant = activation_quant(quantise)
            tensor = Tensor(tensor_name(quantise), _chw(quantise), quant.qtype, int(quant.frac))
            if segment.root is None and segment.sources == (self.graph.inputs[0],):
                self.index[quantise.outputs[0]] = self._add_input(tensor)
                return
            number = len(self.tensors)
            self.tensors.append(tensor)
            self.index[quantise.outputs[0]] = number
            inputs = tuple(self._tensor_of(source) for source in segment.sources)
            self.ops.append(emit(segment, inputs, number, self.tensors))
        except (Unsupported, InputError) as error:
            self.offenders.append(f"{quantise.name or quantise.outputs[0].name}: {_one_line(error)}")
        except Exception as error:  # a malformed node can break anything that reads it; it is listed like the others
            self.offenders.append(f"{quantise.name or quantise.outputs[0].name}: is malformed: {error!r}"[:MAX_REASON])

    def _add_input(self, tensor: Tensor) -> int:
        """The tensor of the graph input, which several quantisers may read alike."""
        if self.input is None:
            self.input = len(self.tensors)
            self.tensors.append(tensor)
        known = self.tensors[self.input]
        if (known.qtype, known.frac) != (tensor.qtype, tensor.frac):
            raise Unsupported("quantises the graph input in a second way")
        return self.input

    def _tensor_of(self, real: ir.Value) -> int:
        """The tensor whose codes are dequantised to ``real``, by the very scale that they were quantised with."""
        producer = real.producer()
        codes = producer.inputs[0] if producer is not None and producer.op_type == "DequantizeLinear" else None
        if producer is None or codes is None or codes not in self.index:
            raise Unsupported(f"reads {real.name}, which is not quantised (or was refused)")
        tensor = self.tensors[self.index[codes]]
        quant = linear_quant(producer, tensor.qtype.dtype)
        if quant.qtype.axis is not None or int(quant.frac) != tensor.frac:
            raise Unsupported(f"reads {real.name}, which is dequantised by another scale than it was quantised with")
        return self.index[codes]

    def finish(self) -> IntegerProgram:
        """Check, plan the memory and return the program."""
        outputs = []
        for value in self.graph.outputs:
            try:
                outputs.append(self._tensor_of(value))
            except (Unsupported, InputError) as error:
                self.offenders.append(f"graph output {value.name}: {_one_line(error)}")
        if self.input is None:
            self.offenders.append(f"graph input {self.graph.inputs[0].name}: is not quantised")
        if self.offenders or self.input is None:
            raise UnsupportedError(
                f"{len(self.offenders)} part(s) of the model have no integer form",
                got="\n    ".join(["", *self.offenders]),
                allowed="Conv, MaxPool, Resize (nearest), Concat (channels), Add, Slice, Split, Reshape, tables",
                hint="edgeyolo export --target onnx writes the float model; replace or cut these nodes",
            )
        text = self.metadata.get(METADATA_KEY)
        program = IntegerProgram(
            tuple(self.tensors),
            tuple(self.ops),
            self.input,
            tuple(outputs),
            0,
            Detector.from_json(text) if text else None,
        )
        offsets, arena = plan_memory(program)
        tensors = tuple(replace(t, offset=o) for t, o in zip(program.tensors, offsets, strict=True))
        return replace(program, tensors=tensors, arena_bytes=arena)


def tensor_name(quantise: ir.Node) -> str:
    """The name of the real value that the codes stand for: the DequantizeLinear's result."""
    for use in quantise.outputs[0].uses():
        if use.node.op_type == "DequantizeLinear":
            return str(use.node.outputs[0].name)
    return str(quantise.outputs[0].name)


def _chw(quantise: ir.Node) -> tuple[int, int, int]:
    value = quantise.inputs[0]
    shape = value.shape if value is not None and value.shape is not None else quantise.outputs[0].shape
    dims = [d if isinstance(d, int) else -1 for d in shape] if shape is not None else []
    if len(dims) != 4 or dims[0] != 1 or min(dims) < 1:
        raise Unsupported(f"has shape {dims or 'unknown'}; a static (1, C, H, W) is needed")
    return dims[1], dims[2], dims[3]


def _one_line(error: Unsupported | InputError) -> str:
    return f"{error.what}: {error.got}" if isinstance(error, InputError) else str(error)
