"""``edgeyolo inspect``: layer files in the formats of several TensorRT versions, made up after real ones.

``layers-8.5``: types in sentences, no metadata, weights and Q/DQ in the names. ``layers-8.6-dynamic``: metadata between
\\x1e, no types of tensors. ``layers-10``: "Format" and "Datatype", layers of the compiler inside beside classic ones,
metadata between \\x1f or nothing. ``layers-names``: what every version writes without detailed verbosity.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_models import edgeyolo

from edgeyolo import engine_layers
from edgeyolo.bundle import write_manifest
from edgeyolo.detector import Detector, Preprocess
from edgeyolo.engine_layers import Plan, judge, parse_layers
from edgeyolo.errors import InputError
from edgeyolo.runners import tensorrt as runner

FIXTURES = Path(__file__).parent / "fixtures"
CONV = {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [], "Outputs": [{"Name": "y"}]}
INT8 = {**CONV, "Name": "int8", "Weights": {"Type": "Int8"}, "Outputs": [{"Name": "z"}]}


def fixture(version):
    return FIXTURES / f"layers-{version}.json"


def read(version):
    return parse_layers(fixture(version).read_bytes(), version)


def made(*layers, bindings=("x",)):
    return parse_layers(json.dumps({"Layers": layers, "Bindings": bindings}), "made")


def bundle(folder, int8, floats, target="tensorrt"):
    """A bundle with nothing in it but its manifest."""
    (folder / "engines").mkdir(parents=True)
    facts = {"tool": "t", "target": target, "source": {}, "layers": {"int8": int8, "float": floats}}
    write_manifest(folder, facts, Detector("darknet", Preprocess(80, 80)))
    return folder


def put(folder, version, name="net", age=0):
    """A layer file of an engine that was built ``age`` seconds ago."""
    path = folder / "engines" / f"{name}.layers.json"
    path.write_bytes(fixture(version).read_bytes())
    os.utime(path, (1_700_000_000 - age,) * 2)
    return path


def names(verdict):
    return [(flag.nodes, flag.layer, flag.precision) for flag in verdict.flagged]


def numbered(*numbers):
    return [f"layers.{number}.conv" for number in numbers]


# -- formats ---------------------------------------------------------------------------------------------------------


def test_8_5_types_in_sentences_and_nodes_in_names():
    engine = read("8.5")
    first, merged, head = engine.layers[1], engine.layers[7], engine.layers[9]
    assert first.onnx[-2:] == ("layers.0.conv", "layers.0.act")
    assert [t.precision for t in (*engine.layers[0].inputs, *engine.layers[0].outputs)] == ["fp32", "int8"]
    assert (first.precision, first.weights, head.precision, head.weights) == ("int8", "int8", "fp16", "fp16")
    assert set(numbered(3, 4)) <= set(merged.onnx)
    assert [layer.role for layer in engine.layers].count("convolution") == 5
    assert [i for i, layer in enumerate(engine.layers) if layer.role == "copy"] == [0, 4, 6, 10]
    assert engine.layers[4].onnx == ()  # it says "to layers.2.conv", and computes nothing of it


def test_8_6_dynamic_tells_by_its_weights():
    engine = read("8.6-dynamic")
    assert engine.layers[1].onnx == ("layers.0.conv.weight_QuantizeLinear", "layers.0.conv", "layers.0.act")
    assert [layer.precision for layer in engine.layers] == ["?", "int8", "?", "int8", "fp16", "?"]
    assert [layer.role for layer in engine.layers].count("convolution") == 3


def test_10_compiled_layers_and_both_separators():
    engine = read("10")
    assert engine.layers[1].onnx == ("layers.0.conv", "layers.0.act")
    assert engine.layers[5].onnx == ("layers.3.conv", "layers.3.act")
    assert [layer.precision for layer in engine.layers] == [*["fp32", "int8", "fp16"], *["int8", "fp16"] * 2, "fp16"]
    roles = ("convolution", "pointwise", "other", "pointwise", "convolution", "convolution")
    assert [layer.role for layer in engine.layers] == ["pointwise", *roles, "copy"]


TYPES = {
    "Row major linear FP32": "fp32", "Channel major FP16 format where channel % 4 == 0": "fp16", "Int64": "int64",
    "Thirty-two wide channel vectorized row major Int8 format.": "int8", "Half(64,1:8,4)": "fp16", "Float": "fp32",
    "kINT8": "int8", "BFloat16": "bf16", "UInt8": "uint8", "N/A due to dynamic shapes": "?",
}  # fmt: skip
KERNELS = {
    "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw": "int8",
    "sm80_xmma_fprop_implicit_gemm_i8f32_i8i32_f32_nhwckrsc": "int8",
    "ampere_int8x4_icudnn_int8x4_128x32": "int8",
    "sm89_xmma_fprop_implicit_gemm_e4m3e4m3_e4m3f32_f32": "fp8",
    "sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwc": "fp16",
    "ampere_h16816gemm_128x64": "fp16",
    "sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32": "fp32",
    "mystery": "?",
}


@pytest.mark.parametrize(("text", "precision"), TYPES.items())
def test_types_as_tensorrt_writes_them(text, precision):
    for keys in ({"Format/Datatype": text}, {"Format": "Row major linear", "Datatype": text}, {"Format": text}):
        engine = made({**CONV, "Inputs": [{"Name": "x", **keys}]})
        assert engine.layers[0].inputs[0].precision == engine.layers[0].precision == precision


@pytest.mark.parametrize(("kernel", "precision"), KERNELS.items())
def test_the_kernel_tells_where_tensors_do_not(kernel, precision):
    layer = made({**CONV, "LayerType": "correlation", "TacticName": kernel}).layers[0]
    assert (layer.role, layer.precision) == ("convolution", precision)


def test_a_pooling_in_the_same_kernel_renames_the_weights():
    """8.5's ConvActPool."""
    row = {"Name": "w + q + conv + pool", "LayerType": "ConvActPool", "ParameterType": "ConvActPool",
           "ConvWeights": {"Type": "Int8"}, "Inputs": [{"Name": "x", "Datatype": "Float"}]}  # fmt: skip
    layer = made(row).layers[0]
    assert (layer.role, layer.weights, layer.precision) == ("convolution", "int8", "int8")


