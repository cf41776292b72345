"""When float32 computes a convolution exactly: the claim that export and verify print, against float32 itself."""

from __future__ import annotations

import numpy as np
import pytest

from edgeyolo.program import EXACT_BITS, Conv, is_float32_exact
from edgeyolo.qtype import QType, round_shift

LEAKY = (13, 7)


def conv(total: int, shift: int, leaky: tuple[int, int] | None = LEAKY) -> Conv:
    """One output channel whose worst sum is ``total`` for signed 8-bit inputs."""
    weight = np.full((1, total // (128 * 127), 1, 1), 127, np.int8)
    bias = np.array([total - 128 * 127 * weight.shape[1]], np.int32)
    one = np.array([shift])
    return Conv("c", 0, 1, weight, QType(8, axis=0), one.astype(np.int32), bias, one.astype(np.int8), (1, 1), (0,) * 4,
                (1, 1), 1, leaky, -128, 127)  # fmt: skip


def differences(total: int, shift: int) -> int:
    """How many accumulators down to -total give another code in float32 than in integers."""
    acc = -np.arange(total + 1, dtype=np.int64)
    real = acc.astype(np.float32) * np.float32(LEAKY[0] / (1 << LEAKY[1])) / np.float32(1 << shift)
    want = np.clip(round_shift(acc * LEAKY[0], shift + LEAKY[1]), -128, 127)
    return int(np.count_nonzero(np.clip(np.rint(real), -128, 127) != want))


@pytest.mark.parametrize(("total", "shift"), [((1 << EXACT_BITS) // 13, 14), (1 << 22, 10), (1 << 22, 4)])
def test_what_is_called_exact_is_exact(total, shift):
    assert is_float32_exact(conv(total, shift), QType(8))
    assert differences(total, shift) == 0


def test_a_product_beyond_24_bits_that_does_not_saturate_is_not_called_exact():
    assert not is_float32_exact(conv(1 << 22, 12), QType(8))
    assert differences(1 << 22, 12) > 0


def test_a_sum_beyond_24_bits_is_not_called_exact():
    assert is_float32_exact(conv(1 << 24, 20, None), QType(8))
    assert not is_float32_exact(conv((1 << 24) + 1, 20, None), QType(8))
