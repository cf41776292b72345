"""The desk by itself: hostile phones, a slow disk, and what a record has to have."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from phone_site import SETTING

from edgeyolo.bench.compare import compare_files
from edgeyolo.bench.record import RunRecord, append_records
from edgeyolo.errors import InputError
from edgeyolo.serve import results
from edgeyolo.serve.desk import Desk
from edgeyolo.serve.server import PhoneServer

BEGIN = {"models": [0, 1], "backend": "wasm", "source": "golden", "threads": 1, "system": "Android", "device": "",
         "machine": {}}  # fmt: skip
RIGHT = [{"golden": "same boxes"}] * 2


def row(total: float, model: int = 0, number: int = 0) -> list[float]:
    """A frame."""
    return [model, number, 1, 1, 1, 1, total, 9, 3]


class Place:
    """A desk with two models, a clock that stands still, and what was kept and said."""

    def __init__(self, keep: Callable[[RunRecord], Any] | None = None) -> None:
        detector = SimpleNamespace(nms_kind="greedynms")
        facts = {"sha256": "0" * 64, "artefact_bytes": 5, "detector": detector}
        models: list[Any] = [SimpleNamespace(name=name, **facts) for name in ("a.onnx", "b.onnx")]
        self.now, self.lines, self.kept = 0.0, list[str](), list[RunRecord]()
        self.desk = Desk(models, SETTING, 2, keep or self.kept.append, self.lines.append, lambda: self.now)

    def begin(self, **changes: Any) -> tuple[str, str]:
        """Session and run of a new page."""
        session = self.desk.open("1.2.3.4")["session"]
        return session, self.desk.start({**BEGIN, "session": session, **changes})["run"]

    def report(self, run: str, frames: list[Any], **more: Any) -> dict[str, Any]:
        """What the page gets for it."""
        return self.desk.report({"run": run, "first": 0, "frames": frames, **more})


def test_times_too_small_to_divide_by_cost_nobody_anything():
    place = Place()
    (_, tiny), (_, apart), (_, honest) = (place.begin() for _ in range(3))
    place.report(tiny, [row(1e-320)])
    place.report(apart, [row(total, model, i) for i in range(6) for model, total in enumerate((1e-306, 1e7))])
    place.report(honest, [row(5.0)])
    place.now = 100.0
    place.desk.sweep()
    assert {(record.run, record.frames) for record in place.kept if record.frames} == {
        (tiny, 1), (apart, 6), (honest, 1),
    }  # fmt: skip
    assert all(record.ratio is None for record in place.kept) and not place.desk.runs()


@pytest.mark.parametrize("error", [ValueError, OverflowError, RuntimeError])
def test_what_makes_no_record_is_said_once_and_costs_nobody_else_anything(error, monkeypatch):
    place = Place()
    (_, bad), (_, honest) = place.begin(), place.begin()
    place.report(bad, [row(6.0)])
    place.report(honest, [row(5.0)])
    make = results._record

    def fail(run: Any, *rest: Any) -> Any:
        if run.frames[0][6] == 6.0:
            raise error("out of range")
        return make(run, *rest)

    monkeypatch.setattr(results, "_record", fail)
    with pytest.raises(InputError if error is not RuntimeError else RuntimeError):
        place.report(bad, [], first=1, status="ok")
    assert len(place.desk.runs()) == 2  # what it measured is still there
    place.now = 100.0
    for _ in range(2):
        place.desk.sweep()
    assert {record.run for record in place.kept} == {honest}
    assert sum("there is no record" in line for line in place.lines) == 1 and not place.desk.runs()


def test_a_sweep_that_fails_does_not_end_the_server(monkeypatch):
    place, twice = Place(), threading.Event()

    def sweep() -> None:
        if len(place.lines) > 1:
            twice.set()
        raise RuntimeError("broken")

    monkeypatch.setattr(place.desk, "sweep", sweep)
    with PhoneServer(("127.0.0.1", 0), {}, place.desk) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        assert twice.wait(20) and thread.is_alive()
        server.shutdown()
        thread.join(10)
    assert "broken" in place.lines[0]


def test_a_slow_disk_makes_nobody_wait_who_has_nothing_to_write():
    writing, done = threading.Event(), threading.Event()
    kept: list[RunRecord] = []

    def keep(record: RunRecord) -> None:
        writing.set()
        assert done.wait(60)
        kept.append(record)

    place = Place(keep)
    runs = [place.begin()[1] for _ in range(3)]
    ends = [threading.Thread(target=place.report, args=(runs[0], [row(5.0)]), kwargs={"status": "stopped"})]
    others: list[Any] = []
    ends += [threading.Thread(target=lambda: others.append(place.report(runs[1], [row(5.0)])))]
    ends[0].start()
    assert writing.wait(20)
    place.now = 10.0
    ends[1].start()
    ends[1].join(20)
    free = not ends[1].is_alive()
    place.now = 20.0  # the third has been silent since the start
    ends += [threading.Thread(target=place.desk.sweep)]
    ends[2].start()
    if free:
        place.begin()
    done.set()
    for thread in ends:
        thread.join(20)
    assert free and others == [{"others": 2, "measuring": 1}]
    assert [record.run for record in kept] == [runs[0], runs[0], runs[2], runs[2]] and not place.desk.unsaved


def test_a_run_without_frames_that_the_page_replaces_leaves_no_record():
    place = Place()
    session, _ = place.begin()
    for _ in range(3):
        run = place.desk.start({**BEGIN, "session": session})["run"]
    assert not place.desk.records and len(place.desk.runs()) == 1
    place.report(run, [row(5.0)])
    place.desk.start({**BEGIN, "session": session})
    assert {record.run for record in place.kept} == {run}


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("\U0001f468\u200d\U0001f469 phone", "\U0001f468 \U0001f469 phone"), ("my\u00a0phone", "my phone"),
        ("\x1b[31m", "[31m"), ("\u202eenohp", "enohp"), ("\ud800", "Android"),
    ],
)  # fmt: skip
def test_names_that_people_type_are_taken_without_what_does_not_print(typed, name):
    place = Place()
    _, run = place.begin(device=typed, machine={"system": typed})
    place.report(run, [row(5.0)], status="ok", outcomes=RIGHT)
    assert place.kept[0].machine["device"] == name and f" on {name}" in place.kept[0].contender
    assert all(line.isprintable() for line in place.lines) and str(place.kept[0].machine["system"]).isprintable()
    _, run = place.begin(device="", system=typed)
    assert all(line.isprintable() for line in place.lines)


def test_ok_needs_a_verdict_and_frames():
    place = Place()
    _, run = place.begin()
    place.report(run, [row(5.0), row(5.0, 1)], status="ok", outcomes=[{}, RIGHT[1]])
    _, run = place.begin()
    place.report(run, [row(5.0)], status="ok", outcomes=RIGHT)
    assert [(record.status, record.reason) for record in place.kept] == [
        ("failed", "not compared with golden data"), ("ok", None), ("ok", None), ("failed", "no frames"),
    ]  # fmt: skip


def test_phones_in_one_results_file_are_compared_each_with_itself(tmp_path):
    """Whichever came last."""

    def measured(file: str, phones: dict[str, float]) -> Path:
        place = Place()
        for ms, device in zip(phones.values(), phones, strict=True):
            _, run = place.begin(models=[0], device=device)
            place.report(run, [row(ms, 0, i) for i in range(6)], status="ok", outcomes=RIGHT[:1])
        dated = [replace(record, started=f"2026-01-0{i + 1}") for i, record in enumerate(place.kept)]
        append_records(tmp_path / file, dated)
        return tmp_path / file

    before, after = measured("a", {"Pixel": 5.0, "": 20.0}), measured("b", {"": 20.0, "Pixel": 10.0})
    found = compare_files(before, after)
    assert sorted(m.ratio for m in found.matches) == [1.0, 2.0] and not found.only_a and not found.only_b
    assert [m.b.machine["device"] for m in found.matches if m.ratio == 2.0] == ["Pixel"]
    with pytest.raises(InputError, match="the same device"):
        compare_files(measured("c", {"Pixel": 5.0}), measured("d", {"Old phone": 50.0}))
