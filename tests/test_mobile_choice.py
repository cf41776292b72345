"""Which variant a mobile bundle runs: by what was measured, here or on a device, and by what is known without."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tensorrt_graphs import PICTURES, graph
from test_bench_records import record
from tiny_models import Tiny, refusal, succeed

from edgeyolo.bench.harness import Plan
from edgeyolo.bench.record import RunRecord, append_records, read_records
from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.export import mobile_choice
from edgeyolo.export.mobile_candidates import Candidates, make_candidates
from edgeyolo.export.mobile_choice import Choice, decide, default_choice, measure_here, measured_there
from edgeyolo.export.pictures import PictureSet
from edgeyolo.mobile import load_mobile
from edgeyolo.passes.graph import constant, read_detector
from edgeyolo.progress import Log

BOARD = "x86-vnni"
HERE = load_mobile(BOARD)
KEEPS = {"int8": ("head",), "int8-1": ("head", "depthwise")}
MADE = Candidates({"fp32": b"a", "fp16": b"b", "int8": b"c", "int8-1": b"d"}, KEEPS)
HASH = {name: hashlib.sha256(data).hexdigest() for name, data in MADE.graphs.items()}
STAGES = ("pre", "infer", "decode", "nms", "total")


def measured(total: float, wobble: float = 0.02, seed: int = 0, **changes: object) -> RunRecord:
    """20 rounds of 3 frames at about ``total`` ms, each round off by its own share."""
    rounds = total * (1 + wobble * np.random.default_rng(seed).standard_normal((20, 1))) + np.array([0, 0.001, -0.001])
    given = {"rounds": (3,) * 20, "totals_ms": tuple(rounds.ravel().tolist()), "backend": "ort"}
    given["machine"] = {"machine": "x86_64", "cpu": "a processor"}
    # What the network alone took, and the ratio to some other contender, decide nothing.
    given |= {
        "ms": {"infer": {"p50": 1 / total}, "total": {"p50": total}},
        "ratio": {"value": 1, "low": 0.1, "high": 0.2},
    }
    return dataclasses.replace(record(), **{**given, **changes})


def decided(**records: RunRecord) -> Choice:
    return decide({name.replace("_", "-"): each for name, each in records.items()}, KEEPS, "here")


def test_float32_stays_unless_something_is_surely_faster() -> None:
    slower = decided(fp32=measured(10), fp16=measured(30), int8=measured(15), int8_1=measured(12))
    assert (slower.variant, slower.keep_float) == ("fp32", ("head", "depthwise")), "the best int8 is in the bundle"
    assert slower.reason.startswith("nothing is surely faster here: fp32 10.00 ms")
    unsure = decided(fp32=measured(10, 0.3), fp16=measured(9.8, 0.3, 1), int8=measured(9.9, 0.3, 2))
    assert unsure.variant == "fp32"
    mixed = decided(fp32=measured(10), fp16=measured(9), int8=measured(7), int8_1=measured(6))
    assert (mixed.variant, mixed.keep_float) == ("int8", ("head", "depthwise")) and "6.00 ms" in mixed.reason
    half = decided(fp32=measured(10), fp16=measured(5), int8=measured(7))
    assert half.variant == "fp16" and half.keep_float == ("head",)


def test_what_has_no_figures_or_too_few_rounds_is_not_chosen() -> None:
    with pytest.raises(InputError, match="could not be measured"):
        decided(fp32=measured(10, ms={}, status="failed", reason="no"), int8=measured(1))
    assert decided(fp32=measured(10), int8=measured(1, status="failed")).variant == "fp32"
    broken = decided(fp32=measured(10), int8=measured(1, status="failed", reason="SIGILL\x1b[2J"))
    assert "int8 failed (SIGILL?[2J)" in broken.reason, "it says why, and a terminal obeys nothing in it"
    short = {"rounds": (3,) * 4, "totals_ms": (1.0,) * 12}
    few = decided(fp32=measured(10), int8=measured(1, **short))
    assert few.variant == "fp32" and "too few rounds of int8" in few.reason
    longer = measured(5, rounds=(3,) * 18, totals_ms=measured(5).totals_ms[:54])
    assert decided(fp32=measured(10), int8=longer).variant == "int8", "rounds that both have count"
    absurd = measured(10, ms={"total": {"p50": -1.0}})
    assert decided(fp32=measured(10), int8=absurd).variant == "fp32"


def test_without_a_measurement_a_board_says_what_it_is_slow_with() -> None:
    """On x86 with AVX2 int8 was measured to be slower on networks with depthwise layers; on the others nobody knows."""
    depthwise, dense = graph("depthwise"), graph("leaky")
    avx2, arm = load_mobile("x86-avx2"), load_mobile("raspberry-pi-5")
    assert default_choice(depthwise, ("head",), None, avx2).variant == "fp32"
    assert default_choice(dense, ("head",), None, avx2).variant == "int8"
    unknown = default_choice(depthwise, ("head",), None, arm)
    assert unknown.variant == "int8" and "measure before you ship it" in unknown.reason
    assert default_choice(depthwise, ("head",), "int8", avx2).variant == "int8", "what the user wants comes first"
    assert default_choice(depthwise, ("head", "depthwise"), None, avx2).variant == "int8", "those stay float"


@pytest.fixture
def results(tmp_path: Path) -> Callable[..., Path]:
    """A results file of these candidates."""

    def write(**milliseconds: tuple[float, dict[str, object]]) -> Path:
        path = tmp_path / "device.jsonl"
        for name, (ms, changes) in milliseconds.items():
            given = {"model_sha256": HASH[name.rstrip("_").replace("_", "-")], **changes}
            append_records(path, [measured(ms, ms={stage: measured_spread(ms) for stage in STAGES}, **given)])
        return path

    return write


def measured_spread(ms: float) -> dict[str, float]:
    return {**dict.fromkeys(("mean", "min", "p90", "p99"), ms), "p50": ms, "jitter": 0.0}


def test_records_of_a_device_are_recognised_by_their_hash(results) -> None:  # type: ignore[no-untyped-def]
    path = results(
        int8_1=(6, {}), fp32=(10, {}), fp16=(9, {}), int8=(7, {}),
        int8_=(1, {"model_sha256": "0" * 64}), int8__=(1, {"scenario": "Server"}), int8___=(1, {"batch": 4}),
        int8____=(1, {}), fp32_=(20, {"setting": {"conf": 0.001, "iou": 0.45, "max_det": 300}}),
    )  # fmt: skip
    found = measured_there(MADE, path, HERE)
    assert list(found) == ["fp32", "fp16", "int8", "int8-1"] and decide(found, KEEPS, "").keep_float == KEEPS["int8-1"]
    assert found["int8"].ms["total"]["p50"] == 7


@pytest.mark.parametrize(
    "changes",
    [{"backend": "openvino"}, {"status": "stopped"}, {"machine": {"machine": "aarch64"}}, {"scenario": "Offline"}],
)
def test_what_says_nothing_about_the_board_decides_nothing(results, changes) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="no candidate of this export was measured"):
        measured_there(MADE, results(fp32=(10, changes), int8=(5, changes)), HERE)


def test_two_devices_of_one_name_are_not_mixed(results) -> None:  # type: ignore[no-untyped-def]
    a, b = ({"machine": {"machine": "x86_64", "cpu": cpu}} for cpu in ("A", "B"))
    with pytest.raises(InputError, match="not measured together"):
        measured_there(MADE, results(fp32=(10, a), int8=(5, b)), HERE)


def test_of_several_runs_the_latest_counts_and_of_it_the_quickest_way_to_run(results) -> None:  # type: ignore[no-untyped-def]
    later = {"run": "r2", "started": "2026-02-01T00:00:00+00:00"}
    path = results(fp32=(1, {}), int8=(2, {}), fp32_=(10, later), int8_=(5, later))
    assert measured_there(MADE, path, HERE)["fp32"].ms["total"]["p50"] == 10
    two = {**later, "threads": 2}
    path = results(fp32=(9, two), int8=(6, two))
    assert measured_there(MADE, path, HERE)["fp32"].threads == 1, "5 ms on one thread are quicker"
    assert measured_there(MADE, path, dataclasses.replace(HERE, threads=2))["fp32"].threads == 2, "as the board runs"
    four = {**later, "threads": 4, "backend": "ort-web wasm", "contender": "c/int8 ort-web wasm x4 on Phone"}
    found = measured_there(MADE, results(fp32=(4, four), int8=(3, four)), HERE)
    assert found["int8"].threads == 4
    choice = decide(found, KEEPS, mobile_choice.place_of(found["fp32"], path))
    assert (
        "on Phone (ort-web wasm, 4 thread(s); device.jsonl)" in choice.reason and "a browser's kernels" in choice.reason
    )


@pytest.mark.parametrize("alone", [{"fp32": (1, {})}, {"fp32": (1, {}), "int8": (2, {"run": "another"})}])
def test_float32_and_int8_of_different_runs_decide_nothing(results, alone) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="not measured together"):
        measured_there(MADE, results(**alone), HERE)


def test_a_measurement_that_the_user_stopped_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph("leaky")
    stopped = dataclasses.replace(record(), status="stopped")
    monkeypatch.setattr(mobile_choice, "run_contenders", lambda contenders, *_: [stopped] * len(contenders))
    monkeypatch.setattr(PictureSet, "spread", lambda *_: PICTURES)
    with pytest.raises(KeyboardInterrupt):
        measure_here(MADE, PictureSet([], read_detector(model).preprocess), 1, Log(quiet=True))


def test_a_candidate_with_nothing_left_in_int8_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every dense layer of it is kept by the user, so that "depthwise" leaves none."""
    model, board = graph("depthwise"), load_mobile(BOARD)
    seen = PictureSet([], read_detector(model).preprocess)
    monkeypatch.setattr(PictureSet, "spread", lambda *_: PICTURES)
    assert list(make_candidates(model, seen, board, ("c1", "head")).keep_float.values()) == [("c1", "head")]
    with pytest.raises(UnsupportedError, match="no layer can run in int8"):
        make_candidates(model, seen, board, ("c*", "head"))


