"""Second moments of a convolution's input patches and wanted outputs: all that least squares needs to know.

For the patches x (K,) that a group of output channels reads and the values y they should give, kept as running sums:

    mean x, mean y,   H = E[(x - mean x)(x - mean x)^T],   B = E[(y - mean y)(x - mean x)^T]

in which patches may weigh differently (attention.py),
so memory depends on the layer, not on the number of pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.passes.graph import constant, conv_groups, ints

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Positions = npt.NDArray[np.intp]

PATCH_VALUES = 1 << 24
"""Patches are taken in portions of 64 MiB."""


@dataclass(frozen=True)
class Geometry:
    """What a two-dimensional Conv reads: groups, kernel, strides, pads (top, left, bottom, right), dilations."""

    groups: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]

    @classmethod
    def of(cls, conv: ir.Node) -> Geometry | None:
        """Read a Conv's attributes; None where the pads are not written out."""
        weight = constant(conv.inputs[1])
        automatic = "auto_pad" in conv.attributes and conv.attributes["auto_pad"].as_string() not in ("", "NOTSET")
        if weight is None or weight.ndim != 4 or automatic:
            return None
        groups = conv_groups(conv)
        lists = (ints(conv, "strides", (1, 1)), ints(conv, "pads", (0, 0, 0, 0)), ints(conv, "dilations", (1, 1)))
        return cls(groups, weight.shape[2:], *lists)

    def patches(self, value: Float32, rows: Positions, columns: Positions) -> Float32:
        """What the outputs at (rows, columns), each (P,), read of ``value`` (N, C, H, W): (G, K, N * P)."""
        top, left, bottom, right = self.pads
        padded = np.pad(value, ((0, 0), (0, 0), (top, bottom), (left, right))) if any(self.pads) else value
        taps = (np.arange(size) * gap for size, gap in zip(self.kernel, self.dilations, strict=True))
        offsets = np.meshgrid(*taps, indexing="ij")
        y, x = (
            place[None] * stride + offset.reshape(-1, 1)
            for place, stride, offset in zip((rows, columns), self.strides, offsets, strict=True)
        )
        taken = padded[:, :, y, x].transpose(1, 2, 0, 3)  # (C, KH * KW, N, P)
        return np.ascontiguousarray(taken).reshape(self.groups, -1, len(value) * len(rows))


@dataclass(frozen=True, eq=False)
class Moments:
    """Means x (G, K) and y (G, M), H (G, K, K) and B (G, M, K) of patches that weigh ``count`` together."""

    count: float
    x: Float64
    y: Float64
    h: Float64
    b: Float64

    @classmethod
    def of(cls, x: Float32, y: Float32, weights: Float32) -> Moments:
        """Of patches (G, K, P) and wanted values (G, M, P), each patch weighing as ``weights`` (P,) says."""
        count = float(weights.sum(dtype=np.float64))
        mean_x, mean_y = ((v @ weights).astype(np.float64) / count for v in (x, y))
        x, y = x - mean_x.astype(np.float32)[:, :, None], y - mean_y.astype(np.float32)[:, :, None]
        turned = (x * weights).transpose(0, 2, 1)
        h, b = ((v @ turned).astype(np.float64) / count for v in (x, y))
        return cls(count, mean_x, mean_y, h, b)

    def __add__(self, other: Moments) -> Moments:
        """Of both together."""
        count = self.count + other.count
        p, q = self.count / count, other.count / count
        x, y = self.x - other.x, self.y - other.y
        h = p * self.h + q * other.h + p * q * x[:, :, None] * x[:, None, :]
        b = p * self.b + q * other.b + p * q * y[:, :, None] * x[:, None, :]
        return Moments(count, p * self.x + q * other.x, p * self.y + q * other.y, h, b)


def sample_moments(
    geometry: Geometry, value: Float32, wanted: Float32, positions: Positions, weights: Float32
) -> Moments:
    """Of a batch: what is read, and what should come out, at some output positions.

    Args:
        value: (N, C, H, W), read by the convolution.
        wanted: (N, O, h, w).
        positions: (P,) flat positions in (h, w).
        weights: (N, P) of each of them.
    """
    rows, columns = np.divmod(positions, wanted.shape[3])
    portion = max(1, PATCH_VALUES // (len(positions) * value.shape[1] * int(np.prod(geometry.kernel))))
    total: Moments | None = None
    for start in range(0, len(value), portion):
        some = np.s_[start : start + portion]
        x = geometry.patches(value[some], rows, columns)
        y = wanted[some][:, :, rows, columns].transpose(1, 0, 2)
        y = np.ascontiguousarray(y).reshape(geometry.groups, -1, x.shape[2])
        part = Moments.of(x, y, weights[some].ravel())
        total = part if total is None else total + part
    assert total is not None
    return total
