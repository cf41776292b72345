"""``edgeyolo eval``: scores with known answers, classes that must agree, and the published figures of a real model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from test_detect import DETECTOR, bright_square_model

from edgeyolo import assets
from edgeyolo.cli.eval import eval as command
from edgeyolo.datasets import Dataset, Sample
from edgeyolo.detector import Detector
from edgeyolo.errors import InputError
from edgeyolo.evaluate import (
    RECALLS,
    Score,
    Setting,
    match_classes,
    sample_centres,
    score_coco,
    score_darknet,
    spread,
)
from edgeyolo.postprocess import Detections

PUBLISHED = {
    "yolo-fastest-1.1": {"AP50": 0.370, "AP": 0.161},
    "yolo-fastest-1.1-xl": {"AP50": 0.451, "AP": 0.224},
}
"""Two models on the 128 val pictures as another program measured it."""
PUBLISHED_TOLERANCE = 0.003
"""JPEG decoders and the rounding of resized pixels differ by a code; on so few pictures that moves AP50 by .001."""
EXACT = 1e-6
"""Scores are means of exact ratios; the boxes are float32."""
NAMES = ("square", "other")


def sample(boxes: list[list[float]], classes: list[int] | None = None) -> Sample:
    kinds = np.array(classes or [0] * len(boxes), np.int64)
    return Sample("a", (400, 400), np.array(boxes, np.float32).reshape(-1, 4), kinds, lambda: np.zeros((1, 1, 3)))


def found(boxes: list[list[float]], scores: list[float], classes: list[int] | None = None) -> Detections:
    kinds = np.array(classes or [0] * len(boxes), np.int64)
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), kinds)


SMALL, MEDIUM, LARGE = [0, 0, 20, 20], [100, 100, 150, 150], [200, 200, 300, 300]


def test_a_perfect_detector_scores_one_everywhere():
    truth, result = [sample([SMALL, MEDIUM, LARGE])], [found([SMALL, MEDIUM, LARGE], [0.5, 0.9, 0.7])]
    values, per_class = score_coco(truth, result, NAMES)
    assert values == pytest.approx(dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl"), 1.0), abs=EXACT)
    assert [(c.name, c.boxes, c.ap) for c in per_class] == [("square", 3, pytest.approx(1))]
    values, _ = score_darknet(truth, result, NAMES)
    assert values["AP50"] == pytest.approx(1 / 2), "Darknet counts the class without objects"
    assert values["AP"] is None


def test_boxes_shifted_by_a_quarter_pass_at_three_of_ten_thresholds():
    """100 x 100 shifted by 25: IoU = 75 / 125 = .6; by 24: .613, which passes .50, .55 and .60."""
    values, _ = score_coco([sample([LARGE])], [found([[224, 200, 324, 300]], [0.9])], NAMES)
    assert values["AP"] == pytest.approx(0.3, abs=EXACT)
    assert (values["AP50"], values["AP75"]) == (pytest.approx(1), 0)
    assert values["APs"] is None and values["APl"] == pytest.approx(0.3, abs=EXACT)


def test_a_better_false_box_halves_the_precision_in_both_conventions():
    truth, result = [sample([LARGE])], [found([SMALL, LARGE], [0.9, 0.5])]
    assert score_coco(truth, result, NAMES)[0]["AP50"] == pytest.approx(0.5)
    assert score_darknet(truth, result, NAMES[:1])[0]["AP50"] == pytest.approx(0.5)


def test_darknet_lets_a_box_claim_the_object_it_overlaps_most_even_if_taken():
    """Both boxes overlap A most. COCO gives the second one B, which it overlaps enough; Darknet calls it false."""
    a, b = [0, 0, 100, 100], [0, 40, 100, 140]
    truth, result = [sample([a, b])], [found([a, [0, 15, 100, 115]], [0.9, 0.8])]
    assert score_coco(truth, result, NAMES)[0]["AP50"] == pytest.approx(1)
    assert score_darknet(truth, result, NAMES[:1])[0]["AP50"] == pytest.approx(0.5)


def test_darknet_takes_the_area_and_coco_101_points():
    """One of two objects found: the area is 1/2; of the recalls 0, .01 ... 1 COCO counts the 51 up to .5."""
    truth, result = [sample([SMALL, LARGE])], [found([LARGE], [0.9])]
    assert score_coco(truth, result, NAMES)[0]["AP50"] == pytest.approx(51 / 101)
    assert score_darknet(truth, result, NAMES[:1])[0]["AP50"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("score", [score_coco, score_darknet])
def test_precision_is_read_off_where_recall_reaches_101_points(score):
    """Found, false, found, of three objects: precision 1 up to recall 1/3, 2/3 up to 2/3, nothing beyond."""
    truth = [sample([SMALL, MEDIUM, LARGE])]
    _, (entry,) = score(truth, [found([LARGE, [0, 300, 9, 309], MEDIUM], [0.9, 0.8, 0.7])], NAMES)
    expected = np.where(RECALLS <= 1 / 3, 1, np.where(RECALLS <= 2 / 3, 2 / 3, 0))
    assert entry.precision == pytest.approx(expected, abs=EXACT)
    assert (np.diff(RECALLS) > 0).all() and (np.diff(entry.precision) <= 0).all()


def test_mean_curve_has_the_area_of_the_figure():
    truth = [sample([SMALL, LARGE, MEDIUM], [0, 1, 1])]
    result = [found([SMALL, LARGE, [0, 300, 9, 309]], [0.5, 0.9, 0.7], [0, 1, 1])]
    values, per_class = score_coco(truth, result, NAMES)
    total = Score(Setting(), "default", values, per_class, 1, 3, ())
    assert total.precision.mean() == pytest.approx(values["AP50"])
    assert len(per_class) == 2 and total.precision[-1] == pytest.approx(0.5)


def test_nothing_found_scores_zero():
    for score in (score_coco, score_darknet):
        values, per_class = score([sample([LARGE])], [found([], [])], NAMES)
        assert values["AP50"] == 0 and per_class[0].ap50 == 0


def test_centres_of_pixels_lie_at_half_integers():
    """Halving averages pairs, doubling gives quarters; corners stay what they are when sizes are equal."""
    row = np.array([[0, 40, 80, 120]], np.uint8)[:, :, None]
    assert sample_centres(row, 2, 1)[0, :, 0].tolist() == [20, 100]
    assert sample_centres(row, 8, 1)[0, :, 0].tolist() == [0, 10, 30, 50, 70, 90, 110, 120]
    assert sample_centres(row, 4, 1).tolist() == row.tolist()


def test_classes_match_by_name_or_else_by_index():
    assert match_classes(DETECTOR, DETECTOR.names[::-1]).tolist() == [1, 0]
    assert match_classes(DETECTOR, ("0",)).tolist() == [0]
    nameless = dataclasses.replace(DETECTOR, names=())
    assert match_classes(nameless, ("b", "a")).tolist() == [0, 1]


@pytest.mark.parametrize(
    "model, data", [(("cat", "dog"), ("dog", "horse")), ((), ("dog",)), ((), ("0", "1", "2")), (NAMES, ("0", "1", "2"))]
)
def test_classes_that_disagree_are_an_error_that_lists_both(model, data):
    detector: Detector = dataclasses.replace(DETECTOR, names=model)
    with pytest.raises(InputError) as error:
        match_classes(detector, data)
    for name in (*model, *data):
        assert name in str(error.value)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """The model of bright squares, and a YOLO tree with one square found exactly, one missed, and a bad label."""
    ir.save(bright_square_model(dataclasses.replace(DETECTOR, names=NAMES)), tmp_path / "model.onnx")
    for name, row in (("a", "0 .625 .375 .25 .25"), ("b", "0 .2 .2 .25 .25\n0 .5 .5 7 .1")):
        pixels = np.zeros((32, 32, 3), np.uint8)
        pixels[8:16, 16:24] = 255 if name == "a" else 0
        for folder in ("images", "labels"):
            (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"images/{name}.png")
        (tmp_path / f"labels/{name}.txt").write_text(row, "utf-8")
    return tmp_path


def invoke(folder: Path, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(folder / "model.onnx"), "--data", str(folder), *map(str, arguments)])


def test_json_has_the_figures_and_everything_they_rest_on(labelled: Path):
    result = invoke(labelled, "--json", "--conf", "0.1", "--nms", "greedynms")
    assert result.exit_code == 0, result.exception
    document = json.loads(result.stdout)
    assert {"AP", "AP75", "APs", "APm", "APl"} <= set(document)
    assert document["AP50"] == pytest.approx(51 / 101) and document["convention"] == "coco"
    assert (document["pictures"], document["boxes"]) == (2, 2)
    assert document["per_class"]["square"]["boxes"] == 2 and "other" not in document["per_class"]
    thresholds = {"conf": 0.1, "iou": 0.45, "max_det": 100, "nms": "greedynms", "sampling": "corners", "clip": True}
    assert document["thresholds"] == thresholds
    assert document["label_problems"] == {"not from 0 to 1 (dropped)": 1}


def test_text_names_the_convention_thresholds_and_label_problems(labelled: Path):
    result = invoke(labelled, "--convention", "darknet", "--conf", "0.1", "--no-clip", "--sampling", "centres")
    assert result.exit_code == 0, result.exception
    shown = ("AP50 0.250", "Darknet's map", "score > 0.1, overlap <= 0.45 (default), at most 100", "not clipped",
             "by centres", "label problem: 1 x not from 0 to 1 (dropped)")  # fmt: skip
    for text in shown:
        assert text in result.stdout


def test_a_picture_that_does_not_decode_is_left_out_and_told(labelled: Path):
    path = labelled / "images/b.png"
    path.write_bytes(path.read_bytes()[:50])  # the header is whole, the pixels are not
    document = json.loads(invoke(labelled, "--json", "--conf", "0.1").stdout)
    assert (document["pictures"], document["boxes"], document["AP50"]) == (1, 1, pytest.approx(1))
    assert document["label_problems"]["picture does not decode (left out)"] == 1


def test_a_set_without_objects_is_an_error(labelled: Path):
    for path in (labelled / "labels").iterdir():
        path.write_text("", "utf-8")
    result = invoke(labelled, "--json")
    assert isinstance(result.exception, InputError) and result.stdout == ""
    assert "no picture shows a labelled object" in str(result.exception)


def test_a_missing_picture_is_counted(labelled: Path):
    (labelled / "list.txt").write_text("images/a.png\nimages/gone.png\n", "utf-8")
    arguments = [str(labelled / "model.onnx"), "--data", str(labelled / "list.txt"), "--json", "--conf", "0.1"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.exception
    document = json.loads(result.stdout)
    assert document["pictures"] == 1 and sum(document["label_problems"].values()) == 1
    (reason,) = document["label_problems"]
    assert "left out" in reason


def test_class_files_that_disagree_are_refused(labelled: Path):
    for text, message in (("a\nb\nc", "number of class names"), ("cat\ndog", None)):
        (labelled / "c.names").write_text(text, "utf-8")
        result = invoke(labelled, "--names", labelled / "c.names")
        if message is None:  # the set has no names of its own: they match by index
            assert result.exit_code == 0 and "cat" in result.stdout
        else:
            assert isinstance(result.exception, InputError) and message in str(result.exception)


def test_limit_spreads_evenly(labelled: Path):
    """Only the first of two pictures stays, and its object is found."""
    document = json.loads(invoke(labelled, "--json", "--conf", "0.1", "--limit", 1).stdout)
    assert (document["pictures"], document["AP50"]) == (1, pytest.approx(1))
    assert json.loads(invoke(labelled, "--json", "--limit", 99).stdout)["pictures"] == 2
    samples = [dataclasses.replace(sample([]), name=str(i)) for i in range(10)]
    assert [s.name for s in spread(Dataset(NAMES, samples), 4).samples] == ["0", "2", "5", "7"]


def test_a_model_of_other_classes_needs_data(labelled: Path):
    pytest.importorskip("sklearn")
    result = CliRunner().invoke(command, [str(labelled / "model.onnx")])
    assert isinstance(result.exception, InputError) and result.stdout == ""
    assert "--data" in str(result.exception)


def test_weights_without_a_model_are_refused(labelled: Path):
    result = CliRunner().invoke(command, ["--weights", str(labelled / "a.weights")])
    assert isinstance(result.exception, InputError) and "MODEL" in str(result.exception)


def test_nothing_given_scores_the_default_model_on_its_own_pictures(tmp_path: Path, one_thread: None):
    pytest.importorskip("sklearn")
    more = ["--limit", "8", "--json", "--sheet", str(tmp_path / "a.html"), "--conf", "0.2"]
    result = CliRunner().invoke(command, more)
    assert result.exit_code == 0, result.exception
    document = json.loads(result.stdout)
    assert document["model"].startswith(assets.CFG.name) and document["data"].startswith(assets.DATA)
    assert document["pictures"] == 8 and document["boxes"] > 8 and document["AP50"] is not None
    named = ["--names", str(assets.NAMES), "--weights", str(assets.WEIGHTS)]
    again = CliRunner().invoke(command, [str(assets.CFG), *named, "--limit", "8", "--json", "--conf", "0.2"])
    assert json.loads(again.stdout)["AP50"] == document["AP50"], "a model of the same classes needs no --data"
    assert (tmp_path / "a.html").read_text("utf-8").count("<img") == 16


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """16 pictures of one square, half of them grey: ``model.onnx`` sees the white squares, ``other.onnx`` all."""
    for name, bias, kind in (("model", -30, "default"), ("other", -20, "greedynms")):
        model = bright_square_model(dataclasses.replace(DETECTOR, names=NAMES, nms_kind=kind))
        values = np.array([0, 0, 0, 0, bias, 4, -9], np.float32)
        model.graph.initializers["bias"].const_value = ir.tensor(values, name="bias")
        ir.save(model, tmp_path / f"{name}.onnx")
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for i in range(16):
        pixels = np.zeros((32, 32, 3), np.uint8)
        pixels[8:16, 16:24] = 255 if i % 2 else 160
        Image.fromarray(pixels).save(tmp_path / f"images/{i}.png")
        (tmp_path / f"labels/{i}.txt").write_text("0 .625 .375 .25 .25", "utf-8")
    return tmp_path


def test_ratio_to_the_second_model_has_the_interval_of_the_draws(pair: Path):
    """Of 16 drawn pictures 4 to 12 are white, save for 1 % on either side; 4 / 16 is 26 of the recalls, .75 is 76."""
    document = json.loads(invoke(pair, "--against", pair / "other.onnx", "--conf", 0.1, "--json").stdout)
    against = document["against"]
    assert (document["AP50"], against["AP50"]) == (pytest.approx(51 / 101), pytest.approx(1))
    figures = pytest.approx({"value": 51 / 101, "low": 26 / 101, "high": 76 / 101}, abs=1e-4)  # four digits
    assert against["ratio"] == {"AP50": figures, "AP": figures, "confidence": 0.95, "resamples": 1000}
    assert against["agreement"] == {"f1": pytest.approx(2 / 3), "matched": 8, "missed": 8, "invented": 0, "conf": 0.25}
    assert (document["thresholds"]["nms"], against["nms"]) == ("default", "greedynms")


def test_table_of_two_models_says_how_sure_the_ratio_is(pair: Path):
    shown = invoke(pair, "--against", pair / "other.onnx", "--conf", "0.1").stdout
    assert shown.count("0.505 [0.257, 0.752]") == 2 and "95% interval" in shown and "1.000" in shown
    assert "F1 0.667" in shown and "the reference's own suppression: greedynms" in shown
    few = invoke(pair, "--against", pair / "other.onnx", "--conf", "0.1", "--limit", 4).stdout
    assert few.count("[-]") == 2, "four pictures say nothing"


def test_darknets_map_is_not_divided(pair: Path):
    options = ("--against", pair / "other.onnx", "--convention", "darknet")
    assert json.loads(invoke(pair, *options, "--json").stdout)["against"]["ratio"] is None
    shown = invoke(pair, *options).stdout
    assert "other.onnx" in shown and "ratio" not in shown and "interval" not in shown


def test_models_of_different_classes_are_not_compared(pair: Path):
    model = bright_square_model(dataclasses.replace(DETECTOR, names=("cat", "dog")))
    ir.save(model, pair / "animals.onnx")
    result = invoke(pair, "--against", pair / "animals.onnx")
    assert isinstance(result.exception, InputError) and result.stdout == ""
    assert "cat, dog" in str(result.exception) and "square, other" in str(result.exception)


def test_the_missing_library_is_named_with_its_extra_before_any_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"edgeyolo\[eval\]"):
        score_coco([sample([LARGE])], [found([LARGE], [1.0])], NAMES)
    result = CliRunner().invoke(command, ["--limit", "1"])
    assert isinstance(result.exception, InputError) and "edgeyolo[eval]" in str(result.exception)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """So small a net gains nothing from a second thread, and waits for it for long on a busy machine."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures_of_a_real_model(data: Path, one_thread: None, name: str):
    """Plain resize as OpenCV does, plain IoU suppression and boxes that are not clipped reproduce them."""
    cfg, weights = (data / "models" / name / f"{name}.{suffix}" for suffix in ("cfg", "weights"))
    setting = ("--sampling", "centres", "--nms", "default", "--no-clip", "--json")
    arguments = (cfg, "--weights", weights, "--data", data / "coco128/val", "--names", data / "models/coco.names")
    result = CliRunner().invoke(command, [str(a) for a in (*arguments, *setting)])
    assert result.exit_code == 0, result.exception
    document = json.loads(result.stdout)
    expected = PUBLISHED[name]
    assert {k: document[k] for k in expected} == pytest.approx(expected, abs=PUBLISHED_TOLERANCE)
    assert (document["pictures"], document["boxes"], len(document["per_class"])) == (128, 898, 73)
