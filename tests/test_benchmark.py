"""The harness on the tiny model: every contender has a row, a failure costs its own, an interruption keeps the rest."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_models import edgeyolo, refusal, succeed

from edgeyolo.bench.backends import open_backend
from edgeyolo.bench.contender import Contender, ContenderError, Process
from edgeyolo.bench.contenders import Variants, find_contenders
from edgeyolo.bench.frames import Frames, Setting
from edgeyolo.bench.harness import Plan, measure
from edgeyolo.bench.record import STAGES, read_records
from edgeyolo.bench.tables import COLUMNS, cells
from edgeyolo.errors import InputError
from edgeyolo.evaluate import spread_positions
from edgeyolo.progress import Log

QUICK = ("--seconds", 0, "--frames", 3, "--warmup", 0)


@pytest.fixture(scope="module")
def onnx(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "tiny.onnx"
    succeed("export", *tiny.model(), "--target", "onnx", "-o", path)
    return path


@pytest.fixture(scope="module")
def pictures(tiny) -> list[Path]:
    return sorted(tiny.pictures.glob("*.jpg"))


def test_one_run_of_several_contenders(onnx, good_bundle, tiny, tmp_path):
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler for the engine")
    files = [tmp_path / name for name in ("r.jsonl", "t.csv", "t.md")]
    command = ["benchmark", onnx, good_bundle, "--backend", "ort,engine", "--images", tiny.pictures, *QUICK]
    result = succeed(*command, "--json", files[0], "--csv", files[1], "--markdown", files[2])
    records = read_records(files[0])
    assert [r.contender for r in records] == [
        "tiny ort x1",
        f"{good_bundle.name} ort x1",
        f"{good_bundle.name} engine x1",
    ]
    for r in records:
        assert r.status == "ok" and r.frames >= 5 and sum(r.rounds) == r.frames == len(r.totals_ms)
        assert len(r.rounds) == len(records[0].rounds) >= 5 and len(r.states) == len(r.rounds)
        assert set(r.ms) == set(STAGES) and r.ms["infer"]["p50"] > 0 and r.load_ms > 0 and r.first_ms > 0
        parts = sum(r.ms[stage]["mean"] for stage in STAGES[:-1])
        assert parts == pytest.approx(r.ms["total"]["mean"], rel=1e-3)
        assert r.fps == pytest.approx(1000 / r.ms["total"]["mean"], rel=1e-3)
        thresholds = {"conf": 0.25, "iou": 0.45, "max_det": 300, "nms": "greedynms", "suppression": "C"}
        assert r.setting == thresholds and r.pictures == 3
        assert r.candidates >= r.kept and r.rss_bytes > 1 << 20 and r.machine["cpus"]
        assert r.machine["OMP_WAIT_POLICY"] == "PASSIVE" and int(r.machine["MALLOC_TRIM_THRESHOLD_"]) >= 1 << 25
    assert records[0].ratio is None and records[1].ratio["low"] <= records[1].ratio["value"] <= records[1].ratio["high"]
    assert len({r.run for r in records}) == 1 and "score > 0.25" in " ".join(result.output.split())
    assert len(files[1].read_text().splitlines()) == 4 and files[2].read_text().count("\n| ") == 4
    succeed(*command, "--json", files[0])
    assert len(read_records(files[0])) == 6, "results only grow"
    assert "exists" in refusal(*command, "--csv", files[1])


def test_a_frame_finds_what_detect_finds(onnx, good_bundle, pictures):
    """Whole frames through a backend give the boxes that the command line gives."""
    import json

    backend = open_backend("ort")
    backend.load(onnx, 1, None)
    frames = Frames(backend, pictures, Setting(conf=0.1))
    kept = [frames.one().kept for _ in pictures]
    found = json.loads(succeed("detect", onnx, pictures[0].parent, "--conf", 0.1, "--json").stdout)
    assert kept == [len(p["detections"]) for p in found["pictures"]] and sum(kept) > 0


def test_a_failing_contender_costs_its_own_row(onnx, tiny, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(onnx.read_bytes()[:2000])
    result = edgeyolo("benchmark", broken, onnx, "--images", tiny.pictures, *QUICK, "--json", tmp_path / "r.jsonl")
    assert result.exit_code == 1
    bad, good = read_records(tmp_path / "r.jsonl")
    assert (bad.status, good.status) == ("failed", "ok") and bad.reason and bad.frames == 0 and good.frames >= 5
    assert "broken ort x1: failed" in " ".join(result.output.split())


def test_a_crash_is_told_as_what_it_is(onnx, pictures):
    process = Process(Contender("a", onnx, "ort", 1))
    process.load(pictures)
    assert len(process.run(2, 0).frames) >= 2
    os.kill(process._process.pid, signal.SIGKILL)
    with pytest.raises(ContenderError, match="signal 9"):
        process.run(1, 0)
    process.close()


def test_a_crash_in_the_middle_costs_the_row_with_the_reason(onnx, pictures, monkeypatch):
    run, calls = Process.run, []

    def crashing(self, *asked):
        calls.append(1)
        if len(calls) == 8:
            os.kill(self._process.pid, signal.SIGKILL)
        return run(self, *asked)

    monkeypatch.setattr(Process, "run", crashing)
    contenders = find_contenders([onnx], Variants(["ort"])) * 3
    records = measure(contenders, pictures, Plan(0, 1, 0), Log(quiet=True))
    dead = [r for r in records if r.status == "failed"]
    assert len(dead) == 1 and "signal 9" in dead[0].reason and not dead[0].ms and dead[0].frames == 0
    alive = [r for r in records if r.status == "ok"]
    assert [r.ratio is None for r in alive] == [True, False], "the first that lives is the reference"
    assert "failed: its process" in cells(dead[0])[1] and cells(alive[0])[COLUMNS.index("x first")] == "-"


def test_last_words_are_the_reason(onnx, pictures, monkeypatch):
    monkeypatch.setattr("edgeyolo.bench.contender.START", "import sys; sys.exit('there is no room')")
    process = Process(Contender("a", onnx, "ort", 1))
    with pytest.raises(ContenderError, match="exit code 1: there is no room"):
        process.load(pictures)
    process.close()


def test_nothing_stays_behind_when_the_measurer_is_killed(onnx, pictures):
    """A paused worker would hold its memory for ever."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("no /proc here")
    code = f"""
import sys, time
from pathlib import Path
from edgeyolo.bench.contender import Contender, Process
process = Process(Contender("a", Path({str(onnx)!r}), "ort", 1))
process.load([Path({str(pictures[0])!r})])
print(process._process.pid, flush=True)
time.sleep(100)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = Path("/proc", parent.stdout.readline().strip())
    assert worker.exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(200):
        if not worker.exists() or worker.joinpath("stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the worker is still there")


def test_modules_beside_the_users_files_are_not_run(onnx, tiny, tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('taken')")
    monkeypatch.chdir(tmp_path)
    succeed("benchmark", onnx, "--images", tiny.pictures, *QUICK)


def test_a_waiting_contender_is_paused(onnx, pictures):
    process = Process(Contender("a", onnx, "ort", 1))
    process.load(pictures)
    status = Path(f"/proc/{process._process.pid}/stat")
    if not status.exists():
        pytest.skip("no /proc here")
    for _ in range(100):
        if (state := status.read_text().rsplit(")", 1)[1].split()[0]) == "T":
            break
        time.sleep(0.05)  # the signal is on its way
    assert state == "T"
    process.close()
    assert not status.exists()


def test_an_interruption_keeps_what_was_measured(onnx, pictures, monkeypatch):
    run, calls = Process.run, []

    def interrupted(self, *asked):
        calls.append(1)
        if len(calls) > 9:  # two of them warmed up
            raise KeyboardInterrupt
        return run(self, *asked)

    monkeypatch.setattr(Process, "run", interrupted)
    contenders = find_contenders([onnx], Variants(["ort"])) * 2
    first, second = measure(contenders, pictures, Plan(0, 1, 0), Log(quiet=True))
    assert (first.status, second.status) == ("stopped", "stopped")
    assert first.frames >= 3 and second.frames >= 3 and len(first.rounds) + len(second.rounds) == 7


def test_thresholds_change_what_suppression_has_to_do(onnx, pictures):
    contenders = find_contenders([onnx], Variants(settings=[Setting(conf=0.01), Setting(conf=0.6)]))
    loose, strict = measure(contenders, pictures, Plan(0, 6, 0), Log(quiet=True))
    assert loose.candidates > strict.candidates and loose.setting["conf"] == 0.01
    assert [r.contender for r in (loose, strict)] == ["tiny ort x1 conf 0.01", "tiny ort x1 conf 0.6"]
    counts, times = zip(*loose.curve, strict=True)
    assert list(counts) == sorted(set(counts)) and min(times) > 0 and min(counts) <= loose.candidates <= max(counts)


def test_everybody_gets_the_same_pictures_in_every_round(onnx, pictures):
    contenders = find_contenders([onnx], Variants(["ort"], settings=[Setting(conf=0.05)])) * 2
    first, second = measure(contenders, pictures, Plan(0, 5, 0), Log(quiet=True))
    assert first.rounds == second.rounds and first.pictures == 5
    assert first.candidates == second.candidates > 0
    assert [count for count, _ in first.curve] == [count for count, _ in second.curve] and len(first.curve) > 1


def test_everybody_sees_all_pictures():
    assert (
        spread_positions(6, 3) == [0, 2, 4]
        and spread_positions(2, 50) == [0, 1]
        and spread_positions(5, 5) == [*range(5)]
    )


def test_which_backends_suit_which_models(onnx, good_bundle, tiny):
    def names(models, backends=(), threads=(1,)):
        found = find_contenders(models, Variants(backends, threads), tiny.weights)
        return [(c.path.name, c.backend, c.threads) for c in found]

    bundle = good_bundle.name
    assert names([good_bundle, onnx, tiny.cfg]) == [
        (bundle, "engine", 1),
        ("tiny.onnx", "ort", 1),
        ("tiny.cfg", "torch", 1),
    ]
    assert names([good_bundle], ["ort", "engine"], [1, 2]) == [
        (bundle, "ort", 1),
        (bundle, "ort", 2),
        (bundle, "engine", 1),
    ]
    for models, backends, threads, words in (
        ([onnx], ["engine"], [1], "no model suits"),
        ([onnx], ["tea"], [1], "unknown backend"),
        ([onnx], [], [0], "not a number for --threads"),
        ([tiny.names], [], [1], "unknown kind"),
        ([Path("none.onnx")], [], [1], "no such model"),
    ):
        with pytest.raises(InputError, match=words):
            find_contenders(models, Variants(backends, threads))
    batches = find_contenders([onnx], Variants(["ort", "ncnn"], batches=[1, 4]))
    assert [(c.backend, c.batch) for c in batches] == [("ort", 1), ("ort", 4), ("ncnn", 1)]


def test_bad_input(onnx, tiny, tmp_path, monkeypatch):
    assert "nothing to measure" in refusal("benchmark", onnx, "--frames", 0)
    for option, value, words in (
        ("--threads", "two", "not a list of numbers"),
        ("--conf", "0.25,nan", "not a score threshold"),
        ("--batch", "0", "not a number for --batch"),
        ("--scenario", "Rush", "unknown scenario"),
        ("--data", tmp_path / "none", "none"),
        ("--iou", "nan", "not an overlap"),
        ("--seconds", "nan", "nothing to measure"),
        ("--qps", "inf", "nothing to measure"),
        ("--json", tmp_path, "cannot write the results"),
    ):
        assert words in refusal("benchmark", onnx, option, value)
    one = tmp_path / "one.txt"
    assert "one file for two" in refusal("benchmark", onnx, "--csv", one, "--json", one)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install ncnn" in refusal("benchmark", onnx, "--backend", "ncnn")
    monkeypatch.undo()
    assert "apart" in refusal("benchmark", onnx, "--batch", "2", "--scenario", "Offline")
    shutil.copytree(tiny.pictures, tmp_path / "pictures")
    (tmp_path / "pictures" / "bad.jpg").write_bytes(b"no picture")
    assert "bad.jpg" in refusal("benchmark", onnx, "--images", tmp_path / "pictures")


def test_a_model_without_a_decoder_is_refused_with_the_reason(onnx, pictures):
    backend = open_backend("ort")
    backend.load(onnx, 1, None)
    heads = tuple(dataclasses.replace(head, kind="raw", anchors=(), classes=0) for head in backend.detector.heads)
    backend.detector = dataclasses.replace(backend.detector, heads=heads)
    with pytest.raises(InputError.__mro__[1], match="no decoder"):
        Frames(backend, pictures, Setting())
