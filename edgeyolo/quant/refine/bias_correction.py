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
import onnx_ir as ir

from edgeyolo.ort import Arrays
from edgeyolo.quant.plan import Plan, limit_shifts
from edgeyolo.quant.walk import Float32, Step, walk

STEPS = 3
GRID = 40
"""Means are taken over at most about GRID x GRID positions a picture: more change nothing but the time."""
MIN_SLOPE = 0.05
"""Below this mean slope (nearly dead ReLU channels) a bias hardly acts; dividing by less would overshoot."""


def correct_bias(model: ir.Model, plan: Plan, batch: Float32) -> Plan:
    """Return the plan with corrected biases.

    Args:
        model: the float graph that ``plan`` quantises.
        batch: (N, C, H, W) float32 network inputs; memory grows with N, so N is a fixed sample (see quantise).
    """
    source = str(model.graph.inputs[0].name)
    exact: Arrays = {source: batch}
    quantised: Arrays = {source: plan.acts[source].fake(batch)}
    biases: dict[str, npt.NDArray[np.float64]] = {}
    for step, dead in walk(model):
        if str(step.node.name) in plan.weights:
            biases[str(step.node.name)] = _correct(step, plan, exact, quantised)
        else:
            for values in (exact, quantised):
                outputs = [step.activate(v) for v in step.compute(values)]
                values.update(zip(step.writes, outputs, strict=True))
            for name in step.writes:
                if name in plan.acts:
                    quantised[name] = plan.acts[name].fake(quantised[name])
        for name in dead:
            exact.pop(name, None)
            quantised.pop(name, None)
    return limit_shifts(model, plan.with_biases(biases))


def _correct(step: Step, plan: Plan, exact: Arrays, quantised: Arrays) -> npt.NDArray[np.float64]:
    weight = plan.weights[str(step.node.name)]
    codes, quant = weight.codes, weight.quant
    no_bias = np.zeros(len(codes), np.float32)
    target = step.activate(step.compute(exact)[0])
    raw = step.compute(quantised, {1: quant.dequantise(codes), 2: no_bias})[0]
    stride = max(1, target.shape[2] // GRID)
    wanted, sample = _channel_mean(target[:, :, ::stride, ::stride]), raw[:, :, ::stride, ::stride]
    bias = weight.bias.copy()
    for _ in range(STEPS):
        pre = sample + bias.astype(np.float32)[None, :, None, None]
        slope = np.maximum(_channel_mean(step.slope(pre)), MIN_SLOPE)
        bias += (wanted - _channel_mean(step.activate(pre))) / slope
    name = step.writes[0]
    exact[name] = target
    final = step.activate(raw + bias.astype(np.float32)[None, :, None, None])
    quantised[name] = plan.acts[name].fake(final)
    return bias


def _channel_mean(value: Float32) -> npt.NDArray[np.float64]:
    mean: npt.NDArray[np.float64] = value.mean(axis=(0, 2, 3), dtype=np.float64)
    return mean
