"""The typed form: float16 wherever it is safe, the same numbers, and no Cast that costs an int8 kernel its pair."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import build, check_proto
from tensorrt_graphs import ARRAYS, BODIES, graph, quantised

from edgeyolo.export.device_files import noise_db
from edgeyolo.lower.tensorrt.typed import FINEST, LARGEST, OPSET, to_typed, unsafe_layers
from edgeyolo.ort import Arrays, model_bytes, open_session, run
from edgeyolo.passes.graph import constant
from edgeyolo.quant.calibrate import with_outputs

FLOAT_DB = 55.0
"""One rounding to 11 bits leaves 66 to 74 dB, and the graphs are a few layers deep."""
INT8_DB = 40.0
"""Float16 in front of a QuantizeLinear moves values over the border between two codes: some codes are one off, at steps
that are themselves about 45 dB below the signal. A scale or a weight that changed leaves less than 30 dB."""
FEED = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
QDQ = ("QuantizeLinear", "DequantizeLinear")
FLOAT16, FLOAT32, INT8 = ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.INT8


def compute(model: ir.Model, feed: np.ndarray = FEED) -> Arrays:
    return run(open_session(model, optimise=False), feed)


def every_value(model: ir.Model) -> Arrays:
    """As outputs: ONNX Runtime emulates float16 in float32, and rounds only what somebody looks at."""
    return compute(with_outputs(model, [str(v.name) for node in model.graph for v in node.outputs]))


def types(model: ir.Model) -> dict[str, ir.DataType]:
    """The type of every value, as ONNX's own inference has it, which refuses types that contradict each other."""
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(model), check_type=True, strict_mode=True).graph
    values = [*inferred.input, *inferred.output, *inferred.value_info]
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    found |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    return {name: ir.DataType(kind) for name, kind in found.items()}


def casts(model: ir.Model) -> list[tuple[str, str]]:
    """(source, target) of every Cast."""
    return [(str(n.inputs[0].name), str(n.outputs[0].name)) for n in model.graph if n.op_type == "Cast"]


def net(body: str, arrays: dict[str, object] | None = None, *, opset: int = 17) -> ir.Model:
    text = f"(float[1,3,8,8] images) => (float[1,C,H,W] head) {{ {body} }}"
    return build(text, {**ARRAYS, **(arrays or {})}, opset=opset, scale=1 / 255)


def check_typed(typed: ir.Model, unsafe: set[str] = frozenset()) -> None:
    """Every node computes in the type it should, inputs and outputs are float32."""
    check_proto(typed)
    kinds = types(typed)
    assert typed.graph.opset_imports[""] == OPSET
    assert [kinds[str(v.name)] for v in (*typed.graph.inputs, *typed.graph.outputs)] == [FLOAT32] * 2
    for node in typed.graph:
        if node.op_type in ("Cast", "Constant"):
            continue
        inputs = [v for i, v in enumerate(node.inputs) if v is not None and (node.op_type, i) != ("Resize", 2)]
        found = {kinds[str(v.name)] for v in (*inputs, *node.outputs)} & {FLOAT16, FLOAT32}
        wide = node.name in unsafe
        if node.op_type == "DequantizeLinear":  # it has the type of who reads it
            wide = {use.node.name in unsafe for use in node.outputs[0].uses()} == {True}
        if node.op_type != "QuantizeLinear":
            assert found == {FLOAT32 if wide else FLOAT16}, (node.name, found)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_every_graph(name: str, int8: bool) -> None:
    model = quantised(graph(name)) if int8 else graph(name)
    before = model_bytes(model)
    typed = to_typed(model, ())
    assert model_bytes(model) == before, "the input is left alone"
    check_typed(typed)
    assert [v.name for v in (*typed.graph.inputs, *typed.graph.outputs)] == ["images", "head"]
    assert dict(typed.metadata_props) == dict(model.metadata_props)
    decibels = noise_db([compute(model)], [{"head": every_value(typed)["head"]}])
    assert decibels["head"] > (INT8_DB if int8 else FLOAT_DB)
    # Inside nothing is converted: at most the input, where a float layer reads it, and the output.
    read_in_float = any(use.node.op_type != "QuantizeLinear" for use in model.graph.inputs[0].uses())
    assert [source for source, _ in casts(typed)] == ["images"] * read_in_float + ["head.f16"]


