"""The embedded default: what its card claims is true of the files that ship."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from tiny_models import edgeyolo

from edgeyolo import assets
from edgeyolo.datasets import load_dataset, scenes
from edgeyolo.datasets.recipe import load_recipe
from edgeyolo.frontend.darknet import describe_darknet, load_darknet

CARD = (assets.CFG.parent / "digits.md").read_text("utf-8")
AP_TOLERANCE = 0.002
"""Of the card's figures: sums of another processor move a score past another one now and then."""


def figure(name: str) -> float:
    """A figure of the card's table."""
    found = re.search(rf"^\| {re.escape(name)} \| ([0-9.,]+)", CARD, re.MULTILINE)
    assert found, name
    return float(found[1].replace(",", ""))


def test_it_is_small():
    assert sum(path.stat().st_size for path in assets.CFG.parent.glob("digits.*")) < 2e6
    description = describe_darknet(assets.CFG)
    assert sum(layer.params for layer in description.layers) == figure("parameters") <= 400_000
    assert sum(layer.macs for layer in description.layers) == figure("MACs")


def test_it_takes_every_path_that_real_networks_take():
    loaded = load_darknet(assets.CFG, assets.WEIGHTS, names=assets.NAMES)
    kinds = {layer.kind for layer in loaded.layers}
    assert {"convolutional", "shortcut", "route", "upsample", "maxpool", "yolo"} <= kinds
    sizes = [layer.size for layer in loaded.layers if layer.kind == "convolutional"]
    assert any(" g" in size for size in sizes) and any(size == "1x1/1" for size in sizes)
    assert any(layer.kind == "route" and len(layer.size.split()) > 1 for layer in loaded.layers)  # a concat
    assert "leaky" in assets.CFG.read_text() and len(loaded.detector.heads) == 2
    assert loaded.detector.preprocess.width == loaded.detector.preprocess.height == 160 == scenes.SIDE
    assert loaded.detector.names == scenes.NAMES


def test_calibration_and_evaluation_share_no_scene_with_training():
    recipe = load_recipe(assets.CALIBRATION)
    assert recipe.source == "scenes:train" and recipe.seed != 0  # training uses seed 0
    assert assets.DATA == "scenes:val"


def test_the_card_counts_the_digits():
    seen, held_back = (sum(len(images) for images in scenes.glyphs(split)) for split in ("train", "val"))
    assert f"it has seen {seen:,} digits" in CARD and seen + held_back == 1797
    assert "--seed 1" in CARD and "minutes" in CARD


def test_its_accuracy_is_what_the_card_says_and_what_is_required():
    result = edgeyolo("eval", "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["pictures"] == len(load_dataset(assets.DATA).samples) == 512
    for name in ("AP", "AP50"):
        assert values[name] == pytest.approx(figure(name), abs=AP_TOLERANCE)
    assert values["AP50"] >= 0.95 and values["AP"] >= 0.70


def test_the_cards_command_is_one_that_train_takes():
    from edgeyolo.cli.train import train

    lines = [line for line in CARD.splitlines() if line.startswith("edgeyolo train ")]
    assert len(lines) == 1
    context = train.make_context("train", shlex.split(lines[0])[2:])
    assert context.params["data"] in (None, "scenes:train") and context.params["seed"] == 0
