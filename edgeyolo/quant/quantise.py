"""From a float graph and calibration pictures to a quantised graph: observe, refine, plan, insert.

The order of the refinements: scale (equalise, align), which leaves the float network what it is; then layer by layer
behind the quantised prefix (reconstruct, correct biases). Every combination that is tried is a candidate, and pictures
that took no part judge it: what does not help is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.quant.calibrate import Pixels, copy_model, observe
from edgeyolo.quant.compare import head_snr
from edgeyolo.quant.config import QuantConfig
from edgeyolo.quant.insert_qdq import insert_qdq
from edgeyolo.quant.plan import Plan, conv_roles, make_plan
from edgeyolo.quant.refine.align import align
from edgeyolo.quant.refine.equalise import equalise
from edgeyolo.quant.refine.sequential import refine_layers
from edgeyolo.quant.subset import Subset, split

BIAS_PICTURES = 32
"""Of a correction of biases alone; more changed the head SNR by less than 0.1 dB. Reconstruction takes all."""

Track = Callable[[Collection[Any], str], Iterable[Any]]


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
    """The float graph that was quantised (scaled where that helped), its quantised form, the plan and the ledger.

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
    track: Track = lambda items, _: items,
    saved: Path | None = None,
) -> QuantResult:
    """Quantise a float graph.

    Args:
        model: float graph, batch 1, BN-folded and simplified; its slopes already dyadic (see passes/); with detector
        metadata.
        pictures: network pixels (C, H, W) uint8; iterated several times, a few in memory at a time.
        config: bits, methods and refinements.
        track: wraps an iteration over pictures or layers, with a title.
        saved: a folder for finished layers, from which the same call goes on after a crash.

    Raises:
        UnsupportedError: the graph has several inputs.
        InputError: there are no pictures.
    """
    if not len(pictures):
        raise InputError("there are no calibration pictures")
    if len(model.graph.inputs) != 1:
        raise UnsupportedError("the model must have one input", got=[v.name for v in model.graph.inputs])
    work = _Work(pictures, config, track, saved, *split(len(pictures)))
    candidates = work.scaled(model)
    if config.reconstruct and config.recipe != "fast":
        candidates += work.reconstructed(candidates)
    best = max(candidates, key=lambda candidate: candidate.head_snr_db)
    steps = tuple(RefineStep(c.name, c.head_snr_db, c is best) for c in candidates)
    return QuantResult(best.reference, best.model, best.plan, steps, tuple(candidates))


@dataclass(frozen=True, eq=False)
class _Work:
    """What all candidates of one quantisation share; ``rest`` and ``held_out`` are positions of pictures."""

    pictures: Collection[Pixels]
    config: QuantConfig
    track: Track
    saved: Path | None
    rest: tuple[int, ...]
    held_out: tuple[int, ...]

    def candidate(self, name: str, reference: ir.Model, plan: Plan) -> Candidate:
        quantised = insert_qdq(reference, plan)
        judges = Subset(self.pictures, frozenset(self.held_out))
        return Candidate(name, reference, plan, quantised, head_snr(reference, quantised, judges))

    def scaled(self, model: ir.Model) -> list[Candidate]:
        """Every scaling, as it is and with corrected biases: what one is worth may depend on the other."""
        config = self.config
        histograms, peaks = observe(model, self.track(self.pictures, "observing activations"))
        plan = make_plan(model, histograms, config)
        found = self._with_biases("round to nearest", model, plan)
        name, scaled = "", model
        for method, wanted in (("equalise", config.equalise), ("align", config.align)):
            if not wanted:
                continue
            scaled = copy_model(scaled)
            if method == "equalise":
                changed = equalise(scaled, peaks, config.granularity == "per-channel")
            else:
                roles = conv_roles(scaled)
                changed = align(scaled, {conv: config.layer_bits(conv, roles[conv])[0] for conv in roles})
            if changed:
                name += ", " * bool(name) + method
                histograms, _ = observe(scaled, self.track(self.pictures, f"observing: {name}"))
                found += self._with_biases(name, scaled, make_plan(scaled, histograms, config))
        return found

    def _with_biases(self, name: str, reference: ir.Model, plan: Plan) -> list[Candidate]:
        found = [self.candidate(name, reference, plan)]
        if self.config.correct_bias:
            spread = np.linspace(0, len(self.rest) - 1, min(BIAS_PICTURES, len(self.rest))).astype(int)
            sample = Subset(self.pictures, frozenset(self.rest[i] for i in spread))
            corrected = refine_layers(reference, plan, sample, rebuild=False, track=self.track)
            found.append(self.candidate(f"{name} + correct biases", reference, corrected))
        return found

    def reconstructed(self, scaled: list[Candidate]) -> list[Candidate]:
        """Layers reconstructed behind the best scaling, or behind all of them.

        Without any they reconstruct worse on every net that was measured, although biases alone may rank them first.
        """
        per_scaling = 2 if self.config.correct_bias else 1
        groups = [scaled[i : i + per_scaling] for i in range(0, len(scaled), per_scaling)]
        if self.config.recipe != "max":
            groups = [max(groups[1:] or groups, key=lambda group: max(c.head_snr_db for c in group))]
        found = []
        for plain, *_ in groups:
            pictures = Subset(self.pictures, frozenset(self.rest), mirrored=self.config.recipe == "max")
            plan = refine_layers(
                plain.reference, plain.plan, pictures, rebuild=True, correct=self.config.correct_bias,
                track=self.track, saved=self.saved,
            )  # fmt: skip
            found.append(self.candidate(f"{plain.name} + reconstruct", plain.reference, plan))
        return found
