"""From measured blocks to records: figures, ratios to the first contender, what was shipped."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from edgeyolo.bench.contender import ENVIRONMENT, Block, Contender, pinned
from edgeyolo.bench.contenders import full_name
from edgeyolo.bench.machine import machine_facts
from edgeyolo.bench.record import STAGES, RunRecord
from edgeyolo.bench.stats import MIN_ROUNDS, Floats, Spread, medians_by_count, ratio
from edgeyolo.bundle import MODEL, PROGRAM, sha256
from edgeyolo.output import MANIFEST


@dataclass
class Measured:
    """What is known of one contender.

    Args:
        blocks: what it did, a block a round.
        states: of the machine after each block.
        loaded: what its process said when it had opened the model.
        score: ``ap50``, ``ap`` and ``setting``; empty where nothing was scored.
        energy: what measures energy, or why nothing does.
        rate: frames a second that came in the scenario Server.
        failed: why it is out.
        artefact_bytes, sha256: of the model.
    """

    blocks: list[Block] = field(default_factory=list)
    states: list[dict[str, float | None]] = field(default_factory=list)
    loaded: dict[str, Any] = field(default_factory=dict)
    score: dict[str, Any] = field(default_factory=dict)
    energy: str = ""
    rate: float | None = None
    failed: str | None = None
    artefact_bytes: int = 0
    sha256: str = ""

    @classmethod
    def of(cls, c: Contender) -> Measured:
        """Nothing yet but the files that the backend will open; of a bundle the hash is the manifest's."""
        opened = [c.path / (PROGRAM if c.backend == "engine" else MODEL)] if c.path.is_dir() else [c.path]
        opened += [] if c.weights is None else [c.weights]
        hashed = [c.path / MANIFEST] if c.path.is_dir() else opened
        with suppress(OSError):  # whoever opens it will say what is wrong with it
            data = b"".join(path.read_bytes() for path in hashed)
            return cls(artefact_bytes=sum(path.stat().st_size for path in opened), sha256=sha256(data))
        return cls()


def summary(
    running: Sequence[tuple[Contender, Measured]], shared: dict[str, Any], *, stopped: bool
) -> list[RunRecord]:  # fmt: skip
    """One record a contender, in their order.

    Args:
        running: contenders with what was measured of them.
        shared: fields that all records have in common.
        stopped: the user ended the run.
    """
    shared = {**shared, "machine": machine_facts()}
    records = []
    for contender, measured in running:
        alike = [m for c, m in running if c.scenario == contender.scenario]
        first = next((m for m in alike if m.blocks and not m.failed), alike[0])
        status = "failed" if measured.failed else "stopped" if stopped else "ok"
        own: dict[str, Any] = {"status": status, "ratio": _ratio(contender, measured, first)}
        own["machine"] = {**shared["machine"], "pinned": pinned(contender.threads), **ENVIRONMENT}
        records.append(_record(contender, measured, {**shared, **own}))
    return records


def _record(c: Contender, measured: Measured, shared: dict[str, Any]) -> RunRecord:
    # What was measured before a failure is no figure of a contender that works.
    blocks, loaded, score = [] if measured.failed else measured.blocks, measured.loaded, measured.score
    frames = [frame for block in blocks for frame in block.frames]
    queries = [ms for block in blocks for ms in block.query_ms]
    setting = {**asdict(c.setting), "nms": loaded.get("nms"), "suppression": loaded.get("suppression")}
    return RunRecord(
        reason=measured.failed, contender=c.label, model=full_name(c.path), model_sha256=measured.sha256,
        artefact_bytes=measured.artefact_bytes,
        backend=c.backend, backend_version=str(loaded.get("version", "")), threads=c.threads, batch=c.batch,
        setting=setting if measured.rate is None else {**setting, "qps": round(measured.rate, 3)},
        scenario=c.scenario or "SingleStream", generator=loaded.get("generator", "") if c.scenario else "",
        frames=len(frames) * c.batch,
        ms={stage: Spread.of([getattr(f, stage) for f in frames]).to_json() for stage in STAGES if frames},
        query_ms=Spread.of(queries).to_json() if queries else None, fps=_fps(c, blocks),
        load_ms=loaded.get("load_ms"), first_ms=loaded.get("first_ms"),
        rss_bytes=blocks[-1].rss if blocks else None,
        candidates=_mean([f.candidates for f in frames]), kept=_mean([f.kept for f in frames]),
        curve=medians_by_count([f.candidates for f in frames], [f.nms for f in frames]) if c.batch == 1 else (),
        joules=_joules(c, blocks), energy=measured.energy,
        ap50=score.get("ap50"), ap=score.get("ap"), ap_setting=score.get("setting"),
        totals_ms=tuple(round(f.total, 4) for f in frames), rounds=tuple(len(block.frames) for block in blocks),
        states=tuple(measured.states) if blocks else (), **shared,
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _fps(c: Contender, blocks: Sequence[Block]) -> float | None:
    """Frames a second: of frames one after the other by their own time, in a scenario by the clock."""
    frames = [frame for block in blocks for frame in block.frames]
    if not frames:
        return None
    if c.scenario is None:
        return round(1000 / float(np.mean([f.total for f in frames])), 3)
    # Of Server's queries the first comes when a block begins: between n of them lie n - 1 waits.
    counted = len(frames) - (len(blocks) if c.scenario == "Server" else 0)
    return round(counted / sum(block.seconds for block in blocks), 3)


def _joules(c: Contender, blocks: Sequence[Block]) -> float | None:
    """Of a frame, over the blocks in which energy could be read."""
    read = [(block.joules, len(block.frames) * c.batch) for block in blocks if block.joules is not None]
    return sum(joules for joules, _ in read) / sum(count for _, count in read) if read else None


def _ratio(c: Contender, measured: Measured, reference: Measured) -> dict[str, float] | None:
    """Of the median time to the reference's, over the rounds that both have."""
    count = min(len(measured.blocks), len(reference.blocks))
    if measured is reference or count < MIN_ROUNDS:
        return None
    own, other = ([_times(c, block) for block in side.blocks[:count]] for side in (measured, reference))
    return ratio(own, other).to_json()


def _times(c: Contender, block: Block) -> Floats:
    """What the scenario judges by: milliseconds of frames or of queries, or of a frame by the clock."""
    if c.scenario == "Offline":
        return np.array([1000 * block.seconds / len(block.frames)])
    return np.array([frame.total for frame in block.frames] if c.scenario is None else block.query_ms)
