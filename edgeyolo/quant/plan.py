"""The quantisation plan: which integer type and exponent every weight and activation gets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.errors import InputError
from edgeyolo.passes.dyadic_leaky import dyadic
from edgeyolo.passes.graph import constant, conv_groups, read_detector
from edgeyolo.passes.pixel_input import PIXEL_SCALE
from edgeyolo.program import EXACT_BITS
from edgeyolo.qtype import QType, TensorQuant
from edgeyolo.quant.config import QuantConfig
from edgeyolo.quant.observers import Histogram, choose_frac
from edgeyolo.quant.sites import ELEMENTWISE, FUSING, MOVES, Site, find_sites, fused_activation

TABLE_BITS = 8
"""Widest input of an activation table: 256 entries."""
MAX_RIGHT_SHIFT = 31
BIAS_LIMIT = 1 << 23
"""A bias code (times the slope's numerator) stays below half the exact range; a nearly dead channel claims no more."""


@dataclass(frozen=True, eq=False)
class WeightQuant:
    """One convolution's weights: integer codes (O, I/g, KH, KW) with their quantisation, and the float64 bias (O,)."""

    codes: npt.NDArray[np.int8]
    quant: TensorQuant
    bias: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Plan:
    """Weight quantisations by Conv node name, activation quantisations by value name (``sites`` in execution order)."""

    sites: dict[str, Site]
    weights: dict[str, WeightQuant]
    acts: dict[str, TensorQuant]

    def with_biases(self, biases: dict[str, npt.NDArray[np.float64]]) -> Plan:
        """A copy in which some convolutions have another bias."""
        weights = {n: replace(w, bias=biases.get(n, w.bias)) for n, w in self.weights.items()}
        return replace(self, weights=weights)

    def free_acts(self) -> dict[str, TensorQuant]:
        """The activations that have a scale of their own, by name in execution order."""
        return {name: self.acts[name] for name, site in self.sites.items() if site.same_as is None}

    def input_of(self, conv: ir.Node) -> TensorQuant:
        """The quantisation of what ``conv`` reads."""
        assert conv.inputs[0] is not None
        return self.acts[str(conv.inputs[0].name)]

    def bias_codes(self, conv: ir.Node) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Bias codes (O,) at the accumulator's scale, and that scale's fraction bits (O,)."""
        weight = self.weights[str(conv.name)]
        frac = np.broadcast_to(weight.quant.frac + self.input_of(conv).frac, weight.bias.shape)
        codes = np.rint(np.ldexp(weight.bias, frac))
        limit = np.iinfo(np.int32).max
        return np.clip(codes, -limit, limit).astype(np.int32), frac

    def real_bias(self, conv: ir.Node) -> npt.NDArray[np.float32]:
        """The bias (O,) as it acts: rounded to the accumulator's scale where that is a power of two."""
        weight = self.weights[str(conv.name)]
        if weight.quant.qtype.scale != "pow2":
            return weight.bias.astype(np.float32)
        codes, frac = self.bias_codes(conv)
        return np.ldexp(codes.astype(np.float64), -frac).astype(np.float32)


def conv_roles(model: ir.Model) -> dict[str, frozenset[str]]:
    """Which of ``first``, ``head``, ``depthwise`` each Conv is, by node name; moving data does not change that."""
    pixels, heads = {str(model.graph.inputs[0].name)}, {str(v.name) for v in model.graph.outputs}
    for node in model.graph:
        if node.op_type in MOVES | {"Concat"} and node.inputs[0] is not None and node.inputs[0].name in pixels:
            pixels.update(str(v.name) for v in node.outputs)
    for node in reversed(model.graph):
        if node.op_type in MOVES and node.inputs[0] is not None and any(v.name in heads for v in node.outputs):
            heads.add(str(node.inputs[0].name))
    roles: dict[str, frozenset[str]] = {}
    for node in model.graph:
        if node.op_type != "Conv":
            continue
        weight, source = constant(node.inputs[1]), node.inputs[0]
        groups = conv_groups(node)
        found = set()
        if source is not None and source.name in pixels:
            found.add("first")
        if result_of(node) in heads:
            found |= {"head", "last"}
        if weight is not None and groups > 1 and weight.shape[1] == 1:
            found.add("depthwise")
        roles[str(node.name)] = frozenset(found)
    return roles


def result_of(node: ir.Node) -> str:
    """The site that ``node`` produces: its own output, or that of the activation fused to it."""
    activation = fused_activation(node)
    return str((activation or node).outputs[0].name)


def quantise_weights(
    weight: npt.NDArray[Any], bits: int, config: QuantConfig
) -> tuple[npt.NDArray[np.int8], TensorQuant]:
    """Choose exponents for one weight tensor (O, ...) and round to nearest."""
    if config.granularity == "per-tensor":
        qtype, groups = QType(bits), [weight]
    else:
        qtype, groups = QType(bits, axis=0), list(weight)
    # Divergence needs a distribution; a few hundred weights have none, so ``kl`` falls back to the squared error.
    method = "mse" if config.method == "kl" else config.method
    flats = [group.ravel().astype(np.float64) for group in groups]
    fracs = np.array([choose_frac(flat, np.ones_like(flat), replace(qtype, axis=None), method) for flat in flats])
    alive = np.array([bool(flat.any()) for flat in flats])
    if alive.any():  # a channel of zeros only passes its bias on: as fine as the finest other channel
        fracs[~alive] = fracs[alive].max()
    quant = TensorQuant.pow2(qtype, fracs if qtype.axis == 0 else fracs[0])
    return quant.quantise(weight).astype(np.int8), quant


def make_plan(model: ir.Model, histograms: dict[str, Histogram], config: QuantConfig) -> Plan:
    """Choose every exponent. ``histograms`` has one entry per free site (see calibrate.py).

    Raises InputError if ``config.keep`` names a layer that is not there, or two convolutions share a name.
    """
    sites = find_sites(model)
    roles = conv_roles(model)
    config.check_names(roles)
    weights: dict[str, WeightQuant] = {}
    act_bits: dict[str, int] = {}
    for node in model.graph:
        weight, bias = constants(node)
        if weight is None:
            continue
        if str(node.name) in weights:
            raise InputError("two layers have the same name", got=node.name, hint="run the layer_names pass first")
        bits, act_bits[result_of(node)] = config.layer_bits(str(node.name), roles[str(node.name)])
        codes, quant = quantise_weights(weight, bits, config)
        real_bias = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
        weights[str(node.name)] = WeightQuant(codes, quant, real_bias)
    limits = _exact_limits(model, sites, weights)
    acts: dict[str, TensorQuant] = {}
    for name, site in sites.items():
        if site.same_as is not None:
            acts[name] = acts[site.same_as]
        elif name == model.graph.inputs[0].name and read_detector(model).preprocess.scale == PIXEL_SCALE:
            acts[name] = TensorQuant.pow2(QType(8, signed=False), 8)
        else:
            wanted = act_bits.get(name, config.act_bits)
            qtype = QType(min(wanted, max(8, limits.get(name, wanted))))
            acts[name] = TensorQuant.pow2(qtype, choose_frac(*histograms[name].samples(), qtype, config.method))
    _share_concat_exponents(model, sites, acts)
    return limit_shifts(model, Plan(sites, weights, acts))


def constants(conv: ir.Node) -> tuple[npt.NDArray[Any] | None, npt.NDArray[Any] | None]:
    """(weights, bias or None) of a Conv; (None, None) of other nodes, and where weights or bias are computed."""
    if conv.op_type != "Conv":
        return None, None
    weight, bias = (constant(v) for v in (*conv.inputs[1:3], None)[:2])
    computed = len(conv.inputs) > 2 and conv.inputs[2] is not None and bias is None
    flat = weight is not None and weight.ndim != 4  # pictures have two dimensions
    return (None, None) if computed or flat else (weight, bias)


def _exact_limits(model: ir.Model, sites: dict[str, Site], weights: dict[str, WeightQuant]) -> dict[str, int]:
    """Per site, the most bits with which every reader stays exact: accumulators in 24 bits, table inputs in 8."""
    limits = {str(v.name): TABLE_BITS for n in model.graph if is_table(n) for v in n.inputs if v is not None}
    for node in model.graph:
        if str(node.name) not in weights or node.op_type != "Conv":
            continue
        codes = weights[str(node.name)].codes
        total = int(np.abs(codes.reshape(len(codes), -1).astype(np.int64)).sum(axis=1).max())
        # One bit for the bias; the leaky slope's numerator multiplies the accumulator.
        spare = EXACT_BITS - 1 - max(total * leaky_numerator(node), 1).bit_length()
        assert node.inputs[0] is not None
        read = str(node.inputs[0].name)
        limits[read] = min(limits.get(read, 16), spare + 1)
    for name, site in reversed(sites.items()):
        if site.same_as is not None and name in limits:
            limits[site.same_as] = min(limits.get(site.same_as, 16), limits[name])
    return limits


def is_table(node: ir.Node) -> bool:
    """Whether ``node`` is part of an activation table: element-wise, and not fused to the operation in front of it."""
    if node.op_type not in ELEMENTWISE:
        return False
    if node.op_type == "Add" and len({value for value in node.inputs if constant(value) is None}) > 1:
        return False
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    return producer is None or producer.op_type not in FUSING or fused_activation(producer) is not node


def leaky_numerator(conv: ir.Node) -> int:
    """What multiplies a negative accumulator: the dyadic slope's numerator, 1 without LeakyRelu."""
    activation = fused_activation(conv)
    if activation is None or activation.op_type != "LeakyRelu":
        return 1
    alpha = activation.attributes["alpha"].as_float() if "alpha" in activation.attributes else 0.01
    return max(1, abs(dyadic(alpha)[0]))


def _share_concat_exponents(model: ir.Model, sites: dict[str, Site], acts: dict[str, TensorQuant]) -> None:
    """Where a Concat is the only reader, its input takes the Concat's own exponent: one rounding less, at no cost.

    An input that was given fewer bits than the Concat keeps them.
    """
    for node in reversed(list(model.graph)):
        if node.op_type != "Concat":
            continue
        target = acts[str(node.outputs[0].name)]
        for start in node.inputs:
            value = start
            chain: list[str] = []
            while value is not None and _has_one_reader(value):
                chain.append(str(value.name))
                site = sites.get(str(value.name))
                if site is None or site.same_as is None:
                    break
                producer = value.producer()
                value = producer.inputs[0] if producer is not None else None
            else:
                continue  # somebody else reads it: it keeps the exponent that suits both
            free = chain[-1] in sites and sites[chain[-1]].same_as is None and not value.is_graph_input()
            if free and acts[chain[-1]].qtype.bits >= target.qtype.bits:
                acts.update(dict.fromkeys(chain, target))


def _has_one_reader(value: ir.Value) -> bool:
    """Whether one node alone reads this value, and its producer computes no other (as Split does)."""
    producer = value.producer()
    siblings = producer.outputs if producer is not None else ()
    return len(value.uses()) == 1 and not value.is_graph_output() and len(siblings) < 2


def exponent_limits(conv: ir.Node, plan: Plan) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(lowest, highest) fraction bits (O,) of a convolution's weights, by BIAS_LIMIT and what the hardware shifts."""
    weight = plan.weights[str(conv.name)]
    fx, fy = int(plan.input_of(conv).frac), int(plan.acts[result_of(conv)].frac)
    limit = BIAS_LIMIT / leaky_numerator(conv)
    top = np.floor(np.log2(limit / np.maximum(np.abs(weight.bias), 1e-30))).astype(np.int64) - fx
    slack = MAX_RIGHT_SHIFT - 7  # the slope's denominator shares the shifter
    return np.full_like(top, fy - fx - MAX_RIGHT_SHIFT), np.minimum(top, fy - fx + slack)


def limit_shifts(model: ir.Model, plan: Plan) -> Plan:
    """Coarsen the weight exponents that would need a bias beyond BIAS_LIMIT or a shift beyond the hardware's."""
    weights = dict(plan.weights)
    for node in model.graph:
        if str(node.name) not in weights or weights[str(node.name)].quant.qtype.scale != "pow2":
            continue
        weight = weights[str(node.name)]
        low, top = exponent_limits(node, plan)
        if weight.quant.qtype.axis is None:
            top = top.min()
            low = low.max()
        frac = np.clip(weight.quant.frac, low, top)
        if np.any(frac != weight.quant.frac):
            quant = TensorQuant.pow2(weight.quant.qtype, frac)
            real = weight.quant.dequantise(weight.codes)
            weights[str(node.name)] = replace(weight, quant=quant, codes=quant.quantise(real).astype(np.int8))
    return replace(plan, weights=weights)
