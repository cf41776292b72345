"""The parts of the trainer: assignment, loss, batches, average, checkpoints, recipe."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from edgeyolo import postprocess
from edgeyolo.detector import Detector, Head, Preprocess
from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.progress import Log
from edgeyolo.train import checkpoint
from edgeyolo.train.assign import Objects, assign, shape_iou
from edgeyolo.train.ema import RAMP, Average
from edgeyolo.train.loss import _all_boxes, _cells, best_iou, box_overlap, check_trainable, detection_loss
from edgeyolo.train.metrics import COLUMNS
from edgeyolo.train.pictures import EpochBatches, Pictures, make_loader
from edgeyolo.train.recipe import Recipe
from edgeyolo.train.trainer import read_history

COARSE = Head("a", "yolo", stride=(16.0, 16.0), anchors=((30.0, 40.0), (50.0, 30.0)), classes=3, scale_x_y=1.1)
FINE = Head("b", "yolo", stride=(8.0, 8.0), anchors=((8.0, 8.0), (12.0, 20.0)), classes=3, scale_x_y=1.05)
HEADS = (COARSE, FINE)
PREPROCESS = Preprocess(width=64, height=64)
FLOAT32 = 1e-4
"""Boxes of up to 64 pixels in float32 against float64."""


def objects(*rows: tuple[int, int, float, float, float, float]) -> Objects:
    """(picture, class, x0, y0, x1, y1) each."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Objects(table[:, 0].long(), table[:, 1].long(), table[:, 2:])


def raw_heads(seed: int = 0, pictures: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(pictures, 16, side, side, generator=generator) for side in (4, 8)]


# assignment


def test_an_object_goes_to_its_cell_at_the_anchor_of_its_shape():
    # 31x39 around (24, 40): nearest anchor 30x40, cell (1, 2) of stride 16
    coarse, fine = assign(objects((1, 2, 8.5, 20.5, 39.5, 59.5)), HEADS, [(4, 4), (8, 8)], 0.9)
    assert [t.tolist() for t in (coarse.picture, coarse.anchor, coarse.row, coarse.column)] == [[1], [0], [2], [1]]
    assert not len(fine.picture)


def test_a_lower_threshold_gives_more_anchors_and_the_best_is_never_lost():
    one = objects((0, 0, 2.0, 2.0, 13.0, 19.0))
    counts = [sum(len(p.picture) for p in assign(one, HEADS, [(4, 4), (8, 8)], limit)) for limit in (1.0, 0.3, 0.0)]
    assert counts == [1, 2, 4]


def test_a_centre_on_the_far_edge_stays_inside_the_grid():
    coarse, fine = assign(objects((0, 0, 62.0, 62.0, 66.0, 66.0)), HEADS, [(4, 4), (8, 8)], 0.0)
    assert set(coarse.row.tolist()) == {3} and set(fine.column.tolist()) == {7}


def test_shape_overlap_by_hand():
    assert shape_iou(torch.tensor([[10.0, 20.0]]), torch.tensor([[20.0, 10.0]])).item() == pytest.approx(1 / 3)


def test_objects_are_padded_by_picture_whatever_their_order():
    padded = objects((2, 0, 1, 1, 2, 2), (0, 0, 3, 3, 4, 4), (2, 0, 5, 5, 6, 6)).padded(3)
    assert padded[:, :, 0].tolist() == [[3, 0], [0, 0], [1, 5]]


# loss


def test_boxes_are_decoded_as_postprocess_decodes_them():
    outputs = raw_heads(pictures=1)
    detector = Detector("test", PREPROCESS, HEADS)
    boxes, _, _ = postprocess.decode([o[0].numpy() for o in outputs], detector, 0.0)
    ours = torch.cat([_all_boxes(_cells(o, h)[..., :4], h).reshape(-1, 4) for o, h in zip(outputs, HEADS, strict=True)])
    expected = np.unique(np.round(boxes, 3), axis=0)
    got = np.unique(np.round(ours.double().numpy(), 3), axis=0)
    assert len(got) == 2 * (16 + 64) == len(expected)
    assert np.abs(np.sort(expected, 0) - np.sort(got, 0)).max() < 2e-3  # both are rounded to three digits
    assert float(ours.abs().max()) > 1


def test_overlaps_by_hand():
    a, b = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[5.0, 0, 15, 10]])
    iou, giou = box_overlap(a, b, "giou")
    assert iou.item() == pytest.approx(1 / 3) and giou.item() == pytest.approx(1 - 1 / 3)  # the hull is the union
    _, ciou = box_overlap(a, b, "ciou")
    assert ciou.item() == pytest.approx(1 - 1 / 3 + 25 / (15**2 + 10**2))  # same shape: only the distance is added
    apart = torch.tensor([[20.0, 0, 30, 10]])
    assert box_overlap(a, apart, "giou")[1].item() == pytest.approx(1 + 10 / 30)


