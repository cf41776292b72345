"""What the user asked the quantiser for."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgeyolo.errors import InputError

METHODS = ("mse", "minmax", "percentile", "nearest", "kl")
GRANULARITIES = ("per-channel", "per-tensor")
WEIGHT_BITS = range(2, 9)
ACT_BITS = range(4, 17)
RECIPES = {
    "fast": "no reconstruction: about half the time",
    "default": "reconstruction of every layer from all calibration pictures: a minute or two",
    "max": "reconstruction from mirrored pictures too, behind every scaling: up to six times as long",
}
ROLES = ("first", "head", "last", "depthwise")
"""What a layer can be chosen by besides its name; ``head`` and ``last`` mean the same."""
_KEEP = re.compile(r"(.+)=(\d+)(?:/(\d+))?")


@dataclass(frozen=True)
class Keep:
    """Other bits for some layers: ``pattern`` is ``first``, ``head``, ``depthwise`` or a glob over layer names."""

    pattern: str
    weight_bits: int
    act_bits: int | None = None

    def matches(self, name: str, roles: frozenset[str]) -> bool:
        """Whether the layer called ``name`` that plays ``roles`` is meant."""
        return self.pattern in roles or fnmatch.fnmatchcase(name, self.pattern)


@dataclass(frozen=True)
class QuantConfig:
    """Bits, exponents and refinements of one quantisation.

    Args:
        bits: weight bits, 2 to 8.
        act_bits: activation bits, 4 to 16; above 8 a tensor gets as many as the oracle can still check exactly.
        head_bits: of the network's results, 4 to 16: nothing multiplies them, so they cost no arithmetic, and an
            8 bit exponent wide enough for the scores is too coarse for the boxes.
        granularity: one weight exponent per output channel or per tensor.
        method: how exponents are chosen: ``mse`` (least squared error), ``minmax`` (nothing clips), ``percentile``
            (99.99 % of the values fit), ``nearest`` (the power of two nearest to max |x|), ``kl`` (least divergence).
        keep: exceptions, later ones win.
        equalise, align, correct_bias, reconstruct: refinements; each is kept only where it helps on held-out pictures.
        recipe: one of ``RECIPES``.
    """

    bits: int = 8
    act_bits: int = 8
    granularity: str = "per-channel"
    method: str = "mse"
    keep: tuple[Keep, ...] = ()
    equalise: bool = True
    correct_bias: bool = True
    head_bits: int = 16
    align: bool = True
    reconstruct: bool = True
    recipe: str = "default"

    def __post_init__(self) -> None:
        _one_of("--bits", self.bits, WEIGHT_BITS)
        _one_of("--act-bits", self.act_bits, ACT_BITS)
        _one_of("--head-bits", self.head_bits, ACT_BITS)
        if self.recipe not in RECIPES:
            raise InputError("unknown recipe", where="--recipe", got=self.recipe, allowed=", ".join(RECIPES))
        if self.granularity not in GRANULARITIES:
            raise InputError("unknown granularity", got=self.granularity, allowed=", ".join(GRANULARITIES))
        if self.method not in METHODS:
            raise InputError("unknown method to choose exponents", got=self.method, allowed=", ".join(METHODS))

    def layer_bits(self, name: str, roles: frozenset[str]) -> tuple[int, int]:
        """(weight bits, activation bits) of the layer called ``name``."""
        weight, act = self.bits, self.head_bits if "head" in roles else self.act_bits
        for keep in self.keep:
            if keep.matches(name, roles):
                weight, act = keep.weight_bits, keep.act_bits or act
        return weight, act

    def check_names(self, roles: Mapping[str, frozenset[str]]) -> None:
        """Raise InputError if an exception means none of these layers; a role that no layer plays is no mistake."""
        for keep in self.keep:
            if keep.pattern not in ROLES and not any(keep.matches(name, part) for name, part in roles.items()):
                raise InputError(
                    "--keep names a layer that is not in the model",
                    got=keep.pattern,
                    allowed=f"{', '.join(ROLES)}, or a pattern over {', '.join(list(roles)[:3])} ...",
                )


def parse_keep(text: str) -> tuple[Keep, ...]:
    """``"first,head,depthwise=8"`` or ``"head=8/16"`` (weights/activations): selectors share the bits behind them."""
    match = _KEEP.fullmatch(text)
    if match is None:
        raise InputError(
            "cannot read --keep",
            got=text,
            allowed="SELECTOR[,SELECTOR...]=BITS[/ACT_BITS], such as first,head,depthwise=8",
        )
    selectors, weight, act = match.groups()
    _one_of("--keep", int(weight), WEIGHT_BITS)
    if act is not None:
        _one_of("--keep", int(act), ACT_BITS)
    names = [s.strip() for s in selectors.split(",")]
    return tuple(Keep(name, int(weight), None if act is None else int(act)) for name in names)


def _one_of(option: str, value: int, allowed: range) -> None:
    if value not in allowed:
        raise InputError(
            "number of bits is out of range", where=option, got=value, allowed=f"{allowed[0]} to {allowed[-1]}"
        )
