"""``edgeyolo export --target tensorrt`` on the tiny model: what is written, for every board and option."""

from __future__ import annotations

import json
import os
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import pytest
from tensorrt_bundles import (  # noqa: F401 - fixtures
    PLAIN,
    command_fixture,
    compute,
    export,
    npy,
    opset,
    print_command,
    settings,
    source_fixture,
    symbolic_fixture,
    with_pictures,
    without_rtx_fixture,
)
from test_build_sh import VERSIONS
from tiny_models import CLASSES, SIZE, Tiny, refusal, succeed, tree

from edgeyolo.bundle import MODEL
from edgeyolo.export.device_files import CONF, TYPED, noise_db
from edgeyolo.jetson import PRECISIONS, load_jetson
from edgeyolo.ort import open_session, run
from edgeyolo.profile_file import list_boards

pytestmark = pytest.mark.usefixtures("without_rtx")
BOARDS = list_boards()["jetson"]
ROWS = 2 * (8 * 8 + 16 * 16)
"""Boxes of the two heads: anchors times cells."""
HEADS = ("layers.10.conv", "layers.16.conv")
CONVS = 9
GOLDEN = {"golden/index.json", "golden/000/input.npy", "golden/000/output-0.npy", "golden/000/output-1.npy"}
PROGRAMS = {"build.sh", "runner.py", "engine.py", "cuda_device.py", "tensorrt_api.py"}
SAME_DB = 100.0
"""ONNX Runtime against itself, one session with another batch size: the order of float32 sums."""
PARITY_DB = 60.0
"""The same float network by way of a file; a twisted layer leaves less than 20 dB."""


# --- boards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("board", BOARDS)
def test_every_board(board: str, precision: str, command: tuple[object, ...], tmp_path: Path) -> None:
    out, profile = tmp_path / "out", load_jetson(board)
    options = ("--board", board, "--precision", precision)
    if precision not in profile.precisions:
        message = refusal(*command, "-o", out, *options)
        assert f"{board} does not run {precision}: {profile.refused[precision]}" in message
        assert "--precision fp16" in message and not out.exists()
        return
    manifest = export(command, out, *options)
    assert (manifest["target"], manifest["options"]["precision"]) == ("tensorrt", precision)
    assert (manifest["profile"]["name"], manifest["profile"]["tensorrt"]) == (board, list(profile.tensorrt))
    typed = {TYPED} if precision != "fp32" else set()
    assert set(manifest["files"]) == {MODEL, CONF, "report.json"} | typed | GOLDEN | PROGRAMS
    assert opset(out / MODEL) <= profile.max_opset
    layers = manifest["layers"]
    assert (len(layers["int8"]), set(layers["float"])) == ((7, set(HEADS)) if precision == "int8" else (0, set()))
    nodes = [node.op_type for node in onnx.load(out / MODEL).graph.node]
    assert ("QuantizeLinear" in nodes) == (precision == "int8") and nodes.count("Conv") == CONVS
    if typed:
        assert opset(out / TYPED) == 19
        values = onnx.load(out / TYPED).graph
        assert {v.type.tensor_type.elem_type for v in (*values.input, *values.output)} == {onnx.TensorProto.FLOAT}
    assert os.access(out / "build.sh", os.X_OK)
    conf = settings(out)
    expected = {"PRECISION": precision, "BOARD": board, "INPUT": "images", "SHAPE": f"3x{SIZE}x{SIZE}", "DYNAMIC": "0"}
    assert expected.items() <= conf.items() and conf["WORKSPACE_MIB"] == str(profile.workspace_mib)
    for version in VERSIONS:
        if any(version.startswith(f"{known}.") for known in profile.tensorrt):
            words = print_command(out, tmp_path, version)
            file = TYPED if typed and not version.startswith("8.") else MODEL
            assert f"--onnx={out}/{file}" in words
            memory = "--workspace=" if version == "8.2.1" else "--memPoolSize=workspace:"
            assert f"{memory}{profile.workspace_mib}" in words


def test_the_default_is_the_fastest_precision_of_the_default_board(command: tuple[object, ...], tmp_path: Path) -> None:
    manifest = export(command, tmp_path / "a")
    assert (manifest["profile"]["name"], manifest["options"]["precision"]) == ("orin-nano", "int8")
    manifest = export(command, tmp_path / "b", "--board", "nano")
    assert manifest["options"]["precision"] == "fp16"


