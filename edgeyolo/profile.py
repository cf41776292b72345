"""Target profiles: what a board can execute and how it wants its data, as one TOML file per board.

Every key is required and no other key is accepted, so that a typing error cannot pass for a default.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.packing import LAYOUTS
from edgeyolo.program import MAX_SHIFT, Add, Concat, Conv, IntegerProgram, Op, accumulator_bound
from edgeyolo.qtype import MAX_BITS, MIN_BITS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

OPERATORS = tuple(kind.__name__ for kind in get_args(Op))
GRANULARITIES = ("per-tensor", "per-channel")
DEFAULT_BOARD = "generic"
MAX_FILE_BYTES = 1 << 16


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
# What each key accepts: a tuple of values, or (as a range) the limits of a number.
_ALLOWED: dict[str, tuple[Any, ...] | range] = {
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


def _offence(key: str, kind: str, value: object) -> str | None:
    """Say what is wrong with ``value`` under ``key``, if anything; ``kind`` is the annotation of the field."""
    element = str if "str" in kind else int
    many = kind.startswith("tuple")
    items = value if many and isinstance(value, list) else [value]
    if many and (not isinstance(value, list) or not value):
        return f"{key} must be a list that is not empty, got {value!r}"
    if any(type(item) is not element for item in items):
        return f"{key} must be {'a list of ' if many else ''}{element.__name__}, got {value!r}"
    allowed = _ALLOWED.get(key)
    if allowed is not None and any(item not in allowed for item in items):
        span = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else ", ".join(map(str, allowed))
        return f"{key} = {value!r} is not among {span}"
    return None


def parse_profile(text: str, where: object) -> TargetProfile:
    """Read a profile from TOML text. Raises InputError that lists every unknown, missing or ill-typed key."""
    try:
        data: dict[str, Any] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError("the profile is not valid TOML", where=where, got=error) from error
    kinds = {field.name: str(field.type) for field in fields(TargetProfile)}
    offences = [f"unknown key {key!r}" for key in data if key not in kinds]
    offences += [f"missing key {key!r}" for key in kinds if key not in data]
    offences += [found for key, kind in kinds.items() if key in data and (found := _offence(key, kind, data[key]))]
    if offences:
        raise InputError(
            "the target profile is not usable",
            where=where,
            got="; ".join(offences),
            hint="compare it with targets/fpga/generic.toml",
        )
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
    return TargetProfile(**values)


def list_boards() -> dict[str, tuple[str, ...]]:
    """List the boards of every target that has profiles."""
    return {t: tuple(sorted(boards)) for t, boards in sorted(_shipped().items())}


def _shipped() -> dict[str, dict[str, Traversable]]:
    found: dict[str, dict[str, Traversable]] = {}
    for folder in files("edgeyolo.targets").iterdir():
        if folder.is_dir():
            boards = {f.name[: -len(".toml")]: f for f in folder.iterdir() if f.name.endswith(".toml")}
            found.update({folder.name: boards} if boards else {})
    return found


def load_profile(target: str, board: str | None = None) -> TargetProfile:
    """Load a board's profile.

    Args:
        target: such as ``fpga``.
        board: name of a shipped profile of that target, or the path of a TOML file (it ends in ``.toml``); default
            ``generic``.

    Raises InputError for an unknown target or board (the known ones are listed) and for an unusable file.
    """
    boards = list_boards()
    if target not in boards:
        raise InputError("no board profiles for this target", got=target, allowed=", ".join(boards))
    name = board or DEFAULT_BOARD
    if name.endswith(".toml"):
        return _load_file(Path(name))
    if name not in boards[target]:
        raise InputError(
            f"unknown board of target {target}",
            got=name,
            allowed=", ".join(boards[target]),
            hint="for a board of your own give the path of a .toml file",
        )
    return parse_profile(_shipped()[target][name].read_text("utf-8"), f"targets/{target}/{name}.toml")


def _load_file(path: Path) -> TargetProfile:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise InputError("the profile is too large", where=path, allowed=f"at most {MAX_FILE_BYTES} bytes")
        return parse_profile(data.decode("utf-8"), path)
    except (OSError, ValueError) as error:
        raise InputError("the profile cannot be read", where=path, got=error) from error


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
