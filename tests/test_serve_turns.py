"""Several models measured in turns: one record each, of one run, with ratios; and what a device is called."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phone_browser import wait_for
from phone_site import Site, site, tiny_models
from tiny_models import Tiny, succeed

from edgeyolo.bench.compare import compare_files
from edgeyolo.bench.record import RunRecord, append_records, read_records
from edgeyolo.bench.stats import MIN_ROUNDS, ratio
from edgeyolo.errors import InputError
from edgeyolo.serve import desk as desks
from edgeyolo.serve.served import all_served

BEGIN = {"source": "golden", "backend": "wasm", "threads": 1, "system": "Android", "device": "", "machine": {}}
NAMES = ("fp32.onnx", "fp16.onnx", "int8.onnx")


@pytest.fixture(scope="module")
def parts(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three models, and a runtime that this server does not execute."""
    folder = tmp_path_factory.mktemp("served")
    succeed("export", *tiny.model(), "--names", tiny.names, "--target", "onnx", "-o", folder / "tiny.onnx")
    (model,), (golden,), photos = tiny_models(folder / "tiny.onnx", tiny.pictures)
    models = [replace(model, name=name, sha256=str(i)) for i, name in enumerate(NAMES)]
    return {"models": models, "golden": [golden] * 3, "photos": photos, "runtime": {}}


@pytest.fixture
def here(parts: dict[str, Any], tmp_path: Path):
    with site(**parts, results=tmp_path / "results.jsonl") as running:
        yield running


def begin(here: Site, **changes: Any) -> dict[str, Any]:
    """Open a page and start a run of all models."""
    session = here.post("open", {})[1]["session"]
    status, answer = here.post("start", {"session": session, "models": [0, 1, 2], **BEGIN, **changes})
    assert status == 200, answer
    here.report(answer["run"], [], outcomes=[{"golden": "same boxes"}] * len(changes.get("models", NAMES)))
    return {"session": session, **answer}


def in_turns(rounds: int, speeds: dict[int, float], frames: int = 2) -> list[list[float]]:
    """Rows of models of so many milliseconds; every round is disturbed as a whole, and who is first moves on."""
    rows = []
    for number in range(rounds):
        order = list(speeds)
        for model in order[number % len(order) :] + order[: number % len(order)]:
            total = speeds[model] * (1 + 0.1 * (number % 3))
            rows += [[model, number, 1.0, total - 2, 0.5, 0.5, total, 9, 3]] * frames
    return rows


def test_models_in_turns_are_one_run_with_ratios_over_its_rounds(here):
    rows = in_turns(6, {0: 20, 1: 30, 2: 10})
    run = begin(here, models=[1, 2, 0])["run"]
    times = [{"load_ms": 7, "first_ms": 3, "golden": f"fine {i}"} for i in range(3)]
    assert here.report(run, rows[:17], outcomes=times, version="1.0")[0] == 200
    assert here.report(run, rows[17:], first=17, status="ok")[0] == 200
    records = read_records(here.results)
    assert [record.model for record in records] == [NAMES[1], NAMES[2], NAMES[0]]  # in the order that the page chose
    assert {(r.run, r.started, r.status, r.frames, r.rounds) for r in records} == {
        (run, records[0].started, "ok", 12, (2,) * 6)
    }
    assert records[0].ratio is None
    for record, speed in zip(records[1:], (30, 10), strict=True):
        blocks = [np.split(np.array(one.totals_ms), 6) for one in (record, records[0])]
        assert record.ratio == {key: round(value, 4) for key, value in asdict(ratio(*blocks)).items()}
        assert record.ratio["value"] == pytest.approx(speed / 20)
    assert [record.machine["golden"] for record in records] == ["fine 0", "fine 1", "fine 2"]
    assert [record.model_sha256 for record in records] == ["1", "2", "0"]


def test_a_model_that_fails_costs_its_own_record_only(here):
    run = begin(here)["run"]
    rows = in_turns(2, {0: 20, 1: 30, 2: 10}) + in_turns(8, {1: 30, 2: 10})[8:]
    outcomes = [{"failed": "out of memory\n\x1b[2J"}, {}, {}]
    assert here.report(run, rows, outcomes=outcomes, status="ok")[0] == 200
    first, second, third = read_records(here.results)
    assert (first.status, first.reason, first.frames, first.ratio) == ("failed", "out of memory ?[2J", 4, None)
    assert (second.status, second.frames, second.ratio) == ("ok", 16, None)  # the reference now
    assert third.status == "ok" and third.ratio["value"] == pytest.approx(1 / 3, rel=1e-3)


def test_too_few_whole_rounds_give_no_ratio(here):
    run = begin(here, models=[0, 1])["run"]
    rows = in_turns(MIN_ROUNDS, {0: 20, 1: 30})[:-1]  # the last round broke off
    assert here.report(run, rows, status="stopped", reason="enough")[0] == 200
    records = read_records(here.results)
    assert [(record.status, record.ratio) for record in records] == [("stopped", None)] * 2
    assert {sum(record.rounds) for record in records} == {9, 10}


