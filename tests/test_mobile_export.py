"""The mobile bundle: whole, proven, and refused with a reason where it cannot be."""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import build
from tensorrt_graphs import ARRAYS
from tiny_models import edgeyolo, refusal, succeed

from edgeyolo.bench.contenders import Variants, find_contenders
from edgeyolo.bundle import Bundle
from edgeyolo.detector import METADATA_KEY
from edgeyolo.export.mobile import in_opset
from edgeyolo.export.mobile_golden import PARTS
from edgeyolo.export.ort_files import ort_files
from edgeyolo.mobile import load_mobile
from edgeyolo.serve.served import served_models
from edgeyolo.verify_mobile import saturates

BOARD = "x86-avx2"


@pytest.fixture(scope="module")
def bundle(tiny, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("mobile") / "tiny-mobile"
    succeed(
        "export", *tiny.model(), "--calib", tiny.pictures, "--target", "mobile", "--board", BOARD, "--golden", 2,
        "--no-reconstruct", "--precision", "int8", "-o", out,
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
    assert facts["choice"]["variant"] == "int8" and facts["choice"]["reason"] == "--precision"
    assert facts["session"]["model"] == "int8.onnx" and facts["session"]["providers"]
    assert (bundle / "model.onnx").read_bytes() == (bundle / "int8.onnx").read_bytes()
    assert facts["ledger"]["stages"][-1]["stage"] == "int8 as U8U8"
    assert any(row["stage"] == "float16" for row in facts["ledger"]["stages"])
    assert [row["variant"] for row in facts["usability"]] == ["fp32"] * 4 + ["int8"] * 4
    report = (bundle / "usability.txt").read_text("utf-8")
    assert report.startswith("# fp32.onnx\n") and "\n# int8.onnx\n" in report
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
    index = json.loads((bundle / "golden/index.json").read_text())
    assert set(index["tolerance_db"]) == set(PARTS) and index["tolerance_db"]["fp32"] == 40
    assert set(index["distance_db"]) == {"int8"} and 15 < index["distance_db"]["int8"] < 60
    assert "2 picture(s)" in found["int8 against float32"]["detail"], "what was stated is about the golden ones"


def test_another_provider_gets_files_that_leave_it_the_choice(tiny, tmp_path):
    command = ["export", *tiny.model(), "--calib", tiny.pictures, "--target", "mobile", "--no-reconstruct"]
    provider = ["--board", "ios-arm64", "--provider", "CoreMLExecutionProvider"]
    succeed(*command, "--no-equalise", *provider, "-o", tmp_path / "out")
    facts = manifest(tmp_path / "out")
    assert [name for name, _ in facts["session"]["providers"]] == ["CoreMLExecutionProvider", "CPUExecutionProvider"]
    assert {"int8.ort", "fp32.ort"} <= set(facts["files"])
    assert json.loads(succeed("verify", tmp_path / "out", "--json").stdout)["checks"]


@pytest.fixture(scope="module")
def arm(tiny, tmp_path_factory) -> Path:
    """For the default board, whose integers and .ort files are another processor's on x86."""
    out = tmp_path_factory.mktemp("arm") / "phone"
    succeed(
        "export", *tiny.model(), "--calib", tiny.pictures, "--target", "mobile", "--no-reconstruct", "-o", out
    )  # fmt: skip
    return out


@pytest.mark.parametrize("saturating", [(), ("U8S8",), ("U8S8", "S8S8")], ids=str)
def test_a_phones_bundle_is_proven_on_any_machine(arm, saturating, monkeypatch):
    """Wherever kernels saturate: U8S8 on x86 without VNNI, which is what it makes of the phone's .onnx file there."""
    assert manifest(arm)["profile"]["int8_format"] == "s8s8" and manifest(arm)["session"]["model"] == "int8.ort"
    if not any(map(saturates, ("U8S8", "S8S8"))):  # else it is as it is on this machine, in all three
        monkeypatch.setattr("edgeyolo.verify_mobile.saturates", lambda form: form in saturating)
    else:
        saturating = [form for form in ("U8S8", "S8S8") if saturates(form)]
    checks = {c["name"]: c for c in json.loads(succeed("verify", arm, "--json").stdout)["checks"]}
    again = [f"{name}.ort against {name}.onnx, converted here" for name in ("int8", "fp32")]
    assert all("inf dB" in checks[name]["detail"] for name in again), "the same kernels"
    assert checks["int8.ort"]["status"] == ("skipped" if "S8S8" in saturating else "passed")
    assert any("as U8U8" in name for name in checks) == bool(saturating)


def test_what_saturates_on_a_processor_is_found_by_computing(monkeypatch):
    assert not saturates("U8U8") and not saturates(None), "nowhere"
    monkeypatch.setattr("edgeyolo.verify_mobile.run", lambda *_: {"y": np.full((2, 2), 4 * 32767, np.int32)})
    assert saturates("U8S8")


def test_an_ort_file_that_is_nearly_right_is_found(bundle, tmp_path):
    """Half a thousandth off: near enough to golden data, and not what the .onnx file gives."""
    model = onnx.load(bundle / "fp32.onnx")
    weights = next(t for t in model.graph.initializer if len(t.dims) == 4)
    weights.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) * np.float32(1.0005), weights.name)
    )
    data = ort_files({"fp32": model.SerializeToString()}, load_mobile(BOARD))["fp32.ort"]
    result = edgeyolo("verify", changed(bundle, tmp_path, "fp32.ort", data), "--json")
    failed = [c["name"] for c in json.loads(result.stdout)["checks"] if c["status"] == "failed"]
    assert result.exit_code == 1 and failed == ["fp32.ort against fp32.onnx, converted here"]


