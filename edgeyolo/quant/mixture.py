"""Mixtures of a float network and its quantised form: any weights and activations given back their float values.

Noise at the heads adds up: on real nets the noises that each layer makes alone sum to within 2 dB of what all make
together. That makes a layer's own noise the fair measure of its guilt. What giving back a single layer gains is not:
in a network that is destroyed already, no single layer gains anything.

A bias that was corrected for the whole quantised prefix would be wrong in a mixture. So every quantised layer gets the
part that depends on itself alone, with W the float weights, W^ the quantised ones and m the mean of its input:

    b^ := b + sum((W - W^) m)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.ort import Arrays, open_session, run
from edgeyolo.passes.graph import constant, conv_groups, read_detector
from edgeyolo.quant.calibrate import Pixels, run_pictures, to_float
from edgeyolo.quant.compare import HeadSnr
from edgeyolo.quant.insert_qdq import insert_qdq
from edgeyolo.quant.plan import Plan, constants, conv_roles, result_of

if TYPE_CHECKING:
    import onnxruntime

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """A convolution with the value it produces, or another operation's value.

    Args:
        name: the convolution's, as ``--keep`` takes it, else the value's.
        kind: roles of a convolution (``first``, ``head``, ``depthwise``) or ``dense``; else the operation.
        conv: whether it has weights that are quantised.
        site: the value it produces.
        roles: as in ``conv_roles``.
        weights: how many.
    """

    name: str
    kind: str
    conv: bool
    site: str
    roles: frozenset[str] = frozenset()
    weights: int = 0


@dataclass
class ValueFacts:
    """One value over pictures: channel sums and peaks (C,), positions, and what its quantiser does to it."""

    total: Float64 | float = 0.0
    peak: Float64 | float = 0.0
    positions: int = 0
    count: int = 0
    clipped: int = 0
    signal: float = 0.0
    noise: float = 0.0

    @property
    def mean(self) -> Float64:
        """Channel means (C,)."""
        return np.asarray(self.total / self.positions)


@dataclass(eq=False)
class Mixture:
    """A float graph with the plan that quantises it, executed on a few pictures.

    Args:
        reference: the float graph.
        plan: its quantisation, with any biases.
        pictures: network pixels; all are held in memory, with the float heads.
    """

    reference: ir.Model
    plan: Plan
    pictures: list[Pixels]
    layers: list[Layer] = field(init=False)
    facts: dict[str, ValueFacts] = field(init=False)

    def __post_init__(self) -> None:
        detector, session = read_detector(self.reference), open_session(self.reference, optimise=False)
        self._feeds = [to_float(pixels, detector) for pixels in self.pictures]
        self._exact = [run(session, feed) for feed in self._feeds]
        self._roots = {name: _root(self.plan, name) for name in self.plan.sites}
        self.layers = _layers(self.reference, self.plan)
        self.facts = _observe(self.reference, self.plan, self.pictures)
        self.plan = _own_biases(self.reference, self.plan, self.facts)

    @property
    def all_weights(self) -> frozenset[str]:
        """Every quantised convolution."""
        return frozenset(self.plan.weights)

    @property
    def all_acts(self) -> frozenset[str]:
        """Every value with an exponent of its own."""
        return frozenset(self._roots.values())

    def model(self, weights: Collection[str], acts: Collection[str]) -> ir.Model:
        """The network in which these convolutions' weights and these values are quantised, nothing else."""
        plan = self.plan
        mixed = replace(
            plan,
            sites={name: site for name, site in plan.sites.items() if self._roots[name] in acts},
            weights={name: weight for name, weight in plan.weights.items() if name in weights},
        )
        return insert_qdq(self.reference, mixed)

    def without(self, layers: Collection[Layer]) -> ir.Model:
        """The quantised network in which these layers are given back their float weights and results."""
        convs, sites = {layer.name for layer in layers if layer.conv}, {layer.site for layer in layers}
        return self.model(self.all_weights - convs, self.all_acts - sites)

    def snr(self, model: ir.Model, *, optimise: bool = False) -> float:
        """The heads' SNR of a mixture against the float network, in dB.

        ``optimise`` makes it faster, and is right only where no two quantised layers stand in a row: ONNX Runtime's
        fused integer kernels are not exact.
        """
        return self.measure(open_session(model, optimise=optimise))

    def measure(self, session: onnxruntime.InferenceSession, others: Arrays | None = None) -> float:
        """The heads' SNR of an open session, in dB; ``others`` are its inputs besides the picture."""
        snr, source = HeadSnr(), str(self.reference.graph.inputs[0].name)
        for feed, exact in zip(self._feeds, self._exact, strict=True):
            snr.add(exact, run(session, {source: feed, **(others or {})}))
        return snr.decibel


