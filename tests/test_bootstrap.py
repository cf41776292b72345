"""Ratios of AP: the same figures as the library's on the pictures that a draw holds, and intervals that mean it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from edgeyolo import bootstrap
from edgeyolo.bootstrap import MIN_PICTURES, RESAMPLES, Ratio, average_precision, ratios, ratios_json
from edgeyolo.datasets import Sample
from edgeyolo.errors import InputError
from edgeyolo.evaluate import score_coco
from edgeyolo.postprocess import Detections

CLASSES = 7
NAMES = tuple(map(str, range(CLASSES)))
SAME = 1e-12
"""Both are means of the same float64 quotients, added up in another order."""
HOLDS = 0.8
"""Of repeated experiments with 40 pictures, the share whose interval holds the truth: .95 were there many pictures."""

Set = tuple[list[Sample], list[Detections]]


def picture(boxes: npt.NDArray[np.float32], classes: npt.NDArray[np.int64]) -> Sample:
    return Sample("a", (400, 400), boxes, classes, lambda: np.zeros((1, 1, 3), np.uint8))


def random_set(seed: int, pictures: int, noise: float = 8.0) -> Set:
    """Pictures of up to 6 objects, some of none, and twice as many detections near them, most of the right class."""
    rng = np.random.default_rng(seed)
    samples, found = [], []
    for _ in range(pictures):
        n = int(rng.integers(0, 7))
        corner, size = rng.uniform(0, 200, (n, 2)), rng.uniform(20, 150, (n, 2))
        boxes, classes = np.hstack([corner, corner + size]), rng.integers(0, CLASSES - 1, n)
        near = np.vstack([boxes, boxes]) + rng.normal(0, noise, (2 * n, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        kinds = np.where(rng.random(2 * n) < 0.7, np.tile(classes, 2), rng.integers(0, CLASSES, 2 * n))
        samples.append(picture(boxes.astype(np.float32), classes))
        scores = 0.3 * (kinds == np.tile(classes, 2)) + 0.7 * rng.random(2 * n)
        found.append(Detections(near.astype(np.float32), scores.astype(np.float32), kinds))
    return samples, found


def degraded(found: list[Detections], noise: float, seed: int = 1) -> list[Detections]:
    """Another model that sees the same with other scores."""
    rng = np.random.default_rng(seed)
    scores = [np.clip(d.scores + rng.normal(0, noise, len(d)), 0, 1).astype(np.float32) for d in found]
    return [Detections(d.boxes, s, d.classes) for d, s in zip(found, scores, strict=True)]


def library(samples: list[Sample], found: list[Detections]) -> list[float]:
    values, _ = score_coco(samples, found, NAMES)
    return [float("nan") if values[name] is None else float(values[name] or 0) for name in ("AP50", "AP")]


@pytest.mark.parametrize("seed", range(4))
def test_every_picture_once_is_what_the_library_says(seed: int) -> None:
    samples, found = random_set(seed, 30)
    got = average_precision(samples, found, np.ones((1, 30), np.int64))
    assert [got["AP50"][0], got["AP"][0]] == pytest.approx(library(samples, found), abs=SAME)
    assert 0.05 < got["AP"][0] < got["AP50"][0] < 0.95, "a set that could go wrong"


def test_weights_are_what_the_library_says_of_a_list_that_repeats_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of draws too, of which the last is short."""
    monkeypatch.setattr(bootstrap, "BLOCK", 3)
    samples, found = random_set(9, 12)
    draws = np.random.default_rng(0).integers(0, 12, (10, 12))
    draws[0] = next(i for i, sample in enumerate(samples) if len(sample.boxes))  # most classes do not occur
    got = average_precision(samples, found, np.array([np.bincount(draw, minlength=12) for draw in draws]))
    for row, draw in enumerate(np.sort(draws)):
        expected = library([samples[i] for i in draw], [found[i] for i in draw])
        assert [got["AP50"][row], got["AP"][row]] == pytest.approx(expected, abs=SAME)


def test_equal_scores_and_equal_overlaps_are_settled_as_the_library_does() -> None:
    """Boxes and objects in a row of steps that overlap by exactly .5, with two scores: every box has equals."""
    rng = np.random.default_rng(3)
    samples, found = [], []
    for _ in range(20):
        boxes, near = (rng.integers(0, 12, (8, 1)) * [10, 0, 10, 0] + [0, 0, 30, 30] for _ in range(2))
        samples.append(picture(boxes.astype(np.float32), np.zeros(8, np.int64)))
        scores = rng.choice(np.array([0.25, 0.5], np.float32), 8)
        found.append(Detections(near.astype(np.float32), scores, np.zeros(8, np.int64)))
    got = average_precision(samples, found, np.ones((1, 20), np.int64))
    assert [got["AP50"][0], got["AP"][0]] == pytest.approx(library(samples, found), abs=SAME)


