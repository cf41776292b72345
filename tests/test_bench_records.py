"""Figures of timings, and the file of records: what is written is read back, what is damaged or newer is refused."""

from __future__ import annotations

import dataclasses
import json
import resource

import numpy as np
import pytest

from edgeyolo.bench.record import SCHEMA, RunRecord, append_records, read_records
from edgeyolo.bench.stats import Spread, ratio, settled
from edgeyolo.bench.tables import COLUMNS, cells, columns, run_csv, run_markdown
from edgeyolo.errors import InputError

SETTING = {"conf": 0.25, "iou": 0.45, "max_det": 300, "nms": "greedynms"}


def record(contender: str = "a", scale: float = 1.0, **changes: object) -> RunRecord:
    totals = tuple(float(v) for v in scale * np.linspace(1, 3, 21))
    ms = {s: Spread.of(totals).to_json() for s in ("pre", "infer", "decode", "nms", "total")}
    base = RunRecord(
        "r1", "2026-01-01T00:00:00+00:00", "ok", contender, "m.onnx", "0" * 64, "ort", "1.0", 1, 1, SETTING,
        frames=21, pictures=3, ms=ms, fps=500.0, load_ms=3.5, first_ms=9.0, rss_bytes=1 << 26, artefact_bytes=12,
        candidates=4.5, kept=2.0, totals_ms=totals, rounds=(10, 11), states=({"load": 0.5},), machine={"cpus": 2},
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def test_figures_of_one_contender():
    values = np.random.default_rng(0).gamma(3, 2, 1001)
    spread = Spread.of(values)
    ordered = np.sort(values)
    assert (spread.p50, spread.p90, spread.p99) == pytest.approx((ordered[500], ordered[900], ordered[990]))
    assert spread.jitter == spread.p99 - spread.p50 and spread.min == ordered[0]
    assert spread.mean == pytest.approx(values.mean())
    assert spread.to_json()["p90"] == round(spread.p90, 6)
    assert Spread.of([5.0]) == Spread(5, 5, 5, 5, 5, 0)


def blocks(seed: int, factor: float, count: int = 40, noise: float = 0.05) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(99).gamma(20, 0.05, count)  # what disturbs the machine hits both
    return [factor * shared[i] * (1 + noise * rng.standard_normal(10)) for i in range(count)]


def test_the_ratio_holds_the_truth_and_knows_when_it_does_not_know():
    found = ratio(blocks(1, 1.5), blocks(2, 1.0))
    assert found.low < 1.5 < found.high and found.sure and found.value == pytest.approx(1.5, rel=0.1)
    same = ratio(blocks(1, 1.0), blocks(2, 1.0))
    assert same.low < 1 < same.high and not same.sure
    wide = ratio(blocks(1, 1.5, noise=0.5), blocks(2, 1.0, noise=0.5))
    assert wide.high - wide.low > found.high - found.low
    assert ratio(blocks(1, 1.5), blocks(2, 1.0)) == found


def test_warming_up_ends_when_medians_settle():
    assert not settled([9, 5, 3]) and not settled([3.0, 3.0])
    assert settled([9, 3.0, 3.1, 3.05]) and not settled([3.0, 3.1, 3.4])


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    first, second = record("a"), record("b", status="failed", reason="no such thing", ms={}, frames=0, totals_ms=())
    append_records(path, [first])
    append_records(path, [second])
    assert read_records(path) == [first, second]
    assert [json.loads(line)["schema"] for line in path.read_text().splitlines()] == [SCHEMA] * 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": SCHEMA + 1}, "newer schema"),
        ({"schema": "1"}, "no line of a results file"),
        ({"surprise": 1}, "unknown keys"),
        ({"threads": "1"}, "wrong type: threads"),
        ({"threads": True}, "wrong type: threads"),
        ({"status": "fine"}, "status"),
        ({"ms": {"total": {"p50": 1}}}, "wrong type: ms"),
        ({"ms": {"total": 3}}, "wrong type: ms"),
        ({"totals_ms": [1, "2"]}, "wrong type: totals_ms"),
        ({"totals_ms": [float("nan")]}, "wrong type: totals_ms"),
        ({"joules": 10**400}, "too large"),
        ({"setting": {"conf": 0.25, "iou": "0", "max_det": 300}}, "wrong type: setting"),
        ({"ratio": {"value": 1}}, "wrong type: ratio"),
        ({"curve": [[1, 2, 3]]}, "wrong type: curve"),
        ({"states": [{"load": "high"}]}, "wrong type: states"),
        ({"scenario": "Rush"}, "wrong type: scenario"),
        ({"query_ms": {"p50": 1}}, "wrong type: query_ms"),
        ({"frames": -1}, "wrong type: frames"),
    ],
)
def test_damaged_records_are_refused(change, words, tmp_path):
    path = tmp_path / "results.jsonl"
    data = json.loads(record().to_line()) | change
    path.write_text(record().to_line() + json.dumps(data) + "\n")
    with pytest.raises(InputError, match=words) as caught:
        read_records(path)
    assert "line 2" in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n", "[1]\n", "{\n", "[" * 100000 + "\n", '{"schema": 1}\n'])
def test_other_files_are_refused(text, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(InputError):
        read_records(path)


def test_half_a_line_costs_itself_only(tmp_path):
    """A run that was killed while it wrote; the next one goes on in the same file."""
    path, line = tmp_path / "results.jsonl", record("b").to_line()
    append_records(path, [record("a")])
    path.write_text(path.read_text() + line[:300])
    assert [r.contender for r in read_records(path)] == ["a"]
    path.write_text(path.read_text()[:-300] + line.rstrip("\n"))
    append_records(path, [record("c")])
    assert [r.contender for r in read_records(path)] == ["a", "b", "c"], "only its end was missing"
    for length in (1, 15, 300):
        path.write_text(path.read_text() + line[:length])
        append_records(path, [record("d")])
    assert [r.contender for r in read_records(path)] == ["a", "b", "c", "d", "d", "d"]
    path.write_text(path.read_text() + "something else\n")
    with pytest.raises(InputError, match="line 10"):
        read_records(path)


def test_a_disk_that_fills_is_told_and_costs_no_other_record(tmp_path):
    path = tmp_path / "results.jsonl"
    append_records(path, [record("a")])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, limits[1]))
    try:
        for _ in range(2):
            with pytest.raises(InputError, match="cannot write the results"):
                append_records(path, [record("b")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    append_records(path, [record("b")])
    assert [r.contender for r in read_records(path)] == ["a", "b"]


def test_what_is_not_a_number_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        append_records(tmp_path / "r.jsonl", [record(joules=float("nan"))])
    assert not (tmp_path / "r.jsonl").exists()


def test_missing_and_unwritable_files(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_records(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        append_records(tmp_path / "file" / "results.jsonl", [record()])


def test_tables_have_the_thresholds_and_every_row():
    rows = [record("a"), record("b|c", 2.0, ratio={"value": 2.0, "low": 1.9, "high": 2.1}),
            record("d", status="failed", reason="it broke\nbadly", ms={})]  # fmt: skip
    text = run_markdown(rows)
    lines = text.splitlines()
    assert len(lines) == 2 + 3 + 2 and len({line.replace("\\|", "").count("|") for line in lines[:5]}) == 1
    assert "2.00 [1.90, 2.10]" in lines[3] and "b\\|c" in lines[3] and "failed: it broke" in lines[4]
    assert "score > 0.25" in text and "overlap <= 0.45" in text and "greedynms" in text
    assert len(run_csv(rows).splitlines()) == 4
    assert "AP" not in lines[0] and [COLUMNS[c] for c in columns([record(ap=0.5, ap50=0.6)])][-2:] == ["AP50", "AP"]
    assert cells(record())[1] == "2.00"