@pytest.mark.parametrize("kind", ["ciou", "giou"])
def test_equal_boxes_cost_nothing(kind):
    box = torch.tensor([[3.0, 4, 9, 20]])
    assert box_overlap(box, box, kind)[1].item() == pytest.approx(0, abs=1e-6)


def perfect(one: Objects) -> list[torch.Tensor]:
    """Raw heads that say exactly what is there: one object of 30x40 in the middle of cell (1, 1) of the coarse head."""
    outputs = [torch.zeros(1, 16, 4, 4), torch.zeros(1, 16, 8, 8)]
    for output in outputs:
        output.view(1, 2, 8, *output.shape[2:])[:, :, 4:] = -30.0
    cell = outputs[0].view(1, 2, 8, 4, 4)[0, 0, :, 1, 1]
    cell[4], cell[5 + int(one.classes[0])] = 30.0, 30.0
    return outputs


def test_a_perfect_answer_costs_nothing_and_every_mistake_its_own_part():
    one = objects((0, 1, 9.0, 4.0, 39.0, 44.0))
    recipe = Recipe(assign_iou=0.9, iou_target=0.0)
    assert all(part.item() == pytest.approx(0, abs=1e-5) for part in detection_loss(perfect(one), HEADS, one, recipe))
    wrong = dataclasses.replace(one, classes=torch.tensor([2]))
    box, objectness, classes = detection_loss(perfect(one), HEADS, wrong, recipe)
    assert classes > 10 and objectness < 1e-5 and box < 1e-5
    moved = objects((0, 1, 12.0, 4.0, 42.0, 44.0))
    box, objectness, classes = detection_loss(perfect(one), HEADS, moved, recipe)
    assert box > 0.1 and objectness < 1e-5 and classes < 1e-5
    empty = objects()
    box, objectness, classes = detection_loss(perfect(one), HEADS, empty, recipe)
    assert objectness > 10 and box == 0 and classes == 0


def test_a_box_that_overlaps_an_object_well_is_no_negative():
    one = objects((0, 1, 9.0, 4.0, 39.0, 44.0))
    outputs = perfect(one)
    # The same box again from the other anchor, 50x30, scaled to 30x40: not responsible, but not wrong either.
    other = outputs[0].view(1, 2, 8, 4, 4)[0, 1, :, 1, 1]
    other[2], other[3], other[4] = np.log(30 / 50), np.log(40 / 30), 30.0
    strict, lenient = (
        detection_loss(outputs, HEADS, one, Recipe(assign_iou=0.9, ignore_iou=i, iou_target=0.0)).objectness
        for i in (1.0, 0.6)
    )
    assert strict > 10 and lenient < 1e-5


def test_label_smoothing_moves_the_best_answer_away_from_certainty():
    one = objects((0, 1, 9.0, 4.0, 39.0, 44.0))
    recipe = Recipe(assign_iou=0.9, iou_target=0.0, label_smoothing=0.1)
    assert detection_loss(perfect(one), HEADS, one, recipe).classification > 1


def test_the_objectness_target_follows_the_overlap():
    outputs, one = raw_heads(pictures=1), objects((0, 1, 9.0, 4.0, 39.0, 44.0))
    plain, by_iou = (detection_loss(outputs, HEADS, one, Recipe(iou_target=t)).objectness for t in (0.0, 1.0))
    assert plain != by_iou


def test_overlap_with_the_padding_is_nothing():
    boxes = torch.tensor([0.0, 0, 5, 5]).view(1, 1, 1, 1, 4)
    assert best_iou(boxes, torch.zeros(1, 3, 4)).item() == 0


def test_a_batch_without_objects_has_finite_gradients():
    outputs = [o.requires_grad_() for o in raw_heads()]
    detection_loss(outputs, HEADS, objects(), Recipe()).total.backward()
    assert all(o.grad is not None and bool(torch.isfinite(o.grad).all()) for o in outputs)


