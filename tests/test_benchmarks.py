"""The programs in benchmarks/: what they write reads back, what they show is what was measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_bench_records import record

from edgeyolo.bench.record import append_records

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _programs(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)


def rows() -> list:
    ratio = {"value": 0.5, "low": 0.4, "high": 0.6}
    slow = {"value": 2.0, "low": 1.9, "high": 2.1}
    name = "yolo-fastest-1.1"
    return [
        record("old", model=f"{name}.onnx", run="r0"),
        record("a", model=f"{name}.onnx"),
        record("b", 0.5, model=f"{name}.onnx", backend="openvino", ratio=ratio),
        record("c", 2.0, model=f"{name}-fpga8", backend="engine", ratio=slow),
        record("m", 0.4, model=f"{name}-mobile8/int8.onnx", ratio=ratio),
        record("d", model=f"{name}.tflite", backend="litert", status="failed", reason="no | such\nthing", ms={}),
        record("e", model="digits.onnx", run="r2"),
    ]


def test_tables_show_the_last_run_and_say_who_is_faster():
    import readme_table

    found = readme_table.latest(rows())
    assert [r.contender for r in found] == ["a", "b", "c", "m", "d", "e"]
    table = readme_table.latency_table(found)
    lines = table.splitlines()
    assert lines[2].startswith("| yolo-fastest-1.1 | float32 | ONNX Runtime | 1 | 2.00 |")
    assert "| OpenVINO | 1 | 1.00 |" in lines[3] and "0.50 [0.40, 0.60]" in lines[3]
    assert "8 bits, ours for fpga | our C99 engine" in lines[4] and "failed: no \\| such" in lines[6]
    assert "| 8 bits, ours for mobile | ONNX Runtime |" in lines[5]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines[:8]}) == 1
    assert "Score > 0.25" in lines[-1] and "2026-01-01" in lines[-1]
    said = readme_table.losses(found)
    assert "    - ONNX Runtime (float32) takes longer than OpenVINO (float32) 2.00 [2.00, 2.00]\n" in said
    engine = next(line for line in said.splitlines() if "our C99 engine" in line)
    assert "takes longer than" in engine and "ONNX Runtime (float32) 2.00 [2.00, 2.00]" in engine
    assert "OpenVINO (float32) 4.00 [4.00, 4.00]" in said


def test_documents_change_between_the_markers_only(tmp_path):
    import readme_table

    append_records(tmp_path / "latency.jsonl", rows())
    append_records(tmp_path / "readme.jsonl", rows())
    export = {
        "model": "m",
        "step": "s",
        "status": "ok",
        "seconds": 1.25,
        "cpu_seconds": 1.5,
        "peak_bytes": 1 << 21,
        "bytes": 7,
        "limit": 4,
    }
    (tmp_path / "exports.jsonl").write_text(json.dumps(export) + "\n" + json.dumps({**export, "seconds": 2.5}) + "\n")
    blank = "{0}\n<!-- {1}:begin -->old<!-- {1}:end -->\n"
    own = "".join(blank.format(n, n) for n in ("latency", "exports", "darknet"))
    readme, own = readme_table.documents(tmp_path, "before " + blank.format("x", "benchmark") + "after", own)
    assert readme.startswith("before x\n<!-- benchmark:begin -->\n| model") and readme.endswith("end -->\nafter")
    assert "digits" in readme and "digits" in own and "LiteRT" in own
    assert "| m | s | 2.5 | 1.5 | 2 | 7 | 4 |" in own and "1.2 |" not in own and "old" not in own
    assert readme_table.documents(tmp_path, readme, own) == (readme, own)
    with pytest.raises(ValueError, match="benchmark:begin"):
        readme_table.documents(tmp_path, "no markers", own)


def test_the_tables_in_the_documents_are_those_of_the_results():
    if not (FOLDER / "results" / "latency.jsonl").is_file():
        pytest.skip("there are no results yet")
    command = [sys.executable, str(FOLDER / "readme_table.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["yolov3-tiny-shaped", "yolov3-shaped"])
def test_shaped_networks_have_the_published_layers(name, tmp_path):
    import shaped

    from edgeyolo.frontend.darknet import describe_darknet

    cfg = tmp_path / "net.cfg"
    cfg.write_text(shaped.SHAPES[name](416, 80))
    described = describe_darknet(cfg)
    layers, macs, params, heads = {
        "yolov3-tiny-shaped": (24, 2_782_480_896, 8_849_182, [32, 16]),
        "yolov3-shaped": (107, 32_932_037_632, None, [32, 16, 8]),
    }[name]
    assert len(described.layers) == layers and sum(layer.macs for layer in described.layers) == macs
    assert params is None or sum(layer.params for layer in described.layers) == params
    assert [head.stride[0] for head in described.detector.heads] == heads


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A tiny network of shaped.py, for two classes and 64 pixels."""
    import shaped

    monkeypatch.setitem(shaped.SHAPES, "small", small_cfg)
    return shaped.write("small", tmp_path, 64, 2)[0]


