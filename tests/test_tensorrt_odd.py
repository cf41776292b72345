"""Graphs that other tools write: old and new opsets, integers inside, decoding inside, odd names, tiny weights."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from graphs import build, normal, outputs
from tensorrt_graphs import PICTURES, graph, quantised, with_pair
from tiny_models import edgeyolo, refusal, succeed, write_pictures

from edgeyolo.jetson import parse_jetson
from edgeyolo.lower.tensorrt.execute import TypedGraph
from edgeyolo.lower.tensorrt.lint import lint
from edgeyolo.lower.tensorrt.placement import place
from edgeyolo.lower.tensorrt.quantise import Int8Config, quantise_int8
from edgeyolo.lower.tensorrt.typed import behind_heads, to_typed, unsafe_layers
from edgeyolo.ort import model_bytes, open_session, run
from edgeyolo.passes.graph import constant, with_types
from edgeyolo.passes.opset import with_opset
from edgeyolo.quant.calibrate import run_pictures

WEIGHTS = {"w": normal(0, 3, 3, 1, 1), "one": [1], "up": np.array([1, 1, 2, 2], np.float32)}


def net(body: str, opset: int = 17, output: str = "float[1,C,H,W] head", **arrays: object) -> ir.Model:
    text = f"(float[1,3,8,8] images) => ({output}) {{ {body} }}"
    return build(text, {**WEIGHTS, **arrays}, opset=opset, scale=1 / 255)


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        ('c = Conv(images, w) head = Resize<mode="nearest">(c, , up)', 18),
        ('c = Conv(images, w) head = Resize<mode="nearest">(c, , up)', 19),
        ("c = Conv(images, w) head = ReduceMean<keepdims=1>(c, two)", 18),
        ("c = Conv(images, w) a, b, d = Split<axis=1, num_outputs=3>(c) head = Concat<axis=1>(d, a, b)", 18),
        ("c = Conv(images, w) head = Reshape<allowzero=0>(c, same)", 21),
    ],
)
def test_newer_opsets_are_written_in_older_words(body, opset):
    model = with_types(net(body, opset, two=[2, 3], same=[1, 3, 8, 8]))
    older = with_opset(model, 17)
    assert older.graph.opset_imports[""] == 17
    assert np.array_equal(outputs(model)["head"], outputs(older)["head"])


def test_what_cannot_be_said_in_older_words():
    for body in (
        'c = Conv(images, w) head = Resize<mode="linear", antialias=1>(c, , up)',
        "c = Conv(images, w) a, b = Split<axis=1, num_outputs=2>(c) head = Concat<axis=1>(b, a)",
    ):
        with pytest.raises(Exception, match=r"(antialias|unequal)"):
            with_opset(with_types(net(body, 18)), 17)


@pytest.mark.parametrize("opset", [11, 12, 18, 19])
def test_int8_of_any_opset(opset, tmp_path):
    middle = 'Resize<mode="nearest">(d, , up)' if opset > 12 else "MaxPool<kernel_shape=[2,2]>(d)"
    model = net(f"c = Conv(images, w) d = Conv(c, w) u = {middle} head = Conv(u, w)", opset)
    path, out = tmp_path / "model.onnx", tmp_path / "out"
    path.write_bytes(model_bytes(model))
    write_pictures(tmp_path / "pictures", 3)
    succeed("export", path, "--target", "tensorrt", "--board", "gpu", "--calib", tmp_path / "pictures", "-o", out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["layers"]["int8"]) == 2
    assert json.loads(succeed("verify", out, "--json").stdout)["equal"]


def test_every_int8_layer_reads_pairs_directly_in_the_typed_graph():
    """Whatever stays float32 around it: a Cast between a pair and its layer would make it float."""
    model = quantised(graph("concat"))
    for unsafe in (["r1"], ["c2"], ["k"], ["a", "r2"], ["m"]):
        typed = to_typed(model, unsafe)
        for node in typed.graph:
            if str(node.name) in place(graph("concat")).weighted:
                makers = [node.inputs[i].producer().op_type for i in (0, 1)]
                assert makers == ["DequantizeLinear"] * 2, (unsafe, node.name, makers)
                assert node.inputs[0].dtype == node.inputs[1].dtype
        assert lint(typed) == []
        exact = next(run_pictures(model, ["head"], PICTURES))["head"]
        got = TypedGraph(typed)(PICTURES[0][None].astype(np.float32) / 255)
        assert np.square(exact - got["head"]).sum() < 0.01 * np.square(exact).sum()


def test_lint_reads_through_casts():
    typed = to_typed(with_pair(quantised(graph("residual")), "c2", "s"), ["c2"])
    assert any(node.op_type == "Cast" for node in typed.graph)
    assert [finding.rule for finding in lint(typed)] == ["residual"]


@pytest.mark.parametrize("factor", [1.0, 1e-3, 1e-4])
def test_small_weights_keep_their_levels(factor):
    """The same function twice: one layer's weights divided by what the next one's are multiplied with."""
    body = "c = Conv(images, w1) r = Relu(c) d = Conv(r, w2) e = Relu(d) head = Conv(e, w)"
    w1, w2 = normal(1, 3, 3, 1, 1), normal(2, 3, 3, 1, 1)
    model = net(body, w1=(w1 / factor).astype(np.float32), w2=(w2 * factor).astype(np.float32))
    result = quantise_int8(model, PICTURES, Int8Config(equalise=False, correct_bias=False, reconstruct=False))
    assert result.best.head_snr_db > 25  # seen: 26.8, 28.7, 26.4


def test_integers_inside_the_graph():
    body = (
        "c = Conv(images, w) r = Relu(c) d = Conv(r, w) k, i = TopK<axis=3>(d, one) f = Cast<to=1>(i) head = Add(k, f)"
    )
    result = quantise_int8(with_types(net(body)), PICTURES, Int8Config(keep_float=()))
    assert len(result.candidates) == 3 and result.best.head_snr_db > 0


def test_mish_is_safe_in_float16_and_exponentials_are_not():
    assert unsafe_layers(graph("mish"), {}) == {}
    assert list(unsafe_layers(net("p = Softplus(images) head = Conv(p, w)"), {})) == ["p"]


def test_what_decodes_behind_the_last_layers_stays_float32():
    body = "c = Conv(images, w) d = Conv(c, w) s = Sigmoid(d) m = Mul(s, two) head = Transpose<perm=[0,2,3,1]>(m)"
    model = net(body, two=np.float32(640))
    assert behind_heads(model) == ["s", "m", "head"]
    assert behind_heads(graph("head behind a pool")) == []  # it only moves data
    typed = to_typed(model, behind_heads(model))
    types = {node.name: node.outputs[0].dtype for node in typed.graph}
    assert types["d"] == ir.DataType.FLOAT16 and types["m"] == ir.DataType.FLOAT


def test_float16_overflow_is_seen_in_onnx_runtime():
    body = "c = Conv(images, big) d = Conv(c, small) head = Relu(d)"
    model = net(body, big=np.full((3, 3, 1, 1), 40000, np.float32), small=np.full((3, 3, 1, 1), 1e-4, np.float32))
    feed = np.ones((1, 3, 8, 8), np.float32)
    typed = to_typed(model, ())
    assert np.isfinite(run(open_session(typed, optimise=False), feed)["head"]).all()  # it hides there
    assert not np.isfinite(TypedGraph(typed)(feed)["head"]).all()
    safe = to_typed(model, unsafe_layers(model, {"c": 120000.0}))
    assert np.isfinite(TypedGraph(safe)(feed)["head"]).all()


def test_a_value_read_in_front_of_its_activation_is_not_fused():
    body = "c = Conv(images, w) r = Relu(c) d = Conv(r, w) e = Relu(d) s = Add(e, r) t = Add(s, d) "
    body += "h = Conv(t, w) head = Conv(h, w)"
    readers = {v: [str(u.node.name) for u in uses] for v, uses in place(net(body)).uses.items()}
    assert readers["e"] == ["s"] and "s" in readers["r"]


def test_names_that_a_command_line_cannot_take(tmp_path):
    model = net("c = Conv(images, w) head = Conv(c, w)")
    model.graph.inputs[0].name = "a=b"
    (tmp_path / "m.onnx").write_bytes(model_bytes(model))
    words = refusal(
        "export", tmp_path / "m.onnx", "--target", "tensorrt", "--precision", "fp16", "-o", tmp_path / "out"
    )
    assert "cannot be given to trtexec" in words and not (tmp_path / "out").exists()
    model = net("c = Conv(images, w) d = Exp(c) head = Conv(d, w)")
    next(n for n in model.graph if n.op_type == "Exp").name = "model/e,x;p"
    (tmp_path / "m.onnx").write_bytes(model_bytes(model))
    succeed("export", tmp_path / "m.onnx", "--target", "tensorrt", "--precision", "fp16", "-o", tmp_path / "out")
    assert "FLOAT_LAYERS=model/e_x_p\n" in (tmp_path / "out" / "build.conf").read_text()


def test_a_boards_name_is_a_word():
    from importlib.resources import files

    text = files("edgeyolo.targets").joinpath("jetson", "orin-nano.toml").read_text("utf-8")
    for name in ("my board", "x\\nDLA=1", ""):
        with pytest.raises(Exception, match="name"):
            parse_jetson(text.replace('name = "orin-nano"', f'name = "{name}"'), "here")


def test_lint_compares_the_two_halves_of_a_pair():
    model = quantised(graph("leaky"))
    node = next(n for n in model.graph if n.op_type == "DequantizeLinear" and n.outputs[0].name == "y.dq")
    other = ir.tensor(np.float32(2) * constant(node.inputs[1]), name="other")
    value = ir.Value(name="other", const_value=other, type=ir.TensorType(other.dtype))
    model.graph.register_initializer(value)
    node.replace_input_with(1, value)
    assert ("slow", "unequal pair") in [(f.severity, f.rule) for f in lint(model)]


def test_lint_shows_refused_operators_of_a_float_graph(tmp_path):
    (tmp_path / "m.onnx").write_bytes(model_bytes(net("d = Det(images) c = Conv(images, w) head = Mul(c, d)")))
    result = edgeyolo("lint", tmp_path / "m.onnx", "--target", "tensorrt")
    assert result.exit_code == 1 and "No Q/DQ" in result.output and "does not parse" in " ".join(result.output.split())