def test_descending_the_loss_finds_the_object():
    outputs = [o.requires_grad_() for o in raw_heads(pictures=1)]
    one = objects((0, 2, 9.0, 4.0, 39.0, 44.0))
    optimizer = torch.optim.Adam(outputs, lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        detection_loss(outputs, HEADS, one, Recipe()).total.backward()
        optimizer.step()
    found = postprocess.detect([o[0].detach().numpy() for o in outputs], Detector("test", PREPROCESS, HEADS), (64, 64))
    assert found.classes.tolist() == [2]
    assert np.abs(found.boxes[0] - [9, 4, 39, 44]).max() < 1


@pytest.mark.parametrize(
    "head", [dataclasses.replace(COARSE, kind="region"), dataclasses.replace(COARSE, new_coords=True)]
)
def test_other_heads_are_refused(head):
    with pytest.raises(UnsupportedError, match="yolo"):
        check_trainable([FINE, head])


# batches


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    from edgeyolo.datasets import load_dataset

    dataset = load_dataset("scenes:train:20")
    return Pictures.load(dataset.samples, np.arange(10), PREPROCESS, Log(quiet=True), [])


def test_pictures_and_boxes_are_resized_together(pictures):
    from edgeyolo.datasets import load_dataset

    sample, labelled = load_dataset("scenes:train:20").samples[0], pictures[0]
    assert labelled.pixels.shape == (64, 64, 3)
    assert np.abs(labelled.boxes - sample.boxes * 0.4).max() < FLOAT32
    letterbox = Preprocess(width=64, height=128, resize="letterbox")
    other = Pictures([sample], np.arange(10), letterbox)[0]
    assert np.abs(other.boxes - (sample.boxes * 0.4 + [0, 32, 0, 32])).max() < FLOAT32


def test_two_devices_see_what_one_sees():
    recipe = Recipe(batch=6)
    one = list(EpochBatches(20, recipe, 0, 1))
    halves = zip(*(EpochBatches(20, recipe, rank, 2) for rank in (0, 1)), strict=True)
    assert [sorted(a + b) for a, b in halves] == [sorted(batch) for batch in one]
    assert len(one) == 3 and len({index for batch in one for *_, index in batch}) == 18


def test_every_epoch_has_its_own_order():
    batches = EpochBatches(20, Recipe(batch=20), 0, 1)
    first = next(iter(batches))
    batches.epoch = 1
    assert next(iter(batches)) != first
    batches.epoch = 0
    assert next(iter(batches)) == first


def test_workers_change_nothing(pictures):
    recipe = Recipe(batch=5, mosaic=0.5)
    runs = [list(make_loader(pictures, recipe, EpochBatches(20, recipe, 0, 1), workers)) for workers in (0, 2)]
    for (pixels, found), (again, same) in zip(*runs, strict=True):
        assert torch.equal(pixels, again) and torch.equal(found.boxes, same.boxes)
        assert pixels.shape == (5, 3, 64, 64) and int(found.picture.max()) < 5


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(InputError, match="devices"):
        EpochBatches(20, Recipe(batch=5), 0, 2)
    assert len(EpochBatches(3, Recipe(batch=64), 0, 1)) == 1


def test_pictures_that_do_not_decode_are_counted(tmp_path):
    from edgeyolo.datasets import load_dataset

    samples = list(load_dataset("scenes:train:3").samples)

    def broken():
        raise InputError("cannot decode the picture", got="truncated")

    problems = []
    samples[1] = dataclasses.replace(samples[1], load=broken)
    assert len(Pictures.load(samples, np.arange(10), PREPROCESS, Log(quiet=True), problems)) == 2
    assert [p.action for p in problems] == ["left out"]
    with pytest.raises(InputError, match="nothing to learn"):
        Pictures.load([samples[1]], np.arange(10), PREPROCESS, Log(quiet=True), problems)


# average, checkpoints, recipe


def test_the_average_follows_its_formula():
    module = nn.BatchNorm2d(2)
    average = Average(module, 0.9)
    with torch.no_grad():
        module.weight.fill_(3.0)
        module.num_batches_tracked.fill_(7)
    average.update(module, 0)
    share = 1 - 0.9 * (1 - np.exp(-1 / RAMP))
    assert average.module.weight.tolist() == pytest.approx([1 + 2 * share] * 2)
    assert int(average.module.num_batches_tracked) == 7 and module.weight.tolist() == [3.0, 3.0]


def trained() -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    module = nn.Conv2d(2, 3, 1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.ones(1, 2, 1, 1)).sum().backward()
        optimizer.step()
    return module, optimizer


def test_a_checkpoint_brings_everything_back(tmp_path):
    module, optimizer = trained()
    checkpoint.save(tmp_path / "c", checkpoint.collect(module, copy.deepcopy(module), optimizer), {"history": [1]})
    other, _ = nn.Conv2d(2, 3, 1), None
    fresh = torch.optim.AdamW(other.parameters(), lr=0.1)
    loaded = checkpoint.load(tmp_path / "c")
    checkpoint.restore(loaded, other, nn.Conv2d(2, 3, 1), fresh, 3)
    assert loaded.facts == {"history": [1]}
    for m, o in ((module, optimizer), (other, fresh)):
        o.zero_grad()
        (m(torch.ones(1, 2, 1, 1)) ** 2).sum().backward()
        o.step()
    assert torch.equal(module.weight, other.weight) and torch.equal(module.bias, other.bias)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "c"
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.load(path)
    checkpoint.save_tensors(path, {"x": torch.zeros(1)}, {"format": "other"})
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoint.load(path)
    for data in (b"", b"\xff" * 64, (1 << 62).to_bytes(8, "little") + b"{}", b"\x80\x04}q\x00."):
        path.write_bytes(data)
        with pytest.raises(InputError, match="cannot be read"):
            checkpoint.load(path)
    checkpoint.save_tensors(path, {"x": torch.zeros(1)}, {"format": checkpoint.FORMAT, "facts": "[1]"})
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.load(path)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    module, optimizer = trained()
    checkpoint.save(tmp_path / "c", checkpoint.collect(module, copy.deepcopy(module), optimizer), {})
    other = nn.Conv2d(2, 4, 1)
    with pytest.raises(InputError, match="another network"):
        checkpoint.restore(checkpoint.load(tmp_path / "c"), other, other, torch.optim.AdamW(other.parameters()), 1)


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c"
    checkpoint.save(path, {"x": torch.zeros(1)}, {"history": [1]})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(InputError, match="cannot be written"):
        checkpoint.save(path, {"x": torch.ones(1)}, {"history": [2]})
    assert checkpoint.load(path).facts == {"history": [1]} and [p.name for p in tmp_path.iterdir()] == ["c"]


def test_recipes_round_trip_and_others_are_refused():
    recipe = Recipe(epochs=7, box_loss="giou")
    values = json.loads(json.dumps(recipe.to_json()))
    assert Recipe.from_json(values) == recipe
    for bad in (None, {}, {**values, "more": 1}, {**values, "epochs": "7"}, {**values, "lr": float("nan")},
                {**values, "epochs": 0}, {**values, "box_loss": "l2"}, {**values, "batch": True}):  # fmt: skip
        with pytest.raises(InputError):
            Recipe.from_json(bad)


def test_the_learning_rate_rises_then_falls_to_its_end():
    recipe = Recipe(epochs=10, lr=1.0, final_lr=0.1, warmup=1)
    rates = [recipe.learning_rate(step, 10) for step in range(100)]
    assert rates.index(max(rates)) == 10 and max(rates) == pytest.approx(1)
    assert rates == [*sorted(rates[:11]), *sorted(rates[11:], reverse=True)] and rates[-1] == pytest.approx(
        0.1, abs=1e-3
    )


def test_ciou_adds_the_difference_of_shapes():
    a, b = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 10, 20]])
    iou = 0.5
    shape = 4 / np.pi**2 * (np.arctan(0.5) - np.arctan(1.0)) ** 2
    distance = 25 / (10**2 + 20**2)
    expected = 1 - iou + distance + shape**2 / (1 - iou + shape)
    assert box_overlap(a, b, "ciou")[1].item() == pytest.approx(expected, rel=1e-5)


