"""Files in ONNX Runtime's own format, the list of operators behind them, and the usability report."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort
from onnxruntime.tools.reduced_build_config_parser import parse_config

from edgeyolo.errors import InputError
from edgeyolo.export.ort_files import CONFIG, _in_order, ort_files
from edgeyolo.export.usability import usability
from edgeyolo.mobile import load_mobile
from edgeyolo.ort import open_session, run

X = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
SIZE = X.shape
QDQ = "QuantizeLinear", "DequantizeLinear"


def model(*, quantised: bool = False, dtype: type[np.generic] = np.float32, shape: tuple[object, ...] = SIZE) -> bytes:
    """Conv, LeakyRelu, Resize, in float or with signed int8 around the convolution, as the quantiser writes it."""
    weight = np.random.default_rng(1).integers(-100, 100, (8, 3, 3, 3))
    scales = {name: np.float32(value) for name, value in (("sx", 0.03125), ("sw", 0.0078125), ("sy", 0.25))}
    arrays = {"w": weight.astype(np.int8) if quantised else (weight / 128).astype(dtype)}
    arrays |= {"two": np.array([1, 1, 2, 2], np.float32), "zero": np.int8(0), **scales}
    pair = [
        helper.make_node(QDQ[0], ["x", "sx", "zero"], ["qx"]),
        helper.make_node(QDQ[1], ["qx", "sx", "zero"], ["dx"]),
        helper.make_node(QDQ[1], ["w", "sw", "zero"], ["dw"]),
        helper.make_node("Conv", ["dx", "dw"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node(QDQ[0], ["c", "sy", "zero"], ["qc"]),
        helper.make_node(QDQ[1], ["qc", "sy", "zero"], ["dc"]),
        helper.make_node("LeakyRelu", ["dc"], ["l"], alpha=0.125),
    ]
    plain = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("LeakyRelu", ["c"], ["l"], alpha=0.125),
    ]
    nodes = [*(pair if quantised else plain), helper.make_node("Resize", ["l", "", "two"], ["y"], mode="nearest")]
    used = {name for node in nodes for name in node.input}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, [None] * 4)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items() if name in used],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(proto, {"edgeyolo.detector": "{}"})
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString(deterministic=True))


MODELS = {"fp32": model(), "int8": model(quantised=True)}


@pytest.fixture(scope="module")
def converted() -> dict[str, bytes]:
    return ort_files(MODELS, load_mobile("raspberry-pi-5"))


def operators(files: dict[str, bytes], folder: Path) -> set[str]:
    """What ONNX Runtime's own parser reads from the list of operators, when the types in it are not wanted."""
    (folder / CONFIG).write_bytes(files[CONFIG])
    required, _ = parse_config(str(folder / CONFIG), enable_type_reduction=False)
    return {f"{domain}:{name}" for domain, opsets in required.items() for names in opsets.values() for name in names}


def test_the_outputs_are_those_of_the_onnx_file_and_the_metadata_stays(converted: dict[str, bytes]) -> None:
    assert set(converted) == {"fp32.ort", "int8.ort", CONFIG}
    for name, data in MODELS.items():
        session = open_session(converted[f"{name}.ort"])
        expected = run(open_session(data, optimise=False), X)["y"]
        assert np.ptp(expected) > 1
        # Integers within 24 bits are exact in float; the order of a float sum is free.
        np.testing.assert_allclose(run(session, X)["y"], expected, atol=0 if name == "int8" else 1e-5)
        assert session.get_modelmeta().custom_metadata_map == {"edgeyolo.detector": "{}"}


def test_the_same_models_give_the_same_bytes(converted: dict[str, bytes]) -> None:
    """ONNX Runtime itself never writes the same twice: a table of the file is in the order of a hash map."""
    assert ort_files(MODELS, load_mobile("raspberry-pi-5")) == converted


def test_the_list_of_operators_covers_all_models_and_names_no_temporary_file(
    converted: dict[str, bytes], tmp_path: Path
) -> None:
    found = operators(converted, tmp_path)
    assert found >= {"com.microsoft:FusedConv", "com.microsoft:QLinearConv", "ai.onnx:Resize"}
    comments = [line for line in converted[CONFIG].decode().splitlines() if line.startswith("#")]
    assert comments == ["# fp32.ort, int8.ort"]


def test_int8_stays_signed_on_arm_and_becomes_unsigned_on_x86_and_nothing_depends_on_this_cpu(tmp_path: Path) -> None:
    found = {}
    for board in ("raspberry-pi-4", "x86-avx2"):
        files = ort_files({"int8": MODELS["int8"]}, load_mobile(board))
        assert not any("nchwc" in name for name in operators(files, tmp_path))
        found[board] = files[CONFIG].decode().partition("QLinearConv")[2].splitlines()[0]
    assert found == {
        "raspberry-pi-4": '{"inputs": {"0": ["int8_t"]}}',
        "x86-avx2": '{"inputs": {"0": ["uint8_t"]}}',
    }