def test_integers_further_from_float32_than_stated_are_found(bundle, tmp_path):
    index = json.loads((bundle / "golden/index.json").read_text())
    index["distance_db"]["int8"] += 7
    result = edgeyolo("verify", changed(bundle, tmp_path, "golden/index.json", json.dumps(index).encode()), "--json")
    failed = [c["name"] for c in json.loads(result.stdout)["checks"] if c["status"] == "failed"]
    assert result.exit_code == 1 and failed == ["int8 against float32"]
    shutil.rmtree(tmp_path / "copy")
    for stated in ([], {"int8": "x"}, {"int8": 10**400}):
        data = json.dumps({**index, "distance_db": stated}).encode()
        assert "how far int8 is" in refusal("verify", changed(bundle, tmp_path, "golden/index.json", data))
        shutil.rmtree(tmp_path / "copy")


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
    succeed(*command, "--precision", "fp16", "--board", "raspberry-pi-4", "-o", tmp_path / "out")
    facts = manifest(tmp_path / "out")
    assert facts["choice"]["variant"] == "fp16" and facts["session"]["model"] == "fp16.onnx"
    assert "converts float16 to float32" in facts["choice"]["reason"], "it has no float16 arithmetic"
    assert facts["ledger"]["stages"][-1]["stage"] == "int8 as S8S8"


def test_no_graph_is_newer_than_the_boards_onnx_runtime_reads():
    body = "y = Conv(images, w) head = LeakyRelu<alpha=0.1>(y)"
    board, text = load_mobile(BOARD), f"(float[1,3,8,8] images) => (float[1,3,8,8] head) {{ {body} }}"
    models = {opset: build(text, ARRAYS, opset=opset, scale=1 / 255) for opset in (11, 17, 21, 22)}
    given = {opset: in_opset(model, board).opset_imports[""] for opset, model in models.items()}
    assert given == {11: 13, 17: 17, 21: 21, 22: 21}
    assert in_opset(models[21], dataclasses.replace(board, max_opset=19)).opset_imports[""] == 19


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
