"""``edgeyolo detect`` and the runners behind it: a small net that finds bright squares, and real weights."""

from __future__ import annotations

import builtins
import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from edgeyolo import draw, images, postprocess
from edgeyolo.cli.detect import detect
from edgeyolo.detector import METADATA_KEY, Detector, Head, Preprocess
from edgeyolo.errors import InputError
from edgeyolo.passes.decode import add_decode
from edgeyolo.runners import open_runner
from edgeyolo.runners.onnx import OnnxRunner

DOG = [("car", 0.883), ("dog", 0.649), ("cat", 0.548), ("bicycle", 0.547), ("car", 0.439), ("person", 0.329)]
"""What Darknet prints for yolo-fastest-1.1 on its dog.jpg, resized without letterbox."""
DOG_TOLERANCE = 0.01
"""Darknet resizes to floats and has another JPEG decoder; one code of noise in the picture moves these by .007."""

DETECTOR = Detector(
    "darknet",
    Preprocess(32, 32),
    (Head("head", "yolo", (8.0, 8.0), ((8.0, 8.0),), 2),),
    names=("square", "[bold]other\x1b[31m"),
)


def bright_square_model(detector: Detector | None = DETECTOR, batch: int | str = 1) -> ir.Model:
    """One convolution with stride 8: a cell's objectness is its mean brightness; its box is the cell."""
    weight = np.zeros((7, 3, 8, 8), np.float32)
    weight[4] = 40 / weight[4].size
    bias = np.array([0, 0, 0, 0, -20, 4, -9], np.float32)
    constants = [ir.val(n, const_value=ir.tensor(a, name=n)) for n, a in (("weight", weight), ("bias", bias))]
    x = ir.val("images", ir.DataType.FLOAT, [batch, 3, 32, 32])
    conv = ir.node("Conv", [x, *constants], {"strides": [8, 8]})
    head = conv.outputs[0]
    head.name, head.type, head.shape = "head", x.type, ir.Shape([batch, 7, 4, 4])
    graph = ir.Graph([x], [head], nodes=[conv], initializers=constants, opset_imports={"": 17}, name="bright")
    metadata = {} if detector is None else {METADATA_KEY: detector.to_json()}
    return ir.Model(graph, ir_version=8, metadata_props=metadata)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "bright.onnx"
    ir.save(bright_square_model(), path)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """32 x 32 with a white square in cell (row 1, column 2)."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[8:16, 16:24] = 255
    Image.fromarray(pixels).save(tmp_path / "square.png")
    return tmp_path / "square.png"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(detect, [str(a) for a in arguments])


def error(*arguments: object) -> str:
    """The message of the InputError that the command ends with."""
    result = invoke(*arguments)
    assert isinstance(result.exception, InputError), result.output
    assert result.stdout == ""
    return str(result.exception)


def test_runner_gives_raw_heads_and_detector(model: Path, picture: Path) -> None:
    runner = open_runner(model)
    assert runner.detector == DETECTOR
    (found,) = images.iter_images([picture], DETECTOR.preprocess)
    runner.set_inputs(found.pixels)
    runner.infer()
    (head,) = runner.outputs()
    assert head.shape == (7, 4, 4) and head.dtype == np.float32
    expected = np.full((4, 4), -20.0)
    expected[1, 2] = 20
    np.testing.assert_allclose(head[4], expected, atol=1e-4)


@pytest.mark.parametrize("batch", [1, "N"])
def test_runner_takes_bytes_float_inputs_and_dynamic_batches(batch: int | str) -> None:
    runner = OnnxRunner(optimise=False, threads=1)
    runner.load(ir.to_proto(bright_square_model(None, batch)).SerializeToString())
    assert runner.detector is None
    with pytest.raises(InputError, match="scale"):
        runner.set_inputs(np.zeros((3, 32, 32), np.uint8))
    runner.set_inputs(np.ones((3, 32, 32), np.float32))
    runner.infer()
    assert runner.outputs()[0][4] == pytest.approx(20, abs=1e-4)


def test_runner_refuses_wrong_inputs_and_outputs(tmp_path: Path) -> None:
    runner = OnnxRunner()
    with pytest.raises(InputError, match="no model"):
        runner.infer()
    other = dataclasses.replace(DETECTOR, heads=(dataclasses.replace(DETECTOR.heads[0], output="else"),))
    with pytest.raises(InputError, match="outputs"):
        runner.load(ir.to_proto(bright_square_model(other)).SerializeToString())
    runner.load(ir.to_proto(bright_square_model()).SerializeToString())
    runner.set_inputs(np.zeros((3, 16, 16), np.uint8))
    with pytest.raises(InputError, match="cannot run"):
        runner.infer()


def test_runner_names_the_extra_when_onnxruntime_is_missing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: object, **named: object) -> object:
        if name == "onnxruntime":
            raise ImportError(name)
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"edgeyolo\[onnx\]"):
        open_runner(model)


def test_json_is_one_document_with_boxes_thresholds_and_skipped(model: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    result = invoke(model, tmp_path, "--json", "--conf", "0.3")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["thresholds"] == {"conf": 0.3, "iou": 0.45, "max_det": 300, "nms": "default"}
    assert [Path(entry["path"]).name for entry in document["skipped"]] == ["broken.jpg"]
    (entry,) = document["pictures"]
    assert (entry["width"], entry["height"]) == (32, 32)
    (found,) = entry["detections"]
    assert (found["class"], found["class_id"]) == ("square", 0)
    assert found["box"] == pytest.approx([16, 8, 24, 16], abs=0.1)
    assert found["score"] == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-3)


def test_progress_of_many_pictures_stays_out_of_the_json(model: Path, picture: Path, tmp_path: Path) -> None:
    listing = write(tmp_path / "list.txt", "square.png\n" * 10)
    result = invoke(model, listing, "--json")
    assert len(json.loads(result.stdout)["pictures"]) == 10


def test_table_counts_and_thresholds_are_printed(model: Path, picture: Path) -> None:
    result = invoke(model, picture)
    assert result.exit_code == 0, result.output
    for text in ("square.png", "0.982", "square 1", "score > 0.25", "overlap <= 0.45", "1 picture(s), 1 detection(s)"):
        assert text in result.stdout
    assert "nothing found" in invoke(model, picture, "--conf", "0.99").stdout


def test_names_from_files_are_neither_markup_nor_escape_sequences(tmp_path: Path, picture: Path) -> None:
    flipped = bright_square_model()
    flipped.graph.initializers["bias"].const_value = ir.tensor(np.array([0, 0, 0, 0, -20, -9, 4], np.float32))
    ir.save(flipped, tmp_path / "flipped.onnx")
    result = invoke(tmp_path / "flipped.onnx", picture)
    assert result.exit_code == 0, result.output
    assert "[bold]other?[31m" in result.stdout and "\x1b" not in result.stdout


def test_a_decoded_graph_detects_the_same(model: Path, picture: Path, tmp_path: Path) -> None:
    ir.save(add_decode(bright_square_model(batch="N"), DETECTOR), tmp_path / "decoded.onnx")
    raw, decoded = (json.loads(invoke(path, picture, "--json").stdout) for path in (model, tmp_path / "decoded.onnx"))
    assert raw["pictures"] == decoded["pictures"]


def test_out_writes_drawings_under_distinct_names(model: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/square.png").write_bytes(picture.read_bytes())
    result = invoke(model, picture, tmp_path / "sub", "--out", tmp_path / "drawn")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "drawn").iterdir()) == ["square-2.jpg", "square.jpg"]
    assert images.load_image(tmp_path / "drawn/square.jpg").shape == (32, 32, 3)


def test_out_refuses_an_existing_folder_unless_forced(model: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    out.mkdir()
    (out / "mine.txt").write_text("stays", "utf-8")
    assert "exists" in error(model, picture, "--out", out)
    assert invoke(model, picture, "--out", out, "--force").exit_code == 0
    assert sorted(p.name for p in out.iterdir()) == ["mine.txt", "square.jpg"]
    assert "exists" in error(model, picture, "--out", picture, "--force")


@pytest.mark.parametrize("forced", [False, True])
def test_a_full_disk_leaves_nothing_behind(model: Path, picture: Path, tmp_path: Path, monkeypatch, forced) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "drawn"
    if forced:
        out.mkdir()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(Path, "replace", full)
    result = invoke(model, picture, "--out", out, "--force")
    assert "No space left" in str(result.exception) and isinstance(result.exception, InputError)
    assert sorted(tmp_path.rglob("*")) == before


def test_names_file_replaces_the_names(model: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "two.names").write_text("first\nsecond\n", "utf-8")
    document = json.loads(invoke(model, picture, "--json", "--names", tmp_path / "two.names").stdout)
    assert document["pictures"][0]["detections"][0]["class"] == "first"
    (tmp_path / "three.names").write_text("a\nb\nc", "utf-8")
    assert "number of class names" in error(model, picture, "--names", tmp_path / "three.names")
    assert "class names" in error(model, picture, "--names", tmp_path / "none.names")


def test_bad_models_and_runners_are_refused(model: Path, picture: Path, tmp_path: Path) -> None:
    assert "no such model" in error(tmp_path / "none.onnx", picture)
    assert "unknown kind" in error(picture, picture)
    assert "runner" in error(model, picture, "--runner", "engine")
    assert "--weights" in error(write(tmp_path / "a.cfg", "[net]"), picture)
    assert "cannot load" in error(write(tmp_path / "bad.onnx", "not an ONNX file"), picture)
    ir.save(bright_square_model(None), tmp_path / "foreign.onnx")
    assert "does not say" in error(tmp_path / "foreign.onnx", picture)
    assert "none of 1" in error(model, write(tmp_path / "bad.jpg", "x"))
    assert invoke(model, picture, "--conf", "2").exit_code == 2


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def test_drawing_marks_boxes_and_leaves_the_rest(picture: Path) -> None:
    pixels = np.full((120, 160, 3), 90, np.uint8)
    found = postprocess.Detections(
        np.array([[60, 50, 120, 90], [-5, -5, 400, 400]], np.float32),
        np.array([0.9, 0.5], np.float32),
        np.array([0, 1]),
    )
    drawn = np.array(draw.draw_detections(pixels, found, DETECTOR))
    assert (pixels == 90).all()
    assert tuple(drawn[60, 60]) == draw.class_colour(0) and tuple(drawn[60, 0]) == draw.class_colour(1)
    assert (drawn[75, 80:110] == 90).all()
    assert len({draw.class_colour(i) for i in range(80)}) == 80
    nothing = postprocess.Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    assert (np.array(draw.draw_detections(pixels, nothing, DETECTOR)) != 90).any()


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3)])
def test_drawing_survives_tiny_pictures(size: tuple[int, int]) -> None:
    found = postprocess.Detections(np.array([[0, 0, *size]], np.float32), np.ones(1, np.float32), np.zeros(1, int))
    assert draw.draw_detections(np.zeros((size[1], size[0], 3), np.uint8), found, DETECTOR).size == size


def test_classifiers_print_their_best_classes(picture: Path, tmp_path: Path) -> None:
    facts = Detector("darknet", Preprocess(32, 32), (Head("head", "classifier", classes=7, softmax=True),))
    classifier = bright_square_model(facts)
    pool = ir.node("GlobalMaxPool", [classifier.graph.outputs[0]])
    classifier.graph.append(pool)
    classifier.graph.outputs[0].name, pool.outputs[0].name = "conv", "head"
    pool.outputs[0].type, pool.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, 7, 1, 1])
    classifier.graph.outputs[:] = pool.outputs
    ir.save(classifier, tmp_path / "classifier.onnx")
    result = invoke(tmp_path / "classifier.onnx", picture, "--json", "--out", tmp_path / "drawn")
    assert result.exit_code == 0, result.exception
    classes = json.loads(result.stdout)["pictures"][0]["classes"]
    assert [entry["class_id"] for entry in classes][:2] == [4, 5] and len(classes) == postprocess.TOP_K
    assert (tmp_path / "drawn/square.jpg").is_file()


def test_dog_scores_as_in_darknet(data: Path) -> None:
    """The whole way from the JPEG file to the scores, on real weights."""
    pytest.importorskip("torch")
    folder = data / "models/yolo-fastest-1.1"
    cfg, weights = folder / "yolo-fastest-1.1.cfg", folder / "yolo-fastest-1.1.weights"
    names = data / "models/coco.names"
    result = invoke(cfg, data / "pictures/dog.jpg", "--weights", weights, "--names", names, "--json")
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)["pictures"][0]["detections"]
    for name, score in DOG:
        match = min(found, key=lambda entry: (entry["class"] != name, abs(entry["score"] - score)))
        assert match["class"] == name and match["score"] == pytest.approx(score, abs=DOG_TOLERANCE)
        found.remove(match)
