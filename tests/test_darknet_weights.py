"""The weights file: header, order, partial files, damage, and the writer."""

from __future__ import annotations

import struct

import darknet_reference as reference
import numpy as np
import pytest
import torch

from edgeyolo.errors import InputError
from edgeyolo.frontend.darknet import load_darknet
from edgeyolo.frontend.darknet.weights import layer_bytes, write_weights

TOLERANCE = 2e-5
"""As in test_darknet_layers: float32 against float64."""
CFG = """
[net]
width=8
height=8
channels=3
[convolutional]
batch_normalize=1
filters=4
size=3
stride=2
pad=1
activation=leaky
[dropout]
[convolutional]
filters=4
size=1
activation=linear
[shortcut]
from=-3
weights_type=per_channel
weights_normalization=softmax
activation=linear
[batchnorm]
[connected]
output=5
batch_normalize=1
activation=relu
[connected]
output=3
activation=linear
[softmax]
"""
SIZES = {0: 4 * (16 + 108), 2: 4 * (4 + 16), 3: 4 * 8, 4: 4 * 16, 5: 4 * (5 + 320 + 15), 6: 4 * (3 + 15)}
"""Bytes of every layer with weights, by hand."""
HEADER = 20


@pytest.fixture
def case(tmp_path):
    """(cfg path, weights path, picture, logits) of CFG."""
    picture, outputs, file = reference.run(CFG)
    cfg, weights = tmp_path / "x.cfg", tmp_path / "x.weights"
    cfg.write_text(CFG)
    weights.write_bytes(file)
    return cfg, weights, picture, outputs[6].ravel()


def logits(model, picture):
    with torch.no_grad():
        return model.module(torch.from_numpy(picture)[None])[0].numpy()[0]


def test_order_and_sizes(case):
    cfg, weights, picture, expected = case
    model = load_darknet(cfg, weights)
    assert {layer.index: layer_bytes(layer) for layer in model.module.plan if layer_bytes(layer)} == SIZES
    assert weights.stat().st_size == HEADER + sum(SIZES.values())
    np.testing.assert_allclose(logits(model, picture), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("version", "seen"),
    [((0, 1, 0), struct.pack("<I", 7)), ((0, 2, 0), struct.pack("<Q", 7)), ((1, 0, 0), struct.pack("<Q", 7))],
)
def test_the_width_of_seen_follows_the_version(case, version, seen):
    cfg, weights, picture, expected = case
    weights.write_bytes(struct.pack("<iii", *version) + seen + weights.read_bytes()[HEADER:])
    model = load_darknet(cfg, weights)
    assert "weights trained on 7 pictures" in model.notes
    np.testing.assert_allclose(logits(model, picture), expected, rtol=0, atol=TOLERANCE)


