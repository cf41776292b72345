"""Torch modules that compute what Darknet's layers compute, in forms that the ONNX exporter writes plainly.

Tensors are (N, C, H, W) float32; nothing depends on N. Submodules are called ``conv``, ``bn`` and ``act``, so that an
exported node reads ``/layers.17/conv/Conv``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeyolo.frontend.darknet.spec import (
    Activation,
    BatchNorm,
    Conv,
    GlobalAverage,
    Layer,
    Pool,
    Reorg,
    Route,
    Sam,
    ScaleChannels,
    Shape,
    Shortcut,
    Softmax,
    Upsample,
    elements,
)

ALEXEYAB_EPS = 1e-5
"""AlexeyAB divides by sqrt(var + 1e-5)."""
PJREDDIE_EPS = 1e-6
"""pjreddie divides by sqrt(var) + 1e-6, whose square is var + 2e-6 sqrt(var) + 1e-12."""
_SHORTCUT_EPS = 1e-4
"""Darknet adds this to the sum of normalised shortcut weights."""


class Ramp(nn.Module):
    """y = max(x, 0) + 0.1 x."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return functional.relu(x) + 0.1 * x


class Mish(nn.Module):
    """y = x tanh(ln(1 + e^x))."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * torch.tanh(functional.softplus(x))


class HardMish(nn.Module):
    """y = x above 0, x^2 / 2 + x between -2 and 0, else 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        negative = torch.clamp(x, -2.0, 0.0)
        return functional.relu(x) + negative * negative * 0.5 + negative


class Selu(nn.Module):
    """SELU with Darknet's constants of five digits."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return 1.0507 * functional.elu(x, alpha=1.6732)


class Gelu(nn.Module):
    """GELU by tanh with Darknet's constants."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return 0.5 * x * (1.0 + torch.tanh(0.797885 * x + 0.035677 * (x * x * x)))


ACTIVATION_MODULES: dict[str, Callable[[], nn.Module]] = {
    "leaky": lambda: nn.LeakyReLU(0.1),
    "relie": lambda: nn.LeakyReLU(0.01),
    "ramp": Ramp,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "mish": Mish,
    "swish": nn.SiLU,
    "hard_mish": HardMish,
    "h-swish": nn.Hardswish,
    "hswish": nn.Hardswish,
    "logistic": nn.Sigmoid,
    "elu": nn.ELU,
    "selu": Selu,
    "gelu": Gelu,
    "tanh": nn.Tanh,
}
"""All but linear, which is no module at all."""


class Unit(nn.Module):
    """Convolution, batch norm and activation, each where the layer has one."""

    conv: nn.Conv2d | None
    bn: nn.BatchNorm2d | None
    act: nn.Module | None

    def __init__(self, conv: nn.Conv2d | None, bn: nn.BatchNorm2d | None, activation: str) -> None:
        super().__init__()
        self.conv, self.bn = conv, bn
        self.act = None if activation == "linear" else ACTIVATION_MODULES[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, filters, H', W')."""
        for part in (self.conv, self.bn, self.act):
            x = x if part is None else part(x)
        return x


class WindowPool(nn.Module):
    """Maximum or mean over the part of a window that lies inside the picture: padding never wins nor counts."""

    share: Tensor

    def __init__(self, spec: Pool, shape: Shape) -> None:
        super().__init__()
        self.spec = spec
        if spec.average:
            inside = functional.avg_pool2d(self._pad(torch.ones(1, 1, *shape[1:]), 0.0), spec.size, spec.stride)
            self.register_buffer("share", 1.0 / inside, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H', W')."""
        if torch.onnx.is_in_onnx_export():
            pooled: Tensor = _PoolNode.apply(x, self)  # type: ignore[no-untyped-call]
            return pooled
        return self.pool(x)

    def pool(self, x: Tensor) -> Tensor:
        """Compute the result; torch itself has no padding on one side only."""
        if self.spec.average:
            return functional.avg_pool2d(self._pad(x, 0.0), self.spec.size, self.spec.stride) * self.share
        return functional.max_pool2d(self._pad(x, float("-inf")), self.spec.size, self.spec.stride)

    def _pad(self, x: Tensor, value: float) -> Tensor:
        top, left, bottom, right = self.spec.pads
        return functional.pad(x, (left, right, top, bottom), value=value) if any(self.spec.pads) else x


