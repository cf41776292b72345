"""Plan the arena: tensors that are never alive together share bytes."""

from __future__ import annotations

from edgeyolo.program import IntegerProgram
from edgeyolo.program_check import lifetimes

ARENA_ALIGNMENT = 16
"""Every tensor starts at a multiple of this many bytes, which suits vector loads and DMA."""


def plan_memory(program: IntegerProgram) -> tuple[list[int], int]:
    """Byte offsets of all tensors and the arena's size: largest first, each at the lowest offset that is free."""
    alive = lifetimes(program)
    offsets: dict[int, int] = {}
    order = sorted(range(len(program.tensors)), key=lambda i: (-program.tensors[i].nbytes, i))
    for tensor in order:
        first, last = alive[tensor]
        busy = sorted(
            (offsets[other], offsets[other] + _round_up(program.tensors[other].nbytes))
            for other in offsets
            if alive[other][0] <= last and first <= alive[other][1]
        )
        offset = 0
        for start, end in busy:
            if offset + program.tensors[tensor].nbytes <= start:
                break
            offset = max(offset, end)
        offsets[tensor] = offset
    arena = max(offsets[i] + _round_up(t.nbytes) for i, t in enumerate(program.tensors))
    return [offsets[i] for i in range(len(program.tensors))], arena


def _round_up(size: int) -> int:
    return -(-size // ARENA_ALIGNMENT) * ARENA_ALIGNMENT
