"""Sequential bias correction: give every layer's output back the mean that quantisation took from it.

For each convolution in execution order, with x the float input and x^ the input behind the already quantised prefix:

    d_c = E[act(W x + b)]_c - E[act(W^ x^ + b^)]_c          b^_c := b_c + d_c / E[act'(W^ x^ + b^)]_c

E runs over pictures and positions; dividing by the mean slope makes the step right for leaky layers, where a bias
moves the negative half of the outputs by the slope only. Three Newton steps suffice, since the output is piecewise
linear in b.

Source: the mean correction of Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction"
(2019), section 4.2, computed from pictures behind the quantised prefix.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgeyolo.quant.walk import Float32, Step

STEPS = 3
MIN_SLOPE = 0.05
"""Below this mean slope (nearly dead ReLU channels) a bias hardly acts; dividing by less would overshoot."""


def correct_bias(step: Step, raw: Float32, wanted: Float32, bias: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The bias (O,) with which the activated outputs have the wanted mean.

    Args:
        step: the convolution with its activation.
        raw: (O, P) its outputs without bias, behind the quantised prefix, at some positions.
        wanted: (O, P) activated outputs of the float layer there.
        bias: (O,) where to start.
    """
    bias, goal = bias.copy(), wanted.mean(axis=1, dtype=np.float64)
    for _ in range(STEPS):
        before = raw + bias.astype(np.float32)[:, None]
        slope = np.maximum(step.slope(before).mean(axis=1, dtype=np.float64), MIN_SLOPE)
        bias += (goal - step.activate(before).mean(axis=1, dtype=np.float64)) / slope
    return bias
