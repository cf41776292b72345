"""What the user may ask of the quantiser, and exceptions for some layers: --keep."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
from graphs import ARRAYS, assert_equals_ort, build, net, pictures

from edgeyolo.errors import InputError
from edgeyolo.quant.calibrate import observe
from edgeyolo.quant.config import Keep, QuantConfig, parse_keep
from edgeyolo.quant.insert_qdq import insert_qdq
from edgeyolo.quant.plan import Plan, make_plan

PICTURES = pictures(2, 3, 16, 16)


def planned(model: ir.Model, **options: Any) -> Plan:
    return make_plan(model, observe(model, PICTURES)[0], QuantConfig(**options))


def weight_bits(keep: str, **options: Any) -> dict[str, int]:
    plan = planned(net(), keep=tuple(k for text in keep.split(";") for k in parse_keep(text)), **options)
    return {name: weight.quant.qtype.bits for name, weight in plan.weights.items()}


@pytest.mark.parametrize(
    ("keep", "changed"),
    [
        ("first=8", {"c0": 8}),
        ("head=8", {"head1": 8, "head2": 8}),
        ("last=8", {"head1": 8, "head2": 8}),
        ("depthwise=6", {"c1": 6}),
        ("first,head,depthwise=8", {"c0": 8, "c1": 8, "head1": 8, "head2": 8}),
        ("c2=5", {"c2": 5}),
        ("c[23]=5", {"c2": 5, "c3": 5}),
        ("*=7", dict.fromkeys(("c0", "c1", "c2", "c3", "head1", "head2"), 7)),
        ("*=7;c2=3", {**dict.fromkeys(("c0", "c1", "c3", "head1", "head2"), 7), "c2": 3}),
        ("c2=3;*=7", dict.fromkeys(("c0", "c1", "c2", "c3", "head1", "head2"), 7)),
    ],
)
def test_keep_gives_some_layers_other_bits_and_the_later_one_wins(keep, changed):
    everywhere = dict.fromkeys(("c0", "c1", "c2", "c3", "head1", "head2"), 4)
    assert weight_bits(keep, bits=4) == {**everywhere, **changed}


def test_keep_can_give_activations_other_bits_too():
    plan = planned(net(), act_bits=4, keep=parse_keep("c1,head=8/6"))
    bits = {name: quant.qtype.bits for name, quant in plan.acts.items()}
    assert (bits["a1"], bits["head1"], bits["a0"], bits["r"]) == (6, 6, 4, 4)
    assert_equals_ort(insert_qdq(net(), plan))


def test_a_layer_with_fewer_bits_keeps_them_in_front_of_a_concat():
    text = """(float[1,3,16,16] images) => (float[1,16,16,16] head) {
        a = Conv<pads=[1,1,1,1]>(images, w0)
        b = Conv<pads=[1,1,1,1]>(images, w0)
        head = Concat<axis=1>(a, b)
    }"""
    model = build(text, ARRAYS)
    program = assert_equals_ort(insert_qdq(model, planned(model, keep=parse_keep("a=8/4"))))
    assert {t.name: t.qtype.bits for t in program.tensors} == {"images.seen": 8, "a": 4, "b": 8, "head": 8}


def test_keep_reads_selectors_and_bits():
    assert parse_keep("first, head,dw*=8/16") == (Keep("first", 8, 16), Keep("head", 8, 16), Keep("dw*", 8, 16))
    assert parse_keep("a=b=3") == (Keep("a=b", 3),)


@pytest.mark.parametrize("text", ["", "head", "=8", "head=", "head=8/", "head=x", "head=-8", "head=8/8/8", "head=8.5"])
def test_keep_that_cannot_be_read_is_refused(text):
    with pytest.raises(InputError, match="cannot read --keep"):
        parse_keep(text)


@pytest.mark.parametrize("text", ["head=1", "head=9", "head=8/3", "head=8/17"])
def test_keep_with_bits_out_of_range_is_refused(text):
    with pytest.raises(InputError, match="out of range"):
        parse_keep(text)


@pytest.mark.parametrize("text", ["haed=8", "first,,head=8", "c9*=8"])
def test_keep_that_names_no_layer_is_refused_and_says_what_there_is(text):
    with pytest.raises(InputError, match="not in the model") as caught:
        planned(net(), keep=parse_keep(text))
    assert "depthwise" in str(caught.value) and "c0" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"bits": 1}, "out of range"),
        ({"bits": 9}, "out of range"),
        ({"act_bits": 3}, "out of range"),
        ({"act_bits": 17}, "out of range"),
        ({"granularity": "per-row"}, "granularity"),
        ({"method": "entropy"}, "method"),
    ],
)
def test_a_request_out_of_range_is_refused(options, what):
    with pytest.raises(InputError, match=what):
        QuantConfig(**options)