def test_connected_weights_of_very_old_files_are_transposed(case):
    cfg, weights, picture, expected = case
    data = np.frombuffer(weights.read_bytes()[HEADER:], "<f4").copy()
    for layer, outputs, inputs in ((5, 5, 64), (6, 3, 5)):
        start = sum(size for index, size in SIZES.items() if index < layer) // 4 + outputs
        matrix = data[start : start + outputs * inputs]
        matrix[:] = matrix.reshape(outputs, inputs).T.ravel().copy()
    weights.write_bytes(struct.pack("<iiiQ", 0, 1001, 0, 7) + data.tobytes())
    np.testing.assert_allclose(logits(load_darknet(cfg, weights), picture), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("last", [0, 2, 3, 4, 5])
def test_a_file_that_ends_after_a_layer_is_legal_and_the_cut_is_reported(case, last):
    cfg, weights, _, _ = case
    whole = load_darknet(cfg, weights).module.state_dict()
    size = HEADER + sum(n for index, n in SIZES.items() if index <= last)
    weights.write_bytes(weights.read_bytes()[:size])
    model = load_darknet(cfg, weights)
    follower = min(index for index in SIZES if index > last)
    assert any(f"ends before layer {follower} [" in note for note in model.notes)
    state = model.module.state_dict()
    loaded = [name for name in state if int(name.split(".")[1]) <= last and "batches" not in name]
    assert loaded and all(torch.equal(state[name], whole[name]) for name in loaded)
    again = load_darknet(cfg, weights).module.state_dict()
    assert all(torch.equal(state[name], again[name]) for name in state)


@pytest.mark.parametrize(
    ("size", "words", "got"),
    [
        (HEADER + 8, r"ends inside layer 0 \[convolutional\]", "8 of its 496 bytes"),
        (HEADER, r"ends inside layer 0 \[convolutional\]", "0 of its 496 bytes"),
        (HEADER + 496 + 80 + 31, r"ends inside layer 3 \[shortcut\]", "31 of its 32 bytes"),
        (HEADER + 496 + 80 + 32 + 64 + 1356, r"ends inside layer 5 \[connected\]", "1356 of its 1360 bytes"),
        (19, "inside its header", "19 bytes"),
        (3, "inside its header", "3 bytes"),
        (0, "inside its header", "0 bytes"),
    ],
)
def test_a_file_that_ends_inside_a_layer_is_refused_with_layer_and_bytes(case, size, words, got):
    cfg, weights, _, _ = case
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(InputError, match=words) as caught:
        load_darknet(cfg, weights)
    assert got in str(caught.value.got)


@pytest.mark.parametrize("extra", [1, 4, 1000])
def test_bytes_after_the_last_layer_are_refused(case, extra):
    cfg, weights, _, _ = case
    weights.write_bytes(weights.read_bytes() + bytes(extra))
    with pytest.raises(InputError, match=r"goes on after layer 6 \[connected\]") as caught:
        load_darknet(cfg, weights)
    assert f"{extra} bytes too many" in str(caught.value.got)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_variance_that_no_training_produces_is_refused(case, value):
    cfg, weights, _, _ = case
    data = bytearray(weights.read_bytes())
    struct.pack_into("<f", data, HEADER + 4 * 12, value)
    weights.write_bytes(data)
    with pytest.raises(InputError, match=r"layer 0 \[convolutional\] has values that no training produces") as caught:
        load_darknet(cfg, weights)
    assert "bn.running_var" in str(caught.value.where)


def test_missing_weights_and_a_folder_are_refused(case, tmp_path):
    for path in (tmp_path / "no.weights", tmp_path):
        with pytest.raises(InputError, match="not a file"):
            load_darknet(case[0], path)


def test_the_writer_gives_back_the_file_byte_for_byte(case, tmp_path):
    cfg, weights, _, _ = case
    model = load_darknet(cfg, weights)
    write_weights(model.module, tmp_path / "out.weights", seen=64)
    assert (tmp_path / "out.weights").read_bytes() == weights.read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_the_writer_inverts_the_other_epsilon_rule(case, tmp_path):
    cfg, weights, _, _ = case
    write_weights(load_darknet(cfg, weights, bn_eps="pjreddie").module, tmp_path / "out.weights", seen=64)
    got, expected = (np.fromfile(p, "<f4", offset=HEADER) for p in (tmp_path / "out.weights", weights))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_failed_write_leaves_nothing(case, tmp_path):
    model = load_darknet(case[0])
    with pytest.raises(InputError, match="cannot be written"):
        write_weights(model.module, tmp_path / "no" / "out.weights")
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_weights(model.module, tmp_path / "taken")
    assert not list(tmp_path.rglob("*.part"))
    with pytest.raises(InputError, match="seen"):
        write_weights(model.module, tmp_path / "x", seen=-1)


def test_without_weights_the_start_is_random_but_always_the_same(case):
    torch.manual_seed(1)
    first = load_darknet(case[0])
    torch.manual_seed(2)
    second = load_darknet(case[0])
    assert any("random" in note for note in first.notes)
    states = first.module.state_dict(), second.module.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert first.module.layers["0"].conv.weight.std() > 0.1


def test_loading_does_not_disturb_the_callers_random_numbers(case):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_darknet(case[0])
    assert torch.equal(torch.rand(3), expected)


def test_batch_norm_is_a_real_one_in_evaluation_mode(case):
    unit = load_darknet(case[0], case[1]).module.layers["0"]
    assert isinstance(unit.bn, torch.nn.BatchNorm2d) and not unit.bn.training and unit.bn.eps == 1e-5
    assert unit.conv.bias is None


def test_an_unknown_epsilon_rule_is_refused(case):
    with pytest.raises(InputError, match="alexeyab, pjreddie"):
        load_darknet(case[0], bn_eps="mine")


def test_what_a_partial_file_does_not_cover_starts_as_without_a_file(case):
    cfg, weights, _, _ = case
    before = load_darknet(cfg).module.layers["6"].conv.weight
    weights.write_bytes(weights.read_bytes()[: HEADER + SIZES[0]])
    assert torch.equal(load_darknet(cfg, weights).module.layers["6"].conv.weight, before)
