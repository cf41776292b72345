"""From a float graph and calibration pictures to a quantised graph: observe, refine, plan, insert."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.passes.graph import read_detector
from edgeyolo.quant.calibrate import Pixels, copy_model, observe, to_float
from edgeyolo.quant.compare import head_snr
from edgeyolo.quant.config import QuantConfig
from edgeyolo.quant.insert_qdq import insert_qdq
from edgeyolo.quant.plan import Plan, make_plan
from edgeyolo.quant.refine.bias_correction import correct_bias
from edgeyolo.quant.refine.equalise import equalise
from edgeyolo.quant.walk import Float32

REFINE_PICTURES = 32
"""Pictures that a refinement holds in memory at once; more changed the head SNR by less than 0.1 dB."""
HELD_OUT_PICTURES = 16
"""Pictures that judge which refinements helped; never among those they were computed from, unless there are too few."""

Progress = Callable[[Iterable[Pixels], str], Iterable[Pixels]]


@dataclass(frozen=True)
class RefineStep:
    """One row of the ledger: the heads' SNR on held-out pictures with a combination, and whether it was kept."""

    name: str
    head_snr_db: float
    kept: bool


@dataclass(frozen=True, eq=False)
class Candidate:
    """One combination of refinements: the float graph it quantises, plan, quantised graph, SNR on held-out pictures."""

    name: str
    reference: ir.Model
    plan: Plan
    model: ir.Model
    head_snr_db: float


@dataclass(frozen=True, eq=False)
class QuantResult:
    """The float graph that was quantised (equalised where that helped), its quantised form, the plan and the ledger.

    ``candidates`` are all combinations that were tried, in order; ``model`` is the very object of the best one.
    """

    reference: ir.Model
    model: ir.Model
    plan: Plan
    steps: tuple[RefineStep, ...]
    candidates: tuple[Candidate, ...]


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
        InputError: there are no pictures.
    """
    if not len(pictures):
        raise InputError("there are no calibration pictures")
    if len(model.graph.inputs) != 1:
        raise UnsupportedError("the model must have one input", got=[v.name for v in model.graph.inputs])
    sample, held_out = _split(pictures)
    batch = np.concatenate([to_float(pixels, read_detector(model)) for pixels in sample])
    histograms, peaks = observe(model, progress(pictures, "observing activations"))
    plan = make_plan(model, histograms, config)
    candidates = _candidates("round to nearest", model, plan, config, batch, held_out)
    if config.equalise:
        scaled = copy_model(model)
        if equalise(scaled, peaks, config.granularity == "per-channel"):
            histograms, _ = observe(scaled, progress(pictures, "observing, equalised"))
            plan = make_plan(scaled, histograms, config)
            candidates += _candidates("equalise", scaled, plan, config, batch, held_out)
    best = max(candidates, key=lambda candidate: candidate.head_snr_db)
    steps = tuple(RefineStep(c.name, c.head_snr_db, c is best) for c in candidates)
    return QuantResult(best.reference, best.model, best.plan, steps, tuple(candidates))


def _candidates(
    name: str, reference: ir.Model, plan: Plan, config: QuantConfig, batch: Float32, held_out: list[Pixels]
) -> list[Candidate]:
    """The plan as it is, and with corrected biases: what one refinement is worth may depend on the other."""
    plans = {name: plan}
    if config.correct_bias:
        plans[f"{name} + correct biases"] = correct_bias(reference, plan, batch)
    models = {label: insert_qdq(reference, each) for label, each in plans.items()}
    return [
        Candidate(label, reference, plans[label], quantised, head_snr(reference, quantised, held_out))
        for label, quantised in models.items()
    ]


def _split(pictures: Collection[Pixels]) -> tuple[list[Pixels], list[Pixels]]:
    """(sample to refine on, held-out sample), spread evenly over the set; the same picture when there is only one."""
    count = len(pictures)
    held = min(HELD_OUT_PICTURES, max(1, count // 4))
    held_indices = set(np.linspace(0, count - 1, held).astype(int).tolist())
    rest = [i for i in range(count) if i not in held_indices] or [0]
    chosen = {rest[i] for i in np.linspace(0, len(rest) - 1, min(REFINE_PICTURES, len(rest))).astype(int)}
    wanted = {i: p for i, p in enumerate(pictures) if i in chosen or i in held_indices}
    return [wanted[i] for i in sorted(chosen)], [wanted[i] for i in sorted(held_indices)]
