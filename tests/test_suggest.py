"""Candidates of ``edgeyolo diagnose``: which options are worth measuring, and what they promise."""

from __future__ import annotations

import pytest

from edgeyolo.profile import load_profile
from edgeyolo.quant.config import Keep, QuantConfig, parse_keep
from edgeyolo.quant.mixture import Layer
from edgeyolo.quant.suggest import LayerNoise, candidates, selector

NAMED = Layer("b", "dense", True, "y", frozenset(), 800)


@pytest.mark.parametrize("name", ["c1", "head", "last", "a,b", "a[0]*?", " padded ", "model/conv=3", "tab\there", "*"])
def test_a_selector_means_the_layer(name: str) -> None:
    (keep,) = parse_keep(f"{selector(name)}=8")
    assert keep == Keep(selector(name), 8) and keep.matches(name, frozenset())
    assert not keep.matches("other", frozenset({"first", "head", "last", "depthwise"}))


def noises() -> list[LayerNoise]:
    head = Layer("h", "head", True, "z", frozenset({"head", "last"}), 400)
    add = Layer("s", "add", False, "s")
    return [LayerNoise(NAMED, 0.4, 0.0), LayerNoise(head, 0.1, 0.02), LayerNoise(add, 0.0, 0.01)]


def test_one_bit_more_leaves_a_quarter_of_the_noise() -> None:
    found = {c.text: c for c in candidates(noises(), QuantConfig(7), guilty=1)}
    assert found["--keep b=8"].noise == pytest.approx(0.4 / 4 + 0.13)
    assert found["--keep b=8"].weight_bytes == 800 + 400 * 7 // 8
    assert found[""].noise == pytest.approx(0.53) and found[""].weight_bytes == 1050
    assert found["--bits 8"].yardstick and [c for c in found.values() if c.yardstick] == [found["--bits 8"]]


def test_what_the_board_has_not_is_not_suggested() -> None:
    quiet = [LayerNoise(n.layer, 0.0, n.total) for n in noises()]
    config = QuantConfig(8, granularity="per-tensor")
    free = [c.text for c in candidates(quiet, config, load_profile("fpga"), guilty=1)]
    assert "--keep b=8/16" in free and "--act-bits 16" in free and "--granularity per-channel" in free
    narrow = [c.text for c in candidates(quiet, config, load_profile("fpga", "zu3eg"), guilty=1)]
    assert narrow == ["", "--granularity per-channel"]


def test_wide_heads_are_always_tried() -> None:
    """Boxes need fine steps even where the raw heads hardly show it: alone, and with the best promise's weights."""
    loud = [LayerNoise(n.layer, n.weights, 0.0) for n in noises()]
    found = {c.text: c for c in candidates(loud, QuantConfig(4, head_bits=8), guilty=1)}
    assert found["--keep head=4/16"].weight_bytes == found[""].weight_bytes
    assert found["--keep b=8 --keep head=4/16"].config.layer_bits("b", frozenset()) == (8, 8)
    kept = QuantConfig(4, keep=parse_keep("h=8"), head_bits=8)
    assert "--keep head=8/16" in [c.text for c in candidates(loud, kept, guilty=1)]
    for config, board in ((QuantConfig(4), "generic"), (QuantConfig(4, head_bits=8), "zu3eg")):
        assert "/16" not in " ".join(c.text for c in candidates(loud, config, load_profile("fpga", board), guilty=1))


def test_an_earlier_keep_is_never_narrowed() -> None:
    config = QuantConfig(4, keep=parse_keep("b=8"))
    for candidate in candidates(noises(), config, guilty=1):
        assert candidate.config.layer_bits("b", frozenset())[0] == 8, candidate.text