def test_a_raw_separator_is_read_and_both_kinds_of_bindings():
    text = json.dumps(
        {"Layers": [{**CONV, "Metadata": "[ONNX Layer: a[0]]#[ONNX Layer: b]"}], "Bindings": [{"Name": "x"}]}
    )
    engine = parse_layers(text.replace("#", "\x1e"), "raw")
    assert (engine.layers[0].onnx, engine.bindings) == (("a[0]", "b"), ("x",))


# -- judgement -------------------------------------------------------------------------------------------------------


def test_without_a_bundle_all_but_the_outputs_should_be_int8():
    """8.5: layer 2 got float16, and so did the head; the head's value becomes an output through a copy."""
    layer = "layers.2.conv + PWN(layers.2.act)"
    assert names(judge(read("8.5"), None)) == [(("layers.2.conv", "layers.2.act"), layer, "fp16")]
    assert names(judge(read("8.6-dynamic"), None)) == []
    assert names(judge(read("10"), None)) == []


def test_without_any_int8_nothing_is_expected():
    assert judge(made(CONV), None).flagged == ()
    assert names(judge(made(CONV, INT8), None)) == [(("conv",), "conv", "?")]
    assert judge(made(CONV, INT8, bindings=["y"]), None).flagged == ()


def test_the_bundle_says_which_should_be_int8():
    engine = read("8.5")
    kept = Plan(tuple(numbered(0, 1, 3, 4)), {"layers.2.conv": "asked for", "layers.9.conv": "head"})
    assert judge(engine, kept).flagged == ()
    wrong = names(judge(engine, Plan(tuple(numbered(0, 2, 9)), {})))
    assert [(nodes, precision) for nodes, _, precision in wrong] == [((f"layers.{n}.conv",), "fp16") for n in (2, 9)]


def test_merged_convolutions_are_flagged_together():
    row = {**CONV, "Name": "a || b", "Weights": {"Type": "Half"}}
    assert names(judge(made(row), Plan(("a", "b"), {}))) == [(("a", "b"), "a || b", "fp16")]


def test_a_copy_that_names_a_convolution_does_not_compute_it():
    row = {
        "Name": "y copy",
        "LayerType": "Reformat",
        "Outputs": [{"Datatype": "Int8"}],
        "Metadata": "[ONNX Layer: conv]",
    }
    assert names(judge(made(row), Plan(("conv",), {}))) == [(("conv",), None, "?")]


def test_compiled_layers_count_by_what_they_compute():
    """10: a depthwise convolution generated as kgen counts, a kgen behind a gemm that names its node does not."""
    verdict = judge(read("10"), Plan(tuple(numbered(0, 1, 2, 3, 5)), {"layers.9.conv": "head"}))
    lost = (("layers.5.conv",), None, "?")
    assert names(verdict) == [(("layers.1.conv",), "__myl_DwConv_myl0_2", "fp16"), lost]
    assert len(verdict.convolutions) == 5


# -- hostile files ---------------------------------------------------------------------------------------------------

