"""From a float graph and calibration pictures to a quantised graph: observe, refine, plan, insert."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeyolo.errors import UnsupportedError
from edgeyolo.passes.graph import read_detector
from edgeyolo.quant.calibrate import Pixels, copy_model, observe, to_float
from edgeyolo.quant.compare import head_snr
from edgeyolo.quant.config import QuantConfig
from edgeyolo.quant.insert_qdq import insert_qdq
from edgeyolo.quant.plan import Plan, make_plan
from edgeyolo.quant.refine.bias_correction import correct_bias
from edgeyolo.quant.refine.equalise import equalise

REFINE_PICTURES = 32
"""Pictures that a refinement holds in memory at once; more changed the head SNR by less than 0.1 dB."""
HELD_OUT_PICTURES = 16
"""Pictures that judge whether a refinement helped; never among those it was computed from, unless there are too few."""

Progress = Callable[[Iterable[Pixels], str], Iterable[Pixels]]


@dataclass(frozen=True)
class RefineStep:
    """One row of the ledger: the heads' SNR on held-out pictures after a step, and whether the step was kept."""

    name: str
    head_snr_db: float
    kept: bool


@dataclass(frozen=True, eq=False)
class QuantResult:
    """The float graph that was quantised (equalised where that helped), its quantised form, the plan and the ledger."""

    reference: ir.Model
    model: ir.Model
    plan: Plan
    steps: tuple[RefineStep, ...]


def quantise(
    model: ir.Model,
    pictures: Collection[Pixels],
    config: QuantConfig,
    progress: Progress = lambda pictures, _: pictures,
) -> QuantResult:
    """Quantise a float graph.

    Args:
        model: float graph, batch 1, BN-folded and simplified; its slopes already dyadic (see passes/); with detector
        metadata.
        pictures: network pixels (C, H, W) uint8; iterated several times, one picture in memory at a time.
        config: bits and methods.
        progress: wraps an iteration over pictures, with a title.

    Raises:
        UnsupportedError: the graph has several inputs.
    """
    if len(model.graph.inputs) != 1:
        raise UnsupportedError("the model must have one input", got=[v.name for v in model.graph.inputs])
    sample, held_out = _split(pictures)
    steps: list[RefineStep] = []

    def attempt(reference: ir.Model, plan: Plan) -> tuple[ir.Model, float]:
        candidate = insert_qdq(reference, plan)
        return candidate, head_snr(reference, candidate, held_out)

    histograms, peaks = observe(model, progress(pictures, "observing activations"))
    plan = make_plan(model, histograms, config)
    reference, (quantised, best) = model, attempt(model, plan)
    steps.append(RefineStep("round to nearest", best, True))
    if config.equalise:
        scaled = copy_model(model)
        if equalise(scaled, dict(peaks), config.granularity == "per-channel"):
            histograms, _ = observe(scaled, progress(pictures, "observing, equalised"))
            scaled_plan = make_plan(scaled, histograms, config)
            candidate, snr = attempt(scaled, scaled_plan)
            steps.append(RefineStep("equalise", snr, snr > best))
            if snr > best:
                reference, plan, quantised, best = scaled, scaled_plan, candidate, snr
    if config.correct_bias:
        batch = np.concatenate([to_float(p, read_detector(model)) for p in sample])
        corrected = correct_bias(reference, plan, batch)
        candidate, snr = attempt(reference, corrected)
        steps.append(RefineStep("correct biases", snr, snr > best))
        if snr > best:
            plan, quantised = corrected, candidate
    return QuantResult(reference, quantised, plan, tuple(steps))


def _split(pictures: Collection[Pixels]) -> tuple[list[Pixels], list[Pixels]]:
    """(sample to refine on, held-out sample), spread evenly over the set; the same picture when there is only one."""
    count = len(pictures)
    held = min(HELD_OUT_PICTURES, max(1, count // 4))
    held_indices = set(np.linspace(0, count - 1, held).astype(int).tolist())
    rest = [i for i in range(count) if i not in held_indices] or [0]
    chosen = {rest[i] for i in np.linspace(0, len(rest) - 1, min(REFINE_PICTURES, len(rest))).astype(int)}
    wanted = {i: p for i, p in enumerate(pictures) if i in chosen or i in held_indices}
    return [wanted[i] for i in sorted(chosen)], [wanted[i] for i in sorted(held_indices)]