@pytest.mark.parametrize("how", ["silent", "closed", "server"])
def test_whoever_goes_away_in_the_middle_leaves_every_models_frames(parts, tmp_path, how):
    now = [0.0]
    with site(**parts, results=tmp_path / "r.jsonl", clock=lambda: now[0]) as here:
        page = begin(here)
        here.report(page["run"], in_turns(6, {0: 20, 1: 30, 2: 10})[:-1], outcomes=[{}, {"failed": "wrong"}, {}])
        if how == "silent":
            now[0] = desks.SILENCE_SECONDS + 1
            wait_for(here.written, "records")
        elif how == "closed":
            here.post("leave", {"session": page["session"]})
        else:
            here.desk.close()
        records = read_records(here.results)
    assert [record.status for record in records] == ["stopped", "failed", "stopped"]
    assert sum(record.frames for record in records) == 35
    assert records[1].reason == "wrong" and records[2].ratio is not None


def test_a_phone_that_comes_back_sends_all_models_frames_as_another_run(here):
    page, rows = begin(here), in_turns(6, {0: 20, 1: 30, 2: 10})
    here.report(page["run"], rows[:20])
    assert here.post("leave", {"session": page["session"]})[0] == 200
    assert here.report(page["run"], rows[20:], first=20, status="ok")[0] == 409
    again = begin(here)["run"]
    answers = [here.report(again, rows, status="ok") for _ in range(2)]
    assert answers[0] == answers[1] and answers[0][0] == 200  # the second asks for a lost answer
    assert [(r.status, r.run == again) for r in read_records(here.results)] == [("stopped", False)] * 3 + [
        ("ok", True)
    ] * 3


def test_records_of_a_run_that_cannot_be_written_are_written_later(here):
    run = begin(here)["run"]
    here.results.mkdir()
    assert here.report(run, in_turns(5, {0: 20, 1: 30, 2: 10}), status="ok")[0] == 500
    here.results.rmdir()
    assert here.report(run, in_turns(5, {0: 20, 1: 30, 2: 10}), status="ok")[0] == 200
    assert [record.model for record in read_records(here.results)] == list(NAMES)


def test_runs_in_turns_count_as_many_records_as_they_make(here, monkeypatch):
    monkeypatch.setattr(desks, "MAX_RECORDS", 4)
    begin(here)
    session = here.post("open", {})[1]["session"]
    assert here.post("start", {"session": session, "models": [0, 1], **BEGIN})[0] == 503
    assert here.post("start", {"session": session, "models": [0], **BEGIN})[0] == 200


def one_record(here: Site, **changes: Any) -> RunRecord:
    """Of a run of one model."""
    run = begin(here, models=[0], **changes)["run"]
    assert here.report(run, in_turns(6, {0: 20}), status="ok")[0] == 200
    return read_records(here.results)[-1]


def test_a_device_is_called_what_the_user_calls_it(here):
    assert one_record(here).contender == "fp32.onnx ort-web wasm x1 on Android (page 1)"
    assert one_record(here, device="  Zo\u00eb's phone ").contender == "fp32.onnx ort-web wasm x1 on Zo\u00eb's phone"
    assert any(line.startswith("#2 Zo\u00eb's phone at ") for line in here.lines)


def test_camera_frames_are_never_compared_with_golden_pictures(here, tmp_path):
    golden, camera = one_record(here), one_record(here, source="camera", machine={"camera": "640x480"})
    assert camera.contender == "fp32.onnx ort-web wasm x1 camera on Android (page 2)"
    facts = {"camera": "640x480", "device": "Android", "golden": "same boxes"}
    assert (camera.frames, camera.pictures, camera.machine) == (12, 12, facts)
    for name, record in (("a", replace(golden, pictures=12)), ("b", camera)):
        append_records(tmp_path / name, [record])
    with pytest.raises(InputError, match="nothing in these files can be compared"):
        compare_files(tmp_path / "a", tmp_path / "b")


def test_files_of_one_name_are_told_apart_by_their_folders(parts, tmp_path, monkeypatch):
    files = ["a/before/yf.onnx", "a/after/yf.onnx", "b/after/yf.onnx", "other.onnx"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(parts["models"][0].data)
    monkeypatch.chdir(tmp_path / "a" / "before")
    named = ["yf.onnx", "../after/yf.onnx", "../../b/after/yf.onnx", "../../other.onnx"]
    assert [model.name for model in all_served([Path(name) for name in named])] == [
        "before/yf.onnx", "a/after/yf.onnx", "b/after/yf.onnx", "other.onnx",
    ]  # fmt: skip
    assert [model.name for model in all_served([Path("yf.onnx")] * 2)] == ["yf.onnx"] * 2
