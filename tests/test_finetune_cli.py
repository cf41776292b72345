"""``edgeyolo finetune``: an export with one more candidate."""

from __future__ import annotations

import json
import sys

import pytest
from tiny_models import Tiny, edgeyolo, refusal, succeed, tree

from edgeyolo.cli.export import export
from edgeyolo.cli.finetune import finetune


def command(tiny: Tiny, output: object, *more: object) -> tuple[object, ...]:
    """A finetuning of the tiny model that takes a moment."""
    return "finetune", *tiny.model(), "--calib", tiny.pictures, "--bits", 3, "--golden", 0, "-o", output, *more


def test_the_bundle_is_exact_and_the_ledger_has_a_row_for_it(tiny, tmp_path):
    options = ("--steps", 20, "--weight-lr", 0, "--bias-lr", 0.1, "--golden", 1, "--json")
    ledger = json.loads(succeed(*command(tiny, tmp_path / "out", *options)).stdout)["ledger"]
    added = ledger["refinement"][-1]
    assert added["name"].endswith(" + finetune")
    assert [row["kept"] for row in ledger["stages"] if row["stage"] == added["name"]] == [added["kept"]]
    assert [step["kept"] for step in ledger["refinement"]].count(True) == 1
    succeed("verify", tmp_path / "out")


def test_the_same_command_with_steps_writes_the_same_bytes(tiny, tmp_path):
    for name in ("a", "b"):
        succeed(*command(tiny, tmp_path / name, "--steps", 5, "--weight-lr", 0.01))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_training_that_gains_nothing_says_so_and_writes_what_export_writes(tiny, tmp_path):
    done = succeed(*command(tiny, tmp_path / "a", "--steps", 5, "--weight-lr", 1, "--bias-lr", 1))
    assert "the start is kept" in done.stderr
    options = [str(word) for word in command(tiny, tmp_path / "b")[1:]]
    succeed("export", *options, "--target", "fpga")
    a, b = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert {name for name in a if a[name] != b[name]} == {"manifest.json"}  # where the ledger is


def test_it_takes_every_option_of_an_export_for_fpga():
    own = {param.name for param in finetune.params}
    left_out = {param.name for param in export.params} - own
    other = {"precision", "keep_float", "dla", "max_batch", "accept", "auto", "measured", "candidates", "provider"}
    assert left_out == other | {"target", "diagnose", "dynamic_batch", "decode", "nms", "conf", "iou"}
    assert own >= {"minutes", "steps", "batch", "weight_lr", "bias_lr", "seed", "device", "bits", "keep", "board"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--minutes", 0), "--minutes"),
        (("--steps", 0), "--steps"),
        (("--steps", 5, "--minutes", 1), "exclude each other"),
        (("--weight-lr", 2), "--weight-lr"),
        (("--calib-limit", 3), "too few pictures"),
        (("--target", "onnx"), "--target"),
        (("--board", "nowhere"), "nowhere"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused_and_writes_nothing(tiny, tmp_path, options, said):
    result = edgeyolo(*command(tiny, tmp_path / "out", *options))
    assert result.exit_code == 2 and said in result.stderr
    assert "Traceback" not in result.output and not (tmp_path / "out").exists()


def test_no_torch_is_named_with_what_to_install(tiny, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("edgeyolo.finetune")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    said = refusal(*command(tiny, tmp_path / "out"))
    assert "needs the package torch" in said and "pip install 'edgeyolo[export]'" in said
