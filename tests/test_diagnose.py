"""``edgeyolo diagnose``: the guilty layer is found, and the options that are suggested give back what they promise."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import build, net, normal, pictures
from PIL import Image
from tiny_models import CLASSES, PICTURES, Tiny, refusal, succeed

from edgeyolo.cli.diagnose import verdict, with_options
from edgeyolo.errors import InputError
from edgeyolo.ort import model_bytes
from edgeyolo.profile import load_profile
from edgeyolo.quant.calibrate import Pixels
from edgeyolo.quant.compare import head_snr
from edgeyolo.quant.config import Keep, QuantConfig, parse_keep
from edgeyolo.quant.diagnose import GOAL_DB, Diagnosis, diagnose
from edgeyolo.quant.mixture import Layer, Mixture
from edgeyolo.quant.quantise import quantise
from edgeyolo.quant.suggest import LayerNoise, candidates, selector

DEPTH, WIDTH = 7, 8
LOUD = 15.9
"""One weight so many times the others' largest leaves these no code at 4 bits, and a few bits at 8."""
EXACT_DB = 200.0
SAME_DB = 1e-3
"""The same integers; ONNX Runtime may add the float reference's products in another order."""
PER_TENSOR = QuantConfig(4, granularity="per-tensor", equalise=False)
SAMPLE = pictures(4, 3, 16, 16)
NAMED = Layer("b", "dense", True, "y", frozenset(), 800)


def chain(*guilty: int) -> ir.Model:
    """Convolutions c0 ... c5 and head; guilty ones have a loud weight on a dead input."""
    lines, arrays, source = [], dict[str, Any](), "images"
    for i in range(DEPTH):
        weight = normal(i, WIDTH, 3 if i == 0 else WIDTH, 3, 3)
        bias = normal(50 + i, WIDTH, gain=0.1)
        weight -= weight.mean(axis=(1, 2, 3), keepdims=True) if i == 0 else 0  # no constant
        if i < DEPTH - 1:
            weight[-1], bias[-1] = 0, 0  # the last channel is dead
        if i in guilty:
            weight[0, -1, 1, 1] = LOUD * 2 ** np.ceil(np.log2(np.abs(weight).max()))
        arrays |= {f"w{i}": weight, f"b{i}": bias}
        target = "head" if i == DEPTH - 1 else f"c{i}"
        lines.append(f"{target} = Conv<pads=[1,1,1,1]>({source}, w{i}, b{i})")
        source = target
    text = "\n".join(lines)
    return build(f"(float[1,3,16,16] images) => (float[1,{WIDTH},16,16] head) {{ {text} }}", arrays)


def diagnosed(*guilty: int, config: QuantConfig = PER_TENSOR, **options: Any) -> Diagnosis:
    return diagnose(chain(*guilty), SAMPLE, config, **options)


def snr_with(model: ir.Model, config: QuantConfig, options: tuple[str, ...]) -> float:
    """What a user gets who adds these options."""
    assert options[0] == "--keep"
    changed = replace(config, keep=config.keep + parse_keep(options[1]))
    return head_snr(model, quantise(model, SAMPLE, changed).model, SAMPLE)


# --- who is guilty ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one() -> Diagnosis:
    return diagnosed(3)


@pytest.fixture(scope="module")
def two() -> Diagnosis:
    return diagnosed(2, 5)


def test_the_sabotaged_layer_is_first_and_alone(one: Diagnosis) -> None:
    assert [layer.name for layer in one.guilty] == ["c3"]
    first, second = one.layers[:2]
    assert first.share > 0.5 > 10 * second.share
    assert first.weight_share > 100 * first.act_share
    assert one.bisection.count == 1 and one.bisection.goal == one.bisection.start + GOAL_DB
    assert dict(one.bisection.steps)[1] >= one.bisection.goal
    assert first.gain_weights_db is not None and first.gain_weights_db > GOAL_DB
    assert first.gain_acts_db is not None and abs(first.gain_acts_db) < 1
    assert "one exponent, but channels span 2^" in first.reason and "become 0" in first.reason


