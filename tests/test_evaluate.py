"""``edgeyolo eval``: scores with known answers, classes that must agree, and the published figures of a real model."""

from __future__ import annotations

import builtins
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

from edgeyolo.cli.eval import eval as command
from edgeyolo.datasets import Sample
from edgeyolo.detector import Detector
from edgeyolo.errors import InputError
from edgeyolo.evaluate import match_classes, sample_centres, score_coco, score_darknet
from edgeyolo.postprocess import Detections

PUBLISHED = {"AP50": 0.370, "AP": 0.161}
"""yolo-fastest-1.1 on the 128 val pictures as another program measured it."""
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


def test_the_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    original = builtins.__import__

    def without(name: str, *rest: object, **named: object) -> object:
        if name == "faster_coco_eval":
            raise ImportError(name)
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"edgeyolo\[eval\]"):
        score_coco([sample([LARGE])], [found([LARGE], [1.0])], NAMES)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """So small a net gains nothing from a second thread, and waits for it for long on a busy machine."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_published_figures_of_a_real_model(data: Path, one_thread: None):
    """Plain resize as OpenCV does, plain IoU suppression and boxes that are not clipped reproduce them."""
    folder = data / "models/yolo-fastest-1.1"
    cfg, weights = folder / "yolo-fastest-1.1.cfg", folder / "yolo-fastest-1.1.weights"
    setting = ("--sampling", "centres", "--nms", "default", "--no-clip", "--json")
    arguments = (cfg, "--weights", weights, "--data", data / "coco128/val", "--names", data / "models/coco.names")
    result = CliRunner().invoke(command, [str(a) for a in (*arguments, *setting)])
    assert result.exit_code == 0, result.exception
    document = json.loads(result.stdout)
    assert {k: document[k] for k in PUBLISHED} == pytest.approx(PUBLISHED, abs=PUBLISHED_TOLERANCE)
    assert (document["pictures"], document["boxes"], len(document["per_class"])) == (128, 898, 73)