def small_cfg(size: int, classes: int) -> str:
    import shaped

    cfg = shaped.Cfg(size, classes, 6)
    beside = cfg.conv(8, 3, 4)
    neck = cfg.conv(8, 3, 2)
    cfg.head(3, 4, 5)
    cfg.rise(neck, 8, beside)
    cfg.head(0, 1, 2)
    return "\n".join(cfg.sections)


def test_shaped_weights_give_some_boxes_and_many_above_a_low_score(small):
    import shaped
    import torch

    from edgeyolo.frontend.darknet import load_darknet
    from edgeyolo.postprocess import decode

    model = load_darknet(small, small.with_suffix(".weights"))
    with torch.no_grad():
        heads = [head.numpy() for head in model.module(torch.from_numpy(shaped.noise(64, 64)))]
    counts = [
        sum(len(decode([h[i] for h in heads], model.detector, conf)[1]) for i in range(shaped.PICTURES))
        for conf in (0.25, 0.001)
    ]
    assert abs(counts[0] - shaped.CANDIDATES * shaped.PICTURES) <= 1 and counts[1] > 2 * counts[0]


def test_darknet_agrees_with_us_and_is_refused_where_it_does_not(small, tmp_path, monkeypatch):
    import darknet
    from tiny_models import succeed, write_pictures

    assert np.allclose(darknet.activated(np.zeros((1, 6, 1), np.float32)), [0.5, 0.5, 0, 0, 0.5, 0.5])
    assert "cannot run this model" in darknet.sentence({"model": "m", "status": "wrong", "apart": 1.0})
    assert "cannot run this model" in darknet.sentence({"model": "m", "status": "ended"})
    if not darknet.LIBRARY.is_file():
        pytest.skip("Debian's darknet is not installed")
    write_pictures(tmp_path / "pictures", 2)
    words = (
        "export",
        small,
        "--weights",
        small.with_suffix(".weights"),
        "--bn-eps",
        "pjreddie",
        "--target",
        "onnx",
        "-o",
    )
    monkeypatch.setattr(darknet, "export", lambda cfg, output: succeed(*words, output))  # a process costs seconds
    found = darknet.measure(small, tmp_path / "pictures", 2)
    assert found["status"] == "ok" and found["apart"] < 1e-4 and found["darknet_ms"] > 0 and found["rounds"] == 2
    small.write_text(small.read_text().replace("activation=leaky", "activation=mish", 1))
    assert darknet.measure(small, tmp_path / "pictures", 2)["status"] in ("wrong", "ended")


def test_peers_measure_an_export_and_run_what_came_out(small, tmp_path):
    import peers
    from tiny_models import succeed, write_pictures

    from edgeyolo.bench.harness import Plan, measure
    from edgeyolo.progress import Log

    write_pictures(tmp_path / "pictures", 2)
    options = peers.Options(
        str(tmp_path / "pictures"), tmp_path / "pictures", tmp_path, 2, [1], Plan(0, 1, 0), sys.executable, ["exports"]
    )
    steps = {export.step: export for export in peers.exports(small, options)}
    assert {"edgeyolo onnx", "edgeyolo fpga, 8 bits", "ORT quantize_static, 8 bits", "litert-torch"} <= set(steps)
    code = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_bytes(bytearray(1 << 26)); sys.exit('no such thing')"
    made = peers.make(peers.Export("s", ".bin", [sys.executable, "-c", code]), small.stem, tmp_path)
    assert (
        (made["status"], made["reason"]) == ("failed", "no such thing")
        and made["bytes"] == 1 << 26 < made["peak_bytes"]
        and made["seconds"] > 0
        and made["cpu_seconds"] > 0
    )
    succeed(*steps["edgeyolo onnx"].command[3:], tmp_path / "small.onnx")
    found = [c for c in peers.contenders(small.stem, options) if c.backend == "ort"]
    assert [c.setting.conf for c in found] == [0.25, 0.001]
    first, low = measure(found, [*(tmp_path / "pictures").iterdir()], options.plan, Log(quiet=True))
    assert first.status == low.status == "ok" and low.candidates > first.candidates
