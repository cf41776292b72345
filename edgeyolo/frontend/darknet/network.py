"""A Darknet network as one torch module whose outputs are the raw head tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgeyolo.frontend.darknet.modules import Unit, build
from edgeyolo.frontend.darknet.plan import last_uses
from edgeyolo.frontend.darknet.spec import Conv, Layer

SEED = 0
"""Of the random initialisation of layers that no weights file covers."""


class Network(nn.Module):
    """Runs the layers that the outputs depend on, in cfg order.

    Args:
        plan: all layers, 0 first.
        outputs: indices of the layers whose results are returned.
        classifier: return (N, classes), with a final softmax left out.
        bn_eps: ``alexeyab`` or ``pjreddie``.
    """

    def __init__(self, plan: Sequence[Layer], outputs: Sequence[int], *, classifier: bool, bn_eps: str) -> None:
        super().__init__()
        self.plan, self.outputs, self.classifier, self.bn_eps = tuple(plan), tuple(outputs), classifier, bn_eps
        self.last_uses = last_uses(plan, outputs)
        modules = {}
        for layer in plan:
            module = build(layer, bn_eps=bn_eps, logits=classifier and layer.index in outputs)
            # A layer that no output needs still owns a place in the weights file.
            if module is not None and (layer.index in self.last_uses or layer.weights):
                modules[str(layer.index)] = module
        self.layers = nn.ModuleDict(modules)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: (N, C, H, W) float32, RGB (or grey) in [0, 1]. Returns the raw outputs in cfg order."""
        values = {-1: x}
        for layer in self.plan:
            if layer.index not in self.last_uses:
                continue
            inputs = [values[i] for i in layer.sources]
            key = str(layer.index)
            values[layer.index] = self.layers[key](*inputs) if key in self.layers else inputs[0]
            for source in layer.sources:
                if self.last_uses[source] == layer.index:
                    values.pop(source, None)
        results = [values[i] for i in self.outputs]
        return tuple(torch.flatten(r, 1) if self.classifier else r for r in results)


@torch.no_grad()
def initialise(network: Network, layers: Sequence[Layer]) -> None:
    """Fill the convolutions of ``layers`` as Darknet does before training (uniform, scaled by fan-in), always alike."""
    generator = torch.Generator()
    for layer in layers:
        spec = layer.spec
        if not isinstance(spec, Conv):
            continue
        unit = network.layers[str(layer.index)]
        assert isinstance(unit, Unit) and unit.conv is not None
        fan_in = spec.kernel[0] * spec.kernel[1] * layer.input[0] // spec.groups
        bound = math.sqrt(2.0 / fan_in)
        generator.manual_seed(SEED + layer.index)  # a layer's values do not depend on which others are set
        unit.conv.weight.uniform_(-bound, bound, generator=generator)
        if unit.conv.bias is not None:
            unit.conv.bias.zero_()
