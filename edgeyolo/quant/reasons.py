"""Why a layer is hard to quantise, in one sentence with figures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeyolo.quant.mixture import Mixture, float_weights
from edgeyolo.quant.suggest import LayerNoise

SPAN = 3.0
"""Powers of two between the largest channel and the typical one from which on that is worth a word: three bits."""
ZEROS = 0.25
"""Share of the weights that become 0 from which on that is worth a word."""
CLIPPED = 0.005
"""Share of the values that clip from which on that is worth a word."""


def reason(mixture: Mixture, noise: LayerNoise) -> str:
    """What is hard about the weights, or about the result, whichever makes more noise."""
    return _weights(mixture, noise.layer.name) if noise.weights >= noise.acts else _acts(mixture, noise.layer.site)


def _weights(mixture: Mixture, name: str) -> str:
    if name not in mixture.plan.weights:
        return ""
    quant, codes = mixture.plan.weights[name].quant, mixture.plan.weights[name].codes
    real = float_weights(mixture.reference, name)
    error = real - quant.dequantise(codes)
    texts = [f"weights: {_decibel(np.square(real).sum(), np.square(error).sum())} dB at {quant.qtype.bits} bit"]
    span = _span(np.abs(real).reshape(len(real), -1).max(axis=1))
    if quant.qtype.axis is None and span >= SPAN:
        texts.append(f"one exponent, but channels span 2^{span:.0f}")
    zeros = np.count_nonzero((codes == 0) & (real != 0)) / real.size
    if zeros >= ZEROS:
        texts.append(f"{zeros:.0%} become 0")
    return ", ".join(texts)


def _acts(mixture: Mixture, site: str) -> str:
    facts, bits = mixture.facts[site], mixture.plan.acts[site].qtype.bits
    texts = [f"result: {_decibel(facts.signal, facts.noise)} dB at {bits} bit"]
    span = _span(np.asarray(facts.peak))
    if span >= SPAN:
        texts.append(f"channels span 2^{span:.0f}")
    if facts.clipped / facts.count >= CLIPPED:
        texts.append(f"{facts.clipped / facts.count:.1%} clip")
    return ", ".join(texts)


def _span(peaks: npt.NDArray[np.floating]) -> float:
    """Powers of two from the typical living channel to the largest."""
    alive = peaks[peaks > 0]
    return float(np.log2(alive.max() / np.median(alive))) if alive.size else 0.0


def _decibel(signal: float, noise: float) -> str:
    return "exact" if noise == 0 else f"{10 * np.log10(max(signal, 1e-30) / noise):.0f}"