def test_another_provider_than_cpu_gets_plain_operators(tmp_path: Path) -> None:
    """Nothing but CPU takes a FusedConv; the list has it all the same, for what the provider leaves."""
    files = ort_files({"fp32": MODELS["fp32"]}, load_mobile(), "NnapiExecutionProvider")
    assert operators(files, tmp_path) >= {"ai.onnx:Conv", "ai.onnx:LeakyRelu", "com.microsoft:FusedConv"}
    fused = ort_files({"fp32": MODELS["fp32"]}, load_mobile(), "CPUExecutionProvider")
    assert operators(fused, tmp_path) == {"com.microsoft:FusedConv", "ai.onnx:Resize"}
    np.testing.assert_allclose(
        run(open_session(files["fp32.ort"]), X)["y"], run(open_session(MODELS["fp32"]), X)["y"], atol=1e-5
    )


@pytest.mark.parametrize(
    ("provider", "style"), [("CPUExecutionProvider", "Fixed"), ("NnapiExecutionProvider", "Runtime")]
)
def test_onnx_runtimes_own_converter_makes_the_same_files(provider: str, style: str, tmp_path: Path) -> None:
    for name, data in MODELS.items():
        (tmp_path / f"{name}.onnx").write_bytes(data)
    convert_onnx_models_to_ort(
        tmp_path, optimization_styles=[OptimizationStyle[style]], target_platform="arm", enable_type_reduction=True
    )
    ours = ort_files(MODELS, load_mobile(), provider)
    theirs = {
        p.name.replace(".with_runtime_opt", ""): p.read_bytes() for p in tmp_path.iterdir() if p.suffix != ".onnx"
    }
    assert set(ours) == set(theirs)
    lines = {k: [x for x in v[CONFIG].splitlines() if x[:1] != b"#"] for k, v in (("a", ours), ("b", theirs))}
    assert lines["a"] == lines["b"]
    for name in MODELS:
        assert ours[f"{name}.ort"] == _in_order(theirs[f"{name}.ort"])


def test_float16_is_refused_because_it_would_become_float32() -> None:
    half = model(dtype=np.float16)
    with pytest.raises(InputError, match="cannot keep float16") as caught:
        ort_files({"fp32": MODELS["fp32"], "fp16": half}, load_mobile())
    assert caught.value.got == "fp16"


def test_what_onnx_runtime_cannot_convert_is_an_input_error() -> None:
    broken = onnx.load_model_from_string(MODELS["fp32"])
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(InputError, match="cannot convert") as caught:
        ort_files({"fp32": broken.SerializeToString()}, load_mobile())
    assert "NoSuchOperator" in str(caught.value)


def test_usability_of_float_and_of_int8() -> None:
    """Core ML has no quantised operators, XNNPACK no LeakyRelu; a Resize without roi is no dynamic shape."""
    rows = {name: {row.provider: row for row in usability(data).rows} for name, data in MODELS.items()}
    assert [dataclasses.astuple(row) for row in rows["fp32"].values()] == [
        *((name, 3, 3, 1, "YES") for name in ("NNAPI", "CoreML NeuralNetwork", "CoreML MLProgram")),
        ("XNNPACK", 2, 3, 2, "NO"),
    ]
    assert (rows["int8"]["NNAPI"].supported, rows["int8"]["NNAPI"].nodes) == (8, 8)
    assert (rows["int8"]["CoreML MLProgram"].supported, rows["int8"]["CoreML MLProgram"].verdict) == (3, "NO")


def test_the_usability_report_says_what_is_missing() -> None:
    text = usability(MODELS["int8"]).text
    assert "Unsupported ops: ai.onnx:DequantizeLinear,ai.onnx:QuantizeLinear" in text
    assert "\nXNNPACK: MAYBE\n" in text and "Unsupported ops: ai.onnx:LeakyRelu\n" in text
    dynamic = usability(model(shape=(1, 3, "height", "width")))
    assert {row.verdict for row in dynamic.rows} == {"NO"}
    assert "Input is not a fixed size tensor" in dynamic.text


def test_types_that_contradict_themselves_are_an_input_error_unless_they_are_notes_only() -> None:
    wrong = onnx.load_model_from_string(MODELS["fp32"])
    wrong.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT16, None))
    assert usability(wrong.SerializeToString()) == usability(MODELS["fp32"])
    wrong.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(InputError, match="cannot be inferred"):
        usability(wrong.SerializeToString())