def test_a_board_of_ones_own_and_an_old_parser(command: tuple[object, ...], tmp_path: Path) -> None:
    text = files("edgeyolo.targets.jetson").joinpath("orin-nano.toml").read_text("utf-8")
    board = tmp_path / "mine.toml"
    board.write_text(text.replace('name = "orin-nano"', 'name = "mine"').replace("max_opset = 17", "max_opset = 13"))
    manifest = export(command, tmp_path / "out", "--board", board, "--precision", "int8", "--decode")
    assert manifest["profile"]["name"] == "mine" and str(tmp_path) not in json.dumps(manifest)
    assert opset(tmp_path / "out" / MODEL) == 13
    board.write_text(text.replace("max_opset = 17", "max_opset = 9"))
    message = refusal(*command, "-o", tmp_path / "old", "--board", board, "--precision", "fp32")
    assert "newer opset" in message and "allowed: opset 9" in message and not (tmp_path / "old").exists()
    assert "unknown board" in refusal(*command, "-o", tmp_path / "old", "--board", "jetson-9000")


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_bytes_and_nothing_of_this_machine(
    command: tuple[object, ...], tiny: Tiny, source: Path, tmp_path: Path
) -> None:
    trees = []
    for name in ("a", "b"):
        export(command, tmp_path / name / "out", "--decode", "--golden", 2)
        trees.append(tree(tmp_path / name / "out"))
    assert trees[0] == trees[1]
    text = b"\n".join(trees[0].values())
    for path in (tmp_path, source.parent, tiny.pictures, Path.home()):
        assert str(path).encode() not in text
    manifest = trees[0]["manifest.json"].decode()
    assert "seconds" not in manifest and not re.search(r"20\d\d-\d\d-\d\d|\d\d:\d\d:\d\d", manifest)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_golden_data_are_what_onnx_runtime_computes(
    precision: str, command: tuple[object, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export(command, out, "--precision", precision)
    index = json.loads((out / "golden/index.json").read_text("utf-8"))
    names = [output.name for output in onnx.load(out / MODEL).graph.output]
    assert index["outputs"] == names and index["pictures"] == 1 and list(index["tolerance_db"]) == [precision]
    feed = npy(out, "input.npy")
    assert feed.dtype == np.float32 and feed.shape == (1, 3, SIZE, SIZE) and 0 <= feed.min() < feed.max() <= 1
    expected = {name: npy(out, f"output-{i}.npy") for i, name in enumerate(names)}
    got = compute(out / MODEL, feed)
    assert all(np.array_equal(expected[name], got[name]) for name in names)
    if precision != "fp32":
        worst = min(noise_db([expected], [compute(out / TYPED, feed)]).values())
        assert 20 < index["tolerance_db"][precision] < worst
    else:
        assert index["tolerance_db"][precision] == 40


def test_decoded_boxes_are_computed_in_float32(command: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = export(command, out, "--decode", "--precision", "fp16")
    graph = onnx.load(out / MODEL).graph
    assert [v.name for v in graph.output] == ["boxes", "scores"]
    kept = manifest["layers"]["typed_float32"]
    assert kept == sorted(kept) and settings(out)["FLOAT_LAYERS"] == ",".join(kept)
    assert set(kept) <= {node.name for node in graph.node} and not any(name.startswith("layers.") for name in kept)
    typed = onnx.load(out / TYPED).graph
    kinds = {
        v.name: v.type.tensor_type.elem_type
        for v in onnx.shape_inference.infer_shapes(onnx.load(out / TYPED)).graph.value_info
    }
    for node in typed.node:
        if node.op_type in ("Exp", "Sigmoid"):
            assert kinds[node.output[0]] == onnx.TensorProto.FLOAT
        if node.op_type == "Conv":
            assert kinds[node.output[0]] == onnx.TensorProto.FLOAT16
    boxes, scores = npy(out, "output-0.npy"), npy(out, "output-1.npy")
    assert boxes.shape == (1, ROWS, 4) and scores.shape == (1, ROWS, CLASSES)
    assert 0 < scores.min() < scores.max() < 1 and (boxes[..., 2:] > boxes[..., :2]).all()
    words = print_command(out, tmp_path, "8.5.2")
    assert "--precisionConstraints=obey" in words


def test_suppression_in_the_graph(command: tuple[object, ...], tmp_path: Path) -> None:
    manifest = export(command, tmp_path / "a", "--nms", "--conf", 0.1, "--iou", 0.6)
    assert {k: manifest["options"][k] for k in ("nms", "conf", "iou")} == {"nms": True, "conf": 0.1, "iou": 0.6}
    export(command, tmp_path / "b", "--nms", "--conf", 0.9)
    selected = npy(tmp_path / "a", "output-2.npy")
    assert (
        selected.dtype == np.int64
        and selected.shape[1] == 3
        and len(selected) > len(npy(tmp_path / "b", "output-2.npy"))
    )
    for name in (MODEL, TYPED):
        got = compute(tmp_path / "a" / name, npy(tmp_path / "a", "input.npy"))
        assert list(got) == ["boxes", "scores", "selected"] and got["selected"].dtype == np.int64
        assert set(got["selected"][:, 0]) == {0} and set(got["selected"][:, 1]) <= set(range(CLASSES))
    message = refusal(*command, "-o", tmp_path / "c", "--nms", "--conf", 2)
    assert "out of range" in message and not (tmp_path / "c").exists()


@pytest.mark.parametrize("more", [(), ("--decode",), ("--nms",)], ids=["raw", "decode", "nms"])
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_dynamic_batch(more: tuple[str, ...], precision: str, symbolic: Path, tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = export(
        with_pictures(symbolic, tiny), out, "--dynamic-batch", "--max-batch", 4, "--precision", precision, *more
    )
    assert manifest["options"]["max_batch"] == 4
    conf = settings(out)
    assert [conf[k] for k in ("DYNAMIC", "MIN_BATCH", "OPT_BATCH", "MAX_BATCH")] == ["1", "1", "4", "4"]
    assert f"--maxShapes=images:4x3x{SIZE}x{SIZE}" in print_command(out, tmp_path, "10.3.0")
    feeds = np.random.default_rng(1).random((3, 3, SIZE, SIZE), np.float32)
    for name in (MODEL, TYPED):
        session = open_session(out / name, optimise=False)
        together = run(session, feeds)
        for index in range(3):
            alone = run(session, feeds[index : index + 1])
            floats = {key: value for key, value in alone.items() if value.dtype == np.float32}
            assert (
                floats
                and min(noise_db([floats], [{k: together[k][index : index + 1] for k in floats}]).values()) > SAME_DB
            )
        if "--nms" in more:
            assert set(together["selected"][:, 0]) == {0, 1, 2}


def test_stages_of_the_ledger(command: tuple[object, ...], tmp_path: Path) -> None:
    floats = ["source", "BN folded", "simplified"]
    manifest = export(command, tmp_path / "a", "--save-stages", tmp_path / "stages")
    rows = manifest["ledger"]["stages"]
    refined = ["round to nearest", "equalise", "equalise + reconstruct"]
    assert [row["stage"] for row in rows] == [*floats, *refined, "int8, else float16"]
    assert [row["kept"] for row in rows][:3] == [None] * 3 and rows[-1]["kept"] is None
    candidates = rows[3:-1]
    assert [row["kept"] for row in candidates].count(True) == 1
    best = max(candidates, key=lambda row: row["kept"])
    assert abs(rows[-1]["snr_db"] - best["snr_db"]) < 2, "what is shipped is the kept candidate, in float16 between"
    assert rows[-1]["bytes"] < best["bytes"] < rows[0]["bytes"]
    stages = {path.name for path in (tmp_path / "stages").iterdir()}
    assert {"50-quantised.onnx", "60-typed.onnx"} <= stages
    assert (tmp_path / "stages/60-typed.onnx").read_bytes() == (tmp_path / "a" / TYPED).read_bytes()
    rows = export(command, tmp_path / "b", "--precision", "fp16")["ledger"]["stages"]
    assert [row["stage"] for row in rows] == [*floats, "float16"]
    rows = export(command, tmp_path / "c", "--precision", "fp32")["ledger"]["stages"]
    assert [row["stage"] for row in rows] == [*floats, "float32"] and (rows[-1]["snr_db"] or 999) > SAME_DB
    rows = export(command, tmp_path / "d", *PLAIN)["ledger"]["stages"]
    assert [row["stage"] for row in rows] == [*floats, "round to nearest", "int8, else float16"]
    rows = export(command, tmp_path / "e", *PLAIN[:2], "--correct-bias")["ledger"]["stages"]
    assert rows[-2]["stage"] == "round to nearest + correct biases"


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("none", set()),
        ("head", set(HEADS)),
        ("first, layers.1?.conv", {"layers.0.conv*", "layers.1?.conv"}),
        ("depthwise", {"layers.1.conv"}),
    ],
)
def test_keep_float(keep: str, kept: set[str], command: tuple[object, ...], tmp_path: Path) -> None:
    manifest = export(command, tmp_path / "out", "--keep-float", keep)
    layers, weights = manifest["layers"], {}
    for node in onnx.load(tmp_path / "out" / MODEL).graph.node:
        weights |= {node.name: node.input[1]} if node.op_type == "Conv" else {}
    if keep.startswith("first"):
        kept = {name for name in weights if name.startswith("layers.0.") or re.fullmatch(r"layers\.1.\.conv", name)}
    assert set(layers["float"]) == kept and set(layers["int8"]) == set(weights) - kept
    assert {name for name, weight in weights.items() if not weight.endswith(".dq")} == kept


def test_methods(command: tuple[object, ...], tmp_path: Path) -> None:
    models = {}
    for method in ("mse", "minmax", "percentile", "kl", "entropy"):
        manifest = export(command, tmp_path / method, "--method", method, *PLAIN)
        assert manifest["options"]["method"] == method
        models[method] = (tmp_path / method / MODEL).read_bytes()
    assert models["kl"] == models["entropy"] and len(set(models.values())) == 4
    message = refusal(*command, "-o", tmp_path / "out", "--method", "guess")
    assert "--method" in message and "minmax" in message


def test_cfg_and_onnx_give_the_same_network(command: tuple[object, ...], tiny: Tiny, tmp_path: Path) -> None:
    export(command, tmp_path / "onnx", "--precision", "fp32")
    from_cfg = ("export", *tiny.model(), "--target", "tensorrt", "--calib", tiny.pictures, "--calib-limit", 2)
    export(from_cfg, tmp_path / "cfg", "--precision", "fp32", "--names", tiny.names)
    graphs = [onnx.load(tmp_path / kind / MODEL).graph for kind in ("onnx", "cfg")]
    described = [[(n.op_type, n.name, list(n.input), list(n.output)) for n in graph.node] for graph in graphs]
    assert described[0] == described[1]
    feed = npy(tmp_path / "cfg", "input.npy")
    expected, got = (compute(tmp_path / kind / MODEL, feed) for kind in ("cfg", "onnx"))
    assert min(noise_db([expected], [got]).values()) > PARITY_DB
    details = [
        json.loads((tmp_path / kind / "manifest.json").read_text("utf-8"))["detector"] for kind in ("onnx", "cfg")
    ]
    assert details[0] == details[1]


def test_json_is_one_document(command: tuple[object, ...], tmp_path: Path) -> None:
    result = succeed(*command, "-o", tmp_path / "out", "--json")
    document, manifest = json.loads(result.stdout), json.loads((tmp_path / "out/manifest.json").read_text("utf-8"))
    assert result.stderr == ""
    for key in ("tool", "target", "source", "profile", "options", "layers", "ledger"):
        assert document[key] == manifest[key]
    assert document["output"] == str(tmp_path / "out") and document["lost"] is False
    assert document["accepted"]["status"] == "skipped" and "pip install" in document["accepted"]["text"]


def test_what_a_person_reads(command: tuple[object, ...], tmp_path: Path) -> None:
    text = " ".join(succeed(*command, "-o", tmp_path / "out", "--report").output.split())
    for part in ("layers against float", "ledger", "orin-nano", "head SNR", "next: edgeyolo verify", "./build.sh"):
        assert part in text
    report = json.loads((tmp_path / "out/report.json").read_text("utf-8"))
    assert len(report) >= 5 and all(row["name"] in text for row in report)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_fp16_needs_no_pictures_and_says_what_that_means(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = succeed("export", source, "--target", "tensorrt", "--precision", "fp16", "-o", out)
    assert "no --calib" in result.stderr and "noise" in result.stderr
    assert npy(out, "input.npy").std() > 0.1
    message = refusal("export", source, "--target", "tensorrt", "--precision", "int8", "-o", tmp_path / "int8")
    assert "int8 needs calibration pictures" in message and "--calib" in message and not (tmp_path / "int8").exists()


def test_no_golden_pictures(command: tuple[object, ...], tmp_path: Path) -> None:
    manifest = export(command, tmp_path / "out", "--golden", 0)
    assert not any(name.startswith("golden") for name in manifest["files"])
    assert "--golden" in refusal(*command, "-o", tmp_path / "no", "--golden", -1)


def test_a_folder_without_pictures(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = refusal("export", source, "--target", "tensorrt", "--calib", tmp_path / "empty", "-o", tmp_path / "out")
    assert str(tmp_path / "empty") in message and not (tmp_path / "out").exists()
