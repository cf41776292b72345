"""``edgeyolo export`` on a tiny detector: every target, layout and format, and what is said when accuracy is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from tiny_models import PICTURES, SIZE, Tiny, edgeyolo, refusal, succeed, tree

from edgeyolo.bundle import MODEL, PROGRAM
from edgeyolo.detector import METADATA_KEY
from edgeyolo.ort import open_session, run
from edgeyolo.program import Conv
from edgeyolo.program_image import decode_program
from edgeyolo.progress import Log
from edgeyolo.verify import verify

PARITY_TOLERANCE = 1e-4
"""Raw heads are a few units large; folding and simplifying change the order of float32 additions only."""
ROWS = 2 * (8 * 8 + 16 * 16)
"""Boxes of the two heads: anchors times cells."""
LOST = "AGREEMENT WITH THE FLOAT MODEL IS LOST"


@pytest.fixture(scope="module")
def float_onnx(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as this tool exports it: raw heads, metadata inside."""
    path = tmp_path_factory.mktemp("float") / "tiny.onnx"
    succeed("export", *tiny.model(), "--target", "onnx", "--names", tiny.names, "-o", path)
    return path


def fpga(model: Path, tiny: Tiny, output: Path, *more: object) -> dict[str, Any]:
    """Export ``model`` by the quick recipe, check the arithmetic of the bundle, and return the JSON document."""
    command = ("export", model, "--calib", tiny.pictures, "--target", "fpga", "-o", output, "--json")
    result = succeed(*command, "--recipe", "fast", *more)
    verdict = verify(output, Log(quiet=True), skip=("engine",), more=tiny.pictures / "picture-1.jpg")
    assert verdict.differences == [] and verdict.elements["ort"] > 0
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def weight_types(bundle: Path) -> list[tuple[int, int | None]]:
    """(bits, axis) of every convolution's weights."""
    program = decode_program((bundle / PROGRAM).read_bytes(), "program")
    return [(op.weight_type.bits, op.weight_type.axis) for op in program.ops if isinstance(op, Conv)]


# --- fpga ------------------------------------------------------------------------------------------------------------


def test_json_is_one_document_that_says_what_the_bundle_is(float_onnx: Path, tiny: Tiny, tmp_path: Path) -> None:
    document = fpga(float_onnx, tiny, tmp_path / "out", "--recipe", "default")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text("utf-8"))
    for key in ("tool", "target", "source", "options", "program", "tensors", "weight_bits", "ledger"):
        assert document[key] == manifest[key]
    assert document["output"] == str(tmp_path / "out")
    assert document["pictures"] == PICTURES and document["skipped"] == [] and document["lost"] is False
    assert {p["stage"]: p["max_abs_difference"] < PARITY_TOLERANCE for p in document["ledger"]["parity"]} == {
        "folded": True,
        "simplified": True,
    }
    assert document["weight_bits"] == {"8": sum(v for v in document["weight_bits"].values())}
    assert "seconds" not in manifest, "a bundle has no time in it"


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("granularity", ["per-tensor", "per-channel"])
def test_bits_and_granularity(bits: int, granularity: str, float_onnx: Path, tiny: Tiny, tmp_path: Path) -> None:
    fpga(float_onnx, tiny, tmp_path / "out", "--bits", bits, "--granularity", granularity)
    axis = 0 if granularity == "per-channel" else None
    assert set(weight_types(tmp_path / "out")) == {(bits, axis)}


@pytest.mark.parametrize("layout", ["oihw", "ohwi", "tiled"])
@pytest.mark.parametrize("formats", ["bin", "mem,coe", "h", "bin,mem,coe,h"])
def test_layouts_and_formats(layout: str, formats: str, float_onnx: Path, tiny: Tiny, tmp_path: Path) -> None:
    """``verify`` reads every format back and compares it with the program."""
    out = tmp_path / "out"
    fpga(float_onnx, tiny, out, "--bits", 4, "--layout", layout, "--format", formats, "--golden", 0)
    suffixes = {path.suffix for path in (out / "weights").rglob("*") if path.is_file()} - {".json"}
    assert suffixes == {f".{f}" for f in formats.split(",")}
    assert json.loads((out / "weights/blobs.json").read_text("utf-8"))["form"]["layout"] == layout


