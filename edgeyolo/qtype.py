"""Quantised types and the arithmetic that goes with them: the only home of rounding, scales and shifts.

``QType`` says what integers a tensor may hold, ``TensorQuant`` adds the scales. For power-of-two types a real number is
``code * 2**-frac``; ``frac`` (the fraction bits) may be negative or exceed the number of bits. Rounding is half to
even, everywhere; docs/fixed-point.md is the normative text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeyolo.errors import InputError

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.floating[Any]]
Int64Array = npt.NDArray[np.int64]
IntArray = npt.NDArray[np.integer[Any]]

MIN_BITS, MAX_BITS = 2, 16
_FORM = re.compile(r"([iu])(\d{1,2})(?:\[(\d)\])?:(pow2|float)")


@dataclass(frozen=True)
class QType:
    """An integer type of a quantised tensor.

    Args:
        bits: 2 to 16, true width; the container is the next of int8/uint8/int16/uint16.
        signed: two's complement if true; the full range is used, -8 to 7 for 4 bits.
        axis: the axis that has one scale per index, or None for one scale per tensor.
        scale: ``pow2`` (scale == 2**-frac) or ``float``.
    """

    bits: int
    signed: bool = True
    axis: int | None = None
    scale: str = "pow2"

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise InputError("number of bits is out of range", got=self.bits, allowed=f"{MIN_BITS} to {MAX_BITS}")
        if self.scale not in ("pow2", "float"):
            raise InputError("unknown kind of scale", got=self.scale, allowed="pow2, float")

    def __str__(self) -> str:
        axis = "" if self.axis is None else f"[{self.axis}]"
        return f"{'i' if self.signed else 'u'}{self.bits}{axis}:{self.scale}"

    @classmethod
    def parse(cls, text: str) -> QType:
        """The inverse of ``str``: ``QType.parse("i4[0]:pow2")``. Raises InputError on anything else."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise InputError("not a quantised type", got=text, allowed="such as i4[0]:pow2, u8:pow2, i8:float")
        sign, bits, axis, scale = match.groups()
        return cls(int(bits), sign == "i", None if axis is None else int(axis), scale)

    @property
    def lo(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def hi(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy container of one code."""
        return np.dtype(f"{'int' if self.signed else 'uint'}{8 if self.bits <= 8 else 16}")


@dataclass(frozen=True)
class TensorQuant:
    """A QType with its scales: everything needed to go from real numbers to codes and back.

    Args:
        qtype: the integer type.
        scale: () or (n,) float32; n is the tensor's extent along ``qtype.axis``.
        zero_point: () or (n,) integers; all zero for pow2.
    """

    qtype: QType
    scale: FloatArray
    zero_point: IntArray

    @classmethod
    def pow2(cls, qtype: QType, frac: int | IntArray) -> TensorQuant:
        """A power-of-two quantisation with ``frac`` fraction bits: scale == 2**-frac, zero point 0."""
        frac = np.asarray(frac, np.int64)
        scale = np.ldexp(np.ones(frac.shape, np.float32), -frac).astype(np.float32)
        return cls(qtype, scale, np.zeros(frac.shape, np.int64))

    @property
    def frac(self) -> IntArray:
        """Fraction bits, () or (n,) int64. Raises InputError where a scale is not a power of two."""
        mantissa, exponent = np.frexp(self.scale.astype(np.float64))
        if np.any(mantissa != 0.5) or np.any(self.zero_point != 0):
            raise InputError(
                "the scale is not a power of two with zero point 0",
                got=f"scale {np.ravel(self.scale)[:4]}, zero point {np.ravel(self.zero_point)[:4]}",
                allowed="2**-f, 0",
                hint="quantise with pow2 scales for fixed-point targets",
            )
        frac: IntArray = (1 - exponent).astype(np.int64)
        return frac

    def _spread(self, values: Array, ndim: int) -> Array:
        """Reshape per-axis values so that they broadcast against a tensor of ``ndim`` dimensions."""
        if self.qtype.axis is None or values.ndim == 0:
            return values
        return values.reshape([-1 if i == self.qtype.axis else 1 for i in range(ndim)])

    def quantise(self, x: FloatArray) -> IntArray:
        """Real numbers to codes of ``qtype.dtype``: divide, round half to even, saturate. Same shape as ``x``."""
        scaled = np.asarray(x, np.float64) / self._spread(self.scale.astype(np.float64), x.ndim)
        codes = np.rint(scaled) + self._spread(self.zero_point, x.ndim)
        clipped: IntArray = np.clip(codes, self.qtype.lo, self.qtype.hi).astype(self.qtype.dtype)
        return clipped

    def fake(self, x: FloatArray) -> FloatArray:
        """``dequantise(quantise(x))`` in float32 without the detour over codes; exact for pow2 scales."""
        scale = self._spread(self.scale.astype(np.float32), x.ndim)
        zero = self._spread(self.zero_point.astype(np.float32), x.ndim)
        y = np.rint(x / scale) + zero
        faked: FloatArray = (np.clip(y, np.float32(self.qtype.lo), np.float32(self.qtype.hi)) - zero) * scale
        return faked

    def dequantise(self, codes: IntArray) -> FloatArray:
        """Codes to float32 real numbers. Same shape as ``codes``."""
        centred = codes.astype(np.float64) - self._spread(self.zero_point, codes.ndim)
        real: FloatArray = (centred * self._spread(self.scale.astype(np.float64), codes.ndim)).astype(np.float32)
        return real


def round_shift(acc: IntArray, shift: int | IntArray | np.int64) -> Int64Array:
    """Divide integers by ``2**shift``, rounding half to even; a negative shift multiplies. int64 in, int64 out.

    ``shift`` broadcasts against ``acc``. This one function is the rounding rule of every fixed-point result.
    """
    acc = np.asarray(acc, np.int64)
    shift = np.asarray(shift, np.int64)
    right = np.maximum(shift, 0)
    left = np.maximum(-shift, 0)
    half = (np.int64(1) << right) >> 1
    odd = (acc >> right) & 1
    # Adding half - 1 + odd carries exactly when the remainder is above half, or is half and the quotient is odd.
    rounded: Int64Array = (acc + np.where(right > 0, half - 1 + odd, 0)) >> right
    return rounded << left


def pow2_frac(limit: float, hi: int) -> int:
    """The largest number of fraction bits with which ``limit`` still fits: ``limit * 2**frac <= hi``; 0 for limit 0."""
    if not limit > 0:
        return 0
    return int(np.frexp(hi / limit)[1]) - 1