def test_two_objects_in_one_cell_make_one_target():
    """The better overlap counts: a sum would ask for more than certainty."""
    one = objects((0, 1, 9.0, 4.0, 39.0, 44.0))
    two = objects((0, 1, 9.0, 4.0, 39.0, 44.0), (0, 1, 9.0, 4.0, 39.0, 44.0))
    losses = [
        detection_loss(perfect(one), HEADS, each, Recipe(assign_iou=0.9)).objectness.item() for each in (one, two)
    ]
    assert losses[0] == losses[1] == pytest.approx(0, abs=1e-4)


def test_the_loss_is_a_mean_over_pictures():
    outputs, one = raw_heads(pictures=1), objects((0, 1, 9.0, 4.0, 39.0, 44.0))
    twice = objects((0, 1, 9.0, 4.0, 39.0, 44.0), (1, 1, 9.0, 4.0, 39.0, 44.0))
    once = detection_loss(outputs, HEADS, one, Recipe())
    doubled = detection_loss([torch.cat([o, o]) for o in outputs], HEADS, twice, Recipe())
    assert [p.item() for p in doubled] == pytest.approx([p.item() for p in once], rel=1e-5)


@pytest.mark.parametrize("history", [5, None, [1], "a", [{}], [dict.fromkeys(COLUMNS)], [dict.fromkeys(COLUMNS, "x")]])
def test_a_damaged_history_is_refused(history):
    with pytest.raises(InputError, match="history"):
        read_history(history, 3)
    rows = [{**dict.fromkeys(COLUMNS), "epoch": number, "loss": 1.5} for number in range(3)]
    assert read_history(rows, 3) == rows
    with pytest.raises(InputError, match="history"):
        read_history(rows, 2)
