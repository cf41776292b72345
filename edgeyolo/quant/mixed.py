"""Mixed precision: the bits of every layer that leave the least noise at the heads within a budget.

Each layer's weights are quantised alone in the float network, at every width that may be chosen; so is each result, as
planned and wide. Noises of single layers add up (see mixture.py), so with n(l, b) the noise of layer l at b bits the
choice is a multiple-choice knapsack:

    minimise  sum n(l, b) x(l, b)    subject to  sum_b x(l, b) = 1,   sum cost(l, b) x(l, b) <= budget,   x in {0, 1}

which knapsack.py settles exactly. Costs are whole numbers: bits of weights, bytes, or elements of a result.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from edgeyolo.errors import InputError
from edgeyolo.quant.calibrate import Pixels, observe
from edgeyolo.quant.config import ACT_BITS, ROLES, WEIGHT_BITS, Keep, QuantConfig
from edgeyolo.quant.knapsack import knapsack
from edgeyolo.quant.mixture import Layer
from edgeyolo.quant.plan import Plan, make_plan
from edgeyolo.quant.probe import Probe

BIAS_BYTES = 4
MAX_AVERAGE = max(WEIGHT_BITS)
STEP = 0.5
"""Average bits between two points of the frontier."""

Track = Callable[[Sequence[Layer], str], Iterable[Layer]]
"""Wraps an iteration with a title, for a progress bar."""


@dataclass(frozen=True)
class Sensitivity:
    """What one layer does to the heads when it alone is quantised: noise power relative to the heads' signal.

    Args:
        layer: a convolution, or another value with an exponent of its own.
        weights: noise of its weights by their bits; empty where it has none.
        acts: noise of its result by its bits: as planned, and wide where ``Keep`` can widen it and a convolution that
            reads it stays exact.
        biases: how many.
        elements: of its result, for one picture.
    """

    layer: Layer
    weights: Mapping[int, float]
    acts: Mapping[int, float]
    biases: int
    elements: int

    def weight_bytes(self, bits: int) -> int:
        """Bytes of packed weights and 32 bit biases."""
        return (self.layer.weights * bits + 7) // 8 + BIAS_BYTES * self.biases


@dataclass(frozen=True)
class Choice:
    """Bits per layer.

    Args:
        weight_bits: of every convolution, by name.
        act_bits: of the results that are widened, by the name of their convolution.
        average_bits: of the weights.
        weight_bytes: packed, with 32 bit biases.
        noise: expected noise power at the heads, relative to their signal: the sum of all layers' own.
    """

    weight_bits: Mapping[str, int]
    act_bits: Mapping[str, int]
    average_bits: float
    weight_bytes: int
    noise: float

    @property
    def keeps(self) -> tuple[Keep, ...]:
        """One exception for every convolution, for ``QuantConfig``: put behind all others, it decides."""
        return tuple(Keep(pattern(n), bits, self.act_bits.get(n)) for n, bits in self.weight_bits.items())

    @property
    def head_snr_db(self) -> float:
        """The expected noise as the heads' SNR, before refinement."""
        return float(-10 * np.log10(max(self.noise, 1e-30)))


def pattern(name: str) -> str:
    """The ``Keep`` pattern that means the layer called ``name`` only."""
    return f"[{name[0]}]{name[1:]}" if name in ROLES else glob.escape(name)


def sensitivities(
    model: ir.Model, plan: Plan, pictures: Collection[Pixels], config: QuantConfig, bits: Sequence[int],
    track: Track = lambda layers, _: layers, wide: int = max(ACT_BITS),
) -> list[Sensitivity]:  # fmt: skip
    """Quantise every layer alone, in execution order.

    Args:
        model: the float graph that ``plan`` quantises (equalised, if it will be).
        plan: gives the results' exponents; its weights do not matter.
        pictures: network pixels; a few will do, for a head has thousands of values on each.
        config: of the plan; says how weights are rounded.
        bits: the widths of weights to try.
        track: wraps the iteration over the layers.
        wide: the most bits of a result; it gets as many of them as stay exact.
    """
    sample = list(pictures)
    probe, (histograms, _) = Probe(model, plan, sample), observe(model, sample)
    widened = make_plan(model, histograms, replace(config, keep=(*config.keep, Keep("*", config.bits, wide)))).acts
    found = []
    for layer in track(probe.layers, "quantising one layer at a time"):
        weights = {width: probe.weights(layer, width, config) for width in sorted(set(bits)) if layer.conv}
        planned, widest = plan.acts[layer.site], widened[layer.site]
        acts = {planned.qtype.bits: probe.act(layer, planned)}
        if layer.conv and widest.qtype.bits > planned.qtype.bits:
            acts[widest.qtype.bits] = probe.act(layer, widest)
        biases = len(plan.weights[layer.name].bias) if layer.conv else 0
        found.append(Sensitivity(layer, weights, acts, biases, probe.elements(layer)))
    return found


