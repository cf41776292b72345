"""From what a phone measured to records: one a model, all of one run, with ratios to its first model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from edgeyolo.bench.frames import Setting
from edgeyolo.bench.record import STAGES, RunRecord, parse_record
from edgeyolo.bench.stats import MIN_ROUNDS, Floats, Spread, medians_by_count, ratio
from edgeyolo.errors import InputError
from edgeyolo.serve.posted import ROW, Row
from edgeyolo.serve.served import Served


@dataclass
class Part:
    """One model of a run.

    Args:
        model: which.
        load_ms, first_ms: opening it; its first inference.
        golden: the verdict, in words.
        failed: why it is out.
    """

    model: Served
    load_ms: float | None = None
    first_ms: float | None = None
    golden: str | None = None
    failed: str | None = None


@dataclass
class Run:
    """A measurement of one model, or of several in turns.

    Args:
        session: of the page.
        parts: the models; the first is the reference of the ratios.
        backend, threads: what runs them.
        machine: facts of the phone.
        started: UTC, ISO 8601.
        camera: whether the frames come from a camera, so that they cannot be compared with those of other runs.
        version: of the runtime.
        frames: of all models in order of time, each as ``ROW`` says.
    """

    session: str
    parts: list[Part]
    backend: str
    threads: int
    machine: dict[str, Any]
    started: str
    camera: bool
    version: str = ""
    frames: list[Row] = field(default_factory=list)

    @property
    def last_round(self) -> int:
        """Of the frames so far; -1 if there are none."""
        return int(self.frames[-1][1]) if self.frames else -1

    @property
    def label(self) -> str:
        """As the log has it."""
        names = ", ".join(part.model.name for part in self.parts)
        return f"{names} {'in turns ' * (len(self.parts) > 1)}{self.how}"

    @property
    def how(self) -> str:
        """What runs the models, and on what."""
        return f"ort-web {self.backend} x{self.threads}{' camera' * self.camera}"


def records_of(
    name: str, run: Run, setting: Setting, pictures: int, end: tuple[str, str | None], device: str
) -> list[RunRecord]:
    """One record a model, in their order, each read back by the rules of the results file.

    Args:
        name: of the run.
        run: what was measured.
        setting: thresholds.
        pictures: how many golden ones there are.
        end: status of the run and the reason, for all models that have not failed before; a model that was not
            compared with golden data, or has no frames, is never ``ok``.
        device: as the labels have it.

    Raises InputError: what the phone sent makes no record.
    """
    try:
        return _records(name, run, setting, pictures, end, device)
    except (ValueError, OverflowError) as error:
        raise InputError("what the phone sent makes no record", got=str(error)[:200]) from error


def _records(
    name: str, run: Run, setting: Setting, pictures: int, end: tuple[str, str | None], device: str
) -> list[RunRecord]:
    frames = np.array(run.frames, np.float64).reshape(-1, len(ROW))
    each = [frames[frames[:, 0] == i] for i in range(len(run.parts))]
    blocks = [_blocks(own) for own in each]
    ends = [_end(part, len(own), end) for part, own in zip(run.parts, each, strict=True)]
    measured = [
        i for i, (own, (status, _)) in enumerate(zip(each, ends, strict=True)) if len(own) and status != "failed"
    ]
    records = []
    for i, (part, own) in enumerate(zip(run.parts, each, strict=True)):
        compared = i in measured[1:]
        shared = {
            "run": name, "started": run.started, "status": ends[i][0], "reason": ends[i][1],
            "contender": f"{part.model.name} {run.how} on {device}", "pictures": len(own) if run.camera else pictures,
            "setting": {**asdict(setting), "nms": part.model.detector.nms_kind},
            "ratio": _ratio(blocks[i], blocks[measured[0]]) if compared else None,
            "rounds": tuple(map(len, blocks[i].values())),
        }  # fmt: skip
        records.append(parse_record(_record(run, part, own, shared).to_line(), "what a phone sent"))
    return records


def _end(part: Part, frames: int, end: tuple[str, str | None]) -> tuple[str, str | None]:
    """Status and reason of one model: of the run, unless the model failed or shows nothing."""
    if part.failed is not None:
        return "failed", part.failed
    if end[0] == "ok" and part.golden is None:
        return "failed", "not compared with golden data"
    return ("failed", "no frames") if end[0] == "ok" and not frames else end


def _record(run: Run, part: Part, frames: Floats, shared: dict[str, Any]) -> RunRecord:
    columns = dict(zip(ROW, frames.T, strict=True)) if len(frames) else {}
    totals = columns.get("total", np.zeros(0))
    golden = {} if part.golden is None else {"golden": part.golden}
    return RunRecord(
        model=part.model.name, model_sha256=part.model.sha256, artefact_bytes=part.model.artefact_bytes,
        backend=f"ort-web {run.backend}", backend_version=run.version, threads=run.threads, batch=1,
        generator="camera" if run.camera else "", frames=len(frames),
        ms={stage: Spread.of(columns[stage]).to_json() for stage in STAGES} if columns else {},
        fps=round(1000 / float(totals.mean()), 3) if columns and totals.mean() > 0 else None,
        load_ms=part.load_ms, first_ms=part.first_ms,
        candidates=float(columns["candidates"].mean()) if columns else None,
        kept=float(columns["kept"].mean()) if columns else None,
        curve=medians_by_count(columns["candidates"], columns["nms"]) if columns else (),
        energy="a browser does not tell", totals_ms=tuple(round(float(t), 4) for t in totals),
        machine={**run.machine, **golden}, **shared,
    )  # fmt: skip


def _blocks(frames: Floats) -> dict[float, Floats]:
    """Round -> totals of its frames, in order; rounds never go back."""
    numbers, starts = np.unique(frames[:, ROW.index("round")], return_index=True)
    return dict(zip(numbers.tolist(), np.split(frames[:, ROW.index("total")], starts[1:]), strict=False))


def _ratio(own: dict[float, Floats], other: dict[float, Floats]) -> dict[str, float] | None:
    """Of the median total, over the rounds that both have whole; None where there are too few or no times.

    In a round that broke off one of them has seen fewer pictures.
    """
    common = [number for number in own if len(own[number]) == len(other.get(number, ()))]
    if len(common) < MIN_ROUNDS or not all(other[number].min() > 0 for number in common):
        return None
    return ratio([own[number] for number in common], [other[number] for number in common]).to_json()
