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
from edgeyolo.errors import InputError, UnsupportedError
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
        """The decision, and milliseconds a frame by candidate; all else stands in the measurement's file."""
        times = {record.contender: ms for record in self.records if (ms := _total(record)) is not None}
        return {
            "variant": self.variant, "keep_float": list(self.keep_float), "reason": self.reason, "total_ms": times
        }  # fmt: skip


def _total(record: RunRecord) -> float | None:
    """Median milliseconds of a whole frame, which is what ratios are of; None where it failed.

    All candidates see the same pictures, so what surrounds the network is the same for all of them.
    """
    return float(record.ms["total"]["p50"]) if record.ms and record.status != "failed" else None


def default_choice(
    model: ir.Model, keep_float: tuple[str, ...], variant: str | None, board: MobileBoard
) -> Choice:  # fmt: skip
    """Without a measurement: what the user wants, else int8, with a word about what is often slower than float32."""
    if variant is not None:
        slow = variant == "fp16" and not board.fp16_kernels
        doubt = f"; on the CPU of {board.name} ONNX Runtime converts float16 to float32 and back, which costs time"
        return Choice(variant, keep_float, f"--precision{doubt * slow}")
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

    Raises:
        InputError: float32 cannot be measured.
        UnsupportedError: ``keep_float`` leaves nothing to quantise.
        KeyboardInterrupt: the user stopped the measurement, so that it decides nothing.
    """
    few = pictures.spread(PICTURES)
    quantised, keeps = _quantised(model, few, keep_float)
    graphs = {"fp32": model, "fp16": to_half(model, peak_values(model, few))}
    graphs |= {name: encode(graph, board.int8_format.upper()) for name, graph in quantised.items()}
    records = _measure(graphs, few, host_threads(board), log)
    if any(record.status == "stopped" for record in records):
        raise KeyboardInterrupt
    return decide(dict(zip(graphs, records, strict=True)), keeps)


def _quantised(
    model: ir.Model, pictures: PictureSet, keep_float: tuple[str, ...]
) -> tuple[dict[str, ir.Model], dict[str, tuple[str, ...]]]:
    """The int8 candidates, and what each of them keeps float beside ``keep_float``: whatever leaves something int8."""
    graphs: dict[str, ir.Model] = {}
    keeps: dict[str, tuple[str, ...]] = {}
    wanted = [(part for part in found if part != "head") for found in candidates(model)]
    for keep in dict.fromkeys(tuple(dict.fromkeys((*keep_float, *more))) for more in wanted):
        name = f"int8-{len(keeps)}" if keeps else "int8"
        config = Int8Config("minmax", keep, equalise=False, correct_bias=False, reconstruct=False)
        try:
            graphs[name] = quantise_mobile(model, pictures, config).best.model
        except UnsupportedError:
            if not keeps:  # the user's own choice, of which all others are more
                raise
            continue
        keeps[name] = keep
    return graphs, keeps


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
    """The fastest a frame; float32 gives way to what is surely faster only, since everything else costs accuracy.

    Surely: the whole interval of the ratio of median totals lies below 1. The best is that of the lowest median total.

    Args:
        records: of every candidate by its name, ``fp32`` first, which the others' ratios are to.
        keeps: what each int8 candidate keeps float.

    Raises InputError if float32 has no figures.
    """
    times = {name: ms for name, record in records.items() if (ms := _total(record)) is not None}
    if "fp32" not in times:
        raise InputError("float32 could not be measured", got=records["fp32"].reason, hint="leave --auto out")
    figures = ", ".join(f"{name} {ms:.2f} ms" for name, ms in times.items())
    keep = keeps[min((name for name in keeps if name in times), key=times.__getitem__, default=next(iter(keeps)))]
    faster = [name for name in times if (ratio := records[name].ratio) is not None and ratio["high"] < 1]
    if not faster:
        return Choice("fp32", keep, f"nothing is surely faster here: {figures}", tuple(records.values()))
    best = min(faster, key=times.__getitem__)
    variant = "fp16" if best == "fp16" else "int8"
    return Choice(variant, keeps.get(best, keep), f"{best} is the fastest here: {figures}", tuple(records.values()))