def test_the_suggestion_names_the_layer_and_keeps_its_promise(one: Diagnosis) -> None:
    outcome = one.recommended
    assert outcome is not None and outcome.candidate.options == ("--keep", "c3=8")
    assert one.best is not None and one.gain(outcome) > GOAL_DB
    assert one.added(outcome) == WIDTH * WIDTH * 9 // 2
    assert abs(snr_with(chain(3), PER_TENSOR, outcome.candidate.options) - outcome.head_snr_db) < SAME_DB


def test_every_suggested_keep_parses_and_gives_the_stated_snr(two: Diagnosis) -> None:
    kept = [o for o in two.outcomes[1:] if o.candidate.options[0] == "--keep"]
    assert len(kept) >= 2
    for outcome in kept:
        assert abs(snr_with(chain(2, 5), PER_TENSOR, outcome.candidate.options) - outcome.head_snr_db) < SAME_DB


def test_two_sabotaged_layers_are_both_found(two: Diagnosis) -> None:
    assert {layer.name for layer in two.guilty} == {"c2", "c5"}
    assert two.bisection.count == 2
    assert "2 of 8 layers stand out" in verdict(two)
    assert two.recommended is not None
    assert two.recommended.candidate.options[1] in ("c2,c5=8", "c5,c2=8")


def test_a_healthy_network_accuses_nobody() -> None:
    found = diagnosed(config=QuantConfig(8))
    assert found.guilty == () and "Nothing stands out" in verdict(found)


def test_noise_that_all_layers_share_accuses_nobody() -> None:
    found = diagnosed()
    assert found.bisection.count > len(found.layers) / 2
    assert found.guilty == () and "No few layers stand out" in verdict(found)
    assert all(layer.share < 0.5 for layer in found.layers)


def test_narrow_activations_are_told_from_narrow_weights() -> None:
    """Only activations have few bits here: the suggestion widens them."""
    found = diagnosed(config=QuantConfig(8, 4, correct_bias=False))
    assert sum(layer.act_share for layer in found.layers) > 0.9
    assert found.layers[0].reason.startswith("result: ")
    assert found.best is not None and "16" in found.best.candidate.text


def test_gains_are_measured_for_the_first_layers_only(one: Diagnosis) -> None:
    found = diagnosed(3, top=2)
    assert [layer.gain_db is None for layer in found.layers] == [False] * 2 + [True] * (len(found.layers) - 2)
    assert [layer.name for layer in found.layers] == [layer.name for layer in one.layers]


def test_with_a_judge_the_goal_is_his(one: Diagnosis) -> None:
    model = chain(3)

    def judge(models: list[ir.Model]) -> list[dict[str, float | None]]:
        """An AP that loses a tenth a dB below 10."""
        values = [min(1.0, head_snr(model, each, SAMPLE) / 10) for each in models]
        return [{"AP": round(v, 6)} for v in values]

    found = diagnose(model, SAMPLE, PER_TENSOR, judge=judge, max_drop=0.2)
    assert (found.bisection.measure, found.bisection.goal, found.bisection.count) == ("AP", 0.8, 1)
    assert found.float_scores == {"AP": 1.0}
    assert [o.merit for o in found.outcomes] == [o.scores["AP"] for o in found.outcomes]
    unharmed = diagnose(model, SAMPLE, QuantConfig(8), judge=judge, max_drop=0.2)
    assert unharmed.bisection.count == 0 and unharmed.guilty == ()


def test_bad_requests_are_refused() -> None:
    with pytest.raises(InputError, match="no calibration pictures"):
        diagnose(chain(), [], PER_TENSOR)
    with pytest.raises(InputError, match="must be positive"):
        diagnosed(top=0)


# --- mixtures --------------------------------------------------------------------------------------------------------


def mixture(model: ir.Model, config: QuantConfig, sample: list[Pixels]) -> tuple[Mixture, ir.Model]:
    result = quantise(model, sample, config)
    return Mixture(result.reference, result.plan, sample), result.model


