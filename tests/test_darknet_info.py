"""``edgeyolo info`` on a cfg and on an ONNX file."""

from __future__ import annotations

import json

import onnx_ir as ir
import pytest
from click.testing import CliRunner
from darknet_families import FAMILIES, conv, net

from edgeyolo.cli.info import info
from edgeyolo.errors import InputError
from edgeyolo.frontend.darknet import load_darknet
from edgeyolo.frontend.torch_export import export_module


@pytest.fixture
def cfg(tmp_path):
    path = tmp_path / "tiny.cfg"
    path.write_text(FAMILIES["yolov4-tiny"])
    return path


def run(*arguments):
    result = CliRunner().invoke(info, [str(a) for a in arguments])
    if result.exception:
        raise result.exception
    return result.output


def test_the_table_reads_like_darknets(cfg):
    lines = run(cfg).splitlines()
    first = next(line for line in lines if line.split()[:1] == ["0"])
    assert " ".join(first.split()) == "0 convolutional 4 3x3/2 64 x 64 x 3 -> 32 x 32 x 4 112 110,592"
    route = next(line for line in lines if line.split()[:1] == ["3"])
    assert route.split()[:4] == ["3", "route", "2", "1/2"]
    head = next(line for line in lines if line.startswith("head") and "yolo_21" in line)
    assert "2 classes, stride 16x16, anchors 81,82 135,169 344,319" in head
    for word in ("parameters", "MACs", "at 32 bit", "at 8 bit", "at 4 bit", "64 x 64 RGB, stretch, pixel x 1/255"):
        assert any(word in line for line in lines), word


def test_json_adds_up(cfg):
    document = json.loads(run(cfg, "--json", "--imgsz", "96x64"))
    layers, totals = document["layers"], document["totals"]
    assert totals["parameters"] == sum(layer["params"] for layer in layers)
    assert totals["macs"] == sum(layer["macs"] for layer in layers)
    weights = totals["parameters"] - totals["biases"]
    assert totals["bytes"] == {
        "32": 4 * totals["parameters"],
        "8": weights + 4 * totals["biases"],
        "4": -(-weights // 2) + 4 * totals["biases"],
    }
    assert layers[0]["input"] == [3, 64, 96]
    assert [head["stride"] for head in document["detector"]["heads"]] == [[16, 16], [8, 8]]


def test_folded_parameters_are_what_the_module_has(cfg):
    document = json.loads(run(cfg, "--json"))
    module = load_darknet(cfg).module
    means = sum(m.running_mean.numel() for m in module.modules() if hasattr(m, "running_mean"))
    assert document["totals"]["parameters"] == sum(p.numel() for p in module.parameters()) - means


def test_an_onnx_file_is_counted_by_operator(cfg, tmp_path):
    model = load_darknet(cfg)
    path = tmp_path / "tiny.onnx"
    ir.save(export_module(model.module, model.detector), path)
    document = json.loads(run(path, "--json"))
    assert document["operators"]["Conv"] == sum(layer.kind == "convolutional" for layer in model.layers)
    assert document["inputs"] == {"images": "[1,3,64,64]"}
    kernels = sum(p.numel() for name, p in model.module.named_parameters() if name.endswith("conv.weight"))
    assert document["totals"]["parameters"] > kernels
    assert document["totals"]["bytes"] == 4 * document["totals"]["parameters"]
    text = run(path)
    assert "BatchNormalization" in text and "yolo_21" in text


def test_a_backbone_is_described_and_says_what_it_lacks(tmp_path):
    path = tmp_path / "backbone.cfg"
    path.write_text(net() + conv(4))
    assert "note" in run(path) and "neither in a detection head" in run(path)


def test_help_has_examples():
    output = run("--help")
    assert "edgeyolo info yolo-fastest-1.1.cfg" in output and "--imgsz" in output


@pytest.mark.parametrize(("name", "words"), [("x.pt", "unknown kind"), ("no.cfg", "not a file"), ("x", "unknown kind")])
def test_other_files_are_refused(name, words, tmp_path):
    with pytest.raises(InputError, match=words):
        run(tmp_path / name)


def test_imgsz_of_an_onnx_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="inside"):
        run(tmp_path / "x.onnx", "--imgsz", "64")