def choose_bits(
    layers: Sequence[Sensitivity], *, average: float | None = None, max_bytes: int | None = None, act_share: float = 0.0
) -> Choice:
    """The bits that leave the least noise.

    Args:
        layers: from ``sensitivities``.
        average: at most so many bits a weight on average.
        max_bytes: or at most so many bytes of packed weights and 32 bit biases.
        act_share: this share of all results' elements, 0 to 1, may be wide; see ``choose_acts``.

    Raises InputError if there is not one budget, or the narrowest weights are beyond it.
    """
    if (average is None) == (max_bytes is None):
        raise InputError("a choice of bits needs one budget", allowed="average bits of the weights, or bytes")
    convs = [s for s in layers if s.weights]
    options = [sorted(s.weights.items()) for s in convs]
    count = sum(s.layer.weights for s in convs)
    if average is not None:
        costs = [[s.layer.weights * width for width, _ in o] for s, o in zip(convs, options, strict=True)]
        _check("--avg-bits", average, costs, count)
        limit = math.floor(Fraction(repr(float(min(average, MAX_AVERAGE)))) * count)
    else:
        assert max_bytes is not None
        costs = [[s.weight_bytes(width) for width, _ in o] for s, o in zip(convs, options, strict=True)]
        _check("--max-bytes", max_bytes, costs, 1)
        limit = max_bytes
    picked = knapsack([[noise for _, noise in o] for o in options], costs, limit)
    chosen = {s.layer.name: o[i][0] for s, o, i in zip(convs, options, picked, strict=True)}
    wide = choose_acts(layers, act_share)
    noise = sum(s.weights[chosen[s.layer.name]] for s in convs)
    noise += sum(s.acts[wide.get(s.layer.name, min(s.acts)) if s.weights else min(s.acts)] for s in layers)
    total = sum(s.layer.weights * chosen[s.layer.name] for s in convs)
    size = sum(s.weight_bytes(chosen[s.layer.name]) for s in convs)
    return Choice(chosen, wide, total / max(count, 1), size, noise)


def choose_acts(layers: Sequence[Sensitivity], share: float) -> dict[str, int]:
    """The results to widen, by convolution, with their bits.

    Args:
        layers: from ``sensitivities``.
        share: of all results' elements for one picture, 0 to 1, that may be wide.

    Raises InputError if ``share`` is out of range.
    """
    if not 0 <= share <= 1:
        raise InputError("the share of activations that may be wide is out of range", got=share, allowed="0 to 1")
    able = [s for s in layers if len(s.acts) > 1]
    costs = [[0, s.elements] for s in able]
    limit = math.floor(Fraction(repr(float(share))) * sum(s.elements for s in layers))
    picked = knapsack([[s.acts[min(s.acts)], s.acts[max(s.acts)]] for s in able], costs, limit)
    return {s.layer.name: max(s.acts) for s, i in zip(able, picked, strict=True) if i}


def frontier(layers: Sequence[Sensitivity], act_share: float = 0.0, step: float = STEP) -> list[Choice]:
    """The best choice for every ``step`` of average bits, from the narrowest weights to the widest."""
    widths = {width for s in layers for width in s.weights} or {0}
    count = round((max(widths) - min(widths)) / step)
    return [choose_bits(layers, average=min(widths) + i * step, act_share=act_share) for i in range(count + 1)]


def _check(option: str, got: float, costs: list[list[int]], unit: int) -> None:
    least, most = (round(sum(f(c) for c in costs) / max(unit, 1), 3) for f in (min, max))
    if not got >= sum(map(min, costs)) / max(unit, 1):
        raise InputError(
            "the weights do not fit this budget at their narrowest",
            where=option,
            got=got,
            allowed=f"{least:.10g} to {most:.10g}",
        )
