"""What contenders can be measured with besides threads: batches, scenarios, energy, accuracy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import SIZE, edgeyolo, succeed

from edgeyolo.bench.backends import open_backend
from edgeyolo.bench.contenders import Variants, find_contenders
from edgeyolo.bench.harness import Plan, measure
from edgeyolo.bench.record import SCENARIOS, read_records
from edgeyolo.bench.scenarios import SCENARIOS as DESCRIBED
from edgeyolo.bench.scenarios import SERVER_LOAD, STREAMS
from edgeyolo.bench.tables import COLUMNS, cells, columns, run_markdown
from edgeyolo.progress import Log

QUICK = ("--seconds", 0, "--frames", 3, "--warmup", 0)


@pytest.fixture(scope="module")
def onnx(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("variants") / "tiny.onnx"
    succeed("export", *tiny.model(), "--target", "onnx", "--dynamic-batch", "-o", path)
    return path


@pytest.fixture(scope="module")
def pictures(tiny) -> list[Path]:
    return sorted(tiny.pictures.glob("*.jpg"))


@pytest.mark.parametrize("name", ["ort", "openvino", "torch"])
def test_a_batch_gives_what_its_pictures_give(name, onnx, tiny):
    if name == "openvino":
        pytest.importorskip("openvino")
    backend = open_backend(name)
    backend.load(tiny.cfg if name == "torch" else onnx, 1, tiny.weights)
    many = np.random.default_rng(0).integers(0, 256, (3, 3, SIZE, SIZE), dtype=np.uint8)

    def heads(pixels):
        backend.set_inputs(pixels)
        backend.infer()
        return backend.outputs()

    alone = [heads(picture) for picture in many]
    for i, head in enumerate(heads(many)):
        np.testing.assert_allclose(head, [one[i] for one in alone], rtol=0, atol=1e-5 * np.abs(head).max())
    assert heads(many[0])[0].shape == alone[0][0].shape, "and then one picture again"


def test_frames_of_a_batch_share_its_time(onnx, tiny, tmp_path):
    command = ["benchmark", onnx, "--batch", "1,2", "--conf", 0.05, "--images", tiny.pictures, *QUICK]
    one, two = _records(succeed, *command, path=tmp_path / "r.jsonl")
    assert [(r.contender, r.batch) for r in (one, two)] == [("tiny ort x1 batch 1", 1), ("tiny ort x1 batch 2", 2)]
    assert two.frames == 2 * len(two.totals_ms) and one.frames == len(one.totals_ms) and two.curve == ()
    assert two.fps == pytest.approx(1000 / two.ms["total"]["mean"], rel=1e-3)
    assert one.candidates > 0 and two.kept <= two.candidates


def test_a_model_with_one_picture_a_time_says_how_to_get_more(tiny, tmp_path):
    succeed("export", *tiny.model(), "--target", "onnx", "-o", tmp_path / "fixed.onnx")
    command = ["benchmark", tmp_path / "fixed.onnx", "--batch", "2", "--images", tiny.pictures, *QUICK]
    (record,) = _records(edgeyolo, *command, path=tmp_path / "r.jsonl")
    assert record.status == "failed" and "2 pictures at a time" in record.reason and "--dynamic-batch" in record.reason


def _records(run, *command, path):
    run(*command, "--json", path)
    return read_records(path)


def test_scenarios_have_their_own_figures(onnx, pictures, monkeypatch):
    monkeypatch.setattr("edgeyolo.bench.harness.SCENARIO_SECONDS", 0.02)
    assert tuple(DESCRIBED) == SCENARIOS
    contenders = find_contenders([onnx], Variants(scenarios=[*SCENARIOS]))
    records = measure(contenders, pictures, Plan(0, 1, 0), Log(quiet=True))
    assert [r.scenario for r in records] == list(SCENARIOS) and {r.status for r in records} == {"ok"}
    for r in records:
        assert r.generator and r.frames == len(r.totals_ms) and r.query_ms["p99"] >= r.query_ms["p50"] > 0
        assert r.contender == f"tiny ort x1 {r.scenario}" and r.ratio is None, "nothing else ran in that scenario"
    single, multi, offline, server = records
    assert multi.frames % STREAMS == 0 and len(offline.rounds) < offline.frames
    assert multi.query_ms["p50"] > single.query_ms["p50"]
    assert server.setting["qps"] > 0 and "qps" not in offline.setting
    shown = [COLUMNS[i] for i in columns(records)]
    assert "query p99" in shown and len(cells(single)) == len(COLUMNS)


def test_the_rate_of_the_server_scenario(onnx, pictures, monkeypatch):
    monkeypatch.setattr("edgeyolo.bench.harness.SCENARIO_SECONDS", 0.02)
    contenders = find_contenders([onnx], Variants(scenarios=["Server"]))
    asked = measure(contenders, pictures, Plan(0, 1, 0, qps=200), Log(quiet=True))[0]
    assert asked.setting["qps"] == 200
    own = measure(contenders, pictures, Plan(0, 1, 0), Log(quiet=True))[0]
    assert 0 < own.setting["qps"] < 2 * SERVER_LOAD * 1000 / own.ms["total"]["min"]
    flooded = measure(contenders, pictures, Plan(0, 1, 0, qps=1e6), Log(quiet=True))[0]
    assert flooded.status == "failed" and "--qps" in flooded.reason and flooded.frames == 0


class Counting:
    """A meter that says 3 joules a block, and nothing for the first."""

    name, shortest = "a wheel", 0.0

    def __init__(self):
        self.calls = []

    def start(self):
        self.calls.append("start")

    def stop(self):
        self.calls.append("stop")
        return 3.0 if len(self.calls) > 2 else None


def test_energy_is_that_of_the_blocks_that_could_be_read(onnx, pictures):
    meter, contenders = Counting(), find_contenders([onnx], Variants())
    (record,) = measure(contenders, pictures, Plan(0, 1, 0), Log(quiet=True), lambda device: meter)
    assert meter.calls == ["start", "stop"] * len(record.rounds), "the warm-up does not count"
    assert record.joules == pytest.approx(3 * (len(record.rounds) - 1) / sum(record.rounds[1:]))
    assert record.energy == "a wheel" and "energy: a wheel" in run_markdown([record])
    (record,) = measure(contenders, pictures, Plan(0, 1, 0), Log(quiet=True), lambda device: f"no {device} meter")
    assert record.joules is None and record.energy == "no cpu meter" and "J/frame" not in run_markdown([record])


@pytest.fixture(scope="module")
def labelled(tiny, onnx, tmp_path_factory) -> Path:
    """The pictures, labelled with some of what the model finds."""
    folder = tmp_path_factory.mktemp("labelled")
    found = json.loads(succeed("detect", onnx, tiny.pictures, "--conf", 0.05, "--json").stdout)["pictures"]
    for sub in ("images", "labels"):
        (folder / sub).mkdir()
    for entry in found:
        path = tiny.pictures / Path(entry["path"]).name
        (folder / "images" / path.name).write_bytes(path.read_bytes())
        rows = []
        for d in entry["detections"][:3]:
            (x1, y1, x2, y2), (w, h) = d["box"], (entry["width"], entry["height"])
            rows.append(f"{d['class_id']} {(x1 + x2) / 2 / w} {(y1 + y2) / 2 / h} {(x2 - x1) / w} {(y2 - y1) / h}")
        (folder / "labels" / path.with_suffix(".txt").name).write_text("\n".join(rows))
    return folder


def test_accuracy_beside_speed(onnx, good_bundle, labelled, tmp_path):
    command = ["benchmark", onnx, good_bundle, "--backend", "ort", "--threads", "1,2", "--images", labelled, *QUICK]
    records = _records(succeed, *command, "--data", labelled, path=tmp_path / "r.jsonl")
    for model, pair in ((onnx, records[:2]), (good_bundle, records[2:])):
        runner = () if model is onnx else ("--runner", "ort")
        score = json.loads(succeed("eval", model, *runner, "--data", labelled, "--json").stdout)
        for r in pair:
            # The oracle runs with optimisations off; a fused kernel may round a score otherwise.
            assert r.ap50 == pytest.approx(score["AP50"], abs=0.02) and r.ap == pytest.approx(score["AP"], abs=0.02)
            assert r.ap_setting["pictures"] == 6 and r.ap_setting["conf"] == 0.001
    assert records[0].ap > 0
    text = run_markdown(records)
    assert "| conf | IoU |" in text and "AP50" in text and "6 pictures of" in text


def test_labels_of_other_classes_cost_the_figure_and_not_the_run(onnx, tmp_path, pictures):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(pictures[0].read_bytes())
    (tmp_path / "labels" / "a.txt").write_text("77 0.5 0.5 0.2 0.2")
    result = edgeyolo("benchmark", onnx, "--data", tmp_path, "--images", tmp_path, *QUICK)
    assert result.exit_code == 0 and "has no AP" in result.output
