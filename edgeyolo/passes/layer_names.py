"""Give nodes and values the names a person would use.

``layers.17.conv`` stands for the exporter's ``/layers.17/conv/Conv_output_0``. A value is called after the module that
computes it, with a number behind it only where that is not unique. Graph inputs, outputs and initializers keep their
names.
"""

from __future__ import annotations

import onnx_ir as ir


class LayerNames(ir.passes.InPlacePass):
    """Rename what the TorchScript exporter named after module paths."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename in place."""
        fixed = {str(v.name) for v in (*model.graph.inputs, *model.graph.outputs)}
        values = fixed | set(model.graph.initializers)
        nodes: set[str] = set()
        modified = False
        for node in model.graph:
            base = _short(node)
            if base is None:
                nodes.add(str(node.name))
                continue
            node.name = _unique(base, nodes)
            for index, value in enumerate(node.outputs):
                if str(value.name) not in fixed:
                    value.name = _unique(node.name if index == 0 else f"{node.name}.{index}", values)
            modified = True
        return ir.passes.PassResult(model, modified=modified)


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
