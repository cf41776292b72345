"""Which values become integer tensors: one site an operation, tables by their ends, movements with their source."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import build, normal

from edgeyolo.quant.plan import conv_roles
from edgeyolo.quant.sites import Site, find_sites

ARRAYS = {
    **{"w": normal(0, 4, 4, 1, 1), "d": normal(1, 4, 1, 3, 3), "g": normal(2, 4, 2, 1, 1)},
    **{"one": np.float32(1), "three": np.float32(3), "six": np.float32(6), "zero": np.float32(0)},
    **{"half": [2, 2], "up": np.array([1, 1, 2, 2], np.float32), "s0": [0], "s1": [4], "axis": [3], "step": [2]},
    "flat": [1, 4, 1, 64],
}


def graph(body: str, outputs: str = "float[1,C,H,W] head", opset: int = 17) -> ir.Model:
    return build(f"(float[1,4,8,8] images) => ({outputs}) {{ {body} }}", ARRAYS, opset=opset)


def sites(body: str, outputs: str = "float[1,C,H,W] head", opset: int = 17) -> dict[str, Site]:
    """The sites behind the input, which always is the first."""
    found = find_sites(graph(body, outputs, opset))
    names = list(found)
    assert names[0] == "images" and found["images"] == Site("images")
    assert all(found[name].name == name for name in names)
    return {name: found[name] for name in names[1:]}


def free(found: dict[str, Site]) -> list[str]:
    return [name for name, site in found.items() if site.same_as is None]


@pytest.mark.parametrize("activation", ["Relu(c)", "LeakyRelu<alpha=0.125>(c)", "Clip(c, zero, six)", "Clip(c, zero)"])
@pytest.mark.parametrize("linear", ["Conv(images, w)", "Add(images, p)"])
def test_an_operation_and_its_activation_are_one_site(linear, activation):
    found = sites(f"p = Conv(images, w)\nc = {linear}\nhead = {activation}")
    assert "c" not in found
    assert found["head"] == Site("head", None, True)


@pytest.mark.parametrize(
    ("body", "ends"),
    [
        ("s = Sigmoid(c)\nhead = Mul(c, s)", ["c", "head"]),
        ("e = Exp(c)\nk = Add(e, one)\nl = Log(k)\nt = Tanh(l)\nhead = Mul(c, t)", ["c", "head"]),
        ("a = Add(c, three)\nr = Clip(a, zero, six)\nm = Mul(c, r)\nhead = Div(m, six)", ["c", "head"]),
        ("s = Softplus(c)\nt = Tanh(s)\nhead = Mul(c, t)", ["c", "head"]),
        ("head = Sigmoid(c)", ["c", "head"]),
        ("head = HardSwish(c)", ["c", "head"]),
        ("head = Add(c, c)", ["c", "head"]),
    ],
    ids=["silu", "mish by hand", "h-swish", "mish", "sigmoid", "hardswish", "doubled"],
)
def test_an_activation_of_one_value_is_a_table_of_which_only_the_ends_are_sites(body, ends):
    assert list(sites(f"c = Conv(images, w)\n{body}")) == ends


def test_two_tables_of_different_values_meet_at_sites():
    found = sites("a = Conv(images, w)\nb = Conv(images, w)\ns = Sigmoid(a)\nt = Tanh(b)\nhead = Mul(s, t)")
    assert list(found) == ["a", "b", "s", "t", "head"]


def test_a_value_inside_a_table_that_somebody_else_reads_is_a_site():
    found = sites("c = Conv(images, w)\ns = Sigmoid(c)\nm = Mul(c, s)\nv = Conv(s, w)\nhead = Add(m, v)")
    assert list(found) == ["c", "s", "m", "v", "head"]


def test_a_value_inside_a_table_that_is_an_output_is_a_head():
    found = sites("c = Conv(images, w)\ns = Sigmoid(c)\nhead = Mul(c, s)", "float[1,4,8,8] s, float[1,4,8,8] head")
    assert found["s"] == Site("s", None, True)


@pytest.mark.parametrize(
    "move",
    [
        "MaxPool<kernel_shape=[2,2]>(c)",
        'Resize<mode="nearest">(c, , up)',
        "Slice(c, s0, s1, axis, step)",
        "Reshape(c, flat)",
        "Transpose<perm=[0,1,3,2]>(c)",
        "Identity(c)",
    ],
)
def test_a_movement_shares_its_sources_exponent(move):
    found = sites(f"c = Conv(images, w)\nm = {move}\nhead = Relu(m)")
    assert found["m"] == Site("m", "c")
    assert free(found) == ["c", "head"]


def test_a_chain_of_movements_leads_back_to_one_free_site():
    found = sites('c = Conv(images, w)\nm = MaxPool<kernel_shape=[1,1]>(c)\nhead = Resize<mode="nearest">(m, , up)')
    assert found["head"] == Site("head", "m", True)
    assert free(found) == ["c"]


def test_both_parts_of_a_split_share_its_source():
    found = sites("c = Conv(images, w)\nx, y = Split<axis=1>(c, half)\na = Add(x, y)\nhead = Relu(a)")
    assert (found["x"], found["y"]) == (Site("x", "c"), Site("y", "c"))
    assert free(found) == ["c", "head"]


def test_focus_slices_share_the_inputs_exponent():
    found = sites(
        "x = Slice(images, s0, s1, axis, step)\ny = Slice(images, s0, s1, axis, step)\nhead = Concat<axis=1>(x, y)"
    )
    assert (found["x"], found["y"]) == (Site("x", "images"), Site("y", "images"))
    assert found["head"].same_as is None


def test_a_residual_add_and_a_concat_are_sites_of_their_own():
    found = sites("c = Conv(images, w)\nr = Relu(c)\na = Add(r, images)\nhead = Concat<axis=1>(a, r)")
    assert list(found) == ["r", "a", "head"] == free(found)


def test_a_convolution_with_two_readers_is_a_site_and_its_activation_a_table():
    found = sites("c = Conv(images, w)\nr = Relu(c)\nv = Conv(c, w)\nhead = Add(v, r)")
    assert list(found) == ["c", "r", "v", "head"] == free(found)


def test_a_convolution_that_is_an_output_keeps_its_site_beside_its_activation():
    found = sites("c = Conv(images, w)\nhead = Relu(c)", "float[1,4,8,8] c, float[1,4,8,8] head")
    assert found == {"c": Site("c", None, True), "head": Site("head", None, True)}


def test_an_output_that_is_read_inside_is_one_head():
    found = sites("c = Conv(images, w)\nr = Relu(c)\nhead = Conv(r, w)", "float[1,4,8,8] r, float[1,4,8,8] head")
    assert found == {"r": Site("r", None, True), "head": Site("head", None, True)}


def test_a_clip_with_computed_or_attribute_bounds_is_not_fused():
    assert list(sites("z = Exp(zero)\nc = Conv(images, w)\nhead = Clip(c, z)"))[-2:] == ["c", "head"]
    assert list(sites("c = Conv(images, w)\nhead = Clip<min=0.0, max=6.0>(c)", opset=10)) == ["c", "head"]


def test_sites_stand_in_execution_order():
    found = sites(
        "c = Conv(images, w)\ns = Sigmoid(c)\nm = Mul(c, s)\np = MaxPool<kernel_shape=[2,2]>(m)\nhead = Conv(p, w)"
    )
    assert list(found) == ["c", "m", "p", "head"]


def test_roles_of_convolutions_look_through_movements():
    model = graph(
        """x = Slice(images, s0, s1, axis, step)
        stem = Conv(x, w)
        also = Conv(images, w)
        deep = Conv<group=4>(stem, d)
        grouped = Conv<group=2>(deep, g)
        act = Relu(grouped)
        last = Conv(act, w)
        t = Transpose<perm=[0,2,3,1]>(last)
        head = Reshape(t, flat)
        middle = Relu(also)""",
        "float[1,C,H,W] head, float[1,C,H,W] middle",
    )
    roles = conv_roles(model)
    assert {name: sorted(part - {"last"}) for name, part in roles.items()} == {
        "stem": ["first"],
        "also": ["first", "head"],
        "deep": ["depthwise"],
        "grouped": [],
        "last": ["head"],
    }