class _PoolNode(torch.autograd.Function):
    """A WindowPool in an ONNX file: one node whose own padding may differ from side to side."""

    @staticmethod
    def forward(_: Any, x: Tensor, pool: WindowPool) -> Tensor:
        """Run ``pool`` on ``x``."""
        return pool.pool(x)

    @staticmethod
    def symbolic(graph: Any, x: Any, pool: WindowPool) -> Any:
        """Write the node."""
        spec = pool.spec
        options = {"kernel_shape_i": [spec.size] * 2, "strides_i": list(spec.stride), "pads_i": list(spec.pads)}
        if spec.average:
            return graph.op("AveragePool", x, count_include_pad_i=0, **options)
        return graph.op("MaxPool", x, **options)


class Concat(nn.Module):
    """One group of every input's channels, in order."""

    def __init__(self, spec: Route, inputs: tuple[Shape, ...]) -> None:
        super().__init__()
        self.spec, self.inputs = spec, inputs

    def forward(self, *inputs: Tensor) -> Tensor:
        """(N, C_i, H, W) each to (N, sum of C_i / groups, H, W)."""
        parts = list(inputs)
        if self.spec.groups > 1:
            for i, (channels, _, _) in enumerate(self.inputs):
                size = channels // self.spec.groups
                parts[i] = inputs[i][:, size * self.spec.group_id : size * (self.spec.group_id + 1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class Sum(nn.Module):
    """A shortcut; ``weight`` is (sources, 1 or C)."""

    weight: nn.Parameter | None

    def __init__(self, spec: Shortcut, inputs: tuple[Shape, ...]) -> None:
        super().__init__()
        self.spec, self.inputs = spec, inputs
        self.weight = nn.Parameter(torch.ones(len(inputs), spec.weights)) if spec.weights else None
        self.act = None if spec.activation == "linear" else ACTIVATION_MODULES[spec.activation]()

    def forward(self, *inputs: Tensor) -> Tensor:
        """The result has the shape of the first input; what smaller inputs lack counts as nothing."""
        total, factors = inputs[0], self._factors()
        if factors is not None:
            total = total * factors[0]
        for i in range(1, len(inputs)):
            total = self._add(total, inputs[i], self.inputs[i], None if factors is None else factors[i])
        return total if self.act is None else self.act(total)

    def _factors(self) -> Tensor | None:
        """(sources, 1, 1 or C, 1, 1) normalised weights."""
        if self.weight is None:
            return None
        weight: Tensor = self.weight
        if self.spec.normalization == "softmax":
            weight = torch.exp(weight - weight.amax(0, keepdim=True))
        elif self.spec.normalization == "relu":
            weight = functional.relu(weight)
        if self.spec.normalization != "none":
            weight = weight / (weight.sum(0, keepdim=True) + _SHORTCUT_EPS)
        return weight.reshape(len(self.inputs), 1, -1, 1, 1)

    def _add(self, total: Tensor, other: Tensor, shape: Shape, factor: Tensor | None) -> Tensor:
        channels, height, width = self.inputs[0]
        common = min(channels, shape[0])
        if shape[1:] == (height, width):
            part = _front(other, common, shape[0])
            if factor is not None:
                part = part * (factor[:, :common] if self.spec.weights > 1 else factor)
            return _add_front(total, part, common, channels)
        if self.spec.sampled:
            part = _sample(_front(other, common, shape[0]), common, shape, self.inputs[0])
            return _add_front(total, part, common, channels)
        size, given = elements(self.inputs[0]), elements(shape)
        common = min(size, given)
        flat = _add_front(total.flatten(1), _front(other.flatten(1), common, given), common, size)
        return flat.reshape(-1, channels, height, width)


def _front(x: Tensor, common: int, size: int) -> Tensor:
    """The first ``common`` of ``size`` entries of axis 1."""
    return x if common == size else x[:, :common]


def _add_front(total: Tensor, part: Tensor, common: int, size: int) -> Tensor:
    """Add ``part`` to the first ``common`` of ``size`` entries of axis 1."""
    if common == size:
        return total + part
    return torch.cat([total[:, :common] + part, total[:, common:]], 1)


def _sample(x: Tensor, channels: int, shape: Shape, target: Shape) -> Tensor:
    """Every n-th pixel of a larger ``x``; a smaller one spread out, each pixel followed by zeros in both directions."""
    _, height, width = target
    step, spread = max(1, shape[2] // width), max(1, width // shape[2])
    if spread == 1:
        return x[:, :, ::step, ::step]
    grid = functional.pad(x.reshape(-1, channels, shape[1], 1, shape[2], 1), (0, spread - 1, 0, 0, 0, spread - 1))
    return grid.reshape(-1, channels, height, width)


class NearestUpsample(nn.Module):
    """Repeat every pixel ``stride`` times in both directions, times ``scale``."""

    def __init__(self, spec: Upsample) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H * stride, W * stride)."""
        if self.spec.stride > 1:
            x = functional.interpolate(x, scale_factor=float(self.spec.stride), mode="nearest")
        return x if self.spec.scale == 1.0 else x * self.spec.scale


class SpaceToDepth(nn.Module):
    """Darknet's reorg: rearranges the flat memory as if its shape were ``spec.grid``, so channels and rows mix."""

    def __init__(self, spec: Reorg, output: Shape) -> None:
        super().__init__()
        self.spec, self.output = spec, output

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, *output)."""
        step, (channels, height, width) = self.spec.stride, self.spec.grid
        inner = channels // (step * step)
        if self.spec.reverse:
            grid = x.reshape(-1, step, step, inner, height, width).permute(0, 3, 4, 1, 5, 2)
            return grid.reshape(-1, *self.output)
        grid = x.reshape(-1, inner, height * step, width * step)
        parts = [grid[:, :, i::step, j::step] for i in range(step) for j in range(step)]
        return torch.cat(parts, 1).reshape(-1, *self.output)


class Product(nn.Module):
    """Two inputs multiplied (a factor per channel or pixel broadcasts), then the activation."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.act = None if activation == "linear" else ACTIVATION_MODULES[activation]()

    def forward(self, factor: Tensor, x: Tensor) -> Tensor:
        """The result has the shape of ``x``."""
        product = x * factor
        return product if self.act is None else self.act(product)


class GroupSoftmax(nn.Module):
    """Softmax over equal parts of the flat memory; only the division by the temperature if ``logits``."""

    def __init__(self, spec: Softmax, shape: Shape, logits: bool) -> None:
        super().__init__()
        self.spec, self.shape, self.logits = spec, shape, logits

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), same out."""
        if self.spec.temperature != 1.0:
            x = x / self.spec.temperature
        if self.logits:
            return x
        size = elements(self.shape) // self.spec.groups
        return torch.softmax(x.reshape(-1, self.spec.groups, size), 2).reshape(-1, *self.shape)


def build(layer: Layer, *, bn_eps: str, logits: bool = False) -> nn.Module | None:
    """The module of a layer with unset weights, or None where the layer only passes its input on.

    Args:
        layer: from the plan.
        bn_eps: ``alexeyab`` or ``pjreddie``.
        logits: the last layer of a classifier: leave a softmax out.
    """
    spec = layer.spec
    match spec:
        case Conv():
            return Unit(_convolution(layer, spec), _batch_norm(spec, spec.filters, bn_eps), spec.activation)
        case BatchNorm():
            return Unit(None, nn.BatchNorm2d(layer.output[0], eps=_eps(bn_eps)), "linear")
        case Activation():
            return Unit(None, None, spec.activation)
        case Pool():
            return WindowPool(spec, layer.input)
        case GlobalAverage():
            return nn.AdaptiveAvgPool2d(1)
        case Route():
            return Concat(spec, layer.inputs)
        case Shortcut():
            return Sum(spec, layer.inputs)
        case Upsample():
            return NearestUpsample(spec)
        case Reorg():
            return SpaceToDepth(spec, layer.output)
        case ScaleChannels() | Sam():
            return Product(spec.activation)
        case Softmax():
            return GroupSoftmax(spec, layer.input, logits)
    return None


def _eps(bn_eps: str) -> float:
    return ALEXEYAB_EPS if bn_eps == "alexeyab" else PJREDDIE_EPS**2


def _batch_norm(spec: Conv, channels: int, bn_eps: str) -> nn.BatchNorm2d | None:
    return nn.BatchNorm2d(channels, eps=_eps(bn_eps)) if spec.batch_normalize else None


def _convolution(layer: Layer, spec: Conv) -> nn.Conv2d:
    options: dict[str, Any] = {
        "stride": spec.stride,
        "padding": spec.padding,
        "dilation": spec.dilation,
        "groups": spec.groups,
        "bias": not spec.batch_normalize,
    }
    # Memory without values: the weights file or the seeded initialisation fills it.
    with torch.device("meta"):
        conv = nn.Conv2d(layer.input[0], spec.filters, spec.kernel, **options)
    return conv.to_empty(device="cpu")
