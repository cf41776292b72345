"""Target profiles: what an FPGA board can execute and how it wants its data. ``profile_file.py`` reads the files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from edgeyolo.errors import UnsupportedError
from edgeyolo.packing import LAYOUTS
from edgeyolo.profile_file import Rule, find_offences, list_boards, make_profile, parse_toml, read_profile
from edgeyolo.program import MAX_SHIFT, Add, Concat, Conv, IntegerProgram, Op, accumulator_bound
from edgeyolo.qtype import MAX_BITS, MIN_BITS

__all__ = ["DEFAULT_BOARD", "GRANULARITIES", "OPERATORS", "TargetProfile", "accumulator_bits", "check_program",
           "list_boards", "load_profile", "parse_profile"]  # fmt: skip

OPERATORS = tuple(kind.__name__ for kind in get_args(Op))
GRANULARITIES = ("per-tensor", "per-channel")
DEFAULT_BOARD = "generic"


@dataclass(frozen=True)
class TargetProfile:
    """One board. The field names are the TOML file's keys.

    Args:
        name: identifies the board in manifests and messages.
        description: one sentence for people.
        operators: record names of the integer program (``Conv``, ``MaxPool``, ...) that the target executes.
        weight_bits: legal widths of weights.
        activation_bits: legal widths of activations.
        bias_bits: width of a bias, signed.
        accumulator_bits: width of the accumulator of a convolution, signed.
        granularity: legal granularities of weight exponents, ``per-tensor`` and ``per-channel``.
        max_shift: largest absolute shift of a requantisation.
        layout: default order of weights: ``oihw``, ``ohwi`` or ``tiled``.
        tm: output channels of a weight tile.
        tn: input channels of a weight tile.
        alignment: bytes; every layer's section in an image starts at a multiple of it (a power of two).
        word_bits: bits of one word in .mem and .coe files (8 times a power of two).
        endianness: ``little`` or ``big``: which byte of such a word comes first. Binary files are always little-endian.
        on_chip_bytes: memory on the device that the design can use.
        dsps: hardware multipliers.
        clock_mhz: the clock a design for this board is expected to reach.
    """

    name: str
    description: str
    operators: tuple[str, ...]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    bias_bits: int
    accumulator_bits: int
    granularity: tuple[str, ...]
    max_shift: int
    layout: str
    tm: int
    tn: int
    alignment: int
    word_bits: int
    endianness: str
    on_chip_bytes: int
    dsps: int
    clock_mhz: int


_WIDTHS = tuple(range(MIN_BITS, MAX_BITS + 1))
_POWERS = tuple(1 << i for i in range(13))
_ALLOWED: dict[str, Rule] = {
    "operators": OPERATORS,
    "weight_bits": tuple(range(MIN_BITS, 9)),
    "activation_bits": _WIDTHS,
    "bias_bits": range(2, 33),
    "accumulator_bits": range(8, 65),
    "granularity": GRANULARITIES,
    "max_shift": range(MAX_SHIFT + 1),
    "layout": LAYOUTS,
    "tm": range(1, 4097),
    "tn": range(1, 4097),
    "alignment": _POWERS,
    "word_bits": tuple(8 * p for p in _POWERS[:8]),
    "endianness": ("little", "big"),
    "on_chip_bytes": range(1 << 40),
    "dsps": range(1 << 24),
    "clock_mhz": range(1, 10_000),
}


def parse_profile(text: str, where: object) -> TargetProfile:
    """Read a profile from TOML text. Raises InputError that lists every unknown, missing or ill-typed key."""
    data = parse_toml(text, where)
    offences = find_offences(data, TargetProfile, _ALLOWED)
    return make_profile(TargetProfile, data, offences, where, "targets/fpga/generic.toml")


def load_profile(target: str, board: str | None = None) -> TargetProfile:
    """Load a board's profile.

    Args:
        target: such as ``fpga``.
        board: name of a shipped profile of that target, or the path of a TOML file (it ends in ``.toml``); default
            ``generic``.

    Raises InputError for an unknown target or board (the known ones are listed) and for an unusable file.
    """
    return parse_profile(*read_profile(target, board or DEFAULT_BOARD))


def check_program(program: IntegerProgram, profile: TargetProfile) -> None:
    """Raise UnsupportedError listing everything in ``program`` that ``profile`` does not allow."""
    offences: dict[str, list[str]] = {}
    for tensor in program.tensors:
        if tensor.qtype.bits not in profile.activation_bits:
            offences.setdefault(f"{tensor.qtype.bits} bit activations", []).append(tensor.name)
    for op in program.ops:
        for reason in _op_offences(op, program, profile):
            offences.setdefault(reason, []).append(op.name)
    if offences:
        raise UnsupportedError(
            f"the model needs what board {profile.name} does not have",
            got="; ".join(f"{reason} ({', '.join(names)})" for reason, names in offences.items()),
            allowed=f"operators {', '.join(profile.operators)}; weights of {profile.weight_bits} bits, activations of "
            f"{profile.activation_bits} bits, bias of {profile.bias_bits} bits, accumulators of "
            f"{profile.accumulator_bits} bits; granularity {', '.join(profile.granularity)}; shifts up to "
            f"{profile.max_shift}",
        )


def accumulator_bits(op: Conv, program: IntegerProgram) -> int:
    """Bits of the narrowest signed accumulator that no input can overflow."""
    bound = accumulator_bound(op.weight, op.bias, program.tensors[op.input].qtype)
    return int(bound).bit_length() + 1


def _op_offences(op: Op, program: IntegerProgram, profile: TargetProfile) -> list[str]:
    """List what ``profile`` lacks for one operation."""
    found = [] if type(op).__name__ in profile.operators else [f"operator {type(op).__name__}"]
    shifts: list[int] = []
    if isinstance(op, Conv):
        shifts = [int(s) for s in op.shift]
        limit = 1 << (profile.bias_bits - 1)
        if op.weight_type.bits not in profile.weight_bits:
            found.append(f"{op.weight_type.bits} bit weights")
        if len({int(f) for f in op.weight_frac}) > 1 and "per-channel" not in profile.granularity:
            found.append("a weight exponent per output channel")
        if any(not -limit <= int(b) < limit for b in op.bias):
            found.append(f"a bias beyond {profile.bias_bits} bits")
        if (bits := accumulator_bits(op, program)) > profile.accumulator_bits:
            found.append(f"an accumulator of {bits} bits")
    elif isinstance(op, Concat):
        shifts = list(op.shifts)
    elif isinstance(op, Add):
        shifts = [op.shift]
    if any(abs(s) > profile.max_shift for s in shifts):
        found.append(f"a shift of {max(shifts, key=abs)}")
    return found