def test_layout_seed_v1(float_onnx: Path, tiny: Tiny, tmp_path: Path) -> None:
    document = fpga(float_onnx, tiny, tmp_path / "out", "--layout", "seed-v1")
    names = {path.name for path in (tmp_path / "out/weights").iterdir()}
    assert names == {f"tiny_{k}.bin" for k in ("weights", "bias", "w_scale", "a_scale", "b_scale", "s_scale")}
    assert document["options"]["granularity"] == "per-tensor", "the only one that the format can express"


def test_layout_seed_v1_refuses_what_it_cannot_express_before_the_work(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    message = refusal(*tiny.fpga(out, "--layout", "seed-v1", "--granularity", "per-channel"))
    assert "per-tensor" in message and "load " not in message
    assert ".bin" in refusal(*tiny.fpga(out, "--layout", "seed-v1", "--format", "mem"))


def test_keep_gives_some_layers_other_bits(float_onnx: Path, tiny: Tiny, tmp_path: Path) -> None:
    keep = ("--bits", 4, "--keep", "first,head,depthwise=8", "--keep", "layers.6.*=3")
    document = fpga(float_onnx, tiny, tmp_path / "out", *keep)
    bits = [b for b, _ in weight_types(tmp_path / "out")]
    assert bits == [8, 8, 4, 4, 3, 4, 8, 4, 8]
    assert document["weight_bits"] == {"3": 6 * 6 * 9, "4": 96 + 1296 + 432 + 48, "8": 216 + 72 + 112 + 168}


def test_keep_that_matches_nothing_is_not_passed_over(tiny: Tiny, tmp_path: Path) -> None:
    result = edgeyolo(*tiny.fpga(tmp_path / "out", "--keep", "no-such-layer=8"))
    assert result.exit_code == 2 and "no-such-layer" in result.stderr
    assert not (tmp_path / "out").exists()


def test_wide_activations(float_onnx: Path, tiny: Tiny, tmp_path: Path) -> None:
    narrow = fpga(float_onnx, tiny, tmp_path / "8", "--head-bits", 16)["ledger"]["head_snr_db"]
    wide = fpga(float_onnx, tiny, tmp_path / "12", "--act-bits", 12)["ledger"]["head_snr_db"]
    assert wide > narrow


@pytest.mark.parametrize("method", ["minmax", "percentile", "nearest", "kl"])
def test_methods(method: str, float_onnx: Path, tiny: Tiny, tmp_path: Path) -> None:
    plain = ("--no-equalise", "--no-align", "--no-correct-bias")
    document = fpga(float_onnx, tiny, tmp_path / "out", "--method", method, "--golden", 0, *plain)
    assert document["options"]["method"] == method and len(document["ledger"]["refinement"]) == 1


@pytest.mark.parametrize("golden", [0, 2, 100])
def test_golden_pictures(golden: int, float_onnx: Path, tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fpga(float_onnx, tiny, out, "--golden", golden)
    stored = min(golden, PICTURES)
    operations = len(decode_program((out / PROGRAM).read_bytes(), "program").ops)
    if not stored:
        assert not (out / "golden").exists()
        return
    assert (out / "golden/index.txt").read_text("ascii") == f"EYGOLD1 {stored} {operations}\n"
    assert len(list((out / "golden").rglob("*.bin"))) == stored * (operations + 1)


def test_the_number_of_stored_golden_pictures_is_said_as_it_is(float_onnx: Path, tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = succeed(
        "export", float_onnx, "--calib", tiny.pictures, "--target", "fpga", "-o", out, "--golden", 100
    ).stderr  # fmt: skip
    assert "100 picture" not in text
    assert f"next: edgeyolo verify {out}" in text and f"make -C {out}/engine test" in text


def test_exports_are_byte_identical(tiny: Tiny, tmp_path: Path) -> None:
    options = ("--bits", 4, "--format", "bin,mem,coe,h", "--golden", 2)
    for name in ("a", "b"):
        succeed(*tiny.fpga(tmp_path / name, *options))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_stages_are_saved_and_can_be_started_from(tiny: Tiny, tmp_path: Path) -> None:
    stages = tmp_path / "stages"
    succeed(*tiny.fpga(tmp_path / "out", "--save-stages", stages))
    names = ["10-exported", "20-folded", "30-simplified", "40-fixed-form", "50-quantised"]
    assert sorted(p.name for p in stages.iterdir()) == [f"{name}.onnx" for name in names]
    kinds = {}
    for path in stages.iterdir():
        model = onnx.load(path)
        onnx.checker.check_model(model)
        kinds[path.stem] = {node.op_type for node in model.graph.node}
        assert METADATA_KEY in {p.key for p in model.metadata_props}
    assert "BatchNormalization" in kinds["10-exported"] and "BatchNormalization" not in kinds["20-folded"]
    assert "QuantizeLinear" in kinds["50-quantised"]
    assert (stages / "50-quantised.onnx").read_bytes() == (tmp_path / "out" / MODEL).read_bytes()
    fpga(stages / "30-simplified.onnx", tiny, tmp_path / "again")
    assert (tmp_path / "again" / PROGRAM).read_bytes() == (tmp_path / "out" / PROGRAM).read_bytes()


def test_calibration_from_a_list_and_of_a_limited_number(float_onnx: Path, tiny: Tiny, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text("# some\n" + "".join(f"{tiny.pictures}/picture-{i}.jpg\n" for i in (4, 2, 0)), "utf-8")
    command = ("export", float_onnx, "--target", "fpga", "--json", "--golden", 0)
    document = json.loads(succeed(*command, "--calib", listing, "-o", tmp_path / "a").stdout)
    assert document["pictures"] == 3
    limited = (*command, "--calib", tiny.pictures, "--calib-limit", 2)
    assert json.loads(succeed(*limited, "-o", tmp_path / "b").stdout)["pictures"] == 2
    assert "--calib-limit" in refusal(*command, "--calib", listing, "--calib-limit", 0, "-o", tmp_path / "c")


def test_pictures_that_do_not_decode_are_skipped_and_counted(float_onnx: Path, tiny: Tiny, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    shutil.copytree(tiny.pictures, pictures)
    (pictures / "broken.jpg").write_bytes((pictures / "picture-0.jpg").read_bytes()[:200])
    (pictures / "text.png").write_text("not a picture", "utf-8")
    (pictures / "notes.md").write_text("no picture's extension", "utf-8")
    command = ("export", float_onnx, "--target", "fpga", "--golden", 0, "--calib", pictures)
    result = succeed(*command, "-o", tmp_path / "a", "--json")
    document = json.loads(result.stdout)
    assert document["pictures"] == PICTURES
    assert [Path(path).name for path in document["skipped"]] == ["broken.jpg", "text.png"]
    assert "2 picture(s) skipped" in result.stderr and "broken.jpg" in result.stderr
    assert "2 picture(s) skipped" in succeed(*command, "-o", tmp_path / "b").stderr


# --- accuracy --------------------------------------------------------------------------------------------------------


def test_two_bits_lose_the_agreement_and_the_export_says_so_loudly(tiny: Tiny, tmp_path: Path) -> None:
    result = succeed(*tiny.fpga(tmp_path / "out", "--bits", 2))
    assert LOST in result.stderr and "F1 0." in result.stderr and "missed" in result.stderr
    quiet = succeed(*tiny.fpga(tmp_path / "quiet", "--bits", 2, "--json"))
    assert LOST in quiet.stderr and json.loads(quiet.stdout)["lost"] is True


def test_eight_bits_keep_it_and_nothing_is_warned_of(tiny: Tiny, tmp_path: Path) -> None:
    result = succeed(*tiny.fpga(tmp_path / "out", "--bits", 8))
    assert "warning" not in result.stderr


def test_max_drop_turns_a_loss_into_exit_code_3(tiny: Tiny, tmp_path: Path) -> None:
    result = edgeyolo(*tiny.fpga(tmp_path / "2", "--bits", 2, "--max-drop", 0.5))
    assert result.exit_code == 3 and "--max-drop 0.5" in result.stderr and "Traceback" not in result.stderr
    assert (tmp_path / "2/manifest.json").is_file(), "the result is there to be looked at"
    succeed(*tiny.fpga(tmp_path / "8", "--bits", 8, "--max-drop", 0.5))
    result = edgeyolo(*tiny.fpga(tmp_path / "json", "--bits", 2, "--max-drop", 0.5, "--json"))
    assert result.exit_code == 3 and json.loads(result.stdout)["lost"] is True


def test_without_detections_nothing_is_claimed(float_onnx: Path, tmp_path: Path) -> None:
    """Agreement on nothing is no agreement: neither a perfect score nor a passed gate."""
    grey = tmp_path / "grey"
    grey.mkdir()
    for index in range(3):
        Image.new("RGB", (80, 60), (120 + index, 120, 120)).save(grey / f"{index}.png")
    command = ("export", float_onnx, "--calib", grey, "--target", "fpga", "--json")
    result = succeed(*command, "-o", tmp_path / "out")
    assert json.loads(result.stdout)["ledger"]["agreement"]["f1"] is None
    assert "no detections to compare" in result.stderr
    assert edgeyolo(*command, "-o", tmp_path / "gate", "--max-drop", 0.9).exit_code == 3


def test_report_prints_all_layers_and_the_default_the_worst_few(float_onnx: Path, tiny: Tiny, tmp_path: Path) -> None:
    command = ("export", float_onnx, "--calib", tiny.pictures, "--target", "fpga")
    few = succeed(*command, "-o", tmp_path / "few").stdout
    every = succeed(*command, "-o", tmp_path / "every", "--report").stdout
    layers = [row["name"] for row in json.loads((tmp_path / "every/report.json").read_text("utf-8"))]
    assert len(layers) == 11 and sum(f" {name} " in few for name in layers) == 5
    assert all(f" {name} " in every for name in layers)
    for text in (few, every):
        table = [line for line in text.splitlines() if line[:1] in (" ", "│") and str(tmp_path) not in line]
        assert len(table) > 20 and all(len(line) <= 80 for line in table)


# --- onnx ------------------------------------------------------------------------------------------------------------


def test_raw_heads_equal_the_torch_module(tiny: Tiny, float_onnx: Path) -> None:
    import torch

    from edgeyolo.frontend.darknet import load_darknet

    loaded = load_darknet(tiny.cfg, tiny.weights)
    x = np.random.default_rng(1).random((1, 3, SIZE, SIZE), np.float32)
    with torch.inference_mode():
        expected = [y.numpy() for y in loaded.module(torch.from_numpy(x))]
    got = run(open_session(float_onnx), x)
    assert list(got) == ["yolo_11", "yolo_17"]
    for want, have in zip(expected, got.values(), strict=True):
        np.testing.assert_allclose(have, want, atol=PARITY_TOLERANCE)


def test_simplifying_is_optional(tiny: Tiny, float_onnx: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.onnx"
    succeed("export", *tiny.model(), "--target", "onnx", "--no-simplify", "-o", path)
    long, short = (len(onnx.load(p).graph.node) for p in (path, float_onnx))
    assert long > short
    x = np.random.default_rng(1).random((1, 3, SIZE, SIZE), np.float32)
    expected, got = run(open_session(float_onnx), x), run(open_session(path), x)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, atol=PARITY_TOLERANCE)


@pytest.mark.parametrize("options", [(), ("--decode",), ("--nms",), ("--decode", "--nms")])
@pytest.mark.parametrize("simplify", ["--simplify", "--no-simplify"])
def test_dynamic_batch_runs_one_and_three_pictures(
    options: tuple[str, ...], simplify: str, tiny: Tiny, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.onnx"
    succeed("export", *tiny.model(), "--target", "onnx", "--dynamic-batch", simplify, *options, "-o", path)
    session = open_session(path)
    x = np.random.default_rng(1).random((3, 3, SIZE, SIZE), np.float32)
    together, alone = run(session, x), [run(session, x[i : i + 1]) for i in range(3)]
    shapes = {name: value.shape for name, value in together.items() if name != "selected"}
    if options:
        assert shapes == {"boxes": (3, ROWS, 4), "scores": (3, ROWS, 2)}
    else:
        assert shapes == {"yolo_11": (3, 14, 8, 8), "yolo_17": (3, 14, 16, 16)}
    for name in shapes:
        np.testing.assert_allclose(together[name], np.concatenate([a[name] for a in alone]), atol=1e-3)
    if "--nms" in options:
        expected = {(i, *row[1:]) for i, single in enumerate(alone) for row in single["selected"].tolist()}
        assert expected and {tuple(row) for row in together["selected"].tolist()} == expected


def test_a_fixed_batch_is_the_default(float_onnx: Path) -> None:
    assert open_session(float_onnx).get_inputs()[0].shape == [1, 3, SIZE, SIZE]


# --- onnx in ---------------------------------------------------------------------------------------------------------


def test_our_own_onnx_gives_the_program_that_the_cfg_gives(tiny: Tiny, float_onnx: Path, tmp_path: Path) -> None:
    succeed(*tiny.fpga(tmp_path / "cfg", "--golden", 0))
    fpga(float_onnx, tiny, tmp_path / "onnx", "--golden", 0)
    assert (tmp_path / "cfg" / PROGRAM).read_bytes() == (tmp_path / "onnx" / PROGRAM).read_bytes()


def foreign(path: Path, source: Path) -> Path:
    """A stranger's file: no metadata, no inner shapes, other names."""
    model = onnx.load(source)
    del model.metadata_props[:], model.graph.value_info[:]
    names = {value.name: f"/net/{i}/out[{i}]" for i, value in enumerate(model.graph.output)}
    for node in model.graph.node:
        node.name = ""
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
    for value in model.graph.output:
        value.name = names[value.name]
    onnx.save(model, path)
    return path


def test_a_foreign_onnx_without_metadata(float_onnx: Path, tiny: Tiny, tmp_path: Path) -> None:
    model = foreign(tmp_path / "foreign.onnx", float_onnx)
    document = fpga(model, tiny, tmp_path / "out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text("utf-8"))
    assert [h["kind"] for h in manifest["detector"]["heads"]] == ["raw", "raw"]
    assert document["ledger"]["agreement"]["f1"] is None and document["ledger"]["head_snr_db"] > 15
    command = ("export", model, "--calib", tiny.pictures, "--target", "fpga")
    text = succeed(*command, "-o", tmp_path / "table", "--report").output
    assert "/net/0/out[0]" in text and "no detections to compare" in text
    worst = ("--bits", 2, "--recipe", "fast", "--no-correct-bias")
    assert LOST in succeed(*command, "-o", tmp_path / "2", *worst).stderr, "the SNR says so where boxes cannot"


def test_a_resize_by_nearly_two_is_refused(float_onnx: Path, tiny: Tiny, tmp_path: Path) -> None:
    """It has the shape of a doubling, but reads other pixels."""
    model = onnx.load(float_onnx)
    resize = next(node for node in model.graph.node if node.op_type == "Resize")
    scales = next(t for t in model.graph.initializer if t.name == resize.input[2])
    scales.CopyFrom(numpy_helper.from_array(np.array([1, 1, 2.02, 2], np.float32), scales.name))
    onnx.save(model, tmp_path / "odd.onnx")
    command = ("export", tmp_path / "odd.onnx", "--calib", tiny.pictures, "--target", "fpga", "-o", tmp_path / "out")
    assert "Resize" in refusal(*command)


def test_a_foreign_onnx_through_target_onnx(float_onnx: Path, tmp_path: Path) -> None:
    model = foreign(tmp_path / "foreign.onnx", float_onnx)
    succeed("export", model, "--target", "onnx", "-o", tmp_path / "out.onnx")
    message = refusal("export", model, "--target", "onnx", "--decode", "-o", tmp_path / "boxes.onnx")
    assert "raw" in message and not (tmp_path / "boxes.onnx").exists()


# --- the bundle in use -----------------------------------------------------------------------------------------------


def test_a_bundle_detects_what_its_model_detects(good_bundle: Path, tiny: Tiny) -> None:
    """All runners of a bundle give the same boxes; the float model's are near."""
    runners = ["integer", "ort", *(["engine"] if shutil.which("cc") else [])]
    found = [
        json.loads(succeed("detect", good_bundle, tiny.pictures, "--runner", r, "--json").stdout)["pictures"]
        for r in runners
    ]
    assert all(other == found[0] for other in found[1:])
    assert sum(len(p["detections"]) for p in found[0]) > 20
    assert {d["class"] for p in found[0] for d in p["detections"]} <= {"bolt", "nut"}


def test_pictures_of_any_size_and_mode_calibrate(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = Image.effect_noise((90, 50), 80)
    rng.save(folder / "grey.png")
    rng.convert("RGBA").save(folder / "alpha.png")
    rng.convert("P").save(folder / "palette.gif")
    Image.effect_noise((1, 1), 50).save(folder / "one-pixel.png")
    result = succeed("export", *tiny.model(), "--calib", folder, "--target", "fpga", "-o", tmp_path / "o", "--json")
    assert json.loads(result.stdout)["pictures"] == 4


def test_an_onnx_file_without_node_names_is_exported(float_onnx: Path, tiny: Tiny, tmp_path: Path) -> None:
    model = onnx.load(float_onnx)
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, tmp_path / "unnamed.onnx")
    fpga(tmp_path / "unnamed.onnx", tiny, tmp_path / "out")
    assert edgeyolo("verify", tmp_path / "out", "--skip", "engine").exit_code == 0
