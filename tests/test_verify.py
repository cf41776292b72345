"""``edgeyolo verify``: silent on a good bundle, and exact about what is wrong with every other one."""

from __future__ import annotations

import builtins
import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundle_surgery import change_everywhere, change_program, change_weight, edit_manifest, patch, repair
from onnx import numpy_helper
from tiny_models import Tiny, edgeyolo, refusal, succeed

from edgeyolo.bundle import MODEL, PROGRAM
from edgeyolo.errors import InputError
from edgeyolo.lower.blob_files import coe_text, mem_text
from edgeyolo.program import IntegerProgram
from edgeyolo.program_image import decode_program
from edgeyolo.progress import Log
from edgeyolo.qtype import QType
from edgeyolo.verify import CHECKS, verify

GOLDEN = "golden/001/003.bin"
"""The second picture, layer 3: 12 channels of 32 x 32."""
AT = (5, 7, 9)
OFFSET = (AT[0] * 32 + AT[1]) * 32 + AT[2]
QUIET = Log(quiet=True)
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
needs_make = pytest.mark.skipif(not (shutil.which("cc") and shutil.which("make")), reason="there is no cc or no make")
SKIP_ENGINE = () if shutil.which("cc") else ("--skip", "engine")


@pytest.fixture(scope="module")
def good_seed_bundle(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in layout seed-v1."""
    bundle = tmp_path_factory.mktemp("seed") / "tiny"
    succeed(*tiny.fpga(bundle, "--layout", "seed-v1", "--names", tiny.names))
    return bundle


@pytest.fixture
def seed_bundle(good_seed_bundle: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(good_seed_bundle, tmp_path / "bundle"))


@pytest.fixture
def bundle(good_bundle: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(good_bundle, tmp_path / "bundle"))


def difference(*arguments: object) -> str:
    """The message of a verification that must end with exit code 1."""
    result = edgeyolo("verify", *arguments)
    assert result.exit_code == 1, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    return result.stderr


# --- a good bundle ---------------------------------------------------------------------------------------------------


def test_a_good_bundle_has_no_difference_anywhere(good_bundle: Path) -> None:
    skip = [] if shutil.which("cc") else ["engine"]
    verdict = verify(good_bundle, QUIET, skip=skip)
    program = decode_program((good_bundle / PROGRAM).read_bytes(), "program")
    elements = 2 * sum(math.prod(program.tensors[op.output].shape) for op in program.ops)
    assert verdict.differences == [] and verdict.pictures == 2 and verdict.layers == len(program.ops)
    assert verdict.elements == dict.fromkeys([c for c in CHECKS if c not in skip], elements)


def test_json_is_one_document(good_bundle: Path) -> None:
    document = json.loads(succeed("verify", good_bundle, "--json", *SKIP_ENGINE).stdout)
    assert document["equal"] is True and document["differences"] == []
    assert document["elements"]["golden"] == document["elements"]["ort"] > 0


def test_the_table_says_what_was_compared_and_what_was_not(good_bundle: Path) -> None:
    text = succeed("verify", good_bundle, "--skip", "ort", "--skip", "engine").stdout
    assert "stored golden data" in text and "skipped" in text and "Not checked: engine, ort." in text
    assert "\x1b" not in text and all(len(line) <= 80 for line in text.splitlines())


def test_further_pictures_are_compared_too(good_bundle: Path, tiny: Tiny) -> None:
    verdict = verify(good_bundle, QUIET, skip=("engine",), more=tiny.pictures / "picture-0.jpg")
    assert verdict.pictures == 3 and not verdict.differences
    assert verdict.elements["ort"] * 2 == verdict.elements["golden"] * 3


def test_without_golden_data_its_pictures_still_serve(good_bundle: Path) -> None:
    verdict = verify(good_bundle, QUIET, skip=("golden", "engine"))
    assert verdict.pictures == 2 and list(verdict.elements) == ["ort"] and not verdict.differences


def test_nothing_to_compare_is_an_error_not_a_success(good_bundle: Path) -> None:
    skips = [part for check in CHECKS for part in ("--skip", check)]
    assert "every comparison is skipped" in refusal("verify", good_bundle, *skips)


def test_verifying_changes_nothing(bundle: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in bundle.rglob("*")}
    succeed("verify", bundle, *SKIP_ENGINE)
    assert {p: p.stat().st_mtime_ns for p in bundle.rglob("*")} == before


@needs_cc
def test_the_compiler_that_the_user_names_is_used(good_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no C compiler" in refusal("verify", good_bundle)


# --- manipulated bundles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [PROGRAM, MODEL, GOLDEN, "weights/weights.bin", "weights/headers/layer_003.h", "engine/conv.c"]
)
def test_a_changed_byte_without_a_repaired_hash_is_refused(bundle: Path, name: str) -> None:
    patch(bundle / name, (bundle / name).stat().st_size // 2)
    message = refusal("verify", bundle)
    assert f"'{name}': its content does not match its SHA-256" in message


def test_a_changed_golden_byte_is_named_to_the_element(bundle: Path) -> None:
    patch(bundle / GOLDEN, OFFSET)
    repair(bundle)
    message = difference(bundle, "--skip", "engine")
    assert "golden differs from the Python integers" in message
    assert (
        "picture golden 1, layer 3 " in message and f"1 of 12288 elements differ, first at (c, y, x) = {AT}" in message
    )


def test_differences_are_in_the_json_too(bundle: Path) -> None:
    patch(bundle / GOLDEN, OFFSET)
    patch(bundle / "golden/000/007.bin", 0)
    repair(bundle)
    result = edgeyolo("verify", bundle, "--skip", "engine", "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 1 and document["equal"] is False
    assert [(d["contender"], d["picture"], d["layer"].split()[0]) for d in document["differences"]] == [
        ("golden", "golden 0", "7"),
        ("golden", "golden 1", "3"),
    ]


def test_a_changed_golden_input_differs_everywhere_behind_it(bundle: Path) -> None:
    patch(bundle / "golden/000/input.bin", 100, lambda byte: byte ^ 0x80)
    repair(bundle)
    assert "picture golden 0, layer 0 " in difference(bundle, "--skip", "engine")


def test_a_changed_weight_of_the_program_is_named_by_the_weight_images(bundle: Path) -> None:
    change_program(bundle, change_weight)
    repair(bundle)
    message = refusal("verify", bundle)
    assert "the weight images differ from the program" in message
    assert "layer 3 layers.3" in message and "weight" in message and "first at (o, i, y, x) = (2, 1, 0, 2)" in message


@pytest.mark.parametrize("kind", ["bundle", "seed_bundle"])
def test_a_weight_changed_everywhere_but_in_the_model_is_named(kind: str, request: pytest.FixtureRequest) -> None:
    """Program, manifest and weight files agree with one another: only the oracle knows better."""
    bundle = request.getfixturevalue(kind)
    change_everywhere(bundle, change_weight)
    message = refusal("verify", bundle)
    assert f"{PROGRAM} is not what {MODEL} lowers to" in message
    assert "layer 3 layers.3" in message and "first at (o, i, y, x) = (2, 1, 0, 2)" in message
    # Without the oracle the change still shows, in the golden data of the same layer.
    assert "layer 3 " in difference(bundle, "--skip", "ort", "--skip", "engine")


def test_seed_v1_files_are_checked_byte_for_byte(seed_bundle: Path) -> None:
    succeed("verify", seed_bundle, *SKIP_ENGINE)
    patch(seed_bundle / "weights/tiny_a_scale.bin", 0)
    repair(seed_bundle)
    assert "weights/tiny_a_scale.bin" in refusal("verify", seed_bundle)


def test_a_program_image_with_a_wrong_crc_is_refused(bundle: Path) -> None:
    patch(bundle / PROGRAM, 2000)
    repair(bundle)
    assert "CRC-32" in refusal("verify", bundle)


@pytest.mark.parametrize(("image", "part"), [("weights", "weight"), ("bias", "bias"), ("shift", "shift")])
def test_a_changed_byte_of_a_weight_image_is_named(bundle: Path, image: str, part: str) -> None:
    """In all formats alike, so that they agree with one another."""
    path = bundle / "weights" / f"{image}.bin"
    patch(path, 0)
    patch_text(bundle, image, path.read_bytes(), mem_text, "mem")
    patch_text(bundle, image, path.read_bytes(), coe_text, "coe")
    repair(bundle)
    message = refusal("verify", bundle)
    assert "the weight images differ from the program" in message
    assert "layer 0 layers.0" in message and f", {part}" in message and "elements differ, first at (o" in message


def patch_text(bundle: Path, image: str, data: bytes, render: Callable[..., str], suffix: str) -> None:
    form = json.loads((bundle / "weights/blobs.json").read_text("utf-8"))["form"]
    text = render(data, form["word_bits"], form["endianness"], "spoilt")
    (bundle / "weights" / f"{image}.{suffix}").write_text(text, "ascii")


def test_formats_that_disagree_are_refused(bundle: Path) -> None:
    patch(bundle / "weights/weights.bin", 0)
    repair(bundle)
    assert "the formats of one image disagree" in refusal("verify", bundle)


def test_a_changed_c_header_is_refused(bundle: Path) -> None:
    path = bundle / "weights/headers/layer_003.h"
    path.write_text(path.read_text("ascii").replace("0x", "1x", 1).replace("-", "", 1), "ascii")
    repair(bundle)
    assert "weights/headers/layer_003.h" in refusal("verify", bundle)


def test_a_changed_weight_of_the_model_is_named(bundle: Path) -> None:
    model = onnx.load(bundle / MODEL)
    tensor = next(t for t in model.graph.initializer if t.name.endswith("weight.codes") and t.dims == [12, 12, 3, 3])
    codes = numpy_helper.to_array(tensor).copy()
    codes[4, 0, 2, 1] ^= 1
    tensor.CopyFrom(numpy_helper.from_array(codes, tensor.name))
    (bundle / MODEL).write_bytes(model.SerializeToString())
    repair(bundle)
    message = refusal("verify", bundle)
    assert f"{PROGRAM} is not what {MODEL} lowers to" in message
    assert "layer 3 layers.3" in message and "first at (o, i, y, x) = (4, 0, 2, 1)" in message


def test_a_changed_exponent_of_the_model_is_named(bundle: Path) -> None:
    model = onnx.load(bundle / MODEL)
    tensor = next(t for t in model.graph.initializer if t.name == "yolo_11.scale")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(2), tensor.name))
    (bundle / MODEL).write_bytes(model.SerializeToString())
    repair(bundle)
    message = refusal("verify", bundle)
    assert f"{PROGRAM} is not what {MODEL} lowers to" in message and "layers.10" in message


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: m["tensors"][4].update(frac=1), "tensors"),
        (lambda m: m["operations"][2].update(weights="i4:pow2"), "operations"),
        (lambda m: m["program"].update(arena_bytes=1), "program"),
        (lambda m: m.pop("weight_bits"), "weight_bits"),
        (lambda m: m["detector"]["heads"][0]["anchors"][0].reverse(), "network.h"),
        (lambda m: m["source"].update(sha256="0" * 64), "headers"),
        (lambda m: m["files"].pop("weights/blobs.json"), "blobs.json"),
        (lambda m: m["files"].pop("weights/bias.coe"), ""),
        (lambda m: m["files"].pop(GOLDEN), "golden"),
    ],
)  # fmt: skip
def test_a_manifest_that_tells_something_else_is_refused(
    bundle: Path, change: Callable[[dict[str, Any]], None], what: str
) -> None:
    edit_manifest(bundle, change)
    if what:
        assert what in refusal("verify", bundle)
    else:
        (bundle / "weights/bias.coe").unlink()
        refusal("verify", bundle)


def test_a_manifest_with_another_detector_than_the_model_is_refused(seed_bundle: Path) -> None:
    edit_manifest(seed_bundle, lambda m: m["detector"].update(names=["nut", "bolt"]))
    assert f"the manifest's detector is not that of {MODEL}" in refusal("verify", seed_bundle)


def test_a_shortened_index_of_golden_data_is_refused(bundle: Path) -> None:
    """The engine's own test would then pass over the second picture in silence."""
    path = bundle / "golden/index.txt"
    path.write_text(path.read_text("ascii").replace("EYGOLD1 2", "EYGOLD1 1"), "ascii")
    repair(bundle)
    assert "golden data" in refusal("verify", bundle)


def test_golden_data_of_another_size_is_refused(bundle: Path) -> None:
    (bundle / GOLDEN).write_bytes((bundle / GOLDEN).read_bytes()[:-1])
    repair(bundle)
    message = refusal("verify", bundle, "--skip", "engine")
    assert "golden data has the wrong size" in message and GOLDEN in message


def test_names_in_a_bundle_are_never_markup(bundle: Path) -> None:
    """A layer's name may look like the markup of the library that draws the tables."""

    def rename(program: IntegerProgram) -> IntegerProgram:
        ops = list(program.ops)
        ops[3] = replace(ops[3], name="[/red]\x1b[2J")
        return replace(program, ops=tuple(ops))

    change_everywhere(bundle, rename)
    patch(bundle / GOLDEN, OFFSET)
    repair(bundle)
    result = edgeyolo("verify", bundle, "--skip", "ort", "--skip", "engine")
    assert result.exit_code == 1, result.output + repr(result.exception)
    assert "[/red]?[2J" in result.stderr and "\x1b" not in result.output


# --- the engine ------------------------------------------------------------------------------------------------------


@needs_cc
def test_a_foreign_engine_runs_only_when_trusted(bundle: Path) -> None:
    source = bundle / "engine/selftest.c"
    source.write_text(source.read_text("utf-8") + "\n/* changed */\n", "utf-8")
    repair(bundle)
    result = succeed("verify", bundle, "--skip", "ort")
    assert "--trust-engine" in result.stderr and "were not run" in result.stderr
    assert "compiled from the bundle" in succeed("verify", bundle, "--skip", "ort", "--trust-engine").stderr
    source.write_text(source.read_text("utf-8").replace("swap_codes(t, copy);", "copy[0] ^= 1;"), "utf-8")
    repair(bundle)
    assert not verify(bundle, QUIET, skip=("ort",)).differences
    assert "engine differs from the Python integers" in difference(bundle, "--skip", "ort", "--trust-engine")


def make(bundle: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("CC", "CFLAGS", "MAKEFLAGS")}
    command = ["make", "-C", str(bundle / "engine"), "test"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


@needs_make
def test_the_bundle_proves_itself_with_make_alone(bundle: Path) -> None:
    done = make(bundle)
    assert done.returncode == 0, done.stderr
    assert "15 layers, 145664 elements, 0 differ" in done.stdout
    succeed("verify", bundle, "--skip", "ort")  # what make leaves behind does not disturb


@needs_make
def test_make_names_the_layer_and_element_that_differ(bundle: Path) -> None:
    patch(bundle / GOLDEN, OFFSET)
    done = make(bundle)
    assert done.returncode != 0
    assert "golden/001/003.bin differs: operation 3, element (5, 7, 9)" in done.stdout
    assert subprocess.run(
        [bundle / "engine/selftest", "test", bundle], capture_output=True, check=False
    ).returncode == 1  # fmt: skip


@needs_make
def test_make_refuses_a_damaged_program(bundle: Path) -> None:
    patch(bundle / PROGRAM, 2000)
    done = make(bundle)
    assert done.returncode != 0 and "refused" in done.stderr


def test_a_golden_input_out_of_range_is_refused(bundle: Path) -> None:
    """Codes beyond the true bits of a tensor fit its container all the same."""

    def narrow(program: IntegerProgram) -> IntegerProgram:
        tensors = list(program.tensors)
        tensors[program.input] = replace(tensors[program.input], qtype=QType(7, signed=False))
        return replace(program, tensors=tuple(tensors))

    change_everywhere(bundle, narrow)
    assert "golden input has codes out of range" in refusal("verify", bundle, "--skip", "ort", "--skip", "engine")


def test_missing_tools_are_named(good_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: object, **named: object) -> object:
        if name == "onnxruntime":
            raise ImportError(name)
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"edgeyolo\[onnx\]"):
        verify(good_bundle, QUIET, skip=("engine",))