def test_a_mixture_of_nothing_is_float_and_of_everything_is_the_quantised_network() -> None:
    """With every operation in it: SiLU, residual, pool, upsample, concat, two heads."""
    mixed, quantised = mixture(net(), QuantConfig(4, correct_bias=False), SAMPLE)
    assert mixed.snr(mixed.model([], [])) > EXACT_DB
    assert mixed.snr(mixed.without(mixed.layers)) > EXACT_DB
    full = mixed.snr(mixed.model(mixed.all_weights, mixed.all_acts))
    assert abs(full - head_snr(mixed.reference, quantised, SAMPLE)) < SAME_DB
    assert {layer.name: layer.kind for layer in mixed.layers} == {
        "images": "input", "c0": "first", "c1": "depthwise", "c2": "dense", "m2": "mul", "r": "add", "c3": "dense",
        "cat": "concat", "head1": "head", "head2": "head",
    }  # fmt: skip


def test_own_biases_take_the_mean_error_away_layer_by_layer() -> None:
    model = net()
    plain, _ = mixture(model, QuantConfig(3, equalise=False, correct_bias=False), SAMPLE)
    result = quantise(model, SAMPLE, QuantConfig(3, equalise=False))
    assert result.steps[1].kept
    mixed = Mixture(result.reference, result.plan, SAMPLE)
    for name in mixed.all_weights:
        alone = [m.snr(m.model([name], [])) for m in (plain, mixed)]
        assert alone[1] > alone[0] - 0.1, name
    assert mixed.snr(mixed.model(mixed.all_weights, [])) > plain.snr(plain.model(plain.all_weights, [])) + 1


# --- candidates ------------------------------------------------------------------------------------------------------


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


def test_an_earlier_keep_is_never_narrowed() -> None:
    config = QuantConfig(4, keep=parse_keep("b=8"))
    for candidate in candidates(noises(), config, guilty=1):
        assert candidate.config.layer_bits("b", frozenset())[0] == 8, candidate.text


# --- command line ----------------------------------------------------------------------------------------------------


def model_file(folder: Path, *guilty: int) -> Path:
    path = folder / "chain.onnx"
    path.write_bytes(model_bytes(chain(*guilty)))
    return path


def test_the_json_document(tmp_path: Path) -> None:
    for index, pixels in enumerate(SAMPLE):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / f"{index}.png")
    result = succeed(
        "diagnose", model_file(tmp_path, 3), "--calib", tmp_path, "--granularity", "per-tensor", "--bits", 4,
        "--no-equalise", "--calib-limit", 3, "--top", 2, "--json",
    )  # fmt: skip
    document = json.loads(result.stdout)
    assert set(document) == {
        "model", "layers", "guilty", "bisection", "float", "suggestions", "recommended", "best", "best_per_byte",
        "pictures", "rank_pictures", "command", "seconds",
    }  # fmt: skip
    assert document["guilty"] == ["c3"] and document["layers"][0]["name"] == "c3"
    assert document["recommended"] == ["--keep", "c3=8"]
    assert "--no-equalise" in document["command"] and document["command"].endswith("--keep c3=8")
    assert document["pictures"] == 3 and document["rank_pictures"] == 3
    assert set(document["layers"][0]) == {
        "name", "kind", "weight_bits", "act_bits", "weight_share", "act_share", "alone_db", "gain_weights_db",
        "gain_acts_db", "gain_db", "snr_db", "reason",
    }  # fmt: skip
    assert set(document["bisection"]) == {"measure", "start", "goal", "count", "steps"}
    for suggestion in document["suggestions"]:
        assert set(suggestion) == {"options", "head_snr_db", "F1", "weight_bytes", "yardstick"}
    assert document["suggestions"][0]["options"] == []
    shares = sum(layer["weight_share"] + layer["act_share"] for layer in document["layers"])
    assert shares == pytest.approx(1, abs=1e-4)