@pytest.mark.parametrize("name", BODIES)
def test_pairs_keep_their_numbers(name: str) -> None:
    """The very same grid: scales, zero points, axes and the codes of all weights."""

    def pairs(model: ir.Model) -> dict[str, tuple[bytes, bytes, int]]:
        found = {}
        for node in model.graph:
            if node.op_type in QDQ:
                scale, zero = (constant(value) for value in node.inputs[1:3])
                axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
                found[str(node.name)] = (scale.astype(np.float64).tobytes(), zero.tobytes(), axis)
        return found

    def codes(model: ir.Model) -> dict[str, np.ndarray]:
        found = {}
        for node in model.graph:
            if node.op_type == "QuantizeLinear" and (weight := constant(node.inputs[0])) is not None:
                scale, axis = constant(node.inputs[1]), node.attributes["axis"].as_int()
                steps = scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]).astype(np.float64)
                found[str(node.name)] = np.rint(weight / steps).astype(np.int64)
        return found

    model = quantised(graph(name))
    typed = to_typed(model, ())
    assert pairs(typed) == pairs(model)
    before, after = codes(model), codes(typed)
    assert before.keys() == after.keys() and all(np.array_equal(before[k], after[k]) for k in before)
    kinds = types(typed)
    for node in typed.graph:
        if node.op_type in QDQ:
            scale, real = node.inputs[1], node.inputs[0] if node.op_type == "QuantizeLinear" else node.outputs[0]
            assert kinds[str(scale.name)] == kinds[str(real.name)], node.name


@pytest.mark.parametrize("mode", ["upsample", "interpolation"])
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_the_scales_of_a_resize_stay_float32(mode: str, int8: bool) -> None:
    typed = to_typed(quantised(graph(mode)) if int8 else graph(mode), ())
    (resize,) = (node for node in typed.graph if node.op_type == "Resize")
    scales = constant(resize.inputs[2])
    assert scales.dtype == np.float32 and scales.tolist() == [1, 1, 2, 2]
    assert types(typed)[str(resize.inputs[0].name)] == FLOAT16


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize(
    ("name", "unsafe"),
    [("mish", {"p"}), ("leaky", {"y"}), ("leaky", {"c2"}), ("residual", {"s", "r2"}), ("gemm", {"head"})],
)
def test_unsafe_layers_stay_float32_between_casts(name: str, unsafe: set[str], int8: bool) -> None:
    model = quantised(graph(name)) if int8 else graph(name)
    typed = to_typed(model, unsafe)
    check_typed(typed, unsafe)
    made = types(typed)
    for source, target in casts(typed):
        assert {made[source], made[target]} == {FLOAT16, FLOAT32}, "a Cast that changes nothing"
    decibels = noise_db([compute(model)], [{"head": every_value(typed)["head"]}])
    assert decibels["head"] > (INT8_DB if int8 else FLOAT_DB)


def test_where_everything_is_unsafe_the_numbers_are_those_of_the_float_graph() -> None:
    for name in BODIES:
        model = graph(name)
        typed = to_typed(model, {str(node.name) for node in model.graph})
        assert casts(typed) == [] and np.array_equal(compute(typed)["head"], compute(model)["head"])


def test_a_value_is_cast_once_for_all_its_readers() -> None:
    body = "c = Conv(images, w) x = Relu(c) y = Tanh(c) k = Concat<axis=1>(x, y) head = Conv(k, w6)"
    typed = to_typed(net(body), {"x", "y"})
    check_typed(typed, {"x", "y"})
    assert sorted(source for source, _ in casts(typed)) == ["c", "head.f16", "images", "x", "y"]


@pytest.mark.parametrize("opset", [13, OPSET])
@pytest.mark.parametrize("name", ["residual", "concat", "leaky", "upsample", "split", "maxpool"])
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_other_opsets(opset: int, name: str, int8: bool) -> None:
    """13 is what TensorRT 8.2 reads; 19 needs no conversion."""
    model = net(BODIES[name], opset=opset)
    model = quantised(model) if int8 else model
    typed = to_typed(model, ())
    check_typed(typed)
    assert model.graph.opset_imports[""] == opset
    assert [node.name for node in typed.graph if node.op_type != "Cast"] == [node.name for node in model.graph]
    assert noise_db([compute(model)], [compute(typed)])["head"] > (INT8_DB if int8 else FLOAT_DB)


