"""Which variant a mobile bundle should run: int8 is not faster everywhere, so what was measured decides.

Here, or on the device: its records are those of ``edgeyolo benchmark`` or of the page of ``edgeyolo serve``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from PIL import Image

from edgeyolo.bench.compare import round_totals
from edgeyolo.bench.contenders import Variants, find_contenders
from edgeyolo.bench.harness import Plan
from edgeyolo.bench.harness import measure as run_contenders
from edgeyolo.bench.record import RunRecord, read_records
from edgeyolo.bench.stats import MIN_ROUNDS, ratio
from edgeyolo.bundle import sha256
from edgeyolo.errors import InputError
from edgeyolo.export.mobile_candidates import PICTURES, Candidates
from edgeyolo.export.pictures import PictureSet
from edgeyolo.mobile import MobileBoard
from edgeyolo.progress import Log
from edgeyolo.quant.plan import conv_roles

PLAN = Plan(seconds=3.0, frames=30, warmup=5.0)
BROWSER = "ort-web"
"""What the backends of a page are called."""
AGAIN = "write them with --candidates and all other options as they are now, and measure them in one run"


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
    """Median milliseconds of a whole frame; None where it failed.

    All candidates see the same pictures, so what surrounds the network is the same for all of them.
    """
    return float(record.ms["total"]["p50"]) if record.ms and record.status != "failed" else None


def default_choice(
    model: ir.Model, keep_float: tuple[str, ...], variant: str | None, board: MobileBoard
) -> Choice:  # fmt: skip
    """Without a measurement: what the user wants, else int8 unless the board is known to be slower with it."""
    if variant is not None:
        slow = variant == "fp16" and not board.fp16_kernels
        doubt = f"; on the CPU of {board.name} ONNX Runtime converts float16 to float32 and back, which costs time"
        return Choice(variant, keep_float, f"--precision{doubt * slow}")
    roles = {role for played in conv_roles(model).values() for role in played}
    if slow_roles := sorted(roles & set(board.slow_int8)):
        reason = (
            f"the network has {' and '.join(slow_roles)} layers, and int8 was measured to be slower than float32 with "
            f"those on {board.name}; this network was not measured: --auto does it, --candidates prepares it for "
            "another device"
        )
        return Choice("fp32", keep_float, reason)
    reason = "int8 is the smallest; nothing was measured"
    if "depthwise" in roles:
        reason += (
            ". The network has depthwise layers, which int8 often makes slower: measure before you ship it, with "
            "--auto on this machine or --candidates on the device"
        )
    return Choice("int8", keep_float, reason)


def measure_here(made: Candidates, pictures: PictureSet, threads: int, log: Log) -> dict[str, RunRecord]:
    """Measure all candidates on this machine in one run; the records by candidate.

    Args:
        made: the candidates.
        pictures: a few of them are run.
        threads: of every session.
        log: receives progress.

    Raises KeyboardInterrupt: the user stopped it, and half a measurement decides nothing.
    """
    with tempfile.TemporaryDirectory(prefix="edgeyolo-mobile-") as name:
        folder, paths = Path(name), []
        for number, pixels in enumerate(pictures.spread(PICTURES)):
            paths.append(folder / f"{number}.png")
            Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)).squeeze()).save(paths[-1], compress_level=0)
        contenders = find_contenders(made.write(folder), Variants(["ort"], [threads]))
        records = run_contenders(contenders, paths, PLAN, log)
    if any(record.status == "stopped" for record in records):
        raise KeyboardInterrupt
    return dict(zip(made.graphs, records, strict=True))


def measured_there(made: Candidates, results: Path) -> dict[str, RunRecord]:
    """The records of the candidates in a results file from a device, whatever else is in it.

    Candidates are recognised by their hash. What counts is the latest run that has float32 and int8, and of that run
    the backend and number of threads with the quickest frame.

    Raises InputError: no such file, no candidate of this model in it, or never both in one run.
    """
    names: dict[str, list[str]] = {}
    for name, data in made.graphs.items():
        names.setdefault(sha256(data), []).append(name)
    groups: dict[tuple[str, str, str, int], dict[str, RunRecord]] = {}
    everything = read_records(results)
    for record in everything:
        if record.scenario == "SingleStream" and record.batch == 1:
            group = groups.setdefault((record.started, record.run, record.backend, record.threads), {})
            group |= dict.fromkeys(names.get(record.model_sha256, ()), record)
    if not any(groups.values()):
        got = ", ".join(sorted({record.model for record in everything}))[:200]
        raise InputError("no candidate of this export was measured", where=results, got=got, hint=AGAIN)
    usable = {key: group for key, group in groups.items() if _decides(group, made.keep_float)}
    if not usable:
        raise InputError("float32 and int8 of this export were not measured together", where=results, hint=AGAIN)
    latest = max(usable)[:2]
    best = min((group for key, group in usable.items() if key[:2] == latest), key=_quickest)
    return {name: best[name] for name in made.graphs if name in best}


def _decides(group: Mapping[str, RunRecord], int8: Collection[str]) -> bool:
    """Whether float32 has figures, and one of ``int8`` was tried."""
    return "fp32" in group and _total(group["fp32"]) is not None and any(name in group for name in int8)


def _quickest(group: Mapping[str, RunRecord]) -> float:
    return min(ms for record in group.values() if (ms := _total(record)) is not None)


def decide(records: Mapping[str, RunRecord], keeps: Mapping[str, tuple[str, ...]], where: str) -> Choice:
    """The fastest a frame; float32 gives way to what is surely faster only, since everything else costs accuracy.

    Surely: the whole interval of the ratio of median totals lies below 1. The best is that of the lowest median total.

    Args:
        records: of the candidates by name, of one run.
        keeps: what each int8 candidate keeps float.
        where: it was measured, for the reason.

    Raises InputError if float32 has no figures.
    """
    times = {name: ms for name, record in records.items() if (ms := _total(record)) is not None}
    if "fp32" not in times:
        got = records["fp32"].reason
        raise InputError("float32 could not be measured", got=got, hint="choose with --precision instead")
    figures = ", ".join(f"{name} {ms:.2f} ms" for name, ms in times.items())
    if records["fp32"].backend.startswith(BROWSER):
        figures += "; a browser's kernels are not those of a native app"
    keep = keeps[min((name for name in keeps if name in times), key=times.__getitem__, default=next(iter(keeps)))]
    faster = [name for name in times if _surely_faster(records[name], records["fp32"])]
    found = tuple(records.values())
    if not faster:
        return Choice("fp32", keep, f"nothing is surely faster {where}: {figures}", found)
    best = min(faster, key=times.__getitem__)
    variant = "fp16" if best == "fp16" else "int8"
    return Choice(variant, keeps.get(best, keep), f"{best} is the fastest {where}: {figures}", found)


def _surely_faster(record: RunRecord, reference: RunRecord) -> bool:
    """Over the rounds that both have, which ran next to each other."""
    own, other = round_totals(record), round_totals(reference)
    if record is reference or own is None or other is None:
        return False
    count = min(len(own), len(other))
    return count >= MIN_ROUNDS and ratio(own[:count], other[:count]).high < 1


def place_of(record: RunRecord, results: Path) -> str:
    """Where a record of ``measured_there`` comes from, for people."""
    device = record.machine.get("cpu") or record.contender.partition(" on ")[2] or "the device"
    return f"on {str(device)[:80]} ({record.backend}, {record.threads} thread(s); {results.name})"
