"""``edgeyolo verify`` on bundles for TensorRT: silent on good ones, exact about every other."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundle_surgery import edit_manifest, repair
from onnx import helper, numpy_helper
from tensorrt_bundles import (  # noqa: F401 - fixtures
    KINDS,
    bundle_fixture,
    damaged,
    good_fixture,
    no_rtx,
    source_fixture,
    symbolic_fixture,
    verdict,
    with_pictures,
)
from tiny_models import PICTURES, Tiny, edgeyolo, refusal, succeed, tree

from edgeyolo.bundle import MODEL
from edgeyolo.export import acceptance
from edgeyolo.export.device_files import GOLDEN_INDEX, TYPED

OUTPUT = "golden/001/output-1.npy"


def change_graph(path: Path, change: Callable[[Any], None]) -> None:
    """Rewrite an ONNX file."""
    model = onnx.load(path)
    change(model.graph)
    path.write_bytes(model.SerializeToString())


def change_weight(graph: Any) -> None:
    """A quarter more of every last layer's weight."""
    last = next(node for node in graph.node if node.name == "layers.16.conv")
    stored = next(t for t in graph.initializer if t.name == last.input[1])
    array = numpy_helper.to_array(stored)
    stored.CopyFrom(numpy_helper.from_array((array * 1.25).astype(array.dtype), stored.name))


# --- good bundles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_good_bundles_pass(kind: str, good: dict[str, Path], tiny: Tiny) -> None:
    before = tree(good[kind])
    checks = verdict(good[kind])
    assert {name for name, (status, _) in checks.items() if status == "skipped"} == {
        "TensorRT-RTX",
        "engine on this GPU",
    }
    assert f"{MODEL}, ONNX Runtime" in checks
    assert (f"{TYPED}, ONNX Runtime" in checks) == (kind != "fp32")
    assert "2 picture(s)" in checks[f"{MODEL}, ONNX Runtime"][1]
    assert tree(good[kind]) == before
    more = verdict(good[kind], "--pictures", tiny.pictures)
    assert f"{2 + PICTURES} picture(s)" in more[f"{MODEL}, ONNX Runtime"][1]
    text = " ".join(succeed("verify", good[kind], "--skip", "rtx").output.split())
    assert "placement" in text and "passed" in text and "no engine given" in text


