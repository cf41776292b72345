"""QDQ files of other tools, and hostile ones: lowered exactly as they are, or refused with every reason at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import Array, Qdq, assert_equals_ort, build, codes8, net, pictures
from onnx import numpy_helper
from onnxruntime import quantization

from edgeyolo.errors import UnsupportedError
from edgeyolo.export.oracle import Oracle
from edgeyolo.lower.fixed import lower_fixed
from edgeyolo.program import Add, Conv, IntegerProgram, Lookup
from edgeyolo.quant.config import QuantConfig
from edgeyolo.quant.insert_qdq import QTYPE_KEY
from edgeyolo.quant.quantise import quantise
from edgeyolo.runners.integer import run_integer

PICTURES = pictures(3, 3, 16, 16)


class Reader(quantization.CalibrationDataReader):
    """Feeds a few pictures to ONNX Runtime's own quantiser."""

    def __init__(self) -> None:
        self.feeds = iter([{"images": p[None].astype(np.float32) / 256} for p in PICTURES])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.feeds, None)


@pytest.fixture(scope="module")
def by_ort(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """Our test net as ONNX Runtime's static quantiser writes it: QDQ, int8, symmetric, per channel, float scales."""
    folder: Path = tmp_path_factory.mktemp("ort")
    onnx.save(ir.to_proto(net()), folder / "float.onnx")
    quantization.quantize_static(
        str(folder / "float.onnx"),
        str(folder / "qdq.onnx"),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        nodes_to_exclude=["s2", "m2"],  # it would quantise between Sigmoid and Mul, which leaves a product of two
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    return onnx.load(folder / "qdq.onnx")


def test_float_scales_are_refused_and_each_place_is_named(by_ort):
    with pytest.raises(UnsupportedError, match="power of two") as caught:
        lower_fixed(ir.from_proto(by_ort))
    quantisers = [node.name for node in by_ort.graph.node if node.op_type == "QuantizeLinear"]
    assert all(name in str(caught.value) for name in quantisers)


def test_ort_s_own_file_lowers_once_its_scales_are_powers_of_two(by_ort):
    proto = onnx.ModelProto()
    proto.CopyFrom(by_ort)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    scales: dict[str, Array] = {}
    for node in proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            array = numpy_helper.to_array(tensors[node.input[1]])
            scales[node.output[0]] = np.exp2(np.rint(np.log2(array))).astype(np.float32)
            tensors[node.input[1]].CopyFrom(numpy_helper.from_array(scales[node.output[0]], node.input[1]))
    producers = {name: node for node in proto.graph.node for name in node.output}
    for conv in (node for node in proto.graph.node if node.op_type == "Conv" and len(node.input) > 2):
        bias = producers[conv.input[2]]  # int32 at the product of the two scales
        product = scales[conv.input[0]] * scales[conv.input[1]]
        tensors[bias.input[1]].CopyFrom(numpy_helper.from_array(product, bias.input[1]))
    program = assert_equals_ort(ir.from_proto(proto))
    kinds = [type(op) for op in program.ops]
    assert kinds.count(Conv) == 6 and {Add, Lookup} < set(kinds)


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("bias", ["int32", "float", "none"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_a_file_by_hand_without_our_metadata(opset, bias, dtype):
    graph = Qdq((1, 3, 8, 8), 8, np.uint8)
    codes = np.random.default_rng(4).integers(-9000, 9000, 4).astype(np.int32)
    third = {
        "int32": lambda: ", " + graph.weight(codes, np.array([15, 16, 14, 15])),
        "float": lambda: ", " + graph.constant(np.ldexp(codes.astype(np.float32), -14)),
        "none": str,
    }[bias]()
    weight = graph.weight(codes8(1, 4, 3, 3, 3), np.array([7, 8, 6, 7]))
    first = graph.quantise(graph.node(f"Relu({graph.node(f'Conv({graph.input}, {weight}{third})')})"), 5, dtype)
    pool = graph.quantise(graph.node(f"MaxPool<kernel_shape=[2,2], strides=[2,2]>({first})"), 5, dtype)
    table = graph.quantise(graph.node(f"Mul({pool}, {graph.node(f'Sigmoid({pool})')})"), 5, dtype)
    program = assert_equals_ort(graph.model(graph.quantise(graph.node(f"Add({table}, {pool})"), 4, dtype), opset=opset))
    assert program.detector is None
    assert [type(op).__name__ for op in program.ops] == ["Conv", "MaxPool", "Lookup", "Add"]


def test_float_weights_behind_a_quantiser_are_rounded_as_onnx_runtime_rounds_them():
    graph = Qdq()
    scale, zero = (
        graph.constant(np.ldexp(np.ones(4, np.float32), [-7, -6, -7, -8])),
        graph.constant(np.zeros(4, np.int8)),
    )
    ties = np.ldexp(np.random.default_rng(0).integers(-300, 300, (4, 3, 3, 3)), -8).astype(np.float32)
    codes = graph.node(f"QuantizeLinear<axis=0>({graph.constant(ties)}, {scale}, {zero})")
    real = graph.node(f"DequantizeLinear<axis=0>({codes}, {scale}, {zero})")
    program = assert_equals_ort(graph.model(graph.quantise(graph.node(f"Conv({graph.input}, {real})"), 3)))
    assert program.ops[0].weight_frac.tolist() == [7, 6, 7, 8]


def test_a_table_whose_two_readers_dequantise_for_themselves():
    graph = Qdq((1, 2, 4, 4), 5, np.int8)
    codes = graph.lines[0].split(" = ")[0]
    other = graph.node(f"DequantizeLinear({codes}, {graph.constant(np.float32(2**-5))}, {graph.constant(np.int8(0))})")
    value = graph.node(f"Mul({graph.input}, {graph.node(f'Sigmoid({other})')})")
    assert isinstance(assert_equals_ort(graph.model(graph.quantise(value, 5))).ops[0], Lookup)


def test_the_type_may_stand_in_an_attribute():
    graph = Qdq()
    value, scale = (
        graph.node(f"Conv({graph.input}, {graph.weight(codes8(1, 4, 3, 3, 3), 7)})"),
        graph.constant(np.float32(0.25)),
    )
    codes = graph.node(f"QuantizeLinear<output_dtype=3>({value}, {scale})")
    program = assert_equals_ort(graph.model(graph.node(f"DequantizeLinear({codes}, {scale})"), opset=21))
    assert program.tensors[-1].qtype.dtype == np.int8


def conv(graph: Qdq, attributes: str = "") -> str:
    """A 1x1 convolution of the input."""
    channels = graph.shape[1]
    return graph.node(f"Conv{attributes}({graph.input}, {graph.weight(codes8(1, channels, channels, 1, 1), 7)})")


def quantised_conv(graph: Qdq, frac: int = 4, dtype: Any = np.int8, **options: Any) -> str:
    return graph.quantise(conv(graph), frac, dtype, **options)


def zero_point(graph: Qdq) -> str:
    result = quantised_conv(graph)
    graph.arrays[[k for k, v in graph.arrays.items() if v.dtype == np.int8 and v.ndim == 0][-1]] = np.array(3, np.int8)
    return result


def other_scale(graph: Qdq) -> str:
    real = quantised_conv(graph)
    codes = graph.lines[-2].split(" = ")[0]
    other = graph.node(f"DequantizeLinear({codes}, {graph.constant(np.float32(0.5))}, {graph.constant(np.int8(0))})")
    return graph.quantise(graph.node(f"MaxPool<kernel_shape=[1,1]>({other})"), 1) if real else ""


def per_channel_activation(graph: Qdq) -> str:
    scale, zero = graph.constant(np.array([0.5, 0.25, 0.5], np.float32)), graph.constant(np.zeros(3, np.int8))
    codes = graph.node(f"QuantizeLinear<axis=1>({conv(graph)}, {scale}, {zero})")
    return graph.node(f"DequantizeLinear<axis=1>({codes}, {scale}, {zero})")


def weight_zero_point(graph: Qdq) -> str:
    weight = graph.weight(codes8(1, 4, 3, 1, 1), 7)
    graph.arrays[list(graph.arrays)[-1]] = np.array(5, np.int8)
    return graph.quantise(graph.node(f"Conv({graph.input}, {weight})"), 4)


def split_rows(graph: Qdq) -> str:
    graph.lines.append(f"top, bottom = Split<axis=2>({graph.input}, {graph.constant([4, 4])})")
    return graph.quantise("bottom", 8, np.uint8)


def chain(graph: Qdq, length: int) -> str:
    value = graph.input
    for _ in range(length):
        value = graph.node(f"Sigmoid({value})")
    return graph.quantise(value, 7)


def move(call: str, frac: int = 8, dtype: Any = np.uint8) -> Callable[[Qdq], str]:
    """One node on the input; ``{x}`` is the input, ``{name}`` a constant below."""

    def make(graph: Qdq) -> str:
        factors = {"up": (2, 2), "half": (0.5, 0.5), "ragged": (1.5, 1.5), "nearly": (2.01, 2.01)}
        numbers: dict[str, Any] = {name: np.array([1, 1, *pair], np.float32) for name, pair in factors.items()}
        numbers |= {"wide": np.array([1, 2, 2, 2], np.float32), "zero": np.float32(0), "two": np.float32(0.3)}
        numbers |= {"back": [-1], "end": [-100], "axis": [3], "three": [3], "flat": [1, 192]}
        numbers |= {"plane": np.ones((1, 3, 8, 8), np.float32)}
        names = {name: graph.constant(value) for name, value in numbers.items()}
        constant_codes = graph.weight(codes8(2, 1, 3, 8, 8), 7)
        lines = call.format(x=graph.input, dq=constant_codes, **names).split("\n")
        for line in lines[:-1]:
            graph.lines.append(line)
        return graph.quantise(graph.node(lines[-1]), frac, dtype)

    return make


HOSTILE: dict[str, tuple[Callable[[Qdq], str], str]] = {
    "zero point": (zero_point, "power of two with zero point 0"),
    "weights with a zero point": (weight_zero_point, "power of two with zero point 0"),
    "float scale": (lambda g: quantised_conv(g, scale=0.3), "power of two"),
    "scale 0": (lambda g: quantised_conv(g, scale=0.0), "power of two"),
    "scale nan": (lambda g: quantised_conv(g, scale=float("nan")), "power of two"),
    "negative scale": (lambda g: quantised_conv(g, scale=-0.5), "power of two"),
    "scale per channel": (per_channel_activation, "axis 1"),
    "dequantised otherwise": (other_scale, "by another scale"),
    "uint16": (lambda g: quantised_conv(g, dtype=np.uint16), "int8, uint8 or int16"),
    "shift too far": (lambda g: quantised_conv(g, 60), "shift"),
    "auto_pad of Conv": (lambda g: g.quantise(conv(g, '<auto_pad="SAME_UPPER">'), 4), "auto_pad"),
    "auto_pad of MaxPool": (move('MaxPool<kernel_shape=[2,2], auto_pad="SAME_LOWER">({x})'), "auto_pad"),
    "dilated pool": (move("MaxPool<kernel_shape=[2,2], dilations=[2,2]>({x})"), "dilations"),
    "ceil_mode": (move("MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>({x})"), "ceil_mode"),
    "pool that requantises": (move("MaxPool<kernel_shape=[2,2]>({x})", 6), "changes the quantisation"),
    "pool and clip": (move("m = MaxPool<kernel_shape=[2,2]>({x})\nClip(m, {zero}, {two})"), "Clip behind MaxPool"),
    "pool and relu": (move("m = MaxPool<kernel_shape=[2,2]>({x})\nRelu(m)"), "Relu behind MaxPool"),
    "linear resize": (move('Resize<mode="linear">({x}, , {up})'), "Resize linear"),
    "ragged resize": (move("Resize({x}, , {ragged})"), "8x8 to 12x12"),
    "smaller": (move("Resize({x}, , {half})"), "8x8 to 4x4"),
    "half_pixel, floor": (move('Resize<nearest_mode="floor">({x}, , {up})'), "half_pixel, floor"),
    "half_pixel, ceil": (move('Resize<nearest_mode="ceil">({x}, , {up})'), "half_pixel, ceil"),
    "align_corners": (move('Resize<coordinate_transformation_mode="align_corners">({x}, , {up})'), "align_corners"),
    "nearly two": (
        move('Resize<coordinate_transformation_mode="asymmetric", nearest_mode="floor">({x}, , {nearly})'),
        "Resize nearest",
    ),
    "more channels": (
        move('Resize<coordinate_transformation_mode="asymmetric", nearest_mode="floor">({x}, , {wide})'),
        "Resize nearest",
    ),
    "backwards": (move("Slice({x}, {back}, {end}, {axis}, {back})"), "backwards"),
    "computed slice": (move("k = Abs({three})\nSlice({x}, k, {end}, {axis})"), "static (1, C, H, W)"),
    "split rows": (split_rows, "another axis than the channels"),
    "two dimensions": (move("Reshape({x}, {flat})"), "static (1, C, H, W)"),
    "concat rows": (move("Concat<axis=2>({x}, {x})"), "axis 2"),
    "concat with a float constant": (move("Concat<axis=1>({x}, {plane})"), "Concat with a constant"),
    "concat with a constant": (move("Concat<axis=1>({x}, {dq})"), "Concat with a constant"),
    "concat without a quantiser": (move("m = Abs({x})\nConcat<axis=1>({x}, m)"), "combines values"),
    "add without a quantiser": (move("m = MaxPool<kernel_shape=[1,1]>({x})\nAdd({x}, m)"), "Add has no record"),
    "concat of nine": (move("Concat<axis=1>({x}, {x}, {x}, {x}, {x}, {x}, {x}, {x}, {x})"), "at most 8"),
    "add a plane": (move("Add({x}, {plane})"), "a constant per element"),
    "scale by a constant code": (move("Mul({x}, {dq})"), "dequantised constant"),
    "clip by a code": (move("c = Conv({x}, {dq})\nClip(c, {dq})"), "computed bounds"),
    "slope above 1": (lambda g: g.quantise(g.node(f"LeakyRelu<alpha=1.5>({conv(g)})"), 4), "slope"),
    "negative slope": (lambda g: g.quantise(g.node(f"LeakyRelu<alpha=-0.5>({conv(g)})"), 4), "slope"),
    "slope 0.1": (lambda g: g.quantise(g.node(f"LeakyRelu<alpha=0.1>({conv(g)})"), 4), "dyadic_leaky"),
    "sigmoid without a quantiser in between": (lambda g: g.quantise(g.node(f"Sigmoid({conv(g)})"), 7), "behind Conv"),
    "constant": (lambda g: g.quantise(g.weight(codes8(0, 1, 3, 8, 8), 5), 4), "quantises a constant"),
    "product of two": (move("p = Neg({x})\nq = Conv({x}, {dq})\nMul(p, q)"), "Neg has no record"),
    "long run": (lambda g: chain(g, 65), "more than 64"),
    "deeper than any stack": (lambda g: chain(g, 3000), "more than 64"),
}


@pytest.mark.parametrize(("make", "reason"), list(HOSTILE.values()), ids=list(HOSTILE))
def test_what_has_no_exact_integer_form_is_refused_with_its_reason(make, reason):
    graph = Qdq()
    with pytest.raises(UnsupportedError) as caught:
        lower_fixed(graph.model(make(graph), opset=21))
    assert reason in str(caught.value)


def test_a_symbolic_shape_is_refused():
    graph = Qdq()
    model = graph.model(quantised_conv(graph))
    model.graph.inputs[0].shape = ir.Shape(["N", 3, 8, 8])
    with pytest.raises(UnsupportedError, match="static"):
        lower_fixed(model)


def test_clip_bounds_of_opset_six_are_refused_rather_than_ignored():
    graph = Qdq()
    with pytest.raises(UnsupportedError, match="attributes"):
        lower_fixed(graph.model(graph.quantise(graph.node(f"Clip<min=0.0, max=1.0>({conv(graph)})"), 4), opset=10))


@pytest.mark.parametrize("factor", [2.0, 2.1])
def test_a_resize_of_opset_ten_has_its_scales_in_another_place(factor):
    graph = Qdq()
    scales = graph.constant(np.array([1, 1, factor, factor], np.float32))
    model = graph.model(graph.quantise(graph.node(f"Resize({graph.input}, {scales})"), 8, np.uint8), opset=10)
    if factor == 2.0:
        assert_equals_ort(model)
    else:
        with pytest.raises(UnsupportedError, match="Resize nearest"):
            lower_fixed(model)


def test_the_input_quantised_in_two_ways_is_refused():
    graph = Qdq()
    with pytest.raises(UnsupportedError, match="second way"):
        lower_fixed(graph.model(graph.quantise("images", 7, np.int8), quantised_conv(graph)))


def test_two_inputs_are_refused():
    text = """(float[1,3,8,8] images, float[1,3,8,8] more) => (float[1,3,8,8] head) {
        a = QuantizeLinear(images, s, z)
        b = DequantizeLinear(a, s, z)
        c = QuantizeLinear(more, s, z)
        d = DequantizeLinear(c, s, z)
        e = Add(b, d)
        f = QuantizeLinear(e, s, z)
        head = DequantizeLinear(f, s, z)
    }"""
    with pytest.raises(UnsupportedError, match="reads more"):
        lower_fixed(build(text, {"s": np.float32(0.5), "z": np.int8(0)}))


def narrow(claim: str, node: str = "c2.q") -> ir.Model:
    """Our own 4-bit file with another claim in the metadata of one quantiser."""
    model = quantise(net(), PICTURES[:1], QuantConfig(act_bits=4, correct_bias=False, equalise=False)).model
    next(n for n in model.graph if n.name == node).metadata_props[QTYPE_KEY] = claim
    return model


@pytest.mark.parametrize("claim", ["i3:pow2", "i12:pow2", "u4:pow2", "i4", "i99:pow2", "i2:pow2"])
def test_a_false_claim_about_the_bits_is_refused(claim):
    with pytest.raises(UnsupportedError, match=r"c2\.q"):
        lower_fixed(narrow(claim))


def test_fewer_bits_without_a_clip_in_front_are_refused():
    model = narrow("i4:pow2")
    lower_fixed(model)
    quantiser = next(n for n in model.graph if n.name == "c2.q")
    quantiser.replace_input_with(0, quantiser.inputs[0].producer().inputs[0])
    with pytest.raises(UnsupportedError, match="without a Clip"):
        lower_fixed(model)


def biases_only(accumulators: Array, shift: int) -> tuple[ir.Model, IntegerProgram]:
    """A convolution and its LeakyRelu 13/128 whose accumulators, for the input 0, are these."""
    graph = Qdq((1, 1, 1, 1), 0, np.int8)
    weight = graph.weight(np.ones((len(accumulators), 1, 1, 1), np.int8), 0)
    value = graph.node(f"Conv({graph.input}, {weight}, {graph.weight(accumulators.astype(np.int32), 0)})")
    model = graph.model(graph.quantise(graph.node(f"LeakyRelu<alpha=0.1015625>({value})"), -shift))
    return model, lower_fixed(model)


def compared(accumulators: Array, shift: int) -> tuple[Array, Array]:
    model, program = biases_only(accumulators, shift)
    codes = np.zeros((1, 1, 1), np.int8)
    return run_integer(program, codes)[0].ravel(), Oracle(model).layers(program, codes)[0].ravel()


@pytest.mark.parametrize("shift", range(8, 18))
def test_float32_is_exact_while_accumulator_times_slope_fits_24_bits(shift):
    largest = (1 << 24) // 13
    ties = (2 * np.arange(4096) + 1) << (shift + 6)  # halves of the output's step, times 128
    near = np.concatenate([(ties + d) // 13 for d in range(-26, 27, 13)])
    accumulators = -np.unique(near[near <= largest])
    got, want = compared(np.append(accumulators, -largest), shift)
    assert np.array_equal(got, want)


@pytest.mark.parametrize(("accumulator", "shift"), [(-1461957, 11), (-1330885, 13), (-5323540, 15)])
def test_beyond_that_bound_float32_rounds_twice_and_is_no_oracle(accumulator, shift):
    got, want = compared(np.array([accumulator]), shift)
    assert got[0] == round(accumulator * 13 / 2 ** (shift + 7))  # float64 holds this exactly
    assert want[0] == got[0] + 1


def test_an_add_beyond_the_bound_is_refused():
    def add(fa: int, fb: int) -> IntegerProgram:
        graph = Qdq((1, 2, 8, 8), 8, np.uint8)
        a, b = (
            graph.quantise(graph.input, fa, np.int16),
            graph.quantise(graph.node(f"Neg({graph.input})"), fb, np.int16),
        )
        return assert_equals_ort(graph.model(graph.quantise(graph.node(f"Add({a}, {b})"), fb, np.int16), opset=21))

    assert add(15, 7).ops[-1].aligns == (0, 8)
    with pytest.raises(UnsupportedError, match="float32"):
        add(16, 7)


def test_the_lowering_leaves_the_model_alone():
    graph = Qdq()
    model = graph.model(quantised_conv(graph))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    lower_fixed(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
