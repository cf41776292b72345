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

from edgeyolo.bench.compare import milliseconds, round_totals
from edgeyolo.bench.contenders import Variants, find_contenders
from edgeyolo.bench.harness import Plan
from edgeyolo.bench.harness import measure as run_contenders
from edgeyolo.bench.record import RunRecord, read_records
from edgeyolo.bench.stats import TimeRatio, ratio
from edgeyolo.bundle import sha256
from edgeyolo.errors import InputError, printable
from edgeyolo.export.mobile_candidates import PICTURES, Candidates
from edgeyolo.export.pictures import PictureSet
from edgeyolo.lower.mobile.placement import place
from edgeyolo.mobile import MobileBoard
from edgeyolo.progress import Log
from edgeyolo.quant.plan import conv_roles

PLAN = Plan(seconds=3.0, frames=30, warmup=5.0)
BROWSER = "ort-web"
"""What the backends of a page are called."""
AGAIN = (
    "write them with --candidates and the same model, --calib, --calib-limit, --board and --keep-float, then measure "
    "them in one run"
)


@dataclass(frozen=True)
class Choice:
    """Which variant is model.onnx.

    Args:
        variant: ``int8``, ``fp16`` or ``fp32``.
        keep_float: layers that the int8 graph keeps float.
        reason: why, for people.
        records: what was measured; empty where nothing was.
        threads: with which it was measured on the device, if it was.
    """

    variant: str
    keep_float: tuple[str, ...]
    reason: str
    records: tuple[RunRecord, ...] = ()
    threads: int | None = None

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
    return None if record.status == "failed" else milliseconds(record)


def default_choice(
    model: ir.Model, keep_float: tuple[str, ...], variant: str | None, board: MobileBoard
) -> Choice:  # fmt: skip
    """Without a measurement: what the user wants, else int8 unless the board is known to be slower with it."""
    if variant is not None:
        slow = variant == "fp16" and not board.fp16_kernels
        doubt = f"; on the CPU of {board.name} ONNX Runtime converts float16 to float32 and back, which costs time"
        return Choice(variant, keep_float, f"--precision{doubt * slow}")
    played = conv_roles(model)
    roles = {role for name in place(model, keep_float).weighted for role in played.get(name, ())}
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


def measured_there(made: Candidates, results: Path, board: MobileBoard) -> dict[str, RunRecord]:
    """The records of the candidates in a results file from a device, whatever else is in it.

    Candidates are recognised by their hash. What counts is ONNX Runtime on the board's kind of processor, or in a
    browser; of that the latest whole run with float32 and int8; and of the run the number of threads with the quickest
    frame, the board's own number first.

    Raises InputError: no such file, no candidate of this model in it, or never both in one run.
    """
    names: dict[str, list[str]] = {}
    for name, data in made.graphs.items():
        names.setdefault(sha256(data), []).append(name)
    groups: dict[tuple[Any, ...], dict[str, RunRecord]] = {}
    everything = read_records(results)
    for record in everything:
        if _suits(record, board):
            group = groups.setdefault(_conditions(record), {})
            group |= {name: record for name in names.get(record.model_sha256, ()) if name not in group}
    if not any(groups.values()):
        got = printable(", ".join(sorted({f"{r.model} in {r.backend}, {r.status}" for r in everything})))[:300]
        allowed = f"whole runs of ONNX Runtime on {board.machine} or in a browser"
        raise InputError(
            "no candidate of this export was measured", where=results, got=got, allowed=allowed, hint=AGAIN
        )
    usable = {key: group for key, group in groups.items() if _decides(group, made.keep_float)}
    if not usable:
        raise InputError("float32 and int8 of this export were not measured together", where=results, hint=AGAIN)
    latest = max(key[:2] for key in usable)
    of_run = [group for key, group in usable.items() if key[:2] == latest]
    as_board = [group for group in of_run if group["fp32"].threads == board.threads]
    best = min(as_board or of_run, key=_quickest)
    return {name: best[name] for name in made.graphs if name in best}


def _suits(record: RunRecord, board: MobileBoard) -> bool:
    """Whether a record says how long a frame takes on such a board; half a measurement decides nothing."""
    single = record.scenario == "SingleStream" and record.batch == 1 and record.status != "stopped"
    if record.backend.startswith(BROWSER):
        return single
    return single and record.backend == "ort" and record.machine.get("machine") == board.machine


def _conditions(record: RunRecord) -> tuple[Any, ...]:
    """What records must have in common to be compared, the run first."""
    setting = tuple(float(record.setting[key]) for key in ("conf", "iou", "max_det"))
    where = (record.backend, record.threads, _device(record))
    return record.started, record.run, *where, *setting, record.generator, record.pictures


def _device(record: RunRecord) -> str:
    """The processor; of a page what its label ends with."""
    if record.backend.startswith(BROWSER):
        return record.contender.rpartition(" on ")[2]
    return str(record.machine.get("cpu") or "the device")


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
    ratios = {name: _ratio(record, records["fp32"]) for name, record in records.items() if name in times}
    notes = [f"{name} {ms:.2f} ms" for name, ms in times.items()]
    notes += [f"{name} failed ({printable(str(r.reason))[:80]})" for name, r in records.items() if name not in times]
    few = [name for name, found in ratios.items() if found is None and name != "fp32"]
    notes += [f"too few rounds of {', '.join(few)} to judge by, measure for longer"] if few else []
    if records["fp32"].backend.startswith(BROWSER):
        notes.append("a browser's kernels are not those of a native app")
    figures, found = ", ".join(notes), tuple(records.values())
    keep = keeps[min((name for name in keeps if name in times), key=times.__getitem__, default=next(iter(keeps)))]
    faster = [name for name, each in ratios.items() if each is not None and each.high < 1]
    if not faster:
        return Choice("fp32", keep, f"nothing is surely faster {where}: {figures}", found)
    best = min(faster, key=times.__getitem__)
    variant = "fp16" if best == "fp16" else "int8"
    return Choice(variant, keeps.get(best, keep), f"{best} is the fastest {where}: {figures}", found)


def _ratio(record: RunRecord, reference: RunRecord) -> TimeRatio | None:
    """Of the median totals over the rounds that both have, which ran next to each other; None where they are few."""
    own, other = round_totals(record), round_totals(reference)
    if record is reference or own is None or other is None:
        return None
    count = min(len(own), len(other))
    return ratio(own[:count], other[:count])


def place_of(record: RunRecord, results: Path) -> str:
    """Where a record of ``measured_there`` comes from, for people."""
    text = f"on {_device(record)[:80]} ({record.backend[:40]}, {record.threads} thread(s); {results.name})"
    return printable(text).replace("\n", " ")