BAD = {
    "empty": b"",
    "not JSON": b"{",
    "not UTF-8": b'{"Layers": ["\xff"]}',
    "long number": b'{"Layers": [' + b"9" * 5000 + b"]}",
    "deep": b'{"Layers": ' + b"[" * 100_000,
    "a list": b'[{"count": 3}, {"name": "conv", "timeMs": 1}]',
    "a note": b'{"model_sha256": "0", "file": "typed.onnx"}',
    "layers are an object": b'{"Layers": {}}',
    "no layers": b'{"Layers": []}',
    "a layer is a number": b'{"Layers": [1]}',
    "no name": b'{"Layers": [{"LayerType": "x"}]}',
    "no type": b'{"Layers": [{"Name": "x"}]}',
    **{
        f"{key} {value}": json.dumps({"Layers": [{**CONV, key: value}]}).encode()
        for key, value in [
            ("Name", 1), ("LayerType", None), ("TacticName", 1), ("Metadata", []), ("ParameterType", 1), ("Inputs", {}),
            ("Outputs", [1]), ("Inputs", [{"Name": []}]), ("Inputs", [{"Datatype": 1}]), ("Weights", []),
            ("Weights", {"Type": 8}),
        ]
    },
    "bindings are text": json.dumps({"Layers": [CONV], "Bindings": "xyz"}).encode(),
    "bindings without names": json.dumps({"Layers": [CONV], "Bindings": [{}]}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(case, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(BAD[case])
    result = edgeyolo("inspect", path)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "x.json" in result.stderr


def test_names_only_is_refused_with_the_flag_that_helps():
    result = edgeyolo("inspect", fixture("names"))
    assert (result.exit_code, "names only" in result.stderr) == (2, True)
    assert "--profilingVerbosity=detailed" in result.stderr


def test_a_large_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_layers, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="too large"):
        parse_layers(b" " * 1001, "large")
    result = edgeyolo("inspect", fixture("8.5"))
    assert result.exit_code == 2
    assert "got: 1064 bytes" in result.stderr  # what was read is bounded too


def test_names_do_not_steer_the_terminal(tmp_path):
    evil = "\x1b[2Jc\nonv\u202e\ud800"
    row = {**CONV, "Name": evil, "LayerType": evil, "TacticName": evil + "fprop", "Metadata": f"[ONNX Layer: {evil}]"}
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"Layers": [row, INT8]}))
    result = edgeyolo("inspect", path)
    assert result.exit_code == 1
    assert "?[2Jc?onv??: ?; " in result.output
    assert not any(c in result.output for c in "\x1b\u202e\ud800")
    assert "\x1b" not in edgeyolo("inspect", path, "--json").output


# -- the command -----------------------------------------------------------------------------------------------------


def test_text_of_a_layer_file():
    result = edgeyolo("inspect", fixture("8.5"))
    assert result.exit_code == 1
    assert (
        "layers        11: 6 int8, 4 fp16, 1 fp32\nconvolutions  5: 3 int8, 2 fp16\ncopies        4 " in result.output
    )
    assert "Not int8 (1):" in result.output
    cells = next(line for line in result.output.splitlines() if line.startswith("  5")).split()
    assert [*cells[1:3], *cells[4:9]] == ["layers.2.conv", "+", "CaskConvolution", "fp16", "->", "fp16", "fp16"]
    good = edgeyolo("inspect", fixture("10"))
    assert good.exit_code == 0
    assert "Every convolution that should be int8 is int8." in good.output


def test_the_first_layers_or_all(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"Layers": [{**INT8, "Name": f"layer.{i}!"} for i in range(23)]}))
    short, full = (edgeyolo("inspect", path, *more).output for more in ((), ("--all",)))
    assert [text in short for text in ("layer.19!", "layer.20!", "3 more layers")] == [True, False, True]
    assert [text in full for text in ("layer.22!", "more layers")] == [True, False]


def test_json_is_one_document(tmp_path):
    folder = bundle(tmp_path / "b", numbered(0, 2, 5), {"layers.9.conv": "head"})
    result = edgeyolo("inspect", put(folder, "8.5"), "--json")
    assert result.exit_code == 1
    (engine,) = json.loads(result.stdout)["engines"]
    assert engine["source"].endswith("net.layers.json")
    assert engine["expected"] == {"int8": numbered(0, 2, 5), "float": {"layers.9.conv": "head"}}
    assert engine["bindings"] == ["images", "head0"]
    assert len(engine["layers"]) == 11
    assert engine["layers"][5] == {
        "name": "layers.2.conv + PWN(layers.2.act)", "type": "CaskConvolution", "convolution": True,
        "precision": "fp16", "inputs": ["fp16"], "outputs": ["fp16"], "weights": "fp16",
        "onnx": ["layers.2.conv", "layers.2.act"],
        "tactic": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize128x32x32",
    }  # fmt: skip
    assert engine["summary"] == {
        "layers": {"int8": 6, "fp16": 4, "fp32": 1}, "convolutions": {"int8": 3, "fp16": 2}, "copies": 4, "flagged": 2,
    }  # fmt: skip
    assert [(f["nodes"], f["layer"], f["precision"]) for f in engine["flagged"]] == [
        (["layers.2.conv"], "layers.2.conv + PWN(layers.2.act)", "fp16"),
        (["layers.5.conv"], None, "?"),
    ]
    assert all(f["reason"] for f in engine["flagged"])


