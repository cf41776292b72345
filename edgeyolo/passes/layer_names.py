"""Give nodes and values the names a person would use.

``layers.17.conv`` stands for the exporter's ``/layers.17/conv/Conv_output_0``. A value is called after the module that
computes it, with a number behind it only where that is not unique. Graph inputs, outputs and initializers keep their
names. A node without a name of its own is called after its first output: every node can then be told by its name.
"""

from __future__ import annotations

import onnx_ir as ir


class LayerNames(ir.passes.InPlacePass):
    """Rename what the TorchScript exporter named after module paths, and name the nodes that have no unique name."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename in place."""
        fixed = {str(v.name) for v in (*model.graph.inputs, *model.graph.outputs)}
        values = fixed | set(model.graph.initializers) | {str(v.name) for n in model.graph for v in n.outputs}
        nodes: set[str] = set()
        before = [node.name for node in model.graph]
        for node in model.graph:
            base = _short(node)
            node.name = _unique(base or node.name or node.outputs[0].name or node.op_type, nodes)
            for index, value in enumerate(node.outputs if base else ()):
                if value.name and value.name not in fixed:  # an optional output that is absent has an empty name
                    value.name = _unique(node.name if index == 0 else f"{node.name}.{index}", values)
        return ir.passes.PassResult(model, modified=before != [node.name for node in model.graph])


def _short(node: ir.Node) -> str | None:
    """``/layers.17/conv/Conv`` -> ``layers.17.conv``; None for a node that is not named so."""
    parts = (node.name or "").strip("/").split("/")
    if not (node.name or "").startswith("/") or len(parts) < 2:
        return None
    return ".".join(parts[:-1])


def _unique(name: str, taken: set[str]) -> str:
    """``name``, numbered if it is taken; what is returned counts as taken."""
    count, candidate = 1, name
    while candidate in taken:
        count, candidate = count + 1, f"{name}.{count + 1}"
    taken.add(candidate)
    return candidate
