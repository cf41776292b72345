"""The arena: tensors that live together never share a byte, and nothing is wasted on those that do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_programs import execute, random_program

from edgeyolo.lower.memory import ARENA_ALIGNMENT, plan_memory
from edgeyolo.program import Concat, IntegerProgram, Reshape, Tensor, op_inputs
from edgeyolo.program_check import check_program
from edgeyolo.qtype import QType

I8 = QType(8)


def rounded(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ARENA_ALIGNMENT) * ARENA_ALIGNMENT


def planned(program: IntegerProgram) -> IntegerProgram:
    offsets, arena = plan_memory(program)
    tensors = tuple(replace(t, offset=o) for t, o in zip(program.tensors, offsets, strict=True))
    return replace(program, tensors=tensors, arena_bytes=arena)


def alive_before(program: IntegerProgram, step: int) -> set[int]:
    """Tensors that hold data which operation ``step`` or a later one reads, or that are outputs and written."""
    written = {program.input, *(op.output for op in program.ops[:step])}
    wanted = {i for op in program.ops[step:] for i in op_inputs(op)} | set(program.outputs)
    return written & wanted


def run_in_arena(program: IntegerProgram, codes: np.ndarray) -> list[np.ndarray]:
    """Execute in real shared bytes: any overlap of living tensors corrupts the outputs."""
    arena = np.zeros(program.arena_bytes, np.uint8)

    def view(index: int) -> np.ndarray:
        tensor = program.tensors[index]
        return arena[tensor.offset : tensor.offset + tensor.nbytes].view(tensor.qtype.dtype).reshape(tensor.shape)

    view(program.input)[:] = codes
    for op in program.ops:
        # Inputs are read from the arena; the operation itself is the plain reference.
        inputs = tuple(dict.fromkeys(op_inputs(op)))
        arena[program.tensors[op.output].offset :][: program.tensors[op.output].nbytes] ^= 0xFF  # in place would show
        view(op.output)[:] = _execute_one(program, op, {i: view(i).copy() for i in inputs})
    return [view(i).copy() for i in program.outputs]


def _execute_one(program: IntegerProgram, op: object, values: dict[int, np.ndarray]) -> np.ndarray:
    from edgeyolo.runners.integer import run_op

    result = run_op(op, [values[i] for i in op_inputs(op)], program.tensors[op.output])
    return result.astype(program.tensors[op.output].qtype.dtype)


@pytest.mark.parametrize("seed", range(40))
def test_random_programs_run_correctly_in_their_planned_arena(seed):
    program, codes = random_program(seed, ops=14)
    program = planned(program)
    check_program(program, "here")
    by_tensor = {program.input: codes}
    by_tensor |= dict(zip((op.output for op in program.ops), execute(program, codes), strict=True))
    for index, got in zip(program.outputs, run_in_arena(program, codes), strict=True):
        assert np.array_equal(got, by_tensor[index])


@pytest.mark.parametrize("seed", range(40))
def test_the_arena_lies_between_the_heaviest_step_and_no_reuse_at_all(seed):
    program = planned(random_program(seed, ops=14)[0])
    heaviest = max(
        sum(program.tensors[i].nbytes for i in alive_before(program, step) | {op.output})
        for step, op in enumerate(program.ops)
    )
    assert heaviest <= program.arena_bytes <= sum(map(rounded, program.tensors))
    assert all(t.offset % ARENA_ALIGNMENT == 0 for t in program.tensors)
    assert max(t.offset + t.nbytes for t in program.tensors) <= program.arena_bytes


def chain(sizes: list[int]) -> IntegerProgram:
    tensors = tuple(Tensor(f"t{i}", (1, 1, size), I8, 0) for i, size in enumerate(sizes))
    ops = tuple(Reshape(f"op{i}", i, i + 1) for i in range(len(sizes) - 1))
    return IntegerProgram(tensors, ops, 0, (len(sizes) - 1,), 0)


@pytest.mark.parametrize(
    "sizes", [[64] * 9, [256, 128, 64, 32], [16, 32, 64, 128], [16, 640, 320, 160, 80], [100, 1, 1, 1]]
)
def test_a_chain_needs_no_more_than_its_largest_neighbours(sizes):
    program = planned(chain(sizes))
    pairs = [rounded(a) + rounded(b) for a, b in zip(program.tensors, program.tensors[1:], strict=False)]
    assert program.arena_bytes == max(pairs)


def test_outputs_and_skips_live_until_they_are_read():
    program = chain([48, 48, 48, 48, 48])
    joined = Tensor("joined", (2, 1, 48), I8, 0)
    skip = Concat("skip", (0, 4), 5, (0, 0), -128, 127)
    program = planned(replace(program, tensors=(*program.tensors, joined), ops=(*program.ops, skip), outputs=(1, 5)))
    check_program(program, "here")
    assert program.arena_bytes == 48 + 48 + 48 + 96  # the skip, an output, the last link, the result


def test_a_tensor_that_nobody_reads_still_gets_room_of_its_own_while_it_is_written():
    program = chain([64, 64, 64])
    extra = Tensor("unread", (1, 1, 64), I8, 0)
    ops = (program.ops[0], Reshape("unread", 0, 3), program.ops[1])
    check_program(planned(replace(program, tensors=(*program.tensors, extra), ops=ops)), "here")
