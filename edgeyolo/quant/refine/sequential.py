"""Refine layer by layer, each behind the already quantised prefix: reconstruct its weights, then correct its bias.

One walk through the network over all pictures, in chunks: what a later layer still needs is kept by a Stream, for the
float and for the quantised network. The quantised values are those of the integer program, to the last bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.passes.graph import constant, read_detector
from edgeyolo.program import EXACT_BITS
from edgeyolo.quant.calibrate import Pixels, to_float
from edgeyolo.quant.plan import Plan, exponent_limits, leaky_numerator, limit_shifts
from edgeyolo.quant.refine.attention import Map, attention, resample
from edgeyolo.quant.refine.bias_correction import correct_bias
from edgeyolo.quant.refine.moments import Geometry, Moments, sample_moments
from edgeyolo.quant.refine.reconstruct import Limits, reconstruct
from edgeyolo.quant.refine.saved import SavedLayers, refinement_key
from edgeyolo.quant.refine.stream import Stream
from edgeyolo.quant.walk import Float32, Step, walk

CHUNK = 8
"""Pictures in memory at once."""
JUDGING = 4
"""Every fourth chunk judges ridges, the others fit."""
POSITIONS = 32768
"""Output positions of a layer that are looked at, over all pictures; four times as many made the heads no better."""

Track = Callable[[Collection[Any], str], Iterable[Any]]


@dataclass
class _State:
    """What the walk carries: the plan so far, all live values of both networks, and what its pictures show."""

    model: ir.Model
    plan: Plan
    exact: Stream
    quantised: Stream
    maps: list[Map] | None
    size: int
    per_picture: int
    rebuild: bool
    correct: bool
    chunks: int = 0


def refine_layers(
    model: ir.Model,
    plan: Plan,
    pictures: Collection[Pixels],
    *,
    rebuild: bool,
    correct: bool = True,
    track: Track = lambda items, _: items,
    saved: Path | None = None,
) -> Plan:
    """The plan with refined weights and biases.

    Args:
        model: the float graph that ``plan`` quantises.
        plan: exponents, types and activations; those of activations stay.
        pictures: network pixels (C, H, W) uint8; memory does not grow with their number.
        rebuild: reconstruct weights.
        correct: correct biases; without it a reconstructed layer's bias takes the difference of the means in front of
            the activation.
        track: wraps the iteration over the layers, with a title.
        saved: a folder for finished layers: the same call after a crash goes on behind the last of them.
    """
    key = "" if saved is None else refinement_key(model, plan, pictures, rebuild, correct)
    cache = SavedLayers(saved, key)
    size = min(CHUNK, max(1, len(pictures) // JUDGING))
    size += size % 2 if size > 1 else 0  # a picture and its mirrored twin stay together
    with tempfile.TemporaryDirectory(prefix="edgeyolo-") as folder:
        paths = [Path(folder) / part for part in ("exact", "quantised")]
        for path in paths:
            path.mkdir()
        maps = attention(model, pictures) if rebuild else None
        per_picture = max(1, POSITIONS // len(pictures))
        state = _State(model, plan, Stream(paths[0]), Stream(paths[1]), maps, size, per_picture, rebuild, correct)
        _feed(state, pictures)
        steps = list(walk(model))
        last = max((i for i, (step, _) in enumerate(steps) if str(step.node.name) in plan.weights), default=-1)
        steps = steps[: last + 1]  # nothing behind the last of them is looked at
        for index, (step, dead) in enumerate(track(steps, "reconstructing" if rebuild else "correcting biases")):
            if str(step.node.name) in plan.weights:
                _refine(step, state, index, cache)
            else:
                _compute(step, state)
            for name in dead:
                state.exact.drop(name, state.chunks)
                state.quantised.drop(name, state.chunks)
    return limit_shifts(model, state.plan)


def _feed(state: _State, pictures: Iterable[Pixels]) -> None:
    """Put the network's input into both streams."""
    source, detector = str(state.model.graph.inputs[0].name), read_detector(state.model)
    for batch in _batches(pictures, state.size):
        value = np.concatenate([to_float(pixels, detector) for pixels in batch])
        state.exact.put(source, state.chunks, value)
        state.quantised.put(source, state.chunks, _quantised(source, value, state))
        state.chunks += 1


def _batches(pictures: Iterable[Pixels], size: int) -> Iterator[list[Pixels]]:
    iterator = iter(pictures)
    while batch := list(islice(iterator, size)):
        yield batch


def _compute(step: Step, state: _State) -> None:
    """Execute what has no weights in both networks."""
    run = step.open()
    for chunk in range(state.chunks):
        for stream in (state.exact, state.quantised):
            outputs = [step.activate(v) for v in run(stream.gather(step.reads, chunk))]
            for name, value in zip(step.writes, outputs, strict=True):
                stream.put(name, chunk, value if stream is state.exact else _quantised(name, value, state))


def _quantised(name: str, value: Float32, state: _State) -> Float32:
    """``value`` as its readers get it; a value without a quantisation stays as it is."""
    quant = state.plan.acts.get(name)
    return value if quant is None else quant.fake(value)


