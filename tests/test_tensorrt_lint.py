"""The lint: our own placement has no findings, every deviation has one, and a real parser refuses what it refuses."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from graphs import build
from onnx import defs
from tensorrt_graphs import ARRAYS, BODIES, PICTURES, graph, quantised, with_pair
from tiny_models import edgeyolo, refusal

from edgeyolo.errors import UnsupportedError
from edgeyolo.export.acceptance import accept
from edgeyolo.lower.tensorrt.calibrate import choose_scales
from edgeyolo.lower.tensorrt.insert import Scales, insert_pairs
from edgeyolo.lower.tensorrt.lint import SEVERITIES, Finding, lint
from edgeyolo.lower.tensorrt.operators import UNPARSED, check_operators
from edgeyolo.lower.tensorrt.pairs import strip_pairs
from edgeyolo.lower.tensorrt.placement import place
from edgeyolo.lower.tensorrt.typed import to_typed
from edgeyolo.ort import model_bytes
from edgeyolo.passes.graph import constant
from edgeyolo.qtype import QType, TensorQuant
from edgeyolo.quant.calibrate import copy_model


def found(model: ir.Model) -> list[tuple[str, str]]:
    return [(finding.severity, finding.rule) for finding in lint(model)]


def only(model: ir.Model) -> Finding:
    findings = lint(model)
    assert len(findings) == 1, findings
    return findings[0]


@pytest.mark.parametrize("name", BODIES)
def test_our_own_placement_has_no_findings(name):
    assert lint(quantised(graph(name))) == []
    assert lint(to_typed(quantised(graph(name)), ())) == []
    assert lint(graph(name)) == []


def test_a_pair_on_the_convolutions_branch_blocks_the_fusion():
    finding = only(with_pair(quantised(graph("residual")), "c2", "s"))
    assert (finding.severity, finding.rule) == ("slow", "residual")
    assert "blocks conv+add fusion at node s" in finding.text and "c2" in finding.text


def test_a_float_skip_branch_is_missing_its_pair():
    model = quantised(graph("residual"))
    add = next(n for n in model.graph if n.name == "s")
    values = {str(v.name): v for n in model.graph for v in n.outputs}
    add.replace_input_with(1, values["r1"])
    finding = only(model)
    assert (finding.severity, finding.rule, finding.node) == ("slow", "residual", "s") and "r1" in finding.text


@pytest.mark.parametrize(
    ("name", "value", "reader"), [("leaky", "c1", "y"), ("silu", "c1", "g"), ("silu", "g", "y"), ("mish", "c1", "p")]
)
def test_a_pair_in_front_of_an_activation_splits_it_off(name, value, reader):
    finding = only(with_pair(quantised(graph(name)), value, reader))
    assert (finding.severity, finding.rule) == ("slow", "activation")
    assert reader in finding.text


def test_concat_inputs_of_different_scales():
    model = graph("concat")
    placement = place(model)
    scales = choose_scales(model, placement, PICTURES, "minmax")
    other = TensorQuant(QType(8, scale="float"), np.asarray(np.float32(0.5)), np.asarray(0))
    findings = lint(insert_pairs(model, placement, Scales({**scales.acts, "r2": other}, scales.weights)))
    assert {f.rule for f in findings} == {"concat"} and "k joins inputs of different scales" in findings[0].text


def test_a_concat_of_int8_and_float():
    model = quantised(graph("concat"))
    values = {str(v.name): v for n in model.graph for v in n.outputs}
    next(n for n in model.graph if n.name == "k").replace_input_with(1, values["r2"])
    finding = only(model)
    assert finding.rule == "concat" and "r2 has no pair" in finding.text


def test_half_quantised_layers():
    model = quantised(graph("leaky"))
    layer = next(n for n in model.graph if n.name == "c2")
    dequantise = layer.inputs[1].producer()
    layer.replace_input_with(1, dequantise.inputs[0].producer().inputs[0])
    assert {(f.severity, f.rule, f.text.split()[0]) for f in lint(model)} == {("slow", "half quantised", "c2")}
    model = quantised(graph("leaky"))
    values = {str(v.name): v for n in model.graph for v in n.outputs}
    next(n for n in model.graph if n.name == "c2").replace_input_with(0, values["y"])
    finding = only(model)
    assert finding.rule == "half quantised" and "put a pair on y" in finding.fix


def test_quantised_outputs_and_heads():
    assert found(with_pair(quantised(graph("leaky")), "head", None)) == [("slow", "quantised output")]
    assert found(quantised(graph("leaky"), ())) == [("note", "int8 head")]
    assert found(quantised(graph("leaky"), ("head", "c1"))) == [("note", "float layer")]


def test_pairs_nobody_wants():
    assert found(with_pair(quantised(graph("leaky")), "c2", "head")) == [("slow", "half quantised")]
    assert found(with_pair(quantised(graph("head behind a pool")), "c2", "head")) == [("slow", "extra")]


def test_a_pair_moved_by_tensorrt_itself_is_no_finding():
    """Its own pass moves a DequantizeLinear behind what only moves data."""
    model = quantised(graph("maxpool"))
    values = {str(v.name): v for n in model.graph for v in n.outputs}
    next(n for n in model.graph if n.name == "c2").replace_input_with(0, values["p"])
    assert lint(model) == []


def refused_graphs() -> dict[str, ir.Model]:
    """Rule -> a graph that it is about."""
    arrays = {
        **ARRAYS,
        **{"s": np.float32(0.01), "z": np.int8(0), "z5": np.int8(5), "u": np.uint8(0), "neg": np.float32(-0.1)},
        **{"s3": np.full(3, 0.01, np.float32), "z3": np.zeros(3, np.int8), "bq": np.array([1, 2, 3], np.int32)},
        **{"zi": np.int32(0), "wide": np.zeros((3, 6, 1, 1), np.float32)},
        **{"s6": np.full(6, 0.01, np.float32), "z6": np.zeros(6, np.int8)},
    }

    def net(body: str) -> ir.Model:
        text = f"(float[1,3,8,8] images) => (float[1,3,8,8] head) {{ {body} head = Relu(c) }}"
        return build(text, arrays, scale=1 / 255)

    def pair(source: str, name: str, scale: str, zero: str, axis: str = "") -> str:
        tail = f"{scale}, {zero})"
        return f"{name}q = QuantizeLinear{axis}({source}, {tail} {name} = DequantizeLinear{axis}({name}q, {tail} "

    weight = pair("w", "wd", "s3", "z3", "<axis=0>")
    return {
        "asymmetric": net(pair("images", "x", "s", "z5") + weight + "c = Conv(x, wd)"),
        "integer type": net(pair("images", "x", "s", "u") + weight + "c = Conv(x, wd)"),
        "quantised bias": net(
            pair("images", "x", "s", "z") + weight + "bd = DequantizeLinear(bq, s, zi) c = Conv(x, wd, bd)"
        ),
        "weight axis": net(
            pair("images", "x", "s", "z") + "k = Concat<axis=1>(x, x) "
            + pair("wide", "wd", "s6", "z6", "<axis=1>") + "c = Conv(k, wd)"
        ),
        "scale": net(pair("images", "x", "neg", "z") + weight + "c = Conv(x, wd)"),
        "computed scale": net(
            "m = ReduceMax<keepdims=0>(images) xq = QuantizeLinear(images, m, z) x = DequantizeLinear(xq, m, z) "
            + weight + "c = Conv(x, wd)"
        ),
        "per-channel activation": net(pair("images", "x", "s3", "z3", "<axis=1>") + weight + "c = Conv(x, wd)"),
    }  # fmt: skip


REFUSED = refused_graphs()


RTX_BUILDS = {"integer type", "weight axis", "per-channel activation"}
"""TensorRT-RTX 1.7 builds them. The last two are slow, not wrong; uint8 codes older parsers refuse."""


@pytest.mark.parametrize("rule", REFUSED)
def test_what_the_lint_refuses(rule):
    severity = "slow" if rule in ("weight axis", "per-channel activation") else "refused"
    assert (severity, rule) in found(REFUSED[rule])
    assert [r for s, r in found(REFUSED[rule]) if s == "refused"] == ([rule] if severity == "refused" else [])


@pytest.mark.parametrize("rule", [rule for rule in REFUSED if rule not in RTX_BUILDS])
def test_tensorrt_rtx_refuses_it_too(rule):
    answer = accept(REFUSED[rule])
    if answer.status == "skipped":
        pytest.skip(answer.text)
    assert answer.status == "refused", answer.text


@pytest.mark.parametrize("name", BODIES)
def test_tensorrt_rtx_builds_what_has_no_findings(name):
    for model in (quantised(graph(name)), to_typed(quantised(graph(name)), ())):
        answer = accept(model)
        if answer.status == "skipped":
            pytest.skip(answer.text)
        assert answer.status == "accepted", answer.text


def test_stripping_gives_the_float_graph_back():
    for name in BODIES:
        stripped = strip_pairs(quantised(graph(name)))
        assert [n.op_type for n in stripped.model.graph] == [n.op_type for n in graph(name).graph]
        weights = {n.name: constant(n.inputs[1]) for n in stripped.model.graph if n.op_type == "Conv"}
        assert all(weight is not None for weight in weights.values())


def test_integer_weights_without_quantise_are_pairs_too():
    model = copy_model(quantised(graph("leaky")))
    for node in [n for n in model.graph if n.op_type == "DequantizeLinear"]:
        quantise = node.inputs[0].producer()
        weight = constant(quantise.inputs[0])
        if weight is not None:
            scale = constant(quantise.inputs[1]).reshape(-1, 1, 1, 1)
            codes = ir.tensor(np.rint(weight / scale).astype(np.int8), name=f"{node.name}.int")
            stored = ir.Value(name=codes.name, const_value=codes, type=ir.TensorType(codes.dtype))
            model.graph.register_initializer(stored)
            node.replace_input_with(0, stored)
    assert lint(model) == []


def foreign_operators() -> ir.Model:
    text = "(float[1,3,8,8] images) => (float[1,3,8,8] head) { c = Det(images) d = Det(c) head = Add(images, d) }"
    return build(text, scale=1 / 255)


def test_operators_that_no_parser_knows_are_listed_together():
    assert [(f.rule, f.node) for f in lint(foreign_operators())] == [("operator", "c"), ("operator", "d")]
    with pytest.raises(UnsupportedError, match=r"Det \(c, d\)"):
        check_operators(foreign_operators())
    check_operators(quantised(graph("mish")))


def test_those_operators_are_what_the_parser_denies():
    rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    logger = rtx.Logger(rtx.Logger.ERROR)
    parser = rtx.OnnxParser(rtx.Builder(logger).create_network(0), logger)
    names = {schema.name for schema in defs.get_all_schemas_with_history() if schema.domain == ""}
    assert {name for name in names if not parser.supports_operator(name)} == UNPARSED


def test_a_foreign_file_without_names(tmp_path):
    model = quantised(graph("residual"))
    proto = ir.to_proto(with_pair(model, "c2", "s"))
    for node in proto.graph.node:
        node.name = ""
    assert [f.rule for f in lint(ir.from_proto(proto))] == ["residual"]


def test_the_command(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(model_bytes(with_pair(quantised(graph("residual")), "c2", "s")))
    result = edgeyolo("lint", path, "--target", "tensorrt")
    assert result.exit_code == 1 and "blocks conv+add fusion" in " ".join(result.output.split())
    found = json.loads(edgeyolo("lint", path, "--target", "tensorrt", "--json").stdout)
    assert found["quantised"] and [f["rule"] for f in found["findings"]] == ["residual"]
    assert set(found["findings"][0]) == {"severity", "rule", "node", "text", "fix"}
    path.write_bytes(model_bytes(quantised(graph("residual"))))
    clean = edgeyolo("lint", path, "--target", "tensorrt")
    assert clean.exit_code == 0 and all(f"0 {severity}" in clean.output for severity in SEVERITIES)
    path.write_bytes(model_bytes(graph("residual")))
    assert "No Q/DQ pairs" in edgeyolo("lint", path, "--target", "tensorrt").output


def test_the_command_refuses_what_is_no_graph(tmp_path):
    path = tmp_path / "model.onnx"
    assert "no such model" in refusal("lint", path, "--target", "tensorrt")
    path.write_bytes(b"\x08\x09garbage")
    assert "not a valid ONNX file" in refusal("lint", path, "--target", "tensorrt")
    assert edgeyolo("lint", path).exit_code == 2
