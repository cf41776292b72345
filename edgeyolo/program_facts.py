"""What a manifest repeats of the integer program."""

from __future__ import annotations

from collections import Counter
from typing import Any

from edgeyolo.program import Conv, IntegerProgram, Op, accumulator_bound, is_float32_exact, op_inputs


def program_facts(program: IntegerProgram) -> dict[str, Any]:
    """What the manifest repeats of the program, for people and for hardware that does not read program images."""
    convs = [op for op in program.ops if isinstance(op, Conv)]
    bounds = [_bound(program, op) for op in convs]
    bits = Counter[int]()
    for op in convs:
        bits[op.weight_type.bits] += op.weight.size
    return {
        "tensors": [
            {
                "name": t.name, "shape": list(t.shape), "layout": "CHW", "dtype": str(t.qtype.dtype),
                "qtype": str(t.qtype), "frac": t.frac, "offset": t.offset,
            }
            for t in program.tensors
        ],
        "operations": [_operation(program, op) for op in program.ops],
        "program": {
            "operations": len(program.ops),
            "input": program.tensors[program.input].name,
            "outputs": [program.tensors[i].name for i in program.outputs],
            "arena_bytes": program.arena_bytes,
            "accumulator_bits": max((b.bit_length() + 1 for b in bounds), default=0),
            "float32_exact_layers": sum(is_float32_exact(op, program.tensors[op.input].qtype) for op in convs),
            "convolutions": len(convs),
        },
        "weight_bits": {str(k): n for k, n in sorted(bits.items())},
    }  # fmt: skip


def _bound(program: IntegerProgram, op: Conv) -> int:
    return accumulator_bound(op.weight, op.bias, program.tensors[op.input].qtype)


def _operation(program: IntegerProgram, op: Op) -> dict[str, Any]:
    """The manifest's row of one operation; tensors are given by index."""
    row = {"name": op.name, "kind": type(op).__name__, "inputs": list(op_inputs(op)), "output": op.output}
    if isinstance(op, Conv):
        row |= {"weights": str(op.weight_type), "accumulator_bits": _bound(program, op).bit_length() + 1}
    return row
