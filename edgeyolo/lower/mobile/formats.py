"""The same integers as signed or unsigned bytes: which kernels run, and whether they saturate, depends on that alone.

    S8S8    int8 activations, int8 weights     ARM with dot products
    U8S8    uint8 activations, int8 weights    x86 with VNNI
    U8U8    uint8 activations, uint8 weights   x86 without VNNI: U8S8 kernels add two products in 16 bits, and saturate

Unsigned codes are the signed ones plus 128, zero points too, so all three compute the same; but for LeakyRelu, which
leaky.py writes in another way for unsigned ones, a code in thousands may be rounded the other way. On x86 ONNX
Runtime has no kernels for int8 activations: it makes some of them unsigned when it loads S8S8, and the layers between
stay float.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeyolo.errors import InputError
from edgeyolo.lower.mobile.leaky import split_leaky
from edgeyolo.passes.graph import constant, drop_unused, new_initializer
from edgeyolo.quant.calibrate import copy_model

FORMATS = ("S8S8", "U8S8", "U8U8")


def encode(model: ir.Model, form: str) -> ir.Model:
    """Return a copy of a quantised ``model`` whose activations and weights are signed or unsigned as ``form`` says.

    Raises InputError if ``form`` is none of FORMATS.
    """
    if form not in FORMATS:
        raise InputError("unknown integer format", got=form, allowed=", ".join(FORMATS))
    copy = copy_model(model)
    activations, weights = (np.dtype(np.int8 if letter == "S" else np.uint8) for letter in form[::2])
    made: dict[tuple[ir.Value, np.dtype[np.generic]], ir.Value] = {}

    def recode(node: ir.Node, index: int, dtype: np.dtype[np.generic]) -> None:
        value = node.inputs[index]
        array = constant(value)
        if value is None or array is None or array.dtype == dtype or array.dtype not in (np.int8, np.uint8):
            return
        if (value, dtype) not in made:
            codes = (array.view(np.uint8) ^ 0x80).view(dtype)
            made[value, dtype] = new_initializer(copy.graph, f"{value.name}.{dtype.kind}8", codes)
        node.replace_input_with(index, made[value, dtype])

    for node in copy.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            dtype = activations if constant(node.inputs[0]) is None else weights
            for index in range(0, len(node.inputs), 2):  # codes and zero point; those of a bias stay
                recode(node, index, dtype)
            if node.op_type == "QuantizeLinear":
                node.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(dtype))
        if node.op_type == "Clip" and len(node.inputs) == 2:  # of codes, from split_leaky
            recode(node, 1, activations)
    drop_unused(copy)
    if activations == np.uint8:
        split_leaky(copy)
    return copy


def form_of(model: ir.Model) -> str | None:
    """Which of FORMATS the weights and activations of a quantised ``model`` have; None for a float one."""
    found = {True: "", False: ""}  # of weights, of activations
    for node in model.graph:
        zero = constant(node.inputs[2]) if node.op_type == "DequantizeLinear" and len(node.inputs) > 2 else None
        if zero is not None and zero.dtype != np.int32:  # as that of a bias is
            found[constant(node.inputs[0]) is not None] = "S8" if zero.dtype == np.int8 else "U8"
    form = found[False] + found[True]
    return form if form in FORMATS else None
