"""A float network of which any one layer can be quantised, by inputs that have a default.

A session for every layer and width would take several times longer to build than to run. Here weights and biases are
inputs whose defaults are the float ones, and every value v with an exponent of its own becomes

    v^ = clip(round(v * scale), lo, hi) * (1 / scale)

whose defaults do nothing: a float32 times 2^60 is whole already, unless it is smaller than 2^-37.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.ort import Arrays, open_session
from edgeyolo.passes.graph import new_initializer
from edgeyolo.qtype import TensorQuant
from edgeyolo.quant.calibrate import Pixels, copy_model
from edgeyolo.quant.config import QuantConfig
from edgeyolo.quant.mixture import Layer, Mixture, convolutions, mean_shift
from edgeyolo.quant.plan import Plan, constants, quantise_weights

FINE = 60
"""Fraction bits that leave a float32 as it is."""
PARTS = ("scale", "lo", "hi", "inverse")


class Probe:
    """Measures the noise power at the heads, relative to their signal, that one layer makes alone."""

    def __init__(self, model: ir.Model, plan: Plan, pictures: list[Pixels]) -> None:
        self._mixture = Mixture(model, plan, pictures)
        self._convs = convolutions(model, plan)
        # One thread: the same sums whatever the machine, and no waiting for cores that others use.
        self._weights = open_session(_with_weight_inputs(model, plan), threads=1)
        self._acts = open_session(_with_act_inputs(model, [layer.site for layer in self.layers]), threads=1)

    @property
    def layers(self) -> list[Layer]:
        """All layers, in the order of their results."""
        return self._mixture.layers

    def elements(self, layer: Layer) -> int:
        """How many numbers the layer's result has, for one picture."""
        return self._mixture.facts[layer.site].count // len(self._mixture.pictures)

    def weights(self, layer: Layer, bits: int, config: QuantConfig) -> float:
        """The noise of a convolution's weights, rounded to ``bits``; its bias makes up for the lost means."""
        conv = self._convs[layer.name]
        real, bias = constants(conv)
        assert real is not None and conv.inputs[0] is not None
        codes, quant = quantise_weights(real, bits, config)
        rounded = quant.dequantise(codes)
        shifted = mean_shift(conv, real - rounded, self._mixture.facts[str(conv.inputs[0].name)].mean)
        shifted = shifted if bias is None else shifted + bias
        feeds = {_input(layer.name, "weight"): rounded, _input(layer.name, "bias"): shifted}
        return _power(self._mixture.measure(self._weights, {k: v.astype(np.float32) for k, v in feeds.items()}))

    def act(self, layer: Layer, quant: TensorQuant) -> float:
        """The noise of a layer's result, quantised to powers of two."""
        values = _quantiser(int(quant.frac), quant.qtype.lo, quant.qtype.hi)
        return _power(self._mixture.measure(self._acts, {_input(layer.site, k): v for k, v in values.items()}))


def _power(decibel: float) -> float:
    return float(10 ** (-decibel / 10))


def _input(of: str, part: str) -> str:
    return f"{of}.probe_{part}"


def _add_input(graph: ir.Graph, of: str, part: str, default: npt.NDArray[np.float32]) -> ir.Value:
    """An input with a default: an initializer that is listed with the graph's inputs."""
    value = new_initializer(graph, _input(of, part), default)
    graph.inputs.append(value)
    return value


def _with_weight_inputs(model: ir.Model, plan: Plan) -> ir.Model:
    copy = copy_model(model)
    for name, conv in convolutions(copy, plan).items():
        weight, bias = constants(conv)
        assert weight is not None
        conv.resize_inputs(3)
        none = np.zeros(len(weight), np.float32)
        for index, (part, array) in enumerate((("weight", weight), ("bias", none if bias is None else bias)), start=1):
            conv.replace_input_with(index, _add_input(copy.graph, name, part, array))
    return copy


def _quantiser(frac: int, lo: float, hi: float) -> Arrays:
    """What the inputs in front of a quantiser must be."""
    values = (np.ldexp(1.0, frac), lo, hi, np.ldexp(1.0, -frac))
    return {part: np.array(value, np.float32) for part, value in zip(PARTS, values, strict=True)}


def _with_act_inputs(model: ir.Model, sites: list[str]) -> ir.Model:
    copy = copy_model(model)
    graph, defaults = copy.graph, _quantiser(FINE, -np.inf, np.inf)
    values = {str(v.name): v for v in [graph.inputs[0], *(v for node in graph for v in node.outputs)]}
    for site in sites:
        value, uses = values[site], list(values[site].uses())
        scale, lo, hi, inverse = (_add_input(graph, site, part, array) for part, array in defaults.items())
        nodes = [ir.node("Mul", [value, scale])]
        nodes.append(ir.node("Round", nodes[-1].outputs))
        nodes.append(ir.node("Clip", [nodes[-1].outputs[0], lo, hi]))
        nodes.append(ir.node("Mul", [nodes[-1].outputs[0], inverse]))
        result, producer = nodes[-1].outputs[0], value.producer()
        if producer is None:
            graph.insert_before(graph[0], nodes)
        else:
            graph.insert_after(producer, nodes)
        for user, index in uses:
            user.replace_input_with(index, result)
        for index, output in enumerate(graph.outputs):
            if output is value:
                result.type, result.shape = value.type, value.shape
                graph.outputs[index] = result
                value.name, result.name = f"{site}.float", site
    return copy