def convolutions(model: ir.Model, plan: Plan) -> dict[str, ir.Node]:
    """The convolutions that the plan quantises, by name."""
    return {str(node.name): node for node in model.graph if node.op_type == "Conv" and str(node.name) in plan.weights}


def _root(plan: Plan, name: str) -> str:
    """The site whose exponent this one shares."""
    site = plan.sites[name]
    while site.same_as is not None:
        site = plan.sites[site.same_as]
    return site.name


def _layers(model: ir.Model, plan: Plan) -> list[Layer]:
    """Every layer in the order of its result."""
    roles = conv_roles(model)
    made = {result_of(node): node for node in convolutions(model, plan).values()}
    producers = {str(value.name): node for node in model.graph for value in node.outputs}
    layers = []
    for name, site in plan.sites.items():
        if site.same_as is not None:
            continue
        if name in made:
            conv = str(made[name].name)
            kind = ", ".join(sorted(roles[conv] - {"last"})) or "dense"
            layers.append(Layer(conv, kind, True, name, roles[conv], plan.weights[conv].codes.size))
        else:
            kind = producers[name].op_type.lower() if name in producers else "input"
            layers.append(Layer(name, kind, False, name))
    return layers


def _observe(model: ir.Model, plan: Plan, pictures: list[Pixels]) -> dict[str, ValueFacts]:
    """Facts of every value that has an exponent of its own or that a quantised convolution reads."""
    source, detector = str(model.graph.inputs[0].name), read_detector(model)
    reads = {str(conv.inputs[0].name) for conv in convolutions(model, plan).values() if conv.inputs[0] is not None}
    names = [name for name, site in plan.sites.items() if site.same_as is None or name in reads]
    facts = {name: ValueFacts() for name in names}
    inner = [name for name in names if name != source]
    for pixels, values in zip(pictures, run_pictures(model, inner, pictures), strict=True):
        for name, value in ({source: to_float(pixels, detector)} | values).items():
            f, quant = facts[name], plan.acts[name]
            axes = tuple(i for i in range(value.ndim) if i != 1)
            f.total = f.total + value.sum(axis=axes, dtype=np.float64)
            f.peak = np.maximum(f.peak, np.abs(value).max(axis=axes))
            f.positions += value.size // value.shape[1]
            f.count += value.size
            low, high = quant.dequantise(np.array([quant.qtype.lo, quant.qtype.hi]))
            f.clipped += int(np.count_nonzero((value < low) | (value > high)))
            f.signal += float(np.sum(np.square(value), dtype=np.float64))
            f.noise += float(np.sum(np.square(value - quant.fake(value)), dtype=np.float64))
    return facts


def _own_biases(model: ir.Model, plan: Plan, facts: dict[str, ValueFacts]) -> Plan:
    """The plan with the biases that suit a mixture, or itself where no bias was corrected."""
    biases: dict[str, Float64] = {}
    corrected = False
    for name, node in convolutions(model, plan).items():
        real, bias = constants(node)
        assert real is not None and node.inputs[0] is not None
        weight = plan.weights[name]
        plain = np.zeros(len(real)) if bias is None else bias.astype(np.float64)
        corrected |= not np.array_equal(plain, weight.bias)
        lost = real - weight.quant.dequantise(weight.codes)
        biases[name] = plain + mean_shift(node, lost, facts[str(node.inputs[0].name)].mean)
    return plan.with_biases(biases) if corrected else plan


def mean_shift(conv: ir.Node, lost: npt.NDArray[np.float32], mean: Float64) -> Float64:
    """What a convolution's outputs (O,) lose on average: sum((W - W^) m), with ``lost`` = W - W^, ``mean`` = m (C,)."""
    groups = conv_groups(conv)
    read = mean.reshape(groups, -1).repeat(len(lost) // groups, axis=0)
    shift: Float64 = (lost.reshape(*lost.shape[:2], -1).sum(axis=2) * read).sum(axis=1)
    return shift


def float_weights(model: ir.Model, name: str) -> npt.NDArray[np.float32]:
    """The weights (O, I/g, KH, KW) of a convolution."""
    array = next(constant(node.inputs[1]) for node in model.graph if node.name == name)
    assert array is not None
    return array
