"""Names a person would use, one a node and one a value, without touching the graph's own inputs and outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from graphs import build, check_proto, normal, outputs

from edgeyolo.passes.layer_names import LayerNames


def exported() -> ir.Model:
    """A graph with the names that the TorchScript exporter gives."""
    text = """(float[1,4,8,8] images) => (float[1,2,8,8] head) {
        a = Conv(images, w)
        b = Relu(a)
        c, d = Split<axis=1>(b, s)
        e = Mul(c, d)
        head = Relu(e)
    }"""
    model = build(text, {"w": normal(0, 4, 4, 1, 1), "s": [2, 2]})
    modules = ["/layers.0/conv/Conv", "/layers.0/act/Relu", "/layers.1/Split", "/layers.1/Mul", "/layers.2/Relu"]
    for node, name in zip(model.graph, modules, strict=True):
        node.name = name
        for index, value in enumerate(node.outputs):
            value.name = "head" if value.is_graph_output() else f"{name}_output_{index}"
    return model


def node_names(model: ir.Model) -> list[str | None]:
    return [node.name for node in model.graph]


def value_names(model: ir.Model) -> list[str | None]:
    return [value.name for node in model.graph for value in node.outputs]


def test_layers_get_the_names_of_their_modules():
    model = exported()
    expected = outputs(model)["head"]
    assert LayerNames()(model).modified
    assert node_names(model) == ["layers.0.conv", "layers.0.act", "layers.1", "layers.1.2", "layers.2"]
    assert value_names(model) == ["layers.0.conv", "layers.0.act", "layers.1", "layers.1.1", "layers.1.2", "head"]
    check_proto(model)
    assert np.array_equal(outputs(model)["head"], expected)
    assert not LayerNames()(model).modified


def test_a_name_that_is_taken_gets_a_number():
    model = exported()
    model.graph[4].name = "layers.0.act"  # somebody else's node, and a later value that already has the short name
    model.graph[3].outputs[0].name = "layers.0.conv"
    model.graph[3].name = "mine"
    LayerNames()(model)
    assert len(set(node_names(model))) == 5
    assert len(set(value_names(model))) == 6
    assert value_names(model)[:2] == ["layers.0.conv.2", "layers.0.act"]
    check_proto(model)


def test_nodes_without_a_name_are_called_after_what_they_compute():
    text = """(float[1,4,8,8] images) => (float[1,4,8,8] head) {
        a = Conv(images, w)
        head = Conv(a, w)
    }"""
    model = build(text, {"w": normal(0, 4, 4, 1, 1)}, named=False)
    assert LayerNames()(model).modified
    assert node_names(model) == ["a", "head"]
    assert value_names(model) == ["a", "head"]


def test_an_absent_optional_output_stays_absent():
    text = (
        "(float[1,2,4,4] images) => (float[1,2,2,2] head) { head = MaxPool<kernel_shape=[2,2],strides=[2,2]>(images) }"
    )
    model = build(text)
    node = model.graph[0]
    node.name = "/pool/MaxPool"
    node.resize_outputs(2)
    node.outputs[1].name = ""
    LayerNames()(model)
    assert [v.name for v in node.outputs] == ["head", ""]