def test_without_golden_pictures_there_must_be_others(source: Path, tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with no_rtx():
        succeed(*with_pictures(source, tiny), "-o", out, "--precision", "fp16", "--golden", 0)
    assert "no golden pictures" in damaged(out) and "--pictures" in damaged(out)
    assert f"{PICTURES} picture(s)" in verdict(out, "--pictures", tiny.pictures)[f"{TYPED}, ONNX Runtime"][1]


def test_skip_and_options_of_other_targets(good: dict[str, Path], good_bundle: Path) -> None:
    checks = verdict(good["int8"], "--skip", "ort", "--skip", "engine")
    assert not any("ONNX Runtime" in name for name in checks) and checks["placement"][0] == "passed"
    assert checks["engine on this GPU"] == ("skipped", "--skip engine")
    assert checks["TensorRT-RTX"] == ("skipped", "--skip rtx")
    assert "ort, rtx, engine" in damaged(good["int8"], "--skip", "golden")
    assert "golden, ort, engine" in refusal("verify", good_bundle, "--skip", "rtx")
    assert "--trust-engine" in damaged(good["int8"], "--trust-engine")
    assert "--engine" in refusal("verify", good_bundle, "--engine", "x.engine")


# --- tampered, consistently -------------------------------------------------------------------------------------------


def test_a_changed_byte_without_new_hashes(bundle: Path) -> None:
    for name in (MODEL, TYPED, "build.sh", OUTPUT):
        data = (bundle / name).read_bytes()
        (bundle / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        message = damaged(bundle)
        assert "damaged" in message and name in message
        (bundle / name).write_bytes(data)


def test_a_changed_weight_in_the_model(bundle: Path) -> None:
    change_graph(bundle / MODEL, change_weight)
    repair(bundle)
    checks = verdict(bundle, code=1)
    assert {n for n, (s, _) in checks.items() if s == "failed"} == {"typed graph", f"{MODEL}, ONNX Runtime"}
    assert "yolo_17" in checks[f"{MODEL}, ONNX Runtime"][1]


def test_a_changed_weight_in_the_typed_graph(bundle: Path) -> None:
    change_graph(bundle / TYPED, change_weight)
    repair(bundle)
    checks = verdict(bundle, code=1)
    assert {n for n, (s, _) in checks.items() if s == "failed"} == {"typed graph", f"{TYPED}, ONNX Runtime"}
    assert "not what" in checks["typed graph"][1]
    result = edgeyolo("verify", bundle, "--skip", "rtx")
    assert result.exit_code == 1 and "typed graph" in result.stderr


def test_changed_golden_data(bundle: Path) -> None:
    values = np.load(bundle / OUTPUT)
    np.save(bundle / OUTPUT, values * np.float32(1.1))
    repair(bundle)
    checks = verdict(bundle, code=1)
    assert checks["typed graph"][0] == "passed" and checks[f"{MODEL}, ONNX Runtime"][0] == "failed"
    values[0, 0, 0, 0] = np.nan
    np.save(bundle / OUTPUT, values)
    repair(bundle)
    checks = verdict(bundle, code=1)
    assert checks[f"{MODEL}, ONNX Runtime"][0] == "failed", "what is not a number is not close to anything"


def test_an_extra_pair(bundle: Path) -> None:
    def add_pair(graph: Any) -> None:
        """In front of the activation of a layer, which splits them."""
        index, act = next((i, n) for i, n in enumerate(graph.node) if n.name == "layers.9.act")
        scale, zero = next(n for n in graph.node if n.name == "images.q").input[1:3]
        pair = [
            helper.make_node("QuantizeLinear", [act.input[0], scale, zero], ["x.codes"], name="x.q"),
            helper.make_node("DequantizeLinear", ["x.codes", scale, zero], ["x.dq"], name="x.dq"),
        ]
        act.input[0] = "x.dq"
        for offset, node in enumerate(pair):
            graph.node.insert(index + offset, node)

    change_graph(bundle / MODEL, add_pair)
    repair(bundle)
    status, detail = verdict(bundle, code=1)["placement"]
    assert status == "failed" and "layers.9.act" in detail


@pytest.mark.parametrize(
    "layers", [None, [], {}, {"typed_float32": "all"}, {"typed_float32": [1]}, {"typed_float32": None}]
)
def test_a_manifest_that_does_not_say_what_stays_float32(layers: object, bundle: Path) -> None:
    edit_manifest(bundle, lambda m: m.pop("layers") if layers is None else m.update(layers=layers))
    assert "which layers stay float32" in damaged(bundle)


def test_a_manifest_that_says_something_else(bundle: Path) -> None:
    edit_manifest(bundle, lambda m: m["layers"].update(typed_float32=["layers.9.act"]))
    assert verdict(bundle, code=1)["typed graph"][0] == "failed"
    edit_manifest(bundle, lambda m: m["detector"]["preprocess"].update(fill=3))
    assert "detector" in damaged(bundle)


@pytest.mark.parametrize("name", [MODEL, TYPED])
def test_a_graph_that_the_manifest_does_not_list(name: str, bundle: Path) -> None:
    """Nothing says whether such a file is whole; the typed graph of an int8 bundle is not optional."""
    edit_manifest(bundle, lambda m: m["files"].pop(name))
    assert name in damaged(bundle)


@pytest.mark.parametrize("name", [MODEL, TYPED])
def test_a_graph_that_is_none(name: str, bundle: Path) -> None:
    (bundle / name).write_bytes(b"\x08\x09garbage")
    repair(bundle)
    if name == MODEL:
        assert "not a valid ONNX file" in damaged(bundle)
    else:
        result = edgeyolo("verify", bundle, "--skip", "rtx")
        assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit)


# --- hostile golden data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(pictures=10**9),
        lambda index: index.update(pictures=-1),
        lambda index: index.update(pictures=1.5),
        lambda index: index.update(pictures=True),
        lambda index: index.pop("pictures"),
        lambda index: index.update(outputs=["yolo_11"]),
        lambda index: index.update(outputs=["../../../etc/passwd", "yolo_17"]),
        lambda index: index.update(outputs=7),
        lambda index: index.update(tolerance_db={}),
        lambda index: index.update(tolerance_db=[]),
        lambda index: index.update(tolerance_db={"int8": "low"}),
    ],
)
def test_a_hostile_index(change: Callable[[dict[str, Any]], object], bundle: Path) -> None:
    index = json.loads((bundle / GOLDEN_INDEX).read_text("utf-8"))
    change(index)
    (bundle / GOLDEN_INDEX).write_text(json.dumps(index), "utf-8")
    repair(bundle)
    message = damaged(bundle)
    assert "golden data cannot be read" in message and "index.json" in message


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"pictures": 2, "outputs": []}'])
def test_an_index_that_is_none(text: str, bundle: Path) -> None:
    (bundle / GOLDEN_INDEX).write_text(text, "utf-8")
    repair(bundle)
    assert "golden data cannot be read" in damaged(bundle)


