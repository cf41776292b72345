"""Two results files side by side: what is slower in the second than in the first, and how sure that is.

Contenders are matched by what was asked: model name, backend, threads, batch, scenario and thresholds, and those of a
page by the device that it ran on. The model's hash may differ, that is what a comparison is for. A ratio is b / a of
milliseconds, so that more than 1 is slower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeyolo.bench.changes import Change, busy, changes, differing_machines, differing_software
from edgeyolo.bench.record import RunRecord, read_records
from edgeyolo.bench.stats import CONFIDENCE, MIN_ROUNDS, Floats, TimeRatio, independent_ratio
from edgeyolo.errors import EdgeYoloError, InputError

LIMIT = 1.1
"""A slowdown that matters, where the user names none."""
LABEL = 100
"""Characters of a label that anybody wants to read."""
PLAUSIBLE = (1e-9, 1e9)
"""Milliseconds; with others a file is no measurement, and arithmetic overflows."""
SLOWER, FASTER, SAME, NOISY = "slower", "faster", "same within noise", "too noisy to tell"
BROKEN, MENDED, FAILED, UNLIKE = "failed in b", "failed in a", "failed in both", "not comparable"
METRICS = {
    "SingleStream": "median total",
    "MultiStream": "p99 of a query",
    "Offline": "1000 / frames a second",
    "Server": "p99 of a query",
}
"""What is compared, in milliseconds."""
SINGLE = ("MultiStream", "Server")
"""Scenarios with one figure a run, so without an interval."""


class SlowdownError(EdgeYoloError):
    """The comparison is valid, but something became slower than allowed, or fails now."""

    exit_code = 4


@dataclass(frozen=True)
class Match:
    """A contender that both files have.

    Args:
        contender: its label.
        a, b: its latest records.
        verdict: ``SLOWER``, ``FASTER``, ``SAME``, ``NOISY``, ``BROKEN``, ``MENDED``, ``FAILED`` or ``UNLIKE``.
        reason: why there is no ratio, or no interval.
        ratio: b / a of what ``METRICS`` says.
        interval: its ends, ``CONFIDENCE`` over rounds.
        infer, nms: b / a of the medians of these stages; None where one is missing.
        changes: what else differs, and AP.
    """

    contender: str
    a: RunRecord
    b: RunRecord
    verdict: str
    reason: str | None = None
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    infer: float | None = None
    nms: float | None = None
    changes: tuple[Change, ...] = ()

    def ratio_text(self) -> str:
        """``1.02 [0.99, 1.05]``, or what there is of it."""
        if self.ratio is None:
            return "-"
        return f"{self.ratio:.2f}" if self.interval is None else str(TimeRatio(self.ratio, *self.interval))

    def to_json(self) -> dict[str, Any]:
        """JSON-able; ``ms`` is the figure of ``metric``."""
        r = self.b
        sides = {
            side: {"run": r.run, "started": r.started, "status": r.status, "ms": milliseconds(r)}
            for side, r in (("a", self.a), ("b", self.b))
        }
        return {
            "contender": self.contender, "model": r.model, "backend": r.backend, "threads": r.threads,
            "batch": r.batch, "scenario": r.scenario, "setting": {key: r.setting[key] for key in _THRESHOLDS},
            "verdict": self.verdict, "reason": self.reason, "metric": METRICS[r.scenario], **sides,
            "ratio": self.ratio, "interval": self.interval, "infer": self.infer, "nms": self.nms,
            "changes": [asdict(change) for change in self.changes],
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Two results files.

    Args:
        files: their names.
        max_slowdown: the ratio that is still allowed; None: there is no limit.
        matches: contenders that both have, sorted by what was asked.
        only_a, only_b: labels of contenders that one of them has.
        machines: facts of the machine that differ. Times of two machines are no regression.
        software: versions that differ.
        busy: sides on which the machine had more to do than processors, with the load.
    """

    files: tuple[str, str]
    max_slowdown: float | None
    matches: tuple[Match, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    machines: tuple[Change, ...]
    software: tuple[Change, ...]
    busy: tuple[str, ...]

    @property
    def exceeded(self) -> list[Match]:
        """Those that are surely slower, and by more than is allowed."""
        limit = self.max_slowdown
        return [m for m in self.matches if limit and m.verdict == SLOWER and m.ratio is not None and m.ratio > limit]

    @property
    def broken(self) -> list[Match]:
        """Those that were measured in a and fail in b."""
        return [m for m in self.matches if m.verdict == BROKEN]

    @property
    def undecided(self) -> list[Match]:
        """Those of which nobody can say whether they became slower."""
        return [m for m in self.matches if m.verdict in (NOISY, UNLIKE)]

    def check(self) -> None:
        """Raise SlowdownError, with all offenders, where something is slower than allowed or fails now."""
        found = [f"{m.contender}: {m.ratio_text()}" for m in self.exceeded]
        found += [f"{m.contender}: failed, {m.reason}" for m in self.broken]
        if found:
            what = "slower than --max-slowdown allows" if self.exceeded else "what was measured before fails now"
            allowed = f"a ratio up to {self.max_slowdown:g}" if self.max_slowdown else None
            raise SlowdownError(what, where=self.files[1], got="; ".join(found), allowed=allowed)

    def to_json(self) -> dict[str, Any]:
        """One JSON document."""
        lists = {name: [m.contender for m in getattr(self, name)] for name in ("exceeded", "broken", "undecided")}
        return {
            "a": self.files[0], "b": self.files[1], "max_slowdown": self.max_slowdown, "confidence": CONFIDENCE,
            "contenders": [m.to_json() for m in self.matches], "only_a": self.only_a, "only_b": self.only_b,
            "machines": [asdict(c) for c in self.machines], "software": [asdict(c) for c in self.software],
            "busy": self.busy, **lists,
        }  # fmt: skip


def compare_files(a: Path, b: Path, max_slowdown: float | None = None) -> Comparison:
    """Compare the latest record of every contender of two results files.

    Args:
        a, b: before and after.
        max_slowdown: the ratio b / a that is still allowed, from 1 on.

    Raises InputError: a file that cannot be read, a limit below 1, or nothing that can be compared.
    """
    if max_slowdown is not None and not 1 <= max_slowdown < float("inf"):
        raise InputError(
            "not a limit for a slowdown", where="--max-slowdown", got=max_slowdown, allowed="1 or more, such as 1.1"
        )
    sides = [_latest(read_records(path)) for path in (a, b)]
    pairs, only_a, only_b = _pairs(*sides)
    if not pairs:
        raise InputError(
            "no contender in common", got=f"{a}: {_listed(only_a)}; {b}: {_listed(only_b)}",
            allowed="the same model name, backend, threads, batch and scenario in both, of a page the same device too",
        )  # fmt: skip
    matches = _distinct([_match(before, after, max_slowdown or LIMIT) for before, after in pairs])
    if all(m.verdict in (UNLIKE, FAILED) for m in matches):
        reasons = "; ".join(f"{m.contender}: {m.verdict}, {m.reason}" for m in matches)
        raise InputError("nothing in these files can be compared", where=f"{a}, {b}", got=reasons)
    records = [(m.a, m.b) for m in matches]
    loads = dict.fromkeys(
        f"{side}: {text}" for pair in records for side, r in zip("ab", pair, strict=True) if (text := busy(r))
    )
    return Comparison(
        (str(a), str(b)), max_slowdown, matches, only_a, only_b, differing_machines(records),
        differing_software(records), tuple(loads),
    )  # fmt: skip


class _Asked(NamedTuple):
    """What a contender is; the rest of a setting follows from the model or from the measurement."""

    model: str
    backend: str
    threads: int
    batch: int
    scenario: str
    device: str
    generator: str
    conf: float
    iou: float
    max_det: float

    @classmethod
    def of(cls, r: RunRecord) -> _Asked:
        generator = r.generator.split(maxsplit=1)[:1]
        return cls(
            r.model, r.backend, r.threads, r.batch, r.scenario, _device(r), generator[0] if generator else "",
            r.setting["conf"], r.setting["iou"], r.setting["max_det"],
        )  # fmt: skip


def _device(record: RunRecord) -> str:
    """What a page ran on; records of this machine's own backends have nothing there."""
    device = record.machine.get("device")
    return device if isinstance(device, str) else ""


_THRESHOLDS = ("conf", "iou", "max_det")
_NAME = slice(0, 6)
"""Of ``_Asked``: with these equal and others not, there is a contender in both files and no ratio."""
_Side = dict[_Asked, list[RunRecord]]


def _latest(records: Sequence[RunRecord]) -> _Side:
    """The latest record of each contender that failed or was measured; several where one run has several."""
    found: _Side = {}
    for record in sorted(records, key=lambda r: r.started):
        if record.status == "failed" or (record.frames and record.ms):
            group = found.setdefault(_Asked.of(record), [])
            if group and (group[0].run, group[0].started) != (record.run, record.started):
                group.clear()
            if len(group) < 2 and record not in group:
                group.append(record)
    return found


_Pair = tuple[list[RunRecord], list[RunRecord]]


def _pairs(a: _Side, b: _Side) -> tuple[list[_Pair], tuple[str, ...], tuple[str, ...]]:
    """What belongs together, and the labels of what only a or only b has; all sorted by what was asked.

    A contender whose thresholds differ has a partner too, so that it is said why there is no ratio.
    """
    pairs = [(asked, asked) for asked in a.keys() & b.keys()]
    rest_a, rest_b = (sorted(side.keys() - {asked for asked, _ in pairs}) for side in (a, b))
    for asked in list(rest_a):
        other = next((candidate for candidate in rest_b if candidate[_NAME] == asked[_NAME]), None)
        if other is not None:
            pairs.append((asked, other))
            rest_a.remove(asked)
            rest_b.remove(other)
    only_a, only_b = (tuple(_label(s[asked][0]) for asked in rest) for s, rest in ((a, rest_a), (b, rest_b)))
    return [(a[asked], b[other]) for asked, other in sorted(pairs)], only_a, only_b


def _match(before: list[RunRecord], after: list[RunRecord], limit: float) -> Match:
    """Judge one contender."""
    a, b = before[-1], after[-1]
    match = Match(max(_label(a), _label(b), key=len), a, b, UNLIKE, changes=changes(a, b))
    if len(before) > 1 or len(after) > 1:
        return replace(match, reason="several contenders of one run have this name")
    asked = _differences(_Asked.of(a)._asdict(), _Asked.of(b)._asdict())
    if not asked and "failed" in (a.status, b.status):
        verdict = FAILED if a.status == b.status else BROKEN if b.status == "failed" else MENDED
        reason = (b.reason or a.reason or "").strip() or "no reason given"
        return replace(match, verdict=verdict, reason=reason.splitlines()[0][:200])
    if asked or a.pictures != b.pictures or a.setting != b.setting:
        settings = ({**r.setting, "pictures": r.pictures} for r in (a, b))
        return replace(match, reason=", ".join(dict.fromkeys((*asked, *_differences(*settings)))))
    times = milliseconds(a), milliseconds(b)
    if times[0] is None or times[1] is None:
        return replace(match, reason=f"there is no {METRICS[a.scenario]} in {'a' if times[0] is None else 'b'}")
    ratio = _over_rounds(a, b)
    value, interval = (times[1] / times[0], None) if ratio is None else (ratio.value, (ratio.low, ratio.high))
    word, why = _verdict(value, interval, limit, single=a.scenario in SINGLE)
    return replace(
        match, verdict=word, reason=why, ratio=round(value, 4),
        interval=interval and (round(interval[0], 4), round(interval[1], 4)),
        infer=_of_stage(a, b, "infer"), nms=_of_stage(a, b, "nms"),
    )  # fmt: skip


def _differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return [f"{key} {a.get(key)} / {b.get(key)}" for key in {**a, **b} if a.get(key) != b.get(key)]


def _verdict(
    value: float, interval: tuple[float, float] | None, limit: float, *, single: bool
) -> tuple[str, str | None]:  # fmt: skip
    """In words, and why there is no interval."""
    if interval is None and not single:
        return NOISY, f"fewer than {MIN_ROUNDS} rounds"
    low, high = interval or (value, value)
    slow, fast = (limit, 1 / limit) if interval is None else (1.0, 1.0)
    if low > slow:
        return SLOWER, None
    if high < fast:
        return FASTER, None
    return (NOISY if interval and (high > limit or low < 1 / limit) else SAME), None


def milliseconds(record: RunRecord) -> float | None:
    """What ``METRICS`` says of one record; None where it was not measured."""
    value: float | None
    if record.scenario == "Offline":
        value = 1000 / record.fps if record.fps and record.fps > 0 else None
    elif record.scenario == "SingleStream":
        value = record.ms["total"]["p50"] if record.ms else None
    else:
        value = record.query_ms["p99"] if record.query_ms else None
    return value if value is not None and PLAUSIBLE[0] < value < PLAUSIBLE[1] else None


def _over_rounds(a: RunRecord, b: RunRecord) -> TimeRatio | None:
    """The ratio with its interval; None for ``SINGLE``, and where one of them has too few rounds."""
    own, other = round_totals(b), round_totals(a)
    if a.scenario in SINGLE or own is None or other is None:
        return None
    if a.scenario == "Offline":  # throughput is a matter of means
        own, other = ([np.array([block.mean()]) for block in side] for side in (own, other))
    return independent_ratio(own, other)


def round_totals(record: RunRecord) -> list[Floats] | None:
    """Totals of each round's frames; None where there are too few, or they contradict one another."""
    totals, rounds = np.array(record.totals_ms, np.float64), [count for count in record.rounds if count]
    if len(rounds) < MIN_ROUNDS or sum(rounds) != len(totals):
        return None
    if not (totals.min() > PLAUSIBLE[0] and totals.max() < PLAUSIBLE[1]):
        return None
    return np.split(totals, np.cumsum(rounds)[:-1])


def _of_stage(a: RunRecord, b: RunRecord, stage: str) -> float | None:
    before, after = (r.ms[stage]["p50"] if r.ms else 0 for r in (a, b))
    return round(after / before, 4) if all(PLAUSIBLE[0] < v < PLAUSIBLE[1] for v in (before, after)) else None


def _distinct(matches: Iterable[Match]) -> tuple[Match, ...]:
    """A label says what one run asked for several of; those of other runs may be equal to it."""
    matches = tuple(matches)
    counts = Counter(m.contender for m in matches)
    return tuple(
        m if counts[m.contender] == 1 else replace(m, contender=f"{m.contender} ({_full(m.b)})") for m in matches
    )


def _full(record: RunRecord) -> str:
    s = record.setting
    words = [record.model[:LABEL], f"{record.backend[:LABEL]} x{record.threads}", f"batch {record.batch}"]
    words += [f"on {device[:LABEL]}"] if (device := _device(record)) else []
    return ", ".join((*words, *(f"{key} {s[key]:g}" for key in _THRESHOLDS), record.scenario))


def _label(record: RunRecord) -> str:
    """Labels come from anywhere: control characters are the printer's matter, length is ours."""
    return record.contender[:LABEL]


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels) or "nothing that was measured"
