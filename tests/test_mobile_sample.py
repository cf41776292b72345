"""The sample of a mobile bundle prints what ``edgeyolo detect`` finds, from the bundle's files alone."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from edgeyolo.detector import METADATA_KEY, Detector, Head, Preprocess
from edgeyolo.export.ort_files import ort_files
from edgeyolo.images import iter_images
from edgeyolo.mobile import SAMPLE, load_mobile, sample_file, session_facts
from edgeyolo.postprocess import detect
from edgeyolo.runners.onnx import OnnxRunner

MODEL = "fp32.onnx"
CLASSES = 3
STRIDES = 8, 16
EXIF_ORIENTATION = 0x0112


def facts(**changes: object) -> Detector:
    """Two heads over 64 x 48 pixels, with every number different from its default."""
    head = {name: changes.pop(name) for name in ("new_coords", "kind") if name in changes}
    anchors = ((20.0, 11.0), (9.0, 30.0))
    heads = tuple(
        Head(f"head{s}", **{"kind": "yolo", **head}, stride=(s, s), anchors=anchors, classes=CLASSES, scale_x_y=1.1)  # type: ignore[arg-type]
        for s in STRIDES
    )
    pre = {name: changes.pop(name) for name in ("channels", "resize") if name in changes}
    preprocess = Preprocess(64, 48, fill=90, scale=1 / 256, **pre)  # type: ignore[arg-type]
    return dataclasses.replace(Detector("darknet", preprocess, heads, ("cat", "traffic light", "dog")), **changes)  # type: ignore[arg-type]


def network(detector: Detector) -> bytes:
    """A convolution for each head, random, with enough above the threshold that boxes overlap."""
    random, channels = np.random.default_rng(5), detector.preprocess.channels
    nodes, arrays, outputs = [], [], []
    for head in detector.heads:
        stride, rows = int(head.stride[0]), len(head.anchors) * (5 + CLASSES)
        weight = random.normal(0, 0.2, (rows, channels, stride, stride)).astype(np.float32)
        bias = np.tile([0, 0, 0, 0, 0.8] + [0.6] * CLASSES, len(head.anchors)).astype(np.float32)
        arrays += [numpy_helper.from_array(weight, f"w{stride}"), numpy_helper.from_array(bias, f"b{stride}")]
        conv = f"conv{stride}" if head.new_coords else head.output
        nodes.append(helper.make_node("Conv", ["images", f"w{stride}", f"b{stride}"], [conv], strides=[stride] * 2))
        if head.new_coords:  # such networks have the sigmoid in front of the head
            nodes.append(helper.make_node("Sigmoid", [conv], [head.output]))
        outputs.append(helper.make_tensor_value_info(head.output, 1, [1, rows, 48 // stride, 64 // stride]))
    images = helper.make_tensor_value_info("images", 1, [1, channels, 48, 64])
    graph = helper.make_graph(nodes, "g", [images], outputs, arrays)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(proto, {METADATA_KEY: detector.to_json()})
    return bytes(proto.SerializeToString())


def bundle(folder: Path, detector: Detector) -> Path:
    """What a mobile bundle has, as far as the sample reads it."""
    (folder / MODEL).write_bytes(network(detector))
    (folder / SAMPLE).write_bytes(sample_file())
    session = {"model": MODEL, **session_facts(load_mobile("raspberry-pi-4"))}
    (folder / "manifest.json").write_text(json.dumps({"session": session}), "utf-8")
    return folder


def picture(path: Path, *, orientation: int = 1) -> Path:
    """Blurred noise, wider than the network's input, lossless."""
    small = np.random.default_rng(2).integers(0, 256, (12, 23, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    Image.fromarray(small).resize((150, 77)).save(path, exif=exif)
    return path


def expected(folder: Path, path: Path) -> list[str]:
    """The lines that the tool's own way gives, as ``edgeyolo detect`` goes it."""
    runner = OnnxRunner()
    runner.load(folder / MODEL)
    assert runner.detector is not None
    (image,) = iter_images([path], runner.detector.preprocess)
    runner.set_inputs(image.pixels)
    runner.infer()
    found = detect(runner.outputs(), runner.detector, image.size)
    rows = zip(found.classes.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    return [f"{runner.detector.class_name(c)} {s:.4f} " + " ".join(f"{v:.1f}" for v in box) for c, s, box in rows]


def printed(folder: Path, path: Path, capsys: pytest.CaptureFixture[str], *model: str) -> list[str]:
    """What the sample prints; from its copy in the bundle."""
    spec = importlib.util.spec_from_file_location("copied_sample", folder / SAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(str(path), *model)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resize": "letterbox"},
        {"resize": "letterbox", "channels": 1, "nms_kind": "greedynms"},
        {"nms_kind": "diounms", "beta_nms": 0.4},
        {"nms_kind": "diounms", "beta_nms": 0.0},
        {"new_coords": True, "names": ()},
    ],
    ids=str,
)
def test_it_prints_what_detect_finds(
    changes: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path = bundle(tmp_path, facts(**changes)), picture(tmp_path / "wide.png")
    lines = expected(folder, path)
    assert len(lines) > 5
    assert printed(folder, path, capsys) == lines


def test_it_turns_a_picture_as_its_camera_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = bundle(tmp_path, facts(resize="letterbox"))
    path = picture(tmp_path / "tall.png", orientation=6)
    lines = expected(folder, path)
    assert lines != expected(folder, picture(tmp_path / "wide.png"))
    assert printed(folder, path, capsys) == lines


def test_an_ort_file_beside_it_prints_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, path = bundle(tmp_path, facts()), picture(tmp_path / "a.png")
    data = ort_files({"fp32": (folder / MODEL).read_bytes()}, load_mobile())["fp32.ort"]
    (folder / "fp32.ort").write_bytes(data)
    assert printed(folder, path, capsys, "fp32.ort") == expected(folder, path)


def test_it_says_what_it_runs_on_and_takes_all_cores_where_the_boards_provider_is_absent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path = bundle(tmp_path, facts()), picture(tmp_path / "a.png")
    for absent, threads in (([], "4"), ([["NoSuchExecutionProvider", {}]], "all")):
        session = {"model": MODEL, **session_facts(load_mobile("raspberry-pi-4"))}
        session["providers"] = [*absent, *session["providers"]]
        (folder / "manifest.json").write_text(json.dumps({"session": session}), "utf-8")
        spoken = subprocess.run([sys.executable, SAMPLE, path], cwd=folder, capture_output=True, text=True, check=True)
        assert f"CPUExecutionProvider, {threads} thread(s)\n" in spoken.stderr
        assert spoken.stdout.splitlines() == expected(folder, path)


def test_other_heads_are_refused_rather_than_read_wrongly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = bundle(tmp_path, facts(kind="region"))
    with pytest.raises(AssertionError, match="reads yolo heads only"):
        printed(folder, picture(tmp_path / "a.png"), capsys)


def test_it_is_short_and_needs_numpy_onnxruntime_and_pillow_only(tmp_path: Path) -> None:
    assert len(sample_file().splitlines()) < 60
    folder, path = bundle(tmp_path, facts()), picture(tmp_path / "a.png")
    command = [sys.executable, "-X", "importtime", SAMPLE, str(path)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == expected(folder, path)
    roots = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert roots >= {"numpy", "onnxruntime", "PIL"}
    assert not roots & {"edgeyolo", "onnx", "onnx_ir", "torch", "click", "rich"}