@pytest.mark.parametrize("unsafe", [set(), {"k", "f"}], ids=["all safe", "some unsafe"])
@pytest.mark.parametrize("opset", [17, OPSET])
def test_integers_stay_integers_even_where_nothing_records_their_type(opset: int, unsafe: set[str]) -> None:
    """Exporters of dynamic batches compute shapes in the graph, and value types are optional in a file."""
    body = (
        "c = Conv(images, w) s = Shape(c) n = Gather(s, first) k = Concat<axis=0>(n, rest) f = Reshape(c, k)"
        " i = Cast<to=7>(f) back = Cast<to=1>(i) g = Reshape(back, s) y = Add(c, g) head = Conv(y, w)"
    )
    model = net(body, {"first": np.array([0]), "rest": np.array([192])}, opset=opset)
    typed = to_typed(model, unsafe)
    check_proto(typed)
    kinds = types(typed)
    assert [kinds[name] for name in ("s", "n", "k", "i")] == [ir.DataType.INT64] * 4
    assert kinds["c"] == FLOAT16
    assert noise_db([compute(model)], [compute(typed)])["head"] > FLOAT_DB


def test_a_symbolic_batch_stays_symbolic() -> None:
    text = "(float[N,3,8,8] images) => (float[N,C,H,W] head) { " + BODIES["residual"] + " }"
    typed = to_typed(quantised(build(text, ARRAYS, scale=1 / 255)), ())
    for batch in (1, 3):
        assert compute(typed, np.repeat(FEED, batch, axis=0))["head"].shape == (batch, 3, 8, 8)


# --- what is unsafe ---------------------------------------------------------------------------------------------------


def test_nothing_is_unsafe_without_a_reason() -> None:
    for name in BODIES:
        model = graph(name)
        peaks = {str(v.name): LARGEST for node in model.graph for v in node.outputs}
        assert set(unsafe_layers(model, peaks)) == set(), name
        assert set(unsafe_layers(quantised(model), {})) == set(), name


def test_operations_that_leave_the_range() -> None:
    body = "c = Conv(images, w) e = Exp(c) l = Softplus(e) r = Relu(l) head = Conv(r, w)"
    found = unsafe_layers(net(body), {})
    assert set(found) == {"e", "l"} and "Exp" in found["e"] and "Softplus" in found["l"]


def test_large_values_make_their_maker_and_their_readers_unsafe() -> None:
    model = graph("residual")
    found = unsafe_layers(model, {"c2": LARGEST * 1.01, "r1": LARGEST * 0.99})
    assert set(found) == {"c2", "s"} and all("3.31e+04" in reason for reason in found.values())


@pytest.mark.parametrize(
    ("value", "unsafe"),
    [(LARGEST * 1.1, True), (-LARGEST * 1.1, True), (LARGEST * 0.9, False), (FINEST / 2, True), (FINEST * 2, False),
     (0.0, False)],
)  # fmt: skip
def test_constants_that_float16_cannot_hold(value: float, unsafe: bool) -> None:
    """The largest magnitude of an array decides; zeros are zeros in any type."""
    bias = np.array([value, 0, 0], np.float32)
    model = net("c = Conv(images, w, odd) head = Conv(c, w)", {"odd": bias})
    assert set(unsafe_layers(model, {})) == ({"c"} if unsafe else set())


def test_scales_of_pairs_and_of_a_resize_are_no_constants_to_judge() -> None:
    model = net('c = Conv(images, w) u = Resize<mode="nearest">(c, , big) head = Conv(u, w)',
                {"big": np.array([1, 1, 1, 1], np.float32)})  # fmt: skip
    tiny = quantised(net("c = Conv(images, small) y = Conv(c, w) head = Conv(y, w)", {"small": ARRAYS["w"] * 1e-4}))
    assert unsafe_layers(model, {}) == {} and unsafe_layers(tiny, {}) == {}


def test_what_is_unsafe_is_right_again_in_the_typed_graph() -> None:
    """Squares of sums beyond float16: infinite where they are float16, right where they were found."""
    body = "c = Conv(images, big) y = Conv(c, big) z = Mul(y, tiny) head = Conv(z, w)"
    model = net(body, {"big": ARRAYS["w"] * 1e3, "tiny": np.float32(1e-6)})
    peaks = {"c": 3e3, "y": 3e6, "z": 3.0}
    unsafe = unsafe_layers(model, peaks)
    assert set(unsafe) == {"y", "z"}
    assert np.isinf(every_value(to_typed(model, ()))["y"]).any()
    assert np.isfinite(every_value(to_typed(model, unsafe))["y"]).all()
    assert noise_db([compute(model)], [{"head": every_value(to_typed(model, unsafe))["head"]}])["head"] > FLOAT_DB
