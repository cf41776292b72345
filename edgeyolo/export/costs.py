"""What a stage costs: bytes to ship and multiply-accumulates, by one definition for every stage.

MACs are those of convolutions and Gemms, and one per element of a batch normalisation. Other operators multiply little
or nothing and are not counted.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeyolo.lower.blob_index import BlobForm, plan_blobs
from edgeyolo.lower.seed_v1 import SEED_V1, SEED_V1_BITS, seed_files
from edgeyolo.ort import open_session, run
from edgeyolo.passes.graph import constant, read_detector
from edgeyolo.profile import TargetProfile
from edgeyolo.program import Conv, IntegerProgram
from edgeyolo.quant.calibrate import to_float, with_outputs
from edgeyolo.quant.mixed import BIAS_BYTES
from edgeyolo.quant.plan import Plan

COUNTED = ("Conv", "Gemm", "BatchNormalization")


def graph_macs(model: ir.Model) -> int:
    """MACs of one inference of an ONNX graph on one picture; executes it once, because not all shapes are recorded."""
    nodes = [node for node in model.graph if node.op_type in COUNTED]
    names = [str(node.outputs[0].name) for node in nodes]
    detector = read_detector(model)
    shape = (detector.preprocess.channels, detector.preprocess.height, detector.preprocess.width)
    session = open_session(with_outputs(model, names), optimise=False)
    values = run(session, to_float(np.zeros(shape, np.uint8), detector))
    return sum(_node_macs(node, values[name].shape[1:]) for node, name in zip(nodes, names, strict=True))


def _node_macs(node: ir.Node, output: tuple[int, ...]) -> int:
    """MACs of one node with an ``output`` of (C, H, W) or, of a Gemm, (C,)."""
    if node.op_type == "BatchNormalization":
        return prod(output)
    weight = constant(node.inputs[1])
    # A Gemm's weights act once, a convolution's at every position.
    return 0 if weight is None else weight.size * prod(output[1:])


def constant_bytes(model: ir.Model) -> int:
    """Bytes of a graph's constants as an engine holds them: what is quantised counts one byte an element."""
    total = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        quantised = any(use.node.op_type == "QuantizeLinear" and use.idx == 0 for use in value.uses())
        total += 0 if tensor is None else tensor.size if quantised else tensor.nbytes
    return total


def program_macs(program: IntegerProgram) -> int:
    """MACs of one inference of an integer program."""
    convs = [op for op in program.ops if isinstance(op, Conv)]
    return sum(op.weight.size * prod(program.tensors[op.output].shape[1:]) for op in convs)


def plan_bytes(plan: Plan) -> int:
    """Bytes of all weights packed at their bits, and of 32 bit biases."""
    return sum(
        (weight.codes.size * weight.quant.qtype.bits + 7) // 8 + BIAS_BYTES * weight.codes.shape[0]
        for weight in plan.weights.values()
    )


def blob_bytes(program: IntegerProgram, profile: TargetProfile, layout: str, name: str) -> int:
    """Bytes of the weight images that the bundle ships: weights, biases, shifts and tables in the board's layout."""
    if layout == SEED_V1:
        files = seed_files(program, stem=Path(name).stem, bits=SEED_V1_BITS)
        return sum(len(content) for content in files.contents.values())
    return sum(plan_blobs(program, BlobForm.of(profile, layout, ("bin",))).image_bytes)
