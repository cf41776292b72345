"""Darknet in plain numpy loops over flat memory: a second, independent reading of its rules.

``run`` walks a clean cfg (no aliases, no comments), invents the weights it needs in file order and returns every
layer's output as well as the weights file that Darknet would have read.
"""

from __future__ import annotations

import struct

import numpy as np

ACTIVATIONS = {
    "linear": lambda x: x,
    "leaky": lambda x: np.where(x > 0, x, 0.1 * x),
    "relie": lambda x: np.where(x > 0, x, 0.01 * x),
    "ramp": lambda x: x * (x > 0) + 0.1 * x,
    "relu": lambda x: x * (x > 0),
    "relu6": lambda x: np.minimum(np.maximum(x, 0), 6),
    "mish": lambda x: x * np.tanh(np.log(np.exp(x) + 1)),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "hard_mish": lambda x: np.where(x > 0, x, np.where(x > -2, x * x / 2 + x, 0)),
    "h-swish": lambda x: x * np.minimum(np.maximum(x + 3, 0), 6) / 6,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "elu": lambda x: np.where(x >= 0, x, np.exp(x) - 1),
    "selu": lambda x: np.where(x >= 0, 1.0507 * x, 1.0507 * 1.6732 * (np.exp(x) - 1)),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(0.797885 * x + 0.035677 * x**3)),
    "tanh": lambda x: 2 / (1 + np.exp(-2 * x)) - 1,
}


def sections(cfg):
    """[(kind, {key: value})] of a clean cfg text."""
    found = []
    for line in cfg.split():
        if line.startswith("["):
            found.append((line[1:-1], {}))
        else:
            key, _, value = line.partition("=")
            found[-1][1][key] = value
    return found


class Weights:
    """Random numbers in file order; ``data`` is the file's body."""

    def __init__(self, seed, pjreddie):
        self.rng, self.parts, self.pjreddie = np.random.default_rng(seed), [], pjreddie

    def take(self, *shape, low=-1.0, high=1.0):
        values = self.rng.uniform(low, high, shape).astype(np.float32)
        self.parts.append(values.tobytes())
        return values.astype(np.float64)

    @property
    def data(self):
        return b"".join(self.parts)

    def norm(self, n):
        """Scale, mean and variance, as a function of (x, bias)."""
        scale, mean, variance = self.take(n, low=0.5), self.take(n), self.take(n, low=0.1, high=2.0)
        deviation = np.sqrt(variance) + 1e-6 if self.pjreddie else np.sqrt(variance + 1e-5)

        def apply(x, bias):
            return ((x.T - mean) / deviation * scale + bias).T

        return apply


