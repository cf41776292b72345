"""onnxsim is trusted only as far as its result computes the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxsim
import pytest
from graphs import build, check_proto, normal, outputs
from onnx import numpy_helper

from edgeyolo.detector import METADATA_KEY
from edgeyolo.errors import EdgeYoloError
from edgeyolo.passes.simplify import SIMPLIFY_TOLERANCE, simplify


def model(batch: str = "1") -> ir.Model:
    """Constants to fold, an identity to drop, a shape to compute."""
    text = f"""(float[{batch},3,8,8] images) => (float[{batch},4,8,8] head, int64[4] shape) {{
        half = Constant<value_float=0.5>()
        scaled = Mul(w, half)
        same = Identity(images)
        c = Conv<pads=[1,1,1,1]>(same, scaled)
        kept = Shape(images)
        wanted = Concat<axis=0>(first, rest)
        head = Reshape(c, wanted)
        shape = Identity(kept)
    }}"""
    return build(text, {"w": normal(0, 4, 3, 3, 3), "first": [0], "rest": [4, 8, 8]}, opset=18)


def test_the_function_the_metadata_and_the_opset_stay():
    before = model()
    before.metadata_props["somebody"] = "else"
    after, report = simplify(before)
    check_proto(after)
    assert after.metadata_props[METADATA_KEY] == before.metadata_props[METADATA_KEY]
    assert after.metadata_props["somebody"] == "else"
    assert after.graph.opset_imports[""] == 18
    assert [v.name for v in after.graph.outputs] == ["head", "shape"]
    expected, got = outputs(before), outputs(after)
    assert np.abs(expected["head"] - got["head"]).max() <= SIMPLIFY_TOLERANCE
    assert np.array_equal(expected["shape"], got["shape"])
    assert report.before["Identity"] == 2
    assert "Identity" not in report.after and "Mul" not in report.after
    assert report.max_abs_difference <= SIMPLIFY_TOLERANCE


def test_constants_become_initializers():
    after, _ = simplify(model())
    assert not any(node.op_type == "Constant" for node in after.graph)


def test_a_symbolic_batch_stays_symbolic():
    after, _ = simplify(model("batch"))
    shape = after.graph.inputs[0].shape
    assert shape is not None and not isinstance(shape[0], int)
    assert list(shape)[1:] == [3, 8, 8]


def _behind_head(proto: onnx.ModelProto, operator: str, *constants: np.ndarray) -> None:
    """Insert one more node in front of the output ``head``."""
    for node in proto.graph.node:
        for index, name in enumerate(node.output):
            node.output[index] = "inner" if name == "head" else name
    tensors = [numpy_helper.from_array(array, f"damage{index}") for index, array in enumerate(constants)]
    proto.graph.initializer.extend(tensors)
    proto.graph.node.append(onnx.helper.make_node(operator, ["inner", *(t.name for t in tensors)], ["head"]))


def _scale(proto: onnx.ModelProto, factor: float) -> None:
    _behind_head(proto, "Mul", np.float32(factor))


def _flatten(proto: onnx.ModelProto) -> None:
    _behind_head(proto, "Flatten")
    del proto.graph.output[0].type.tensor_type.shape.dim[2:]


def _drop_output(proto: onnx.ModelProto) -> None:
    del proto.graph.output[1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda proto: _scale(proto, 1.01),
        lambda proto: _scale(proto, float("nan")),
        _drop_output,
        _flatten,
    ],
    ids=["1 % more", "nan", "lost output", "other shape"],
)
def test_a_wrong_result_is_refused(monkeypatch: pytest.MonkeyPatch, damage: Callable[[onnx.ModelProto], None]):
    honest = onnxsim.simplify

    def broken(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
        result, _ = honest(proto)
        damage(result)
        return result, True

    monkeypatch.setattr(onnxsim, "simplify", broken)
    with pytest.raises(EdgeYoloError, match="computes something else") as caught:
        simplify(model())
    assert "--no-simplify" in str(caught.value)


def test_its_own_failure_is_reported_as_ours(monkeypatch: pytest.MonkeyPatch):
    def failing(_: onnx.ModelProto) -> None:
        raise RuntimeError("core dumped")

    monkeypatch.setattr(onnxsim, "simplify", failing)
    with pytest.raises(EdgeYoloError, match="cannot simplify"):
        simplify(model())