def test_a_draw_that_shows_no_object_has_no_score() -> None:
    samples, found = random_set(0, 3)
    samples[1] = picture(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    got = average_precision(samples, found, np.array([[0, 3, 0], [1, 1, 1]]))
    assert np.isnan(got["AP50"]).tolist() == np.isnan(got["AP"]).tolist() == [True, False]


def test_a_model_against_itself_is_one_without_any_doubt() -> None:
    """Both meet the same draws: what a draw does to one it does to the other."""
    samples, found = random_set(2, 20)
    assert ratios(samples, found, found) == dict.fromkeys(("AP50", "AP"), Ratio(1.0, 1.0, 1.0))


def test_the_value_is_the_quotient_of_the_librarys_figures_and_lies_in_its_interval() -> None:
    samples, reference = random_set(4, 40)
    other = degraded(reference, 0.3)
    found = ratios(samples, reference, other)
    above, below = library(samples, other), library(samples, reference)
    assert [ratio.value for ratio in found.values()] == pytest.approx([above[0] / below[0], above[1] / below[1]])
    for ratio in found.values():
        assert ratio.low is not None and ratio.high is not None and ratio.value is not None
        assert ratio.low < ratio.value < ratio.high and ratio.value < 1
    assert ratios(samples, reference, other) == found, "the same input gives the same draws"
    swapped = ratios(samples, other, reference)["AP50"]
    assert swapped.value == pytest.approx(1 / (found["AP50"].value or 0)) and (swapped.low or 0) < (swapped.high or 0)


def test_the_ends_are_the_quantiles_of_the_draws() -> None:
    base, value = np.full(1 + RESAMPLES, 0.5), np.append(0.25, np.linspace(0, 0.5, RESAMPLES))
    ratio = bootstrap._ratio(base, value, MIN_PICTURES)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.5, 0.025, 0.975))


def test_more_pictures_narrow_the_interval() -> None:
    widths = []
    for pictures in (20, 200):
        samples, reference = random_set(6, pictures)
        ratio = ratios(samples, reference, degraded(reference, 0.3))["AP50"]
        widths.append((ratio.high or 0) - (ratio.low or 0))
    assert 0 < widths[1] < widths[0] / 2, "by the root of ten"


def test_intervals_of_repeated_experiments_hold_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """The truth is what a set of 1000 pictures says; each experiment sees 40 others."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 200)
    samples, reference = random_set(100, 1000)
    truth = library(samples, degraded(reference, 0.2))[0] / library(samples, reference)[0]
    held = 0
    for seed in range(20):
        samples, reference = random_set(200 + seed, 40)
        ratio = ratios(samples, reference, degraded(reference, 0.2, seed))["AP50"]
        held += (ratio.low or 0) <= truth <= (ratio.high or 0)
    assert held / 20 >= HOLDS


def test_too_few_pictures_have_a_value_but_no_interval() -> None:
    samples, reference = random_set(1, 1)  # every draw of copies of it has a score
    few, same = MIN_PICTURES - 1, samples * MIN_PICTURES
    assert ratios(same, reference * MIN_PICTURES, reference * MIN_PICTURES)["AP50"].low == 1
    found = ratios(same[:few], reference * few, degraded(reference * few, 0.3))["AP50"]
    assert found.value is not None and found.low is None and found.high is None
    assert str(found) == f"{found.value:.3f} [-]"


def test_a_reference_that_finds_something_in_one_picture_only_has_no_interval() -> None:
    """One draw in three does not hold that picture, and leaves nothing to divide by."""
    samples, found = random_set(4, 8)
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    reference = [nothing, *[nothing] * 6, found[7]]
    ratio = ratios(samples, reference, found)["AP50"]
    assert ratio.value is not None and ratio.value > 1 and ratio.low is None
    blind = ratios(samples, [nothing] * 8, found)["AP50"]
    assert blind == Ratio(None, None, None) and str(blind) == "-"


def test_json_is_rounded_and_says_what_the_interval_is() -> None:
    document = ratios_json({"AP50": Ratio(0.87654321, 0.8, None)})
    figures = {"value": 0.8765, "low": 0.8, "high": None}
    assert document == {"AP50": figures, "confidence": 0.95, "resamples": RESAMPLES}
    assert ratios_json({}) is None


def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    samples, found = random_set(0, 3)
    with pytest.raises(InputError, match=r"edgeyolo\[eval\]"):
        ratios(samples, found, found)