def conv(x, o, weights):
    c, h, w = x.shape
    n, size, groups = int(o.get("filters", 1)), int(o.get("size", 1)), int(o.get("groups", 1))
    sx, sy = (int(o.get(k, o.get("stride", 1))) for k in ("stride_x", "stride_y"))
    dilation = int(o.get("dilation", 1)) if size > 1 else 1
    pad = size // 2 if int(o.get("pad", 0)) else int(o.get("padding", 0))
    oh, ow = (h + 2 * pad - size) // sy + 1, (w + 2 * pad - size) // sx + 1
    bias = weights.take(n)
    norm = weights.norm(n) if int(o.get("batch_normalize", 0)) else None
    # Small weights keep deep networks in range.
    bound = (2 / (c // groups * size * size)) ** 0.5
    kernel = weights.take(n, c // groups, size, size, low=-bound, high=bound)
    edge = pad * dilation
    padded = np.zeros((c, h + 2 * edge, w + 2 * edge))
    padded[:, edge : edge + h, edge : edge + w] = x
    y, members, each = np.zeros((n, oh, ow)), n // groups, c // groups
    for f in range(n):
        inputs = padded[f // members * each : (f // members + 1) * each]
        for i in range(size):
            for j in range(size):
                seen = inputs[:, i * dilation :: sy, j * dilation :: sx][:, :oh, :ow]
                y[f] += np.tensordot(kernel[f, :, i, j], seen, 1)
    y = norm(y, bias) if norm else (y.T + bias).T
    return ACTIVATIONS[o.get("activation", "logistic")](y)


def connected(x, o, weights):
    n = int(o.get("output", 1))
    bias, matrix = weights.take(n), weights.take(n, x.size, low=-0.2, high=0.2)
    y = matrix @ x.ravel()
    y = weights.norm(n)(y, bias) if int(o.get("batch_normalize", 0)) else y + bias
    return ACTIVATIONS[o.get("activation", "logistic")](y).reshape(n, 1, 1)


def pool(x, o, mean):
    c, h, w = x.shape
    stride = int(o.get("stride", 1))
    sx, sy, size = int(o.get("stride_x", stride)), int(o.get("stride_y", stride)), int(o.get("size", stride))
    pad = int(o.get("padding", size - 1))
    oh, ow = (h + pad - size) // sy + 1, (w + pad - size) // sx + 1
    y = np.zeros((c, oh, ow))
    for i in range(oh):
        for j in range(ow):
            rows = [r for r in range(i * sy - pad // 2, i * sy - pad // 2 + size) if 0 <= r < h]
            cols = [s for s in range(j * sx - pad // 2, j * sx - pad // 2 + size) if 0 <= s < w]
            window = x[:, rows][:, :, cols].reshape(c, -1)
            y[:, i, j] = window.mean(1) if mean else window.max(1)
    return y


def route(inputs, o):
    groups, group = int(o.get("groups", 1)), int(o.get("group_id", 0))
    flat = [x.ravel()[x.size // groups * group : x.size // groups * (group + 1)] for x in inputs]
    channels = sum(x.shape[0] for x in inputs) // groups
    return np.concatenate(flat).reshape(channels, *inputs[0].shape[1:])


def shortcut(x, others, o, weights):
    kind, normal = o.get("weights_type", "none"), o.get("weights_normalization", "none")
    steps = {"none": 0, "per_feature": 1, "per_channel": x.shape[0]}[kind]
    table = weights.take(len(others) + 1, steps) if steps else None
    y = np.zeros(x.size)
    for i in range(x.size):
        terms = [x.ravel()[i]] + [other.ravel()[i] if i < other.size else None for other in others]
        if table is None:
            factors = [1.0] * len(terms)
        else:
            raw = table[:, i * steps // x.size]
            raw = np.maximum(raw, 0) if normal == "relu" else np.exp(raw - raw.max()) if normal == "softmax" else raw
            factors = raw if normal == "none" else raw / (raw.sum() + 0.0001)
        y[i] = sum(f * t for f, t in zip(factors, terms, strict=True) if t is not None)
    return ACTIVATIONS[o.get("activation", "linear")](y.reshape(x.shape))


def sampled_shortcut(x, other, o):
    """pjreddie's rule for layers of different size."""
    y = x.copy()
    (c1, h1, w1), (c2, h2, w2) = other.shape, x.shape
    stride, sample = max(1, w1 // w2), max(1, w2 // w1)
    for k in range(min(c1, c2)):
        for j in range(min(h1, h2)):
            for i in range(min(w1, w2)):
                y[k, j * sample, i * sample] += other[k, j * stride, i * stride]
    return ACTIVATIONS[o.get("activation", "linear")](y)


def upsample(x, o):
    stride = int(o.get("stride", 2))
    c, h, w = x.shape
    y = np.zeros((c, h * stride, w * stride))
    for i in range(h * stride):
        for j in range(w * stride):
            y[:, i, j] = float(o.get("scale", 1)) * x[:, i // stride, j // stride]
    return y


def reorg(x, o, three_d):
    """One loop over the flat memory of ``grid``, element k, j, i, whatever the shapes say."""
    stride, reverse = int(o.get("stride", 1)), int(o.get("reverse", 0))
    c, h, w = x.shape
    area = stride * stride
    out = (c // area, h * stride, w * stride) if reverse else (c * area, h // stride, w // stride)
    gc, gh, gw = out if three_d else x.shape
    source, y = x.ravel(), np.zeros(x.size)
    inner = gc // area
    for k in range(gc):
        for j in range(gh):
            for i in range(gw):
                near = i + gw * (j + gh * k)
                offset = k // inner
                column, row = i * stride + offset % stride, j * stride + offset // stride
                far = column + gw * stride * (row + gh * stride * (k % inner))
                if reverse:
                    y[far] = source[near]
                else:
                    y[near] = source[far]
    return y.reshape(out)


def softmax(x, o):
    groups, t = int(o.get("groups", 1)), float(o.get("temperature", 1))
    parts = x.reshape(groups, -1) / t
    e = np.exp(parts - parts.max(1, keepdims=True))
    return (e / e.sum(1, keepdims=True)).reshape(x.shape)


def layer(kind, o, x, outputs, weights):
    """The output of one layer; ``x`` is the previous one's."""

    def named(key):
        return [outputs[int(n) + (len(outputs) if int(n) < 0 else 0)] for n in o[key].split(",")]

    act = ACTIVATIONS[o.get("activation", "linear")]
    if kind == "shortcut":
        others = named("from")
        if weights.pjreddie and others[0].shape[1:] != x.shape[1:]:
            return sampled_shortcut(x, others[0], o)
        return shortcut(x, others, o, weights)
    if kind == "batchnorm":
        bias = weights.take(x.shape[0])
        return weights.norm(x.shape[0])(x, bias)
    simple = {
        "convolutional": lambda: conv(x, o, weights),
        "connected": lambda: connected(x, o, weights),
        "maxpool": lambda: pool(x, o, False),
        "local_avgpool": lambda: pool(x, o, True),
        "avgpool": lambda: x.mean((1, 2), keepdims=True),
        "route": lambda: route(named("layers"), o),
        "upsample": lambda: upsample(x, o),
        "reorg": lambda: reorg(x, o, False),
        "reorg3d": lambda: reorg(x, o, True),
        "scale_channels": lambda: act(named("from")[0] * x),
        "sam": lambda: act(named("from")[0] * x),
        "softmax": lambda: softmax(x, o),
        "activation": lambda: act(x),
        **dict.fromkeys(("dropout", "cost", "empty", "yolo", "Gaussian_yolo", "region"), lambda: x),
    }
    return simple[kind]()


def run(cfg, seed=0, size=None, pjreddie=False):
    """(picture, outputs of all layers, weights file) of a clean cfg; size: (height, width) instead of the cfg's."""
    (_, net), *rest = sections(cfg)
    weights = Weights(seed, pjreddie)
    height, width = size or (int(net["height"]), int(net["width"]))
    picture = np.random.default_rng(seed + 1).uniform(0, 1, (int(net["channels"]), height, width)).astype(np.float32)
    outputs = []
    for kind, options in rest:
        outputs.append(layer(kind, options, outputs[-1] if outputs else picture, outputs, weights))
    return picture, outputs, struct.pack("<iiiQ", 0, 2, 5, 64) + weights.data
