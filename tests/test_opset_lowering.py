"""Models of the newest opset in older words: the same bits, or a refusal that names what the older ones lack."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import ARRAYS, NET, build, normal, outputs
from onnx import checker, defs, parser

from edgeyolo.errors import UnsupportedError
from edgeyolo.export.mobile import in_opset
from edgeyolo.mobile import load_mobile
from edgeyolo.ort import model_bytes
from edgeyolo.passes import opset as opset_module
from edgeyolo.passes.opset import REVIEWED, with_opset

NEWEST = min(defs.onnx_opset_version(), REVIEWED)
OLDER = (21, 17, 13)
ADDED_IN_ANOTHER_ORDER = {"AveragePool": 19, "ReduceLogSum": 28, "ReduceLogSumExp": 28}
"""Below this opset ONNX Runtime runs another kernel, whose sums may differ in the last place."""
LAST_PLACE = 1e-6

PLAIN = [
    *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Sin", "Sinh", "Tan", "Round", "Identity"),
    *("Celu", "Elu", "Selu", "HardSigmoid", "HardSwish", "Mish", "Softplus", "Softsign", "ThresholdedRelu", "Det"),
    *("Transpose", "Flatten", "Dropout", "GlobalAveragePool", "GlobalMaxPool", "LpNormalization"),
]
"""Operators of opset 22 to the newest that take one picture as it is."""
SPELLED = {
    "Conv": "head = Conv<pads=[1,1,1,1]>(images, w, b)",
    "ConvTranspose": "head = ConvTranspose<strides=[2,2]>(images, w)",
    "DeformConv": "head = DeformConv(images, w1, offsets)",
    "InstanceNormalization": "head = InstanceNormalization(images, b, b)",
    "MaxPool": "head = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,0,0], ceil_mode=1>(images)",
    "AveragePool": "head = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(images)",
    "LpPool": "head = LpPool<kernel_shape=[2,2], strides=[2,2]>(images)",
    "MaxUnpool": "p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(images)"
    " head = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(p, i)",
    "EyeLike": "f = Reshape(images, flat) head = EyeLike(f)",
    "Reshape": "head = Reshape<allowzero=0>(images, flat)",
    "Squeeze": "head = Squeeze(images, zero)",
    "Unsqueeze": "head = Unsqueeze(images, zero)",
    "Pad": 'head = Pad<mode="reflect">(images, pads)',
    "Cast": 'i = Cast<to=7, saturate=1, round_mode="up">(images) head = Cast<to=1>(i)',
    "Shape": "s = Shape<start=0>(images) head = Cast<to=1>(s)",
    "Size": "s = Size(images) head = Cast<to=1>(s)",
    "Constant": "c = Constant<value_float=2.0>() head = Mul(images, c)",
    "ConstantOfShape": "c = ConstantOfShape(flat) head = Add(c, c)",
    "QuantizeLinear": "head = QuantizeLinear<axis=1, saturate=1, block_size=0, output_dtype=0, precision=0>"
    "(images, scales, codes)",
    "DequantizeLinear": "q = QuantizeLinear<axis=1>(images, scales, codes)"
    " head = DequantizeLinear<axis=1, block_size=0, output_dtype=0>(q, scales, codes)",
    "DepthToSpace": 'u = Concat<axis=1>(images, w4) head = DepthToSpace<blocksize=2, mode="CRD">(u)',
    "SpaceToDepth": 'head = SpaceToDepth<blocksize=2, mode="DCR">(images)',
    "Einsum": 'head = Einsum<equation="nchw->nhwc">(images)',
    "ReverseSequence": "head = ReverseSequence<batch_axis=0, time_axis=1>(images, zero_plus)",
    "ReduceLogSum": "head = ReduceLogSum<noop_with_empty_axes=0>(images, last)",
    "ReduceLogSumExp": "head = ReduceLogSumExp(images, last)",
    "OneHot": "i = Cast<to=7>(images) head = OneHot(i, depth, ends)",
    "TopK": "head, i = TopK(images, depth)",
    "Range": "i = Range(nought, three, unit) head = Cast<to=1>(i)",
    "Compress": "head = Compress<axis=1>(images, chosen)",
    "GRU": "y = Reshape(images, steps) head, h = GRU<hidden_size=2, layout=0>(y, gw, gr)",
    "LSTM": "y = Reshape(images, steps) head, h, c = LSTM<hidden_size=2>(y, lw, lr)",
    "RNN": "y = Reshape(images, steps) head, h = RNN<hidden_size=2>(y, rw, rr)",
    "Unique": "head, i, j, k = Unique(images)",
}
RUNS_UP_TO = {"QuantizeLinear": 25, "DequantizeLinear": 25}
"""The newest opset that ONNX Runtime can run, where that is not the newest of all."""
OTHERS = {
    *("RoiAlign", "CastLike", "BitShift", "Mod", "GridSample"),  # mean something else in older opsets
    *("GlobalLpPool", "MaxRoiPool"),  # ONNX Runtime cannot run the newest
    *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    *("If", "Loop", "Scan", "Optional", "OptionalGetElement", "OptionalHasElement", "SplitToSequence"),
    "NegativeLogLikelihoodLoss",
}
"""Changed after opset 21, and not compared here."""
VALUES = {
    **{"w": normal(0, 3, 3, 3, 3), "b": normal(1, 3), "w1": normal(0, 3, 3, 1, 1), "w4": normal(0, 1, 1, 8, 8)},
    **{"offsets": normal(1, 1, 2, 8, 8), "flat": [1, 192], "zero": [0], "pads": [0, 0, 1, 1, 0, 0, 1, 1]},
    **{"scales": np.array([0.1, 0.2, 0.3], np.float32), "codes": np.zeros(3, np.uint8)},
    **{"depth": [2], "ends": [0.0, 1.0], "nought": np.int64(0), "three": np.int64(3), "unit": np.int64(1)},
    **{"chosen": np.array([True, False, True]), "steps": [8, 1, 24], "codes16": np.zeros(3, np.uint16)},
    **{"four": [2, 3], "zero_plus": [2], "last": [-1]},
    **{"gw": normal(2, 1, 6, 24), "gr": normal(3, 1, 6, 2), "lw": normal(2, 1, 8, 24), "lr": normal(3, 1, 8, 2)},
    **{"rw": normal(2, 1, 2, 24), "rr": normal(3, 1, 2, 2), "up": np.array([1, 1, 2, 2], np.float32)},
}  # fmt: skip


def model_of(body: str, opset: int = NEWEST) -> ir.Model:
    """A graph of ``images`` in the file format of today, with the constants that it names."""
    kind = "uint8" if body.startswith("head = QuantizeLinear") else "float"
    text = f"(float[1,3,8,8] images) => ({kind}[] head) {{ {body} }}"
    words = set(body.translate(str.maketrans("(),", "   ")).split())
    model = build(text, {name: VALUES[name] for name in words & set(VALUES)}, opset=opset, facts=False)
    model.ir_version = onnx.IR_VERSION
    return model


def assert_same(model: ir.Model, older: ir.Model, atol: float = 0) -> None:
    checker.check_model(model_bytes(older), full_check=True)
    want, got = outputs(model), outputs(older)
    for name, values in want.items():
        assert values.dtype == got[name].dtype
        np.testing.assert_allclose(got[name], values, rtol=atol, atol=atol)


def test_every_operator_that_changed_is_compared_here_or_said_not_to_be():
    schemas = [schema for schema in defs.get_all_schemas_with_history() if schema.domain == ""]
    known = {schema.name for schema in schemas if schema.since_version <= 21}
    changed = {schema.name for schema in schemas if 21 < schema.since_version <= REVIEWED} & known
    assert changed <= {*PLAIN, *SPELLED, *OTHERS}


@pytest.mark.parametrize("name", [*PLAIN, *SPELLED])
def test_an_operator_gives_the_same_bits_in_every_older_opset_that_has_it(name):
    model = model_of(SPELLED.get(name, f"head = {name}(images)"), min(NEWEST, RUNS_UP_TO.get(name, NEWEST)))
    for opset in OLDER:
        if defs.has(name, opset):
            reordered = opset < ADDED_IN_ANOTHER_ORDER.get(name, 0)
            assert_same(model, with_opset(model, opset), LAST_PLACE if reordered else 0)
        else:
            with pytest.raises(UnsupportedError, match=f"{name} .not in opset {opset}."):
                with_opset(model, opset)


@pytest.mark.parametrize("opset", OLDER)
def test_a_network_of_the_newest_opset_is_the_same_in_older_ones(opset):
    model = build(NET, ARRAYS, opset=NEWEST)
    model.ir_version = onnx.IR_VERSION
    older = with_opset(model, opset)
    assert older.opset_imports[""] == opset and model.opset_imports[""] == NEWEST
    assert older.ir_version == {21: 10, 17: 8, 13: 7}[opset], "a runtime of that time refuses newer files"
    assert older.metadata_props == model.metadata_props
    assert_same(model, older)
    older.ir_version = onnx.IR_VERSION
    assert with_opset(older, opset).ir_version < onnx.IR_VERSION, "a new tool's file of an old opset"


DEFAULTS = {
    "Resize": 'head = Resize<mode="linear", antialias=0, keep_aspect_ratio_policy="stretch">(images, , up)',
    "AveragePool": "head = AveragePool<kernel_shape=[1,1], dilations=[1,1]>(images)",
    "Split": "x, y, z = Split<axis=1, num_outputs=3>(images) head = Concat<axis=1>(z, y, x)",
    "ReduceMax": "head = ReduceMax<noop_with_empty_axes=0>(images)",
    "ReduceSumSquare": "head = ReduceSumSquare(images, four)",
    "BatchNormalization": "head = BatchNormalization<training_mode=0>(images, b, b, b, scales)",
    "Pad": "head = Pad(images, pads)",
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_options_at_their_defaults_are_left_out(name):
    model = model_of(DEFAULTS[name])
    if name == "Pad":
        next(iter(model.graph)).resize_inputs(4)  # the axes, named and empty
    assert_same(model, with_opset(model, 13))


CEILED = "kernel_shape=[2,2], ceil_mode=1"
QUANTISED = "QuantizeLinear<axis=1, {}>(images, scales, codes)"
REFUSED = [
    ("Pad with mode wrap", 'head = Pad<mode="wrap">(images, pads)', NEWEST, 18),
    ("Pad with axes", "head = Pad(images, zero_plus, , zero)", NEWEST, 17),
    ("Resize with antialias", 'head = Resize<mode="linear", antialias=1>(images, , up)', NEWEST, 17),
    ("Resize with axes", "head = Resize<axes=[0,1,2,3]>(images, , up)", NEWEST, 17),
    ("symmetric", 'head = Resize<coordinate_transformation_mode="half_pixel_symmetric">(images, , up)', 19, 18),
    ("MaxPool with ceil_mode", f"head = MaxPool<{CEILED}, strides=[3,3]>(images)", 22, 21),
    ("MaxPool with ceil_mode", f"head = MaxPool<{CEILED}, strides=[2,2], pads=[0,0,1,1]>(images)", 22, 21),
    ("AveragePool with ceil_mode", f"head = AveragePool<{CEILED}, strides=[3,3]>(images)", 22, 21),
    ("AveragePool with dilations", "head = AveragePool<kernel_shape=[2,2], dilations=[2,1]>(images)", 22, 18),
    ("AveragePool with auto_pad", 'head = AveragePool<kernel_shape=[2,2], auto_pad="VALID">(images)', 19, 18),
    ("Cast with saturate", "i = Cast<to=7, saturate=0>(images) head = Cast<to=1>(i)", 25, 18),
    ("Cast with round_mode", 'i = Cast<to=7, round_mode="down">(images) head = Cast<to=1>(i)', 25, 21),
    ("Cast with to 17", "i = Cast<to=17>(images) head = Cast<to=1>(i)", 24, 23),
    ("Cast of tensor.float8e4m3fn.", "i = Cast<to=17>(images) head = Cast<to=1>(i)", 19, 18),
    ("Cast of tensor.float4e2m1.", "i = Cast<to=23>(images) head = Cast<to=1>(i)", 23, 21),
    ("Conv of tensor.bfloat16.", "x = Cast<to=16>(images) y = Conv(x, x) head = Cast<to=1>(y)", 22, 21),
    ("Transpose of tensor.int4.", "x = Cast<to=22>(images) y = Transpose(x) head = Cast<to=1>(y)", 21, 20),
    ("QuantizeLinear with saturate", f"head = {QUANTISED.format('saturate=0')}", 25, 18),
    ("QuantizeLinear with output_dtype", f"head = {QUANTISED.format('output_dtype=2')}", 25, 19),
    ("QuantizeLinear with precision", f"head = {QUANTISED.format('precision=1')}", 25, 21),
    ("QuantizeLinear with block_size", f"head = {QUANTISED.format('block_size=1')}", 21, 19),
    ("QuantizeLinear of tensor.uint16.", "q = QuantizeLinear(images, scales, codes16) head = Cast<to=1>(q)", 21, 19),
    ("QuantizeLinear of tensor.float16.", "s = Cast<to=10>(scales) head = QuantizeLinear(images, s, codes)", 23, 21),
    ("Reshape with allowzero", "head = Reshape<allowzero=1>(images, flat)", NEWEST, 13),
    ("Shape with start", "s = Shape<start=1>(images) head = Cast<to=1>(s)", NEWEST, 13),
    ("Split into unequal", "x, y = Split<axis=1, num_outputs=2>(images) head = Concat<axis=1>(y, x)", NEWEST, 17),
    ("ReduceMax with noop", "head = ReduceMax<noop_with_empty_axes=1>(images)", NEWEST, 17),
    ("ReduceMean with computed axes", "a = Shape(zero) head = ReduceMean(images, a)", NEWEST, 17),
    ("SpaceToDepth with mode", 'head = SpaceToDepth<blocksize=2, mode="CRD">(images)', 28, 21),
    ("reduction max", 'i = Cast<to=7>(images) head = ScatterElements<reduction="max">(images, i, images)', 18, 17),
    ("reduction min", 'i = Cast<to=7>(images) head = ScatterND<reduction="min">(images, i, images)', 18, 17),
    ("RoiAlign of opset 16", "head = RoiAlign(images, images, zero)", 16, 15),
    ("GroupNormalization of opset 21", "head = GroupNormalization<num_groups=3>(images, b, b)", 21, 18),
    ("Mod of opset 28", "head = Mod(images, images)", 28, 21),
    ("GridSample of opset 20", "g = Transpose<perm=[0,2,3,1]>(offsets) head = GridSample(images, g)", 20, 17),
    ("HardSwish .not in opset 13", "head = HardSwish(images)", NEWEST, 13),
]  # fmt: skip


@pytest.mark.parametrize(("text", "body", "present", "opset"), REFUSED)
def test_what_an_older_opset_lacks_is_refused_by_its_name(text, body, present, opset):
    with pytest.raises(UnsupportedError, match=text):
        with_opset(model_of(body, present), opset)


def test_graphs_inside_of_operators_are_lowered_and_refused_too():
    text = f"""<ir_version: 10, opset_import: ["": {NEWEST}]>
    g (float[1,3,8,8] images, bool c) => (float[1,3,8,8] head) {{
        head = If(c) <then_branch = t () => (float[1,3,8,8] y) {{ y = BODY(images) }},
                      else_branch = e () => (float[1,3,8,8] z) {{ z = Relu(images) }}>
    }}"""
    fine = with_opset(ir.from_proto(parser.parse_model(text.replace("BODY", "Cos"))), 17)
    checker.check_model(model_bytes(fine), full_check=True)
    with pytest.raises(UnsupportedError, match="HardSwish"):
        with_opset(ir.from_proto(parser.parse_model(text.replace("BODY", "HardSwish"))), 13)


def test_functions_are_lowered_with_the_rest():
    text = """<ir_version: 10, opset_import: ["" : 22, "own" : 1]>
        g (float[1,3,8,8] x) => (float[1,3,8,8] y) { y = own.soft(x) }
        <opset_import: ["" : 22], domain: "own"> soft (a) => (b) { c = HardSwish(a) b = Add(c, a) }"""
    model = ir.from_proto(parser.parse_model(text))
    older = with_opset(model, 14)
    assert [node.op_type for node in older.graph] == ["HardSwish", "Add"] and not older.functions
    checker.check_model(ir.to_proto(older), full_check=True)
    with pytest.raises(UnsupportedError, match="HardSwish"):
        with_opset(model, 13)


def test_sequences_are_tensors_only_in_older_opsets():
    body = "s = SequenceConstruct(images) i = Identity(s) head = ConcatFromSequence<axis=0>(i)"
    with pytest.raises(UnsupportedError, match="Identity of SequenceType"):
        with_opset(model_of(body), 13)


def test_opsets_that_nobody_has_read_are_refused(monkeypatch):
    model = model_of("y = Conv(images, w) head = Relu(y)")
    monkeypatch.setattr(opset_module, "REVIEWED", 21)
    with pytest.raises(UnsupportedError, match=rf"Conv of opset {NEWEST}\n"):
        with_opset(model, 21)
    model.opset_imports[""] = 99
    with pytest.raises(UnsupportedError, match="does not know the model's opset"):
        with_opset(model, 21)


@pytest.mark.parametrize("opset", range(22, NEWEST + 1))
def test_every_newer_opset_is_written_for_a_raspberry_pi(opset):
    model, board = build(NET, ARRAYS, opset=opset), load_mobile("raspberry-pi-5")
    written = in_opset(model, board)
    assert written.opset_imports[""] == board.max_opset < opset
    assert_same(model, written)