def _refine(step: Step, state: _State, index: int, cache: SavedLayers) -> None:
    name, output = str(step.node.name), step.writes[0]
    planned = state.plan.weights[name]
    geometry = Geometry.of(step.node) if state.rebuild else None
    ready = cache.load(index, planned)
    wanted, moments = _look(step, state, None if ready else geometry)
    weight = planned if ready is None else ready
    if moments and ready is None:
        real = constant(step.node.inputs[1])
        assert real is not None
        weight = reconstruct(real, planned, *moments, _limits(step, state))
    no_bias = np.zeros(len(weight.codes), np.float32)
    run = step.open({1: weight.quant.dequantise(weight.codes), 2: no_bias})
    samples = []
    for chunk in range(state.chunks):
        raw = run(state.quantised.gather(step.reads, chunk))[0]
        state.quantised.put(output, chunk, raw)
        samples.append(_sample(raw, state, chunk))
    if ready is None:
        if state.correct:
            weight = replace(weight, bias=correct_bias(step, np.concatenate(samples, axis=1), wanted, weight.bias))
        cache.store(index, weight)
    state.plan = replace(state.plan, weights={**state.plan.weights, name: weight})
    bias = state.plan.real_bias(step.node)[None, :, None, None]
    for chunk in range(state.chunks):
        before = state.quantised.get(output, chunk) + bias
        if step.activation is not None:  # some runtimes round in front of an activation as well
            before = _quantised(str(step.node.outputs[0].name), before, state)
        value = step.activate(before)
        state.quantised.put(output, chunk, _quantised(output, value, state))


def _look(
    step: Step, state: _State, geometry: Geometry | None
) -> tuple[Float32, tuple[Moments, Moments | None] | None]:
    """Run the float layer: (activated outputs that are wanted (O, P), moments to fit and to judge by)."""
    run, other = step.open(), _other_addend(step, state)
    samples: list[Float32] = []
    sums: list[Moments | None] = [None, None]
    for chunk in range(state.chunks):
        before = run(state.exact.gather(step.reads, chunk))[0]
        state.exact.put(step.writes[0], chunk, step.activate(before))
        if other is not None:
            lost = state.exact.get(other, chunk) - state.quantised.get(other, chunk)
            before = before + lost if lost.shape == before.shape else before
        samples.append(_sample(step.activate(before), state, chunk))
        if geometry is not None:
            value = state.quantised.get(step.reads[0], chunk)
            positions = _positions(before, state, chunk)
            weights = _weights(before, state, chunk)[:, positions]
            part = sample_moments(geometry, value, before, positions, weights)
            judges = chunk % JUDGING == JUDGING - 1
            so_far = sums[judges]
            sums[judges] = part if so_far is None else so_far + part
    fitted, judging = sums
    return np.concatenate(samples, axis=1), None if fitted is None else (fitted, judging)


def _other_addend(step: Step, state: _State) -> str | None:
    """What is added to a convolution's own output, where an addition alone reads it and the other addend is known."""
    result = step.node.outputs[0]
    uses = list(result.uses())
    if step.activation is not None or result.is_graph_output() or len(uses) != 1 or uses[0].node.op_type != "Add":
        return None
    others = [str(v.name) for v in uses[0].node.inputs if v is not None and v is not result]
    known = len(others) == 1 and others[0] in state.plan.acts and state.exact.has(others[0])
    return others[0] if known else None


def _limits(step: Step, state: _State) -> Limits | None:
    """What the integer program allows; float scales have no limits."""
    if state.plan.weights[str(step.node.name)].quant.qtype.scale != "pow2":
        return None
    lo, hi = exponent_limits(step.node, state.plan)
    bits = state.plan.input_of(step.node).qtype.bits
    # Up to 8 bits the board's accumulator decides (see profile.py); beyond, sums must stay exact in float32.
    total = np.inf if bits <= 8 else float((1 << (EXACT_BITS - bits)) - 1) / leaky_numerator(step.node)
    return Limits(lo, hi, total)


def _positions(value: Float32, state: _State, chunk: int) -> npt.NDArray[np.intp]:
    """Flat output positions to look at: spread evenly, elsewhere in every chunk."""
    total = value.shape[2] * value.shape[3]
    count = min(total, state.per_picture)
    shift = chunk * 7919 % max(1, total // count)
    positions: npt.NDArray[np.intp] = (np.arange(count) * total // count + shift) % total
    return positions


def _weights(value: Float32, state: _State, chunk: int) -> Float32:
    """(N, h * w) weights of this chunk's output positions."""
    if state.maps is None:
        return np.ones((len(value), value.shape[2] * value.shape[3]), np.float32)
    maps = state.maps[chunk * state.size : chunk * state.size + len(value)]
    return np.stack([resample(m, *value.shape[2:]).ravel() for m in maps])


def _sample(value: Float32, state: _State, chunk: int) -> Float32:
    """(O, P) of (N, O, h, w) at this chunk's positions."""
    taken = value.reshape(*value.shape[:2], -1)[:, :, _positions(value, state, chunk)]
    sample: Float32 = taken.transpose(1, 0, 2).reshape(value.shape[1], -1)
    return sample
