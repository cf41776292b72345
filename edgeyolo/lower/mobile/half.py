"""The float16 form: half the size, and float16 kernels where a processor or an accelerator has them.

On a CPU without float16 arithmetic ONNX Runtime converts to float32 and back around every operation.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgeyolo.lower.tensorrt.typed import behind_heads, to_typed, unsafe_layers


def to_half(model: ir.Model, peaks: Mapping[str, float]) -> ir.Model:
    """Return a copy of a float ``model`` with float16 weights and values; inputs and outputs stay float32.

    Args:
        model: float graph of opset 13 to 19.
        peaks: largest magnitude seen of some values, by name: what may overflow stays float32.
    """
    return to_typed(model, {*unsafe_layers(model, peaks), *behind_heads(model)})