def command(tiny: Tiny) -> list[object]:
    quick = ["--no-reconstruct", "--no-equalise"]
    return ["export", *tiny.model(), "--calib", tiny.pictures, "--target", "mobile", *quick]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the board is an x86")
def test_auto_measures_and_says_what(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeyolo.export.mobile_choice.PLAN", Plan(0, 1, 0))
    succeed(*command(tiny), "--auto", "--board", BOARD, "-o", tmp_path / "out")
    facts = json.loads((tmp_path / "out/manifest.json").read_text("utf-8"))
    choice, widened = facts["choice"], facts["ledger"]["parity"][-1]
    assert widened["stage"] == "widened" and widened["max_abs_difference"] < 1e-4 and widened["pictures"]
    convs = [node for node in ir.load(tmp_path / "out/fp32.onnx").graph if node.op_type == "Conv"]
    assert [len(constant(node.inputs[1])) % 16 for node in convs].count(0) >= 5, "the board has blocks of 16 channels"
    assert {name.split()[0] for name in choice["total_ms"]} >= {"fp32", "fp16", "int8", "int8-1"}
    assert all(ms > 0 for ms in choice["total_ms"].values()) and "ms" in choice["reason"]
    assert len((tmp_path / "out/measured.jsonl").read_text().splitlines()) == len(choice["total_ms"])


def test_the_way_over_a_device(tiny: Tiny, tmp_path: Path) -> None:
    """Candidates for a board that is not here, measured elsewhere, decide the export of the same model."""
    there, results = tmp_path / "candidates", tmp_path / "device.jsonl"
    device = ["--board", "raspberry-pi-5"]
    made = command(tiny)[:-2]
    said = succeed(*made, *device, "--candidates", "-o", there).stderr
    files = sorted(there.glob("*.onnx"))
    assert {f.stem for f in files} >= {"fp32", "fp16", "int8", "int8-1"} and "--measured device.jsonl" in said
    assert "name one of its files" in refusal("detect", there, tiny.pictures)
    assert f"name its files: {there}/*.onnx" in refusal("benchmark", there).replace("\n", " ")
    succeed("benchmark", *files, "--backend", "ort", "--images", tiny.pictures, "--seconds", 0, "--frames", 1,
            "--warmup", 0, "--json", results)  # fmt: skip
    assert "on aarch64 or in a browser" in refusal(
        *command(tiny), *device, "--measured", results, "-o", tmp_path / "no"
    )
    told = f'"machine":"{platform.machine()}"'
    assert told in results.read_text()
    results.write_text(results.read_text().replace(told, '"machine":"aarch64"'))
    succeed(*command(tiny), *device, "--measured", results, "-o", tmp_path / "out")
    facts = json.loads((tmp_path / "out/manifest.json").read_text("utf-8"))
    assert len(facts["choice"]["total_ms"]) == len(files) == len(read_records(tmp_path / "out/measured.jsonl"))
    assert facts["session"]["threads"] == 1, "as it was measured"
    assert "device.jsonl" in facts["choice"]["reason"] and facts["options"]["measured"] == "device.jsonl"
    # One thing less is float, so that all int8 graphs are others.
    other = refusal(*command(tiny), *device, "--keep-float", "first", "--measured", results, "-o", tmp_path / "no")
    assert "not measured together" in other and "--candidates" in other and not (tmp_path / "no").exists()
    assert "cannot read" in refusal(*command(tiny), *device, "--measured", tmp_path / "typo", "-o", tmp_path / "no")
    other = ["--board", "android-arm64", "--provider", "NnapiExecutionProvider"]
    assert "CPU provider" in refusal(*command(tiny), *other, "--measured", results, "-o", tmp_path / "no")
    board = ["--board", "x86-avx2"]
    assert "keep one of them" in refusal(*made, *board, "--candidates", "--precision", "fp16", "-o", tmp_path / "no")
    assert "do nothing with --candidates" in refusal(*command(tiny), *device, "--candidates", "-o", tmp_path / "no")
    lines = results.read_text().splitlines()
    results.write_text("\n".join(line.replace('sha256":"', 'sha256":"0') for line in lines))
    assert "no candidate" in refusal(*command(tiny), *device, "--measured", results, "-o", tmp_path / "no")
