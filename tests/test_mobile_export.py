"""The mobile bundle: whole, proven, chosen by what was measured, and refused with a reason where it cannot be."""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from test_bench_records import record
from tiny_models import edgeyolo, refusal, succeed

from edgeyolo.bench.contenders import Variants, find_contenders
from edgeyolo.bundle import Bundle
from edgeyolo.detector import METADATA_KEY
from edgeyolo.errors import InputError
from edgeyolo.export.mobile_choice import Choice, decide
from edgeyolo.export.mobile_golden import PARTS
from edgeyolo.serve.served import served_models

BOARD = "x86-avx2"


@pytest.fixture(scope="module")
def bundle(tiny, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("mobile") / "tiny-mobile"
    succeed(
        "export", *tiny.model(), "--calib", tiny.pictures, "--target", "mobile", "--board", BOARD, "--golden", 2,
        "--no-reconstruct", "-o", out,
    )  # fmt: skip
    return out


def manifest(bundle: Path) -> dict:
    return json.loads((bundle / "manifest.json").read_text("utf-8"))


def test_what_is_in_it(bundle):
    facts = manifest(bundle)
    names = {"fp32.onnx", "fp16.onnx", "int8.onnx", "model.onnx", "fp32.ort", "int8.ort", "sample.py", "usability.txt"}
    assert names | {"required_operators_and_types.config", "report.json"} <= set(facts["files"])
    assert "fp16.ort" not in facts["files"] and "measured.jsonl" not in facts["files"]
    assert facts["target"] == "mobile" and facts["profile"]["name"] == BOARD
    assert facts["choice"]["variant"] == "int8" and "depthwise" in facts["choice"]["reason"]
    assert facts["session"]["model"] == "int8.ort" and facts["session"]["providers"]
    assert (bundle / "model.onnx").read_bytes() == (bundle / "int8.onnx").read_bytes()
    assert facts["ledger"]["stages"][-1]["stage"] == "int8 as U8U8"
    assert any(row["stage"] == "float16" for row in facts["ledger"]["stages"])
    sizes = [facts["files"][f"{name}.onnx"]["bytes"] for name in ("fp32", "fp16")]
    assert sizes[1] < sizes[0]


def test_every_graph_says_what_it_is_and_takes_the_same(bundle):
    opened = Bundle.open(bundle)
    for name in ("fp32.onnx", "fp16.onnx", "int8.onnx", "fp32.ort", "int8.ort"):
        session = onnxruntime.InferenceSession(str(bundle / name), providers=["CPUExecutionProvider"])
        assert METADATA_KEY in session.get_modelmeta().custom_metadata_map, name
        assert [o.name for o in session.get_outputs()] == [head.output for head in opened.detector.heads]
        assert {value.type for value in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}


def test_it_is_proven(bundle, tiny):
    checks = json.loads(succeed("verify", bundle, "--pictures", tiny.pictures, "--json").stdout)["checks"]
    found = {check["name"]: check for check in checks}
    assert {check["status"] for check in checks} == {"passed"}
    assert {"int8.ort", "fp32.ort", "int8.onnx", "fp16.onnx", "fp32.onnx, optimisations off"} <= set(found)
    assert "8 picture(s)" in found["int8.ort"]["detail"], "two golden ones and six more"
    assert "inf dB" in found["int8.onnx, optimisations off"]["detail"]
    tolerances = json.loads((bundle / "golden/index.json").read_text())["tolerance_db"]
    assert set(tolerances) == set(PARTS) and tolerances["fp32"] == 40


def changed(bundle: Path, folder: Path, name: str, data: bytes) -> Path:
    """A copy with another file, listed as it is now."""
    from edgeyolo.bundle import sha256

    copy = shutil.copytree(bundle, folder / "copy")
    facts = manifest(copy)
    (copy / name).write_bytes(data)
    facts["files"][name] = {"bytes": len(data), "sha256": sha256(data)}
    (copy / "manifest.json").write_text(json.dumps(facts))
    return copy


@pytest.mark.parametrize("swapped", ["int8.ort", "int8.onnx"])
def test_another_network_under_its_name_is_found(bundle, swapped, tmp_path):
    """The float graph in place of int8: its values are nearer to the truth, and still not those that were promised."""
    copy = changed(bundle, tmp_path, swapped, (bundle / f"fp32.{swapped.partition('.')[2]}").read_bytes())
    result = edgeyolo("verify", copy)
    assert result.exit_code == 1 and swapped in result.output


def test_a_wrong_value_a_wrong_copy_and_a_missing_graph_are_found(bundle, tmp_path):
    path = next(path for path in sorted((bundle / "golden/000").glob("output-*.npy")))
    values = np.load(path)
    name = path.relative_to(bundle).as_posix()
    (tmp_path / "x.npy").write_bytes(b"")
    np.save(tmp_path / "x.npy", values + np.float32(0.5) * np.abs(values).max())
    assert edgeyolo("verify", changed(bundle, tmp_path, name, (tmp_path / "x.npy").read_bytes())).exit_code == 1
    shutil.rmtree(tmp_path / "copy")
    other = changed(bundle, tmp_path, "model.onnx", (bundle / "fp32.ort").read_bytes())
    assert edgeyolo("verify", other).exit_code == 1
    shutil.rmtree(tmp_path / "copy")
    copy = shutil.copytree(bundle, tmp_path / "copy")
    facts = manifest(copy)
    del facts["files"]["fp16.onnx"]
    (copy / "manifest.json").write_text(json.dumps(facts))
    assert "fp16.onnx" in refusal("verify", copy)


def test_others_know_the_bundle(bundle, tiny, tmp_path):
    labels = [c.label for c in find_contenders([bundle], Variants(["ort"]))]
    assert labels == [f"tiny-mobile/{name} ort x1" for name in ("fp32", "fp16", "int8")]
    assert [served.name for served in served_models(bundle)] == [
        f"tiny-mobile/{n}.onnx" for n in ("fp32", "fp16", "int8")
    ]
    ours = json.loads(succeed("detect", bundle, tiny.pictures, "--conf", 0.05, "--json").stdout)["pictures"]
    direct = json.loads(succeed("detect", bundle / "int8.onnx", tiny.pictures, "--conf", 0.05, "--json").stdout)
    counts = [[len(p["detections"]) for p in pictures] for pictures in (ours, direct["pictures"])]
    assert sum(counts[0]) > 0 and abs(sum(counts[0]) - sum(counts[1])) <= 2, "fused kernels round otherwise"
    assert "does not execute" in refusal("detect", bundle, tiny.pictures, "--runner", "engine")


def test_precision_decides_without_measuring(tiny, tmp_path):
    command = [
        "export",
        *tiny.model(),
        "--calib",
        tiny.pictures,
        "--target",
        "mobile",
        "--no-reconstruct",
        "--no-equalise",
    ]
    succeed(*command, "--precision", "fp16", "--board", "raspberry-pi-5", "-o", tmp_path / "out")
    facts = manifest(tmp_path / "out")
    assert facts["choice"]["variant"] == "fp16" and facts["session"]["model"] == "fp16.onnx"
    assert facts["ledger"]["stages"][-1]["stage"] == "int8 as S8S8"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the board is an x86")
def test_auto_measures_and_says_what(tiny, tmp_path, monkeypatch):
    from edgeyolo.bench.harness import Plan

    monkeypatch.setattr("edgeyolo.export.mobile_choice.PLAN", Plan(0, 1, 0))
    command = [
        "export",
        *tiny.model(),
        "--calib",
        tiny.pictures,
        "--target",
        "mobile",
        "--no-reconstruct",
        "--no-equalise",
    ]
    succeed(*command, "--auto", "--board", BOARD, "-o", tmp_path / "out")
    choice = manifest(tmp_path / "out")["choice"]
    assert {name.split()[0] for name in choice["infer_ms"]} >= {"fp32", "fp16", "int8", "int8-1"}
    assert all(ms > 0 for ms in choice["infer_ms"].values()) and "ms" in choice["reason"]
    assert len((tmp_path / "out/measured.jsonl").read_text().splitlines()) == len(choice["infer_ms"])


def judged(ms: float, low: float | None, high: float | None) -> object:
    made = record(ms={"infer": {"p50": ms}})
    return dataclasses.replace(made, ratio=None if low is None else {"value": ms / 10, "low": low, "high": high})


def test_float32_stays_unless_something_is_surely_faster():
    keeps = {"int8": ("head",), "int8-1": ("head", "depthwise")}
    fp32 = judged(10, None, None)

    def decided(**others) -> Choice:
        return decide({"fp32": fp32, **{name.replace("_", "-"): r for name, r in others.items()}}, keeps)

    slower = decided(fp16=judged(30, 2.9, 3.1), int8=judged(15, 1.4, 1.6), int8_1=judged(12, 1.1, 1.3))
    assert (slower.variant, slower.keep_float) == ("fp32", ("head", "depthwise")), "the best int8 is in the bundle"
    unsure = decided(fp16=judged(9, 0.8, 1.1), int8=judged(9.9, 0.9, 1.1))
    assert unsure.variant == "fp32"
    mixed = decided(fp16=judged(9, 0.85, 0.95), int8=judged(7, 0.6, 0.8), int8_1=judged(6, 0.5, 0.7))
    assert (mixed.variant, mixed.keep_float) == ("int8", ("head", "depthwise")) and "6.00 ms" in mixed.reason
    half = decided(fp16=judged(5, 0.4, 0.6), int8=judged(7, 0.6, 0.8))
    assert half.variant == "fp16" and half.keep_float == ("head",)
    with pytest.raises(InputError, match="could not be measured"):
        decide({"fp32": dataclasses.replace(fp32, ms={}, reason="no")}, keeps)


def test_what_cannot_be_made_is_refused_before_any_work(tiny, tmp_path):
    command = ["export", *tiny.model(), "--target", "mobile", "-o", tmp_path / "out"]
    calib = ["--calib", tiny.pictures]
    assert "calibration" in refusal(*command)
    assert "execution provider" in refusal(*command, *calib, "--provider", "CoreMLExecutionProvider")
    assert "toaster" in refusal(*command, *calib, "--board", "toaster")
    other = "ios-arm64" if platform.machine() == "x86_64" else BOARD
    assert "cannot be measured on this machine" in refusal(*command, *calib, "--auto", "--board", other)
    assert "golden" in refusal(*command, *calib, "--golden", 0)
    assert "do nothing" in refusal(*command, *calib, "--bits", 4)
    assert not (tmp_path / "out").exists()
