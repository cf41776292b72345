"""``edgeyolo diagnose``: the guilty layer is found, and the options that are suggested give back what they promise."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import build, net, normal, pictures
from PIL import Image
from tiny_models import CLASSES, PICTURES, Tiny, edgeyolo, refusal, succeed

from edgeyolo.cli.diagnose import print_diagnosis, verdict, with_options
from edgeyolo.errors import InputError
from edgeyolo.ort import model_bytes
from edgeyolo.profile import load_profile
from edgeyolo.progress import Log
from edgeyolo.quant.calibrate import Pixels
from edgeyolo.quant.compare import head_snr
from edgeyolo.quant.config import QuantConfig, parse_keep
from edgeyolo.quant.diagnose import GAIN_AP, GOAL_DB, Diagnosis, diagnose
from edgeyolo.quant.mixture import Mixture
from edgeyolo.quant.quantise import quantise

DEPTH, WIDTH = 7, 8
LOUD = 15.9
"""One weight so many times the others' largest leaves these no code at 4 bits, and a few bits at 8."""
EXACT_DB = 200.0
SAME_DB = 1e-3
"""The same integers; ONNX Runtime may add the float reference's products in another order."""
PER_TENSOR = QuantConfig(4, granularity="per-tensor", equalise=False, align=False, reconstruct=False)
SAMPLE = pictures(4, 3, 16, 16)


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
    assert set(options[::2]) == {"--keep"}
    changed = replace(config, keep=config.keep + tuple(keep for text in options[1::2] for keep in parse_keep(text)))
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
    assert one.best is not None and one.gain(outcome) == one.gain_db(outcome) > GOAL_DB
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
    assert found.guilty == () and "Nothing stands out" in verdict(found) and "few detections change" in verdict(found)


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


def judged(found: Diagnosis, *gains: float) -> Diagnosis:
    """The same with an AP of one half, and what its first suggestions gain; the others lose."""
    aps = [0.5, *(0.5 + gain for gain in gains)]
    aps += [0.4] * (len(found.outcomes) - len(aps))
    outcomes = tuple(replace(o, scores={"AP": ap}) for o, ap in zip(found.outcomes, aps, strict=True))
    return replace(found, outcomes=outcomes, float_scores={"AP": 0.9})


def test_where_ap_is_judged_more_db_is_no_help(two: Diagnosis, capsys: pytest.CaptureFixture[str]) -> None:
    found = judged(two, 0.0, GAIN_AP / 2)
    assert max(found.gain_db(o) for o in found.outcomes) > GOAL_DB
    assert (found.helpful, found.best, found.thriftiest, found.recommended) == ((), None, None, None)
    print_diagnosis(found, ["edgeyolo", "export"], Log(), 3)
    shown = capsys.readouterr().out
    assert "no suggestion helps" in shown and "best" not in shown and "next:" not in shown


def test_ap_ranks_the_suggestions_where_it_is_judged(two: Diagnosis, capsys: pytest.CaptureFixture[str]) -> None:
    assert [o.candidate.yardstick for o in two.outcomes[:3]] == [False] * 3
    assert two.added(two.outcomes[1]) > two.added(two.outcomes[2])
    found = judged(two, 0.2, 0.15)
    first, second = found.outcomes[1:3]
    assert found.helpful == (first, second) and found.best is first
    assert found.recommended is second, "three quarters of the gain for fewer bytes"
    assert found.gain(first) == pytest.approx(0.2)
    assert judged(two, 0.2, 0.09).recommended.merit == 0.7, "less than half of the gain is not enough"
    print_diagnosis(found, ["edgeyolo", "export"], Log(), 3)
    shown = capsys.readouterr().out
    assert f"best: {first.candidate.text} (+0.200 AP, " in shown and "best per byte: " in shown


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
    mixed, quantised = mixture(net(), QuantConfig(4, correct_bias=False, reconstruct=False), SAMPLE)
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
    config = QuantConfig(3, equalise=False, align=False, reconstruct=False)
    plain, _ = mixture(model, replace(config, correct_bias=False), SAMPLE)
    result = quantise(model, SAMPLE, config)
    assert result.steps[1].kept
    mixed = Mixture(result.reference, result.plan, SAMPLE)
    for name in mixed.all_weights:
        alone = [m.snr(m.model([name], [])) for m in (plain, mixed)]
        assert alone[1] > alone[0] - 0.1, name
    assert mixed.snr(mixed.model(mixed.all_weights, [])) > plain.snr(plain.model(plain.all_weights, [])) + 1


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


MANY = 20
"""Pictures: more than ``diagnose`` quantises on unless it is told to."""


def self_diagnosis(folder: Path) -> tuple[object, ...]:
    """An export that diagnoses itself, on ``MANY`` pictures."""
    (folder / "pictures").mkdir()
    for index, pixels in enumerate(pictures(MANY, 3, 16, 16)):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / "pictures" / f"{index:02}.png")
    options = ("--bits", 4, "--no-equalise", "--calib", folder / "pictures", "--diagnose")
    return "export", model_file(folder, 3), "--target", "fpga", *options


