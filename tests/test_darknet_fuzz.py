"""Hostile cfg texts and weights: whatever the bytes, only an EdgeYoloError may come out. ``FUZZ_CASES`` runs more."""

from __future__ import annotations

import os

import darknet_reference as reference
import numpy as np
import pytest
from darknet_families import FAMILIES

from edgeyolo.errors import EdgeYoloError
from edgeyolo.frontend.darknet import describe_darknet, load_darknet

CASES = int(os.environ.get("FUZZ_CASES", "300"))
"""Per test; 100,000 were run when this was written."""
LOAD_LIMIT = 1 << 20
"""Parameters up to which a mutated cfg is also loaded: a legal one may ask for much memory."""
WORDS = """
0 1 -1 2 3 7 -2147483648 2147483647 99999999999999999999 1e9 nan .5 , -1,-2 0,0,0 leaky logistic per_channel softmax x
# ; = [ ] [net] [conv] [route] [shortcut] [yolo] [region] [connected] [reorg] [softmax] [upsample] [sam] [crop] \x00
groups=2 groups=0 stride=0 size=0 size=99 pad=1 padding=5 filters=0 filters=9999999 dilation=3 layers=-1,-2 \x1b[0m
from=-2 from=0 stride_x=-1 activation=wat mask=9 num=0 classes=-1 anchors=1 temperature=0 reverse=1 coords=5 é \ufeff
"""
WORDS = [*WORDS.split(), "\n", "\n\n", "\r\n", " ", "\t", "="]


def mutate(text, rng):
    """A few random edits of lines, words and characters."""
    for _ in range(rng.integers(1, 6)):
        lines = text.split("\n")
        i, j = rng.integers(0, len(lines), 2)
        word = WORDS[rng.integers(len(WORDS))]
        kind = rng.integers(7)
        if kind == 0:
            del lines[i]
        elif kind == 1:
            lines.insert(i, lines[j])
        elif kind == 2:
            lines.insert(i, word)
        elif kind == 3:
            lines[i] = lines[i].split("=")[0] + "=" + word
        elif kind == 4:
            lines[i], lines[j] = lines[j], lines[i]
        elif kind == 5:
            at = rng.integers(len(lines[i]) + 1)
            lines[i] = lines[i][:at] + word + lines[i][at + 1 :]
        else:
            lines = lines[: max(1, i)]
        text = "\n".join(lines)
        if not text:
            return "\n"
    return text


def attempt(action):
    """Run it; True unless it was refused as it should be."""
    try:
        action()
    except EdgeYoloError as error:
        assert str(error)
        return False
    return True


def test_mutated_cfgs_are_read_or_refused(tmp_path):
    rng = np.random.default_rng(1)
    texts, path = list(FAMILIES.values()), tmp_path / "x.cfg"
    accepted = 0
    for case in range(CASES):
        path.write_text(mutate(texts[case % len(texts)], rng), "utf-8", newline="")
        try:
            described = describe_darknet(path)
        except EdgeYoloError as error:
            assert str(error)
            continue
        accepted += 1
        if sum(layer.params for layer in described.layers) < LOAD_LIMIT:
            attempt(lambda: load_darknet(path))
    assert 0 < accepted < CASES


def test_random_bytes_are_refused(tmp_path):
    rng = np.random.default_rng(2)
    path = tmp_path / "x.cfg"
    for _ in range(CASES):
        path.write_bytes(rng.bytes(rng.integers(0, 200)))
        assert not attempt(lambda: describe_darknet(path))


@pytest.mark.parametrize("name", ["attention-yolo", "vgg"])
def test_truncated_and_flipped_weights_are_read_or_refused(name, tmp_path):
    rng = np.random.default_rng(3)
    file = reference.run(FAMILIES[name])[2]
    cfg, path = tmp_path / "x.cfg", tmp_path / "x.weights"
    cfg.write_text(FAMILIES[name])
    accepted = 0
    for case in range(CASES // 2):
        data = bytearray(file)
        for _ in range(rng.integers(0, 4)):
            # Half of the flips hit the header.
            at = rng.integers(20 if rng.random() < 0.5 else len(data))
            data[at] ^= 1 << rng.integers(8)
        if case % 3 == 0:
            data = data[: rng.integers(len(data))]
        elif case % 3 == 1:
            data += rng.bytes(rng.integers(0, 9))
        path.write_bytes(data)
        accepted += attempt(lambda: load_darknet(cfg, path))
    assert 0 < accepted < CASES // 2
