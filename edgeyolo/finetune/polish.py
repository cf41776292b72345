"""Finetuning as one more candidate of a quantisation: a row of the ledger like every refinement before it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from edgeyolo.finetune.distil import FinetuneResult, finetune
from edgeyolo.finetune.settings import FinetuneSettings
from edgeyolo.progress import Log
from edgeyolo.quant.calibrate import Pixels
from edgeyolo.quant.insert_qdq import insert_qdq
from edgeyolo.quant.quantise import Candidate, QuantResult, RefineStep


def polish(quant: QuantResult, pictures: Collection[Pixels], settings: FinetuneSettings, log: Log) -> QuantResult:
    """Finetune the kept candidate of ``quant``; the result has one candidate more, kept where it is better.

    Args:
        quant: of ``quantise``.
        pictures: the calibration pictures, network pixels (C, H, W) uint8.
        settings: how long and how carefully.
        log: gets one line.

    Raises:
        InputError, UnsupportedError: as ``finetune``.
    """
    with log.stage("finetune") as details:
        result = finetune(quant.reference, quant.plan, pictures, settings, log)
        details.append(summary(result))
    begun = next(c for c in quant.candidates if c.model is quant.model)
    label, tried = f"{begun.name} + finetune", result.tried
    model = insert_qdq(quant.reference, tried.plan)
    candidate = Candidate(label, quant.reference, tried.plan, model, tried.head_snr_db)
    step = RefineStep(label, tried.head_snr_db, result.improved)
    if not result.improved:
        return replace(quant, steps=(*quant.steps, step), candidates=(*quant.candidates, candidate))
    steps = tuple(replace(earlier, kept=False) for earlier in quant.steps)
    return QuantResult(quant.reference, model, tried.plan, (*steps, step), (*quant.candidates, candidate))


def summary(result: FinetuneResult) -> str:
    """What it gave, in one line."""
    before, after = result.start.head_snr_db, result.tried.head_snr_db
    updates = f"{result.checks[-1].step} updates"
    if result.improved:
        return f"held-out head SNR {before:.1f} -> {after:.1f} dB in {updates}"
    return (
        f"the start is kept, {updates} beat it by no more than chance: held-out head SNR {before:.1f} -> {after:.1f} dB"
    )
