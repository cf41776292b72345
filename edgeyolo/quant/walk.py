"""Execute a graph node by node over a batch of pictures, keeping only the values that are still needed.

Refinements look at one layer behind the already quantised prefix; walking once is linear in the number of layers,
running the prefix again for each of them would be quadratic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.ort import Arrays, open_session, run
from edgeyolo.passes.graph import constant
from edgeyolo.quant.sites import ELEMENTWISE, FUSING, fused_activation

Float32 = npt.NDArray[np.float32]
BATCHED = FUSING | ELEMENTWISE | {"MaxPool", "Concat"}
"""Operations that treat every picture of a batch alike; a Reshape or Resize may have the batch 1 in its constants."""


class Step:
    """One node with its constants; computes its outputs for any batch.

    A Conv comes together with its fused activation: ``node`` is the Conv and ``activation`` the node behind it, or
    None.
    """

    def __init__(self, node: ir.Node, opset: int) -> None:
        self.node = node
        self.activation = fused_activation(node) if node.op_type in FUSING else None
        self.reads = [str(v.name) for v in node.inputs if v is not None and constant(v) is None]
        self.writes = [str(v.name) for v in (self.activation or node).outputs]
        self._opset = opset

    def compute(self, values: Arrays) -> list[Float32]:
        """Outputs for ``values`` (by name)."""
        return self.open()(values)

    def open(self, replaced: dict[int, Float32] | None = None) -> Callable[[Arrays], list[Float32]]:
        """``compute`` for several batches; ``replaced`` gives other constants by input index, as {1: weights}."""
        session = open_session(standalone(self.node, self._opset, replaced or {}), optimise=False)

        def compute(values: Arrays) -> list[Float32]:
            feeds = {name: values[name] for name in self.reads}
            if self.node.op_type in BATCHED:
                return list(run(session, feeds).values())
            count = len(next(iter(feeds.values())))
            single = [run(session, {name: v[i : i + 1] for name, v in feeds.items()}).values() for i in range(count)]
            return [np.concatenate(parts) for parts in zip(*single, strict=True)]

        return compute

    def activate(self, value: Float32) -> Float32:
        """The fused activation of a pre-activation value; the value itself where there is none."""
        if self.activation is None:
            return value
        if self.activation.op_type == "Clip":
            low, high = (constant(v) if v is not None else None for v in (*self.activation.inputs[1:3], None, None)[:2])
            clipped: Float32 = np.clip(value, low, high)
            return clipped
        active: Float32 = np.where(value > 0, value, value * np.float32(self._alpha()))
        return active

    def slope(self, value: Float32) -> Float32:
        """The activation's derivative at a pre-activation value, for LeakyRelu and Relu; 1 elsewhere."""
        if self.activation is None or self.activation.op_type == "Clip":
            return np.ones_like(value)
        return np.where(value > 0, np.float32(1), np.float32(self._alpha()))

    def _alpha(self) -> float:
        assert self.activation is not None
        alpha = self.activation.attributes.get("alpha")
        return 0.0 if self.activation.op_type == "Relu" else 0.01 if alpha is None else alpha.as_float()


def walk(model: ir.Model) -> Iterator[tuple[Step, frozenset[str]]]:
    """Yield every step in execution order with the names of the values that nobody needs after it."""
    opset = model.graph.opset_imports[""]
    skipped: set[ir.Node] = set()
    steps: list[Step] = []
    for node in model.graph:
        if node in skipped or all(constant(v) is not None for v in node.outputs):
            continue
        steps.append(Step(node, opset))
        if steps[-1].activation is not None:
            skipped.add(steps[-1].activation)
    kept = {str(v.name) for v in model.graph.outputs}
    last_read = {name: index for index, step in enumerate(steps) for name in step.reads}
    for index, step in enumerate(steps):
        dead = [n for n in (*step.reads, *step.writes) if last_read.get(n, index) <= index and n not in kept]
        yield step, frozenset(dead)


def standalone(node: ir.Node, opset: int, replaced: dict[int, Float32]) -> ir.Model:
    """A model of this one node: constants become initializers, the batch is free."""
    inputs: list[ir.Value] = []
    initializers: list[ir.Value] = []
    arguments: list[ir.Value | None] = []
    for index, value in enumerate(node.inputs):
        array = replaced.get(index, constant(value))
        if value is None and array is None:
            arguments.append(None)
        elif array is None:
            assert value is not None
            arguments.append(ir.Value(name=value.name, type=ir.TensorType(value.dtype or ir.DataType.FLOAT)))
            if value.name not in [v.name for v in inputs]:
                inputs.append(arguments[-1])  # type: ignore[arg-type]
            else:
                arguments[-1] = next(v for v in inputs if v.name == value.name)
        else:
            tensor = ir.tensor(array, name=f"constant.{index}")
            arguments.append(ir.Value(name=tensor.name, const_value=tensor))
            initializers.append(arguments[-1])  # type: ignore[arg-type]
    outputs = [ir.Value(name=v.name, type=ir.TensorType(v.dtype or ir.DataType.FLOAT)) for v in node.outputs]
    copy = ir.Node(node.domain, node.op_type, arguments, node.attributes.values(), outputs=outputs, name=node.name)
    graph = ir.Graph(inputs, outputs, nodes=[copy], initializers=initializers, opset_imports={"": opset}, name="step")
    return ir.Model(graph, ir_version=8 if opset <= 18 else 10)
