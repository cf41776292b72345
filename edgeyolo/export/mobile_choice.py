"""Which variant a mobile bundle should run: int8 is not faster everywhere, so it is measured where that is possible.

Candidates are the float32 and float16 graphs, and int8 graphs that keep different layers float. Speed does not depend
on the integers' values, so the int8 candidates are quantised without any refinement, on few pictures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from PIL import Image

from edgeyolo.bench.contenders import Variants, find_contenders
from edgeyolo.bench.harness import Plan
from edgeyolo.bench.harness import measure as run_contenders
from edgeyolo.bench.record import RunRecord
from edgeyolo.errors import InputError
from edgeyolo.export.pictures import PictureSet
from edgeyolo.lower.mobile.formats import encode
from edgeyolo.lower.mobile.half import to_half
from edgeyolo.lower.mobile.quantise import candidates, quantise_mobile
from edgeyolo.lower.tensorrt.quantise import Int8Config
from edgeyolo.mobile import MobileBoard, host_threads
from edgeyolo.ort import model_bytes
from edgeyolo.progress import Log
from edgeyolo.quant.calibrate import peak_values
from edgeyolo.quant.plan import conv_roles

PLAN = Plan(seconds=3.0, frames=30, warmup=5.0)
PICTURES = 4
"""Enough to run; what they show does not change the time of a network."""


@dataclass(frozen=True)
class Choice:
    """Which variant is model.onnx.

    Args:
        variant: ``int8``, ``fp16`` or ``fp32``.
        keep_float: layers that the int8 graph keeps float.
        reason: why, for people.
        records: what was measured; empty where nothing was.
    """

    variant: str
    keep_float: tuple[str, ...]
    reason: str
    records: tuple[RunRecord, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The decision, and milliseconds of the network by candidate; all else stands in the measurement's file."""
        times = {r.contender: r.ms["infer"]["p50"] for r in self.records if r.ms}
        return {
            "variant": self.variant, "keep_float": list(self.keep_float), "reason": self.reason, "infer_ms": times
        }  # fmt: skip


def default_choice(model: ir.Model, keep_float: tuple[str, ...], variant: str | None) -> Choice:
    """Without a measurement: what the user wants, else int8, with a word about networks that often lose by it."""
    if variant is not None:
        return Choice(variant, keep_float, "--precision")
    reason = "int8 is the smallest; nothing was measured"
    if any("depthwise" in played for played in conv_roles(model).values()):
        reason += ". The network has depthwise layers, which int8 often makes slower: measure before you ship it"
    return Choice("int8", keep_float, reason)


def choose(
    model: ir.Model, pictures: PictureSet, board: MobileBoard, keep_float: tuple[str, ...], log: Log
) -> Choice:  # fmt: skip
    """Measure on this machine, all candidates in one run.

    Args:
        model: float graph.
        pictures: for calibration; a few of them are run.
        board: says the integers' format and the number of threads.
        keep_float: what the user wants to be float whatever is measured.
        log: receives progress.

    Raises InputError if float32 cannot be measured.
    """
    keeps = {"int8": keep_float}
    for found in candidates(model):
        keep = tuple(dict.fromkeys((*keep_float, *(part for part in found if part != "head"))))
        if keep not in keeps.values():
            keeps[f"int8-{len(keeps)}"] = keep
    few = pictures.spread(PICTURES)
    graphs = {"fp32": model, "fp16": to_half(model, peak_values(model, few))}
    for name, keep in keeps.items():
        config = Int8Config("minmax", keep, equalise=False, correct_bias=False, reconstruct=False)
        graphs[name] = encode(quantise_mobile(model, few, config).best.model, board.int8_format.upper())
    records = _measure(graphs, few, host_threads(board), log)
    return decide(dict(zip(graphs, records, strict=True)), keeps)


def _measure(graphs: Mapping[str, ir.Model], pictures: PictureSet, threads: int, log: Log) -> list[RunRecord]:
    """One record a graph, in their order."""
    with tempfile.TemporaryDirectory(prefix="edgeyolo-mobile-") as name:
        folder, paths, files = Path(name), [], []
        for number, pixels in enumerate(pictures):
            paths.append(folder / f"{number}.png")
            Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)).squeeze()).save(paths[-1])
        for graph, model in graphs.items():
            files.append(folder / f"{graph}.onnx")
            files[-1].write_bytes(model_bytes(model))
        contenders = find_contenders(files, Variants(["ort"], [threads]))
        return run_contenders(contenders, paths, PLAN, log)


def decide(records: Mapping[str, RunRecord], keeps: Mapping[str, tuple[str, ...]]) -> Choice:
    """The fastest network; float32 gives way to what is surely faster only, since everything else costs accuracy.

    Args:
        records: of every candidate by its name, ``fp32`` first, which the others' ratios are to.
        keeps: what each int8 candidate keeps float.

    Raises InputError if float32 has no figures.
    """
    times = {name: r.ms["infer"]["p50"] for name, r in records.items() if r.ms}
    if "fp32" not in times:
        raise InputError("float32 could not be measured", got=records["fp32"].reason, hint="leave --auto out")
    figures = ", ".join(f"{name} {ms:.2f} ms" for name, ms in times.items())
    keep = keeps[min((name for name in keeps if name in times), key=times.__getitem__, default=next(iter(keeps)))]
    faster = [name for name, record in records.items() if record.ratio is not None and record.ratio["high"] < 1]
    if not faster:
        return Choice("fp32", keep, f"nothing is surely faster here: {figures}", tuple(records.values()))
    best = min(faster, key=times.__getitem__)
    variant = "fp16" if best == "fp16" else "int8"
    return Choice(variant, keeps.get(best, keep), f"{best} is the fastest here: {figures}", tuple(records.values()))
