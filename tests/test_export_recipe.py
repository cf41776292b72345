"""``edgeyolo export``: how much is refined, how wide the results are, and what a killed export goes on from."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import Tiny, edgeyolo, refusal, succeed, tree

from edgeyolo.bundle import PROGRAM
from edgeyolo.lower.seed_v1 import SEED_V1
from edgeyolo.program_image import decode_program
from edgeyolo.quant.plan import WeightQuant
from edgeyolo.quant.refine.saved import SavedLayers

FAST = ("--recipe", "fast", "--golden", 0)
LAYERS = 9
"""Convolutions of the tiny model."""
FINISHED = 4
"""Layers that the killed export had reconstructed."""
KILLED = f"""
import os, signal
from edgeyolo.cli import main
from edgeyolo.quant.refine.saved import SavedLayers

store, finished = SavedLayers.store, []

def store_and_die(self, index, weight):
    store(self, index, weight)
    if self.folder is not None:  # corrections of biases alone are not kept
        finished.append(index)
    if len(finished) == {FINISHED}:
        os.kill(os.getpid(), signal.SIGKILL)

SavedLayers.store = store_and_die
main(prog_name="edgeyolo")
"""


def names(tiny: Tiny, output: Path, *more: object) -> list[str]:
    """The candidates of an export, in order."""
    document = json.loads(succeed(*tiny.fpga(output, "--golden", 0, "--json", *more)).stdout)
    return [step["name"] for step in document["ledger"]["refinement"]]


def bits(bundle: Path) -> tuple[set[int], set[int]]:
    """Bits of a bundle's results, and of the activations between the layers."""
    program = decode_program((bundle / PROGRAM).read_bytes(), "program")
    inner = {t.qtype.bits for i, t in enumerate(program.tensors) if i not in (program.input, *program.outputs)}
    return {program.tensors[i].qtype.bits for i in program.outputs}, inner


# --- recipes ---------------------------------------------------------------------------------------------------------


def test_an_unknown_recipe_is_refused_before_the_work(tiny: Tiny, tmp_path: Path) -> None:
    message = refusal(*tiny.fpga(tmp_path / "out", "--recipe", "best"))
    assert "best" in message and "fast, default, max" in message and "load " not in message
    assert list(tmp_path.iterdir()) == []


def test_the_recipe_says_how_much_is_reconstructed(tiny: Tiny, tmp_path: Path) -> None:
    """Nothing; behind the best scaling, which is to equalise; or behind every scaling."""
    found = {recipe: names(tiny, tmp_path / recipe, "--bits", 4, "--recipe", recipe) for recipe in ("fast", "max")}
    found["default"] = names(tiny, tmp_path / "default", "--bits", 4)
    rebuilt = {recipe: [name for name in rows if "reconstruct" in name] for recipe, rows in found.items()}
    scalings = ("round to nearest", "equalise", "equalise, align")
    assert rebuilt == {
        "fast": [],
        "default": ["equalise + reconstruct"],
        "max": [f"{name} + reconstruct" for name in scalings],
    }
    fast = [name + biases for name in scalings for biases in ("", " + correct biases")]
    assert all(rows[: len(fast)] == fast for rows in found.values())


@pytest.mark.parametrize(
    ("option", "left_out"),
    [("--no-reconstruct", "reconstruct"), ("--no-align", "align"), ("--no-equalise", "equalise")],
)
def test_each_refinement_can_be_left_out(option: str, left_out: str, tiny: Tiny, tmp_path: Path) -> None:
    found = names(tiny, tmp_path / "out", "--bits", 4, option)
    assert len(found) > 3 and not [name for name in found if left_out in name]


def test_reconstruction_is_what_four_bits_need(tiny: Tiny, tmp_path: Path) -> None:
    document = json.loads(succeed(*tiny.fpga(tmp_path / "out", "--bits", 4, "--golden", 0, "--json")).stdout)
    rows = document["ledger"]["refinement"]
    kept, others = rows[-1], rows[:-1]
    assert kept["kept"] and kept["name"].endswith(" + reconstruct")
    assert kept["head_snr_db"] > max(row["head_snr_db"] for row in others) + 3  # measured: 4.6
    assert not (tmp_path / "out.partial").exists()