def test_a_bundle_shows_its_engines_the_newest_first(tmp_path):
    folder = bundle(tmp_path / "b", numbered(0, 3), {"layers.9.conv": "head"})
    put(folder, "8.5", "old", age=10)
    put(folder, "10", "new")
    put(folder, "8.5", "older", age=20)
    result = edgeyolo("inspect", folder, "--json")
    assert result.exit_code == 0
    sources = [Path(engine["source"]).name for engine in json.loads(result.stdout)["engines"]]
    assert sources == [f"{name}.layers.json" for name in ("new", "old", "older")]
    put(folder, "8.6-dynamic", "bad", age=30)  # its layer 3 is float16: one engine of several is enough
    assert edgeyolo("inspect", folder).exit_code == 1


def test_a_float_bundle_wants_no_int8(tmp_path):
    folder = bundle(tmp_path / "b", [], {})
    result = edgeyolo("inspect", put(folder, "8.5"))
    assert result.exit_code == 0
    assert "The bundle wants no int8." in result.output


def test_a_bundle_without_layer_files_says_how_to_make_them(tmp_path):
    result = edgeyolo("inspect", bundle(tmp_path / "b", [], {}))
    assert result.exit_code == 2
    assert "build.sh" in result.stderr
    assert "edgeyolo build" in result.stderr


def test_folders_and_manifests_that_cannot_be_used(tmp_path):
    assert edgeyolo("inspect", tmp_path).exit_code == 2
    assert edgeyolo("inspect", tmp_path / "missing.engine").exit_code == 2
    other = edgeyolo("inspect", bundle(tmp_path / "fpga", [], {}, target="fpga"))
    assert (other.exit_code, "not for TensorRT" in other.stderr) == (2, True)
    for index, (int8, floats) in enumerate([(None, {}), ([], None), ([1], {}), ([], {"a": 1})]):
        folder = bundle(tmp_path / f"b{index}", int8, floats)
        put(folder, "10")
        result = edgeyolo("inspect", folder)
        assert (result.exit_code, "layers.int8" in result.stderr) == (2, True)


def test_a_damaged_bundle_is_refused_and_a_foreign_manifest_ignored(tmp_path):
    folder = bundle(tmp_path / "b", numbered(0), {})
    (folder / "extra").write_bytes(b"x")
    write_manifest(folder, {"tool": "t", "target": "tensorrt", "source": {}}, Detector("darknet", Preprocess(80, 80)))
    (folder / "extra").write_bytes(b"y")
    path = put(folder, "10")
    assert edgeyolo("inspect", path).exit_code == 2
    for text in ('{"name": "a web page"}', "{", "[" * 100_000):
        (folder / "manifest.json").write_text(text)
        result = edgeyolo("inspect", path)
        assert (result.exit_code, "no bundle says it" in result.output) == (0, True)


def test_an_engine_reads_the_file_beside_it(tmp_path):
    folder = bundle(tmp_path / "b", numbered(0), {})
    put(folder, "10", "net-int8-trt10.3.0")
    engine = folder / "engines" / "net-int8-trt10.3.0.engine"
    assert edgeyolo("inspect", engine).exit_code == 0  # the engine itself is not needed
    engine.write_bytes(b"ptrt")
    result = edgeyolo("inspect", engine, "--json")
    assert json.loads(result.stdout)["engines"][0]["source"].endswith("trt10.3.0.layers.json")


def test_an_engine_alone_is_opened(tmp_path, monkeypatch):
    engine = tmp_path / "net.engine"
    engine.write_bytes(b"ptrt")
    opened = []

    class Opened:
        def inspect(self):
            return fixture("8.5").read_text()

    @contextmanager
    def open_engine(path):
        opened.append(path)
        yield Opened()

    monkeypatch.setattr(runner, "open_engine", open_engine)
    result = edgeyolo("inspect", engine, "--json")
    assert (result.exit_code, opened) == (1, [engine])
    assert json.loads(result.stdout)["engines"][0]["source"] == str(engine)


def test_an_engine_without_tensorrt_is_refused(tmp_path, monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    engine = tmp_path / "net.engine"
    engine.write_bytes(b"ptrt")
    result = edgeyolo("inspect", engine)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "tensorrt" in result.stderr
