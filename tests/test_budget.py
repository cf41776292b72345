"""Mixed precision on the command line: what a budget may say, and that the choice holds it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_models import Tiny, refusal, succeed

from edgeyolo.errors import InputError
from edgeyolo.export.budget import Budget, _least
from edgeyolo.progress import Log
from edgeyolo.quant.config import QuantConfig
from edgeyolo.quant.mixed import Choice

FAST = ("--recipe", "fast", "--golden", 0)


def average(document: dict[str, Any]) -> float:
    """Bits a weight, from a manifest's counts."""
    counts = {int(bits): count for bits, count in document["weight_bits"].items()}
    return sum(bits * count for bits, count in counts.items()) / sum(counts.values())


def test_no_words_are_no_budget():
    assert Budget.of(None, None, 0.0, 0.5) is None
    assert Budget.of(None, None, 0.25, None) == Budget(act_share=0.25)
    assert Budget.of("5.2", None, 0.0, None) == Budget(average=5.2)
    assert Budget.of("auto", None, 0.0, 0.01) == Budget(max_drop=0.01)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("5", 1000, 0.0, None), "one budget"),
        (("five", None, 0.0, None), "--avg-bits"),
        (("nan", None, 0.0, None), "--avg-bits"),
        (("1.5", None, 0.0, None), "--avg-bits"),
        (("auto", None, 0.0, None), "how much may be lost"),
        ((None, None, 1.5, None), "--act-share"),
    ],
)
def test_a_budget_that_contradicts_itself_is_refused(words, what):
    with pytest.raises(InputError, match=what):
        Budget.of(*words)


@pytest.mark.parametrize(("allowed", "bits", "tries"), [(0.25, 5, 3), (0.9, 4, 3), (0.0, 8, 4)])
def test_by_loss_the_fewest_bits_win_that_lose_no_more_than_allowed(allowed, bits, tries):
    choices = [Choice({"c": b}, {}, float(b), 10 * b, 2.0**-b) for b in (4, 5, 6, 7, 8)]
    made: list[int] = []

    def quantise(config: QuantConfig) -> Any:
        made.append(config.layer_bits("c", frozenset())[0])
        return SimpleNamespace(bits=made[-1])

    losses = {4: 0.5, 5: 0.25, 6: 0.125, 7: 0.1, 8: 0.05}
    found, config = _least(choices, QuantConfig(4), quantise, lambda q: losses[q.bits], allowed, Log(quiet=True))
    assert found.bits == config.layer_bits("c", frozenset())[0] == bits
    assert len(made) == len(set(made)) <= tries


def test_what_is_kept_by_name_stays_and_the_average_holds(tiny: Tiny, tmp_path):
    words = ("--bits", 3, "--avg-bits", 4.5, "--keep", "layers.1.conv=8", "--json", *FAST)
    document = json.loads(succeed(*tiny.fpga(tmp_path / "out", *words)).stdout)
    assert average(document) > 3.0
    plain = json.loads(succeed(*tiny.fpga(tmp_path / "free", *words[:4], "--json", *FAST)).stdout)
    assert 3.0 < average(plain) <= 4.5
    assert len(plain["weight_bits"]) > 1


def test_fewer_bytes_than_the_narrowest_weights_are_refused(tiny: Tiny, tmp_path):
    text = refusal(*tiny.fpga(tmp_path / "out", "--bits", 4, "--max-bytes", 10, *FAST))
    assert "--max-bytes" in text and not (tmp_path / "out").exists()


def test_by_bytes_the_weights_shrink_below_the_bits_of_the_default(tiny: Tiny, tmp_path):
    plain = json.loads(succeed(*tiny.fpga(tmp_path / "plain", "--json", *FAST)).stdout)
    small = json.loads(succeed(*tiny.fpga(tmp_path / "small", "--json", "--max-bytes", 2500, *FAST)).stdout)
    assert average(plain) == 8 and average(small) < 8
    counts = {int(bits): count for bits, count in small["weight_bits"].items()}
    assert sum(bits * count for bits, count in counts.items()) / 8 < 2500


def test_wide_activations_need_no_other_budget(tiny: Tiny, tmp_path):
    words = ("--bits", 4, "--act-share", 0.5, "--keep", "layers.1.conv=8", "--json", *FAST)
    document = json.loads(succeed(*tiny.fpga(tmp_path / "out", *words)).stdout)
    assert set(document["weight_bits"]) == {"4", "8"}
    assert any(keep["act_bits"] for keep in document["options"]["keep"])