# --- bits of the results ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "results", "activations"),
    [
        ((), 16, 8),
        (("--head-bits", 8), 8, 8),
        (("--head-bits", 11, "--act-bits", 6), 11, 6),
        (("--board", "zynq-7020"), 8, 8),
        (("--board", "zynq-7020", "--act-bits", 6), 8, 6),
        (("--layout", SEED_V1), 8, 8),
        (("--layout", SEED_V1, "--act-bits", 6), 6, 6),
    ],
    ids=lambda value: " ".join(map(str, value)) or "default" if isinstance(value, tuple) else "",
)
def test_results_get_what_is_asked_or_what_the_board_has(
    options: tuple[object, ...], results: int, activations: int, tiny: Tiny, tmp_path: Path
) -> None:
    document = json.loads(succeed(*tiny.fpga(tmp_path / "out", *FAST, "--json", *options)).stdout)
    assert document["options"]["head_bits"] == results
    assert bits(tmp_path / "out") == ({results}, {activations})


@pytest.mark.parametrize("wrong", [3, 17])
def test_bits_out_of_range_are_refused_before_the_work(wrong: int, tiny: Tiny, tmp_path: Path) -> None:
    message = refusal(*tiny.fpga(tmp_path / "out", "--head-bits", wrong))
    assert "--head-bits" in message and "4 to 16" in message and "load " not in message


def test_results_wider_than_the_board_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    message = refusal(*tiny.fpga(tmp_path / "out", *FAST, "--board", "zynq-7020", "--head-bits", 16))
    assert "--head-bits" in message and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        ("--head-bits", 8),
        ("--align",),
        ("--no-align",),
        ("--recipe", "fast"),
        ("--reconstruct",),
        ("--no-reconstruct",),
    ],
    ids=lambda options: options[0],
)
def test_options_that_do_nothing_for_onnx_are_refused(options: tuple[object, ...], tiny: Tiny, tmp_path: Path) -> None:
    message = refusal("export", *tiny.model(), "--target", "onnx", "-o", tmp_path / "a.onnx", *options)
    said = str(options[0]).replace("--no-", "--")
    assert "do nothing with --target onnx" in message and said in message
    assert list(tmp_path.iterdir()) == []


# --- killed and started again ----------------------------------------------------------------------------------------


def test_a_killed_export_goes_on_and_makes_the_same_bundle(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    command = [str(word) for word in tiny.fpga(out, "--bits", 4)]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *command], capture_output=True, text=True, timeout=120, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in tmp_path.iterdir()] == [partial.name]
    assert len(tree(partial)) == FINISHED

    load, found = SavedLayers.load, []

    def watched(self: SavedLayers, index: int, planned: WeightQuant) -> WeightQuant | None:
        weight = load(self, index, planned)
        found.append(weight is not None)
        return weight

    monkeypatch.setattr(SavedLayers, "load", watched)
    succeed(*command)
    assert found.count(True) == FINISHED and found[-LAYERS:] == [True] * FINISHED + [False] * (LAYERS - FINISHED)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    succeed(*tiny.fpga(tmp_path / "whole", "--bits", 4))
    assert tree(out) == tree(tmp_path / "whole")


def test_finished_layers_of_other_options_are_not_taken(tiny: Tiny, tmp_path: Path) -> None:
    """Nor do they stay behind."""
    out = tmp_path / "out"
    command = [str(word) for word in tiny.fpga(out, "--bits", 4, "--golden", 0)]
    subprocess.run([sys.executable, "-c", KILLED, *command], capture_output=True, timeout=120, check=False)
    assert (tmp_path / "out.partial").is_dir()
    succeed(*tiny.fpga(out, "--bits", 3, "--golden", 0))
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    succeed(*tiny.fpga(tmp_path / "whole", "--bits", 3, "--golden", 0))
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_lies_where_finished_layers_go_is_not_deleted(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    partial, own = tmp_path / "out.partial", tmp_path / "own"
    if kind == "file":
        partial.write_text("a thesis", "utf-8")
    else:
        own.mkdir()
        (own / "thesis.txt").write_text("a thesis", "utf-8")
        own.rename(partial) if kind == "folder" else partial.symlink_to(own)
    before = tree(tmp_path)
    result = edgeyolo(*tiny.fpga(tmp_path / "out"))
    assert result.exit_code == 2 and "left alone" in result.stderr and str(partial) in result.stderr
    assert "load " not in result.stderr
    assert tree(tmp_path) == before and (partial.is_symlink() or kind != "link")