def lossy(*arguments: object) -> str:
    """What is printed where the bundle is written, but --max-drop finds no detections to compare."""
    result = edgeyolo(*arguments)
    assert result.exit_code == 3, result.output + repr(result.exception)
    return result.stdout


def test_an_export_can_diagnose_itself(tmp_path: Path) -> None:
    """What is diagnosed is the bundle that is written; seed-v1 has no place for what it is not offered."""
    export = self_diagnosis(tmp_path)
    document = json.loads(succeed(*export, "-o", tmp_path / "a", "--json", "--layout", "seed-v1").stdout)
    found = document["diagnosis"]
    assert found["guilty"] == ["c3"] and found["pictures"] == MANY
    assert "--keep" in str(found["suggestions"]) and "per-channel" not in str(found["suggestions"])


def test_the_command_that_an_export_prints_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--layout", "seed-v1", "--format", "bin", "--golden", "2", "--calib-limit", "3", "--max-drop", "0.9"]
    given += ["--no-simplify"]
    export = self_diagnosis(tmp_path)
    shown = lossy(*export, *given, "--report")
    assert "layers stand out: c3" in shown
    command = shlex.split(shown.splitlines()[-1].removeprefix("next: "))
    assert command[-2:] == ["--keep", "c3=8"]
    words = [str(word) for word in (*export[1:-1], *given)]
    assert sorted(command[2:-2]) == sorted([*words, "-o", str(Path("out", "chain-fpga-kept"))])
    written = json.loads(lossy(*command[1:], "--json"))
    assert set(written["weight_bits"]) == {"4", "8"} and written["pictures"] == 3


def test_the_recommended_keep_recovers_half_of_the_lost_ap() -> None:
    """The embedded detector at 8 bit: its boxes suffer from coarse heads, which the raw heads' noise hardly shows."""
    command = ("diagnose", "--bits", 8, "--head-bits", 8, "--calib-limit", 8, "--data-limit", 16, "--top", 1)
    found = json.loads(succeed(*command, "--json").stdout)
    asked = found["suggestions"][0]["AP"]
    (recommended,) = [s["AP"] for s in found["suggestions"] if s["options"] == found["recommended"]]
    assert asked < found["float"]["AP"] - 0.05, "there is something to recover"
    assert recommended - asked >= (found["float"]["AP"] - asked) / 2


def test_the_printed_command_runs(tiny: Tiny, tmp_path: Path) -> None:
    shown = succeed(
        "diagnose", *tiny.model(), "--calib", tiny.pictures, "--bits", 2, "--names", tiny.names, "--calib-limit", 2
    )  # fmt: skip
    command = shlex.split(shown.stdout.strip().splitlines()[-1].removeprefix("next: "))
    assert command[:2] == ["edgeyolo", "export"] and command.count("--keep") <= 2
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


def narrow_board(folder: Path) -> Path:
    """A board for 8 bit and one exponent per tensor."""
    profile = asdict(load_profile("fpga"))
    profile |= {"weight_bits": [8], "activation_bits": [8], "granularity": ["per-tensor"]}
    path = folder / "narrow.toml"
    path.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in profile.items()), "utf-8")
    return path


def test_bad_input_ends_with_a_message(tiny: Tiny, tmp_path: Path) -> None:
    calib = ("--calib", tiny.pictures)
    assert "no such model" in refusal("diagnose", tmp_path / "no.onnx", *calib)
    assert "needs calibration pictures" in refusal("diagnose", *tiny.model())
    assert "weights without MODEL" in refusal("diagnose", "--weights", tiny.weights)
    assert "out of range" in refusal("diagnose", *tiny.model(), *calib, "--bits", 9)
    assert "unknown granularity" in refusal("diagnose", *tiny.model(), *calib, "--granularity", "rows")
    assert "without --data" in refusal("diagnose", *tiny.model(), *calib, "--max-drop", 0.1)
    for drop in ("nan", -0.1, 2):
        assert "--max-drop" in refusal("diagnose", *tiny.model(), *calib, "--data", "scenes:val", "--max-drop", drop)
    for option, value in (("--act-bits", 16), ("--granularity", "per-channel"), ("--bits", 4)):
        text = refusal("diagnose", *tiny.model(), *calib, "--board", narrow_board(tmp_path), option, value)
        assert "board generic does not have this" in text and option in text
    (tmp_path / "empty").mkdir()
    assert "picture" in refusal("diagnose", *tiny.model(), "--calib", tmp_path / "empty")
    assert "cannot read the source" in refusal("diagnose", *tiny.model(), *calib, "--data", "scenes:val:x")


def test_a_graph_that_decodes_itself_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "decoded.onnx"
    succeed("export", *tiny.model(), "--target", "onnx", "--decode", "-o", path)
    assert "not the raw heads" in refusal("diagnose", path, "--calib", tiny.pictures)