def test_an_index_for_more_pictures_than_there_are(bundle: Path) -> None:
    index = json.loads((bundle / GOLDEN_INDEX).read_text("utf-8"))
    (bundle / GOLDEN_INDEX).write_text(json.dumps({**index, "pictures": 3}), "utf-8")
    repair(bundle)
    assert "golden/002/input.npy" in damaged(bundle)


def header(text: str) -> bytes:
    """An .npy file of this header and 64 bytes."""
    data = text.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(data).to_bytes(2, "little") + data + bytes(64)


def pickled() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], object), allow_pickle=True)
    return stream.getvalue()


def stored(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def zipped() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, np.zeros((1, 14, 16, 16), np.float32))
    return stream.getvalue()


HOSTILE = {
    "empty": b"",
    "text": b"hello",
    "pickle": pickled(),
    "raw pickle": b"\x80\x04N.",
    "zip": zipped(),
    "broken zip": b"PK\x03\x04 not one",
    "cut": header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 14, 16, 16), }"),
    "huge": header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 14, 100000000, 100000000), }"),
    "overflow": header("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296, 16), }"),
    "negative": header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 16), }"),
    "unclosed": header("{('"),
    "fields": header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (16,), }"),
    "flat": stored(np.zeros(14 * 16 * 16, np.float32)),
    "one number": stored(np.zeros((1, 1, 1, 1), np.float32)),
    "other picture": stored(np.zeros((1, 14, 8, 8), np.float32)),
    "double": stored(np.zeros((1, 14, 16, 16))),
    "integers": stored(np.zeros((1, 14, 16, 16), np.int64)),
    "strings": stored(np.full((1, 14, 16, 16), "a")),
}


@pytest.mark.parametrize("name", ["golden/000/output-1.npy", "golden/001/input.npy"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_arrays(kind: str, name: str, bundle: Path) -> None:
    """No code is run, no memory asked for, no traceback shown; what does not fit is not broadcast until it does."""
    (bundle / name).write_bytes(HOSTILE[kind])
    repair(bundle)
    message = damaged(bundle)
    assert "golden" in message or "ONNX Runtime cannot run" in message


# --- TensorRT-RTX -----------------------------------------------------------------------------------------------------


def test_acceptance(good: dict[str, Path]) -> None:
    if not acceptance.installed():
        pytest.skip("TensorRT-RTX is not installed")
    for kind in ("int8", "fp16", "nms", "dynamic"):
        found = json.loads(succeed("verify", good[kind], "--skip", "ort", "--json").stdout)["checks"]
        answer = next(check for check in found if check["name"] == "TensorRT-RTX")
        assert answer["status"] == "passed" and "SM86" in answer["detail"]
        assert ("without NonMaxSuppression" in answer["detail"]) == (kind == "nms")


def test_without_tensorrt_rtx_it_says_what_to_install(good: dict[str, Path]) -> None:
    with no_rtx():
        result = succeed("verify", good["int8"], "--json")
    answer = next(c for c in json.loads(result.stdout)["checks"] if c["name"] == "TensorRT-RTX")
    assert answer["status"] == "skipped"
    assert answer["detail"].endswith("pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings"), "a line to copy"
