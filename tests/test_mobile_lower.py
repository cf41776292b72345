"""Integers for ONNX Runtime's CPU kernels: every chosen layer becomes one, and three formats are the same numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from graphs import build, check_proto, normal, outputs
from tensorrt_graphs import ARRAYS, BODIES, PICTURES, graph
from tiny_models import Tiny

from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.export.pictures import PictureSet
from edgeyolo.export.prepare import Stages, prepare
from edgeyolo.frontend import load_source
from edgeyolo.lower.mobile.formats import FORMATS, encode, form_of
from edgeyolo.lower.mobile.half import to_half
from edgeyolo.lower.mobile.insert import insert_integers
from edgeyolo.lower.mobile.placement import place
from edgeyolo.lower.mobile.quantise import candidates, quantise_mobile
from edgeyolo.lower.mobile.scales import between, choose_scales
from edgeyolo.lower.tensorrt.quantise import Int8Config
from edgeyolo.ort import model_bytes
from edgeyolo.passes.graph import constant, read_detector
from edgeyolo.passes.widen import widened
from edgeyolo.progress import Log
from edgeyolo.quant.compare import head_snr

MORE = {
    "relu6": "c1 = Conv(images, w) r1 = Clip(c1, zero, six) c2 = Conv(r1, w) head = Conv(c2, w)",
    "residual, relu": "c1 = Conv(images, w) r1 = Relu(c1) c2 = Conv(r1, w) s = Add(c2, r1) r2 = Relu(s)"
    " c3 = Conv(r2, w) head = Conv(c3, w)",
    "average": "c1 = Conv(images, w) p = AveragePool<kernel_shape=[2,2]>(c1) c2 = Conv(p, w) head = Conv(c2, w)",
    "hardswish": "c1 = Conv(images, w) y = HardSwish(c1) c2 = Conv(y, w) head = Conv(c2, w)",
    "mixed concat": "a = Conv(images, w) r1 = Relu(a) l1 = LeakyRelu<alpha=0.1>(r1) k = Concat<axis=1>(r1, l1)"
    " m = Conv(k, w6) head = Conv(m, w)",
}
ALL = {**BODIES, **MORE}
CONSTANTS = {**ARRAYS, "zero": np.float32(0), "six": np.float32(0.4)}
KERNELS = {
    "residual": "QLinearAdd",
    "residual of two": "QLinearAdd",
    "residual, activated": "QLinearLeakyRelu QLinearLeakyRelu QLinearAdd",
    "sum of sums": "QLinearAdd QLinearAdd",
    "concat": "QLinearConcat",
    "silu": "QLinearSigmoid QLinearMul",
    "mish": "QuantizeLinear DequantizeLinear Softplus Tanh QLinearMul",
    "leaky": "QLinearLeakyRelu",
    "maxpool": "MaxPool",
    "upsample": "Resize",
    "interpolation": "QuantizeLinear DequantizeLinear Resize",
    "split": "QuantizeLinear DequantizeLinear Split",  # one of its results is not read
    "transposed": "QuantizeLinear DequantizeLinear DequantizeLinear ConvTranspose",
    "head behind a pool": "MaxPool",
    "gemm": "Reshape FusedGemm Gemm",
    "residual, relu": "QLinearAdd",
    "average": "QLinearAveragePool",
    "hardswish": "QuantizeLinear DequantizeLinear HardSigmoid Mul",
    "mixed concat": "QLinearLeakyRelu QLinearConcat",
}
"""What runs besides the convolutions and the conversion of the input and the output."""


def net(name: str) -> ir.Model:
    if name in BODIES:
        return graph(name)
    return build(f"(float[1,3,8,8] images) => (float[1,C,H,W] head) {{ {MORE[name]} }}", CONSTANTS, scale=1 / 255)


def quantised(model: ir.Model, keep_float: tuple[str, ...] = ()) -> ir.Model:
    placement = place(model, keep_float)
    return insert_integers(model, placement, choose_scales(model, placement, PICTURES, "minmax"))


def optimised(model: ir.Model, folder: Path, *, signed: bool = False) -> Counter[str]:
    """The operators that ONNX Runtime really runs; ``signed`` as on ARM, where int8 activations have kernels."""
    options, path = ort.SessionOptions(), folder / "optimised.onnx"
    options.optimized_model_filepath, options.log_severity_level = str(path), 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.qdqisint8allowed", str(int(signed)))
    ort.InferenceSession(model_bytes(model), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("name", ALL)
def test_every_layer_is_an_integer_kernel_in_every_format(name, tmp_path):
    model = net(name)
    before = model_bytes(model)
    result = quantised(model)
    assert model_bytes(model) == before, "the input is left alone"
    convolutions = sum(node.op_type == "Conv" for node in model.graph)
    expected = Counter(["QuantizeLinear", "DequantizeLinear", *KERNELS.get(name, "").split()])
    expected["QLinearConv"] = convolutions
    exact = outputs(result)["head"]
    for form in FORMATS:
        encoded = encode(result, form)
        check_proto(encoded)
        leaky = 0 if form == "S8S8" else expected["QLinearLeakyRelu"]  # unsigned, each is two vector kernels
        split = Counter({"QLinearLeakyRelu": -leaky, "Clip": leaky, "QLinearAdd": leaky})
        kernels = Counter(expected)
        kernels.update(split)
        assert optimised(encoded, tmp_path, signed=form == "S8S8") == +kernels, form
        assert np.array_equal(outputs(encoded)["head"], exact)
        wide = widened(encoded, 16)
        assert optimised(wide, tmp_path, signed=form == "S8S8") == +kernels, "zeros cost no kernel"
        assert np.array_equal(outputs(wide)["head"], exact)
    assert 20 < head_snr(model, result, PICTURES) < 80


def test_formats_differ_in_bytes_alone():
    result = quantised(net("leaky"))
    kinds = {"S8S8": ("int8", "int8"), "U8S8": ("uint8", "int8"), "U8U8": ("uint8", "uint8")}
    for form, (activation, weight) in kinds.items():
        assert form_of(encode(result, form)) == form
        for node in encode(encode(result, "U8U8"), form).graph:
            if node.op_type == "DequantizeLinear" and len(node.inputs) > 2:
                codes, zero = constant(node.inputs[0]), constant(node.inputs[2])
                if codes is not None and codes.dtype == np.int32:
                    assert not zero.any() and zero.dtype == np.int32, "a bias is the same in all formats"
                    continue
                assert zero.dtype.name == (activation if codes is None else weight)
                assert codes is None or (
                    codes.dtype == zero.dtype and np.all(zero == (128 if weight == "uint8" else 0))
                )
    with pytest.raises(InputError, match="unknown integer format"):
        encode(result, "S8U8")
    assert form_of(net("leaky")) is None


def test_kept_layers_stay_float(tmp_path):
    model = net("depthwise")
    found = optimised(encode(quantised(model, ("head", "depthwise")), "U8S8"), tmp_path)
    assert (found["QLinearConv"], found["Conv"] + found["FusedConv"]) == (1, 2)
    placement = place(model, ("head", "depthwise"))
    assert placement.floats == {"c2": "--keep-float depthwise", "head": "--keep-float head"}
    assert placement.made == {"r1"} and [use.node.name for use in placement.uses["r1"]] == ["c2"]
    assert set(place(net("transposed"), ()).floats) == {"c2"}
    # Between two float layers nothing becomes an integer, and a float value is rounded for int8 readers alone.
    residual = place(net("residual"), ("c1", "c2"))
    assert residual.made == {"head"} and [u.node.name for u in residual.uses["r2"]] == ["head"]
    assert set(residual.uses) == {"r2", "head"}
    with pytest.raises(InputError, match="not in the model"):
        place(model, ("nothing",))


def test_codes_cover_what_was_seen():
    model = net("relu6")
    placement = place(model, ())
    scales = choose_scales(model, placement, PICTURES, "minmax").acts
    assert (float(scales["images"].scale), int(scales["images"].zero_point)) == (np.float32(1 / 255), -128)
    assert int(scales["r1"].zero_point) == -128 and 0.39 < 255 * scales["r1"].scale <= np.float32(0.4)
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-2.0, -1.0), (0.0, 0.0), (-1e-30, 1e30)):
        quant = between(low, high)
        real = quant.dequantise(np.array([-128, quant.zero_point, 127]))
        assert real[1] == 0 and real[2] - real[0] == pytest.approx(max(high, 0) - min(low, 0), rel=1e-5, abs=1e-15)
        assert real[0] <= min(low, 0) + quant.scale and real[2] >= max(high, 0) - quant.scale


def test_a_limit_of_nothing_ends():
    """A Clip(0, 0) is no activation, and the codes in front of a very low limit are found at once."""
    six = {**CONSTANTS, "six": np.float32(0)}
    model = build(f"(float[1,3,8,8] images) => (float[1,3,8,8] head) {{ {MORE['relu6']} }}", six, scale=1 / 255)
    assert not place(model, ()).limits and "c1" in place(model, ()).made
    quantised(model)
    for high in (2.0**-40, 0.3):
        quant = between(-1.0, high, high)
        assert 0.99 * high < quant.scale * np.float32(255) <= np.float32(high)


def test_a_dead_channel_keeps_its_bias():
    dead = ARRAYS["w"] * np.array([1, 1e-12, 0], np.float32)[:, None, None, None]
    bias = np.array([0.1, 5.0, -7.0], np.float32)
    body = "c1 = Conv(images, dead, bias) l1 = LeakyRelu<alpha=0.5>(c1) head = Conv(l1, w)"
    arrays = {**ARRAYS, "dead": dead, "bias": bias}
    model = build(f"(float[1,3,8,8] images) => (float[1,3,8,8] head) {{ {body} }}", arrays, scale=1 / 255)
    node = next(n for n in quantised(model).graph if n.name == "c1").inputs[2].producer()
    codes, scale, _ = (constant(v) for v in node.inputs)
    assert np.abs(codes.astype(np.int64)).max() <= 2**30 + 2**8
    assert codes * scale.astype(np.float64) == pytest.approx(bias, rel=1e-4)


def test_an_old_opset_is_raised(tmp_path):
    text = f"(float[1,3,8,8] images) => (float[1,3,8,8] head) {{ {BODIES['leaky']} }}"
    result = quantised(build(text, ARRAYS, opset=11, scale=1 / 255))
    check_proto(result)
    assert optimised(encode(result, "U8S8"), tmp_path)["QLinearConv"] == 3


def tiny_model(tiny: Tiny) -> tuple[ir.Model, PictureSet]:
    model, _ = prepare(load_source(tiny.cfg, weights=tiny.weights).model, [], Stages(None), Log(quiet=True))
    return model, PictureSet.find(tiny.pictures, read_detector(model).preprocess)


def test_the_tiny_model(tiny, tmp_path):
    model, seen = tiny_model(tiny)
    calm = Int8Config(keep_float=(), equalise=False, correct_bias=False, reconstruct=False)
    result = quantise_mobile(model, seen.spread(3), calm)
    assert result.best.head_snr_db > 20 and not result.placement.floats
    found = optimised(encode(result.best.model, "U8S8"), tmp_path)
    assert found["QLinearConv"] == 9 and not found["Conv"] + found["FusedConv"] + found["Add"] + found["LeakyRelu"]
    assert [v.name for v in result.best.model.graph.outputs] == [v.name for v in model.graph.outputs]
    assert result.best.model.metadata_props == model.metadata_props


def test_refinements_are_those_of_the_other_targets():
    result = quantise_mobile(net("residual, activated"), PICTURES, Int8Config())
    assert [c.name for c in result.candidates][-1].endswith("+ reconstruct")
    assert result.best.head_snr_db == max(c.head_snr_db for c in result.candidates)
    for candidate in result.candidates:
        check_proto(candidate.model)
        assert head_snr(net("residual, activated"), candidate.reference, PICTURES) > 80


def test_equalising_sees_what_stands_in_front_of_an_activation():
    """Two channels are large and negative: LeakyRelu hides them from their readers, not from the scale before it."""
    gains = np.array([10, 10, 0.5, 0.5, 0.5, 0.5, 10, 10], np.float32)[:, None, None, None]
    signs = np.array([1, 1, 0, 0, 0, 0, -1, -1], np.float32)[:, None, None, None]
    mixed, inner = normal(0, 8, 3, 1, 1), normal(1, 8, 1, 3, 3)
    first = np.where(signs, signs * np.abs(mixed), mixed)
    arrays = {"a": gains * first, "d": inner / gains, "h": normal(2, 4, 8, 1, 1)}
    body = "c = Conv(images, a) y = LeakyRelu<alpha=0.01>(c) d1 = Conv<group=8>(y, d) head = Conv(d1, h)"
    model = build(f"(float[1,3,8,8] images) => (float[1,4,6,6] head) {{ {body} }}", arrays, scale=1 / 255)
    calm = Int8Config(keep_float=(), correct_bias=False, reconstruct=False)
    plain, equalised = quantise_mobile(model, PICTURES, calm).candidates
    assert equalised.name == "equalise" and equalised.head_snr_db > plain.head_snr_db + 8


def test_float16(tiny):
    model, seen = tiny_model(tiny)
    half = to_half(model, {})
    assert head_snr(model, half, seen) > 50
    assert all(v.dtype == ir.DataType.FLOAT for v in (*half.graph.inputs, *half.graph.outputs))
    weights = [constant(node.inputs[1]) for node in half.graph if node.op_type == "Conv"]
    assert {w.dtype.name for w in weights} == {"float16"}
    wide = to_half(model, {str(next(iter(model.graph)).outputs[0].name): 60000.0})
    kept = [constant(node.inputs[1]).dtype.name for node in wide.graph if node.op_type == "Conv"]
    assert kept == ["float32", *["float16"] * 8]


def test_what_is_worth_measuring(tiny):
    assert list(candidates(net("leaky"))) == [(), ("head",)]
    assert list(candidates(net("depthwise"))) == [(), ("head",), ("head", "depthwise")]
    wide = {"a": normal(0, 32, 3, 1, 1), "b": normal(1, 32, 32, 1, 1)}
    text = (
        "(float[1,3,8,8] images) => (float[1,32,8,8] head) { x[0] = Conv(images, a) y = Conv(x0, b) head = Conv(y, b) }"
    )
    model = build(text.replace("x[0]", "x0"), wide, scale=1 / 255)
    next(iter(model.graph)).name = "x[0]"
    assert list(candidates(model)) == [(), ("head",), ("head", "x[[]0]")]
    for keep in candidates(model):
        assert place(model, keep).weighted
    assert list(place(model, ("head", "x[[]0]")).floats) == ["x[0]", "head"]


def test_layers_with_few_results_are_worth_leaving_float():
    """An int8 kernel that makes up to 16 channels is not a fast one: everything up to the first that makes more."""
    arrays = {"a": normal(0, 8, 3, 1, 1), "b": normal(1, 16, 8, 1, 1), "c": normal(2, 24, 16, 1, 1)}
    arrays |= {"d": normal(3, 24, 24, 1, 1), "e": normal(4, 32, 24, 1, 1), "f": normal(5, 32, 32, 1, 1)}
    body = "u = Conv(images, a) v = Conv(u, b) w = Conv(v, c) x = Conv(w, d) y = Conv(x, e) z = Conv(y, f)"
    text = f"(float[1,3,8,8] images) => (float[1,32,8,8] head) {{ {body} head = Conv(z, f) }}"
    assert list(candidates(build(text, arrays, scale=1 / 255)))[2:] == [("head", "u", "v"), ("head", *"uvwxy")]


def test_heads_are_no_leading_layers():
    arrays = {"a": normal(0, 32, 3, 1, 1), "b": normal(1, 32, 32, 1, 1)}
    body = "x = Conv(images, a) early = Conv(images, a) y = Conv(x, b) head = Conv(y, b)"
    outputs = "(float[1,32,8,8] early, float[1,32,8,8] head)"
    model = build(f"(float[1,3,8,8] images) => {outputs} {{ {body} }}", arrays, scale=1 / 255)
    assert list(candidates(model))[-1] == ("head", "x")
    only = build(
        "(float[1,3,8,8] images) => (float[1,32,8,8] head) { x = Conv(images, a) head = Conv(x, b) }", arrays, scale=1
    )
    assert list(candidates(only)) == [(), ("head",)], "the only wide layer is the head"


def test_what_cannot_be_quantised_is_said():
    with pytest.raises(InputError, match="no calibration pictures"):
        quantise_mobile(net("leaky"), [], Int8Config())
    with pytest.raises(UnsupportedError, match=r"no layer can run in int8[\s\S]*--keep-float"):
        quantise_mobile(net("leaky"), PICTURES, Int8Config(keep_float=("c*", "head")))