def test_an_export_can_diagnose_itself(tmp_path: Path) -> None:
    for index, pixels in enumerate(SAMPLE):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / f"{index}.png")
    options = ("--granularity", "per-tensor", "--bits", 4, "--no-equalise", "--calib", tmp_path, "--diagnose")
    export = ("export", model_file(tmp_path, 3), "--target", "fpga", *options)
    document = json.loads(succeed(*export, "-o", tmp_path / "a", "--json").stdout)
    assert document["diagnosis"]["guilty"] == ["c3"]
    shown = succeed(*export, "-o", tmp_path / "b").stdout
    assert "layers stand out: c3" in shown and "--keep c3=8" in shown.splitlines()[-1]


def test_the_printed_command_runs(tiny: Tiny, tmp_path: Path) -> None:
    shown = succeed(
        "diagnose", *tiny.model(), "--calib", tiny.pictures, "--bits", 2, "--names", tiny.names, "--calib-limit", 2
    )  # fmt: skip
    command = shlex.split(shown.stdout.strip().splitlines()[-1].removeprefix("next: "))
    assert command[:2] == ["edgeyolo", "export"] and command.count("--keep") <= 1
    document = json.loads(succeed(*command[1:], "-o", tmp_path / "out", "--json").stdout)
    assert max(int(bits) for bits in document["weight_bits"]) > 2 or document["options"]["act_bits"] > 8
    assert "alone" in shown.stdout and "yardstick" in shown.stdout and "float" in shown.stdout


def test_ap_is_measured_on_labelled_pictures(tiny: Tiny, tmp_path: Path) -> None:
    tree = tmp_path / "set"
    (tree / "images").mkdir(parents=True)
    (tree / "labels").mkdir()
    for index in range(PICTURES):
        name = f"picture-{index}"
        (tree / "images" / f"{name}.jpg").write_bytes((tiny.pictures / f"{name}.jpg").read_bytes())
        (tree / "labels" / f"{name}.txt").write_text(f"{index % CLASSES} 0.5 0.5 0.5 0.5\n", "utf-8")
    result = succeed(
        "diagnose", *tiny.model(), "--calib", tiny.pictures, "--calib-limit", 1, "--data", tree, "--data-limit", 3,
        "--max-drop", 1, "--top", 1, "--json",
    )  # fmt: skip
    document = json.loads(result.stdout)
    assert set(document["float"]) == {"F1", "AP", "AP50"} and document["float"]["F1"] == 1
    assert document["bisection"]["measure"] == "AP" and document["bisection"]["count"] == 0


def test_a_suggestion_replaces_what_the_command_has_already() -> None:
    command = ["edgeyolo", "export", "m.onnx", "--act-bits", "4", "--keep", "a b=8"]
    assert with_options(command, ("--act-bits", "16")) == "edgeyolo export m.onnx --act-bits 16 --keep 'a b=8'"
    assert with_options(command, ("--keep", "c=8")).endswith("--act-bits 4 --keep 'a b=8' --keep c=8")


def test_bad_input_ends_with_a_message(tiny: Tiny, tmp_path: Path) -> None:
    calib = ("--calib", tiny.pictures)
    assert "no such model" in refusal("diagnose", tmp_path / "no.onnx", *calib)
    assert "needs calibration pictures" in refusal("diagnose", *tiny.model())
    assert "weights without MODEL" in refusal("diagnose", "--weights", tiny.weights)
    assert "out of range" in refusal("diagnose", *tiny.model(), *calib, "--bits", 9)
    assert "unknown granularity" in refusal("diagnose", *tiny.model(), *calib, "--granularity", "rows")
    assert "without --data" in refusal("diagnose", *tiny.model(), *calib, "--max-drop", 0.1)
    (tmp_path / "empty").mkdir()
    assert "picture" in refusal("diagnose", *tiny.model(), "--calib", tmp_path / "empty")
    assert "cannot read the source" in refusal("diagnose", *tiny.model(), *calib, "--data", "scenes:val:x")


def test_a_graph_that_decodes_itself_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "decoded.onnx"
    succeed("export", *tiny.model(), "--target", "onnx", "--decode", "-o", path)
    assert "not the raw heads" in refusal("diagnose", path, "--calib", tiny.pictures)
