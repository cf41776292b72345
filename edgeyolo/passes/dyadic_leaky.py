"""Give LeakyRelu a slope that integers can multiply by exactly.

    x < 0:  y = a x   with   a := n / 2**k

The nearest dyadic slope with k = 7 is taken (0.1 -> 13/128), so that the float graph, ONNX Runtime and the integer
engine compute the very same function. A slope that already is dyadic with k <= 7 stays.
"""

from __future__ import annotations

from fractions import Fraction

import onnx_ir as ir

SLOPE_BITS = 7
"""Fraction bits of the slope: 13/128 is 1.6 % above 0.1; more bits would widen every accumulator."""


def dyadic(slope: float) -> tuple[int, int]:
    """The nearest ``(n, k)`` to n / 2**k with k <= 7, in lowest terms: 0.1 -> (13, 7), 0.125 -> (1, 3), 0 -> (0, 0)."""
    fraction = Fraction(round(slope * (1 << SLOPE_BITS)), 1 << SLOPE_BITS)
    return fraction.numerator, fraction.denominator.bit_length() - 1


class DyadicLeaky(ir.passes.InPlacePass):
    """Round the alpha of every LeakyRelu; ``changed`` maps old slopes to the new fraction's text."""

    def __init__(self) -> None:
        super().__init__()
        self.changed: dict[float, str] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every LeakyRelu in place."""
        for node in model.graph:
            if node.op_type != "LeakyRelu":
                continue
            alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 0.01
            numerator, bits = dyadic(alpha)
            exact = numerator / (1 << bits)
            if exact != alpha:
                node.attributes["alpha"] = ir.AttrFloat32("alpha", exact)
                self.changed[round(alpha, 6)] = f"{numerator}/{1 << bits}"
        return ir.passes.PassResult(model, modified=bool(self.changed))
