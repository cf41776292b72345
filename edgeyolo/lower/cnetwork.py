"""The body of ``network.h``: tensors, operations, parameters and detector facts as C tables.

Every operation is a row of ``edgeyolo_net_ops``; its parameters stand in the table of its kind at row ``params``. Real
numbers are integers here: lengths and factors in thousandths, the input scale in billionths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from edgeyolo.detector import HEAD_KINDS, RESIZES
from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.lower.blob_index import BlobIndex
from edgeyolo.program import (
    MAX_INPUTS,
    Add,
    Concat,
    Conv,
    IntegerProgram,
    Lookup,
    MaxPool,
    Op,
    Pair,
    Slice,
    Upsample,
    op_inputs,
)

KINDS = tuple(kind.__name__.upper() for kind in get_args(Op))
MAX_NAME = 200

_TYPES = f"""\
typedef struct {{ /* value = code * 2^-frac; (channels, height, width), row-major at byte offset of the arena */
  int32_t channels, height, width, bits, is_signed, frac;
  uint32_t offset, bytes;
}} edgeyolo_net_tensor;
typedef struct {{ /* inputs beyond input_count are -1; params is the row in the table of this kind, or -1 */
  int32_t kind, params, output, input_count, inputs[{MAX_INPUTS}];
}} edgeyolo_net_op;
typedef struct {{ /* offsets are bytes in the images; slope of negative values: slope_num / 2^slope_log2, 1 is linear */
  int32_t op, out_channels, in_channels_per_group, kernel[2], strides[2], pads[4], dilations[2], groups;
  int32_t slope_num, slope_log2, lo, hi, weight_bits, tiles[2];
  uint32_t weight_offset, weight_bytes, bias_offset, shift_offset;
}} edgeyolo_net_conv; /* pads: top, left, bottom, right */
typedef struct {{ int32_t kernel[2], strides[2], pads[4]; }} edgeyolo_net_maxpool;
typedef struct {{ int32_t scale[2]; }} edgeyolo_net_upsample; /* vertical, horizontal */
typedef struct {{ int32_t shifts[{MAX_INPUTS}], lo, hi; }} edgeyolo_net_concat;
typedef struct {{ int32_t aligns[2], shift, slope_num, slope_log2, lo, hi; }} edgeyolo_net_add;
typedef struct {{ int32_t start[3], step[3]; }} edgeyolo_net_slice; /* channel, row, column */
typedef struct {{ int32_t op, entries, lowest; uint32_t table_offset; }} edgeyolo_net_lookup;
typedef struct {{ /* anchors: rows of edgeyolo_net_anchors; milli: thousandths */
  int32_t output, kind, stride_x_milli, stride_y_milli, first_anchor, anchor_count, classes, scale_x_y_milli;
  int32_t new_coords, softmax;
}} edgeyolo_net_head;"""


def comment_text(text: str) -> str:
    """Make a name from a model safe inside a C comment: no end of comment, line or escape can survive."""
    return re.sub(r"[^A-Za-z0-9_.: -]", "_", text)[:120]


def _braces(values: Iterable[Any]) -> str:
    """Nested tuples as a C initialiser."""
    return "{" + ", ".join(_braces(v) if isinstance(v, tuple | list) else str(v) for v in values) + "}"


def _rows(
    ctype: str, name: str, rows: Sequence[Iterable[Any]], columns: str = "", remarks: Iterable[str] = ()
) -> list[str]:
    """Define a count and, since C has no empty arrays, a table only if there are rows; ``remarks`` comment them."""
    lines = [f"#define EDGEYOLO_NET_{name.upper()} {len(rows)}"]
    if rows:
        lines.append(f"static const {ctype} edgeyolo_net_{name}[{len(rows)}]{columns} = {{")
        comments = [f" /* {comment_text(remark)} */" for remark in remarks] or [""] * len(rows)
        lines += [f" {_braces(row)},{comment}" for row, comment in zip(rows, comments, strict=True)]
        lines.append("};")
    return lines


def _slope(leaky: Pair | None) -> Pair:
    return (1, 0) if leaky is None else leaky


def _padded(values: Iterable[int], filler: int) -> tuple[int, ...]:
    row = tuple(values)
    if len(row) > MAX_INPUTS:
        raise UnsupportedError("an operation has too many inputs for network.h", got=len(row), allowed=MAX_INPUTS)
    return row + (filler,) * (MAX_INPUTS - len(row))


def _conv_row(op: Conv, index: BlobIndex, number: int) -> tuple[Any, ...]:
    blob = next(blob for blob in index.convs if blob.op == number)
    geometry = (blob.shape[2:], op.strides, op.pads, op.dilations, op.groups)
    offsets = (blob.weights.offset, blob.weights.nbytes, blob.bias.offset, blob.shift.offset)
    return (
        number,
        blob.shape[0],
        blob.shape[1],
        *geometry,
        *_slope(op.leaky),
        op.lo,
        op.hi,
        blob.bits,
        blob.tiles,
        *(f"{v}u" for v in offsets),
    )


def _params(op: Op, number: int, program: IntegerProgram, index: BlobIndex) -> tuple[Any, ...] | None:
    """Build the row of ``op`` in the table of its kind; None if the kind has no parameters."""
    if isinstance(op, Conv):
        return _conv_row(op, index, number)
    if isinstance(op, MaxPool):
        return (op.kernel, op.strides, op.pads)
    if isinstance(op, Upsample):
        return (op.scale,)
    if isinstance(op, Concat):
        return (_padded(op.shifts, 0), op.lo, op.hi)
    if isinstance(op, Add):
        return (op.aligns, op.shift, *_slope(op.leaky), op.lo, op.hi)
    if isinstance(op, Slice):
        return (op.start, op.step)
    if isinstance(op, Lookup):
        entry = next(entry for entry in index.tables if entry.op == number)
        return (number, entry.entries, program.tensors[op.input].qtype.lo, f"{entry.table.offset}u")
    return None


def _op_lines(program: IntegerProgram, index: BlobIndex) -> list[str]:
    """List the operations and, kind by kind, their parameters."""
    tables: dict[str, list[tuple[Any, ...]]] = {kind: [] for kind in KINDS if kind != "RESHAPE"}
    rows: list[tuple[Any, ...]] = []
    for number, op in enumerate(program.ops):
        kind = type(op).__name__.upper()
        params = _params(op, number, program, index)
        inputs = op_inputs(op)
        row = len(tables[kind]) if params is not None else -1
        rows.append((f"EDGEYOLO_NET_{kind}", row, op.output, len(inputs), _padded(inputs, -1)))
        if params is not None:
            tables[kind].append(params)
    lines = [f"#define EDGEYOLO_NET_{kind} {i}" for i, kind in enumerate(KINDS)]
    lines += _rows("edgeyolo_net_op", "ops", rows, remarks=[op.name for op in program.ops])
    for kind, params_rows in tables.items():
        lines += _rows(f"edgeyolo_net_{kind.lower()}", f"{kind.lower()}s", params_rows)
    return lines


def _milli(value: float, what: str) -> int:
    number = round(value * 1000)
    if abs(number) >= 1 << 31:
        raise UnsupportedError("a detector constant does not fit 32 bits", where=what, got=value)
    return number


def _choice(value: str, allowed: tuple[str, ...], what: str) -> int:
    if value not in allowed:
        raise UnsupportedError(f"{what} is unknown to network.h", got=value, allowed=", ".join(allowed))
    return allowed.index(value)


def _c_string(text: str) -> str:
    """Quote a C string; everything but plain characters becomes three-digit octal escapes of its UTF-8."""
    safe = re.compile(r"[A-Za-z0-9 _.,+-]")
    text = text[:MAX_NAME]
    return (
        '"'
        + "".join(c if safe.match(c) else "".join(f"\\{b:03o}" for b in c.encode("utf-8", "replace")) for c in text)
        + '"'
    )


def _detector_lines(program: IntegerProgram) -> list[str]:
    """Input contract, heads, anchors and class names; empty counts where the program has no detector."""
    detector = program.detector
    if detector is None:
        return ["#define EDGEYOLO_NET_HEADS 0", "#define EDGEYOLO_NET_ANCHORS 0", "#define EDGEYOLO_NET_NAMES 0"]
    if detector.heads and len(detector.heads) != len(program.outputs):
        raise InputError(
            "the detector does not describe the program's outputs",
            got=f"{len(detector.heads)} heads, {len(program.outputs)} outputs",
        )
    pre = detector.preprocess
    anchors: list[tuple[int, int]] = []
    heads: list[tuple[int, ...]] = []
    for head, output in zip(detector.heads, program.outputs, strict=bool(detector.heads)):
        kind = _choice(head.kind, HEAD_KINDS, "kind of head")
        stride = (_milli(head.stride[0], head.output), _milli(head.stride[1], head.output))
        first = (len(anchors), len(head.anchors))
        scale = _milli(head.scale_x_y, head.output)
        heads.append((output, kind, *stride, *first, head.classes, scale, int(head.new_coords), int(head.softmax)))
        anchors += [(_milli(w, head.output), _milli(h, head.output)) for w, h in head.anchors]
    return [
        f"#define EDGEYOLO_NET_INPUT_WIDTH {pre.width}",
        f"#define EDGEYOLO_NET_INPUT_HEIGHT {pre.height}",
        f"#define EDGEYOLO_NET_INPUT_CHANNELS {pre.channels}",
        f"#define EDGEYOLO_NET_RESIZE {_choice(pre.resize, RESIZES, 'way to resize')} /* 0 stretch, 1 letterbox */",
        f"#define EDGEYOLO_NET_FILL {pre.fill}",
        f"#define EDGEYOLO_NET_INPUT_SCALE_NANO {round(pre.scale * 1e9)} /* x = pixel * this / 10^9 */",
        "/* head kinds: " + ", ".join(f"{i} {kind}" for i, kind in enumerate(HEAD_KINDS)) + " */",
        *_rows("edgeyolo_net_head", "heads", heads),
        "/* width, height in thousandths of a network pixel */",
        *_rows("int32_t", "anchors", anchors, "[2]"),
        *_names(detector.names),
    ]


def _names(names: Sequence[str]) -> list[str]:
    lines = [f"#define EDGEYOLO_NET_NAMES {len(names)}"]
    if names:
        lines.append(f"static const char *const edgeyolo_net_names[{len(names)}] = {{")
        lines += [f" {_c_string(name)}," for name in names]
        lines.append("};")
    return lines


def network_body(program: IntegerProgram, index: BlobIndex) -> list[str]:
    """Lines of ``network.h`` between its include and the end of its guard."""
    tensors = [
        (*t.shape, t.qtype.bits, int(t.qtype.signed), t.frac, f"{t.offset}u", f"{t.nbytes}u") for t in program.tensors
    ]
    sizes = zip(("WEIGHTS", "BIAS", "SHIFT", "TABLE"), index.image_bytes, strict=True)
    return [
        f"/* Weights in layout {index.form.layout}; sections are aligned to {index.form.alignment} bytes. */",
        *_TYPES.splitlines(),
        f"#define EDGEYOLO_NET_ARENA_BYTES {program.arena_bytes}u",
        f"#define EDGEYOLO_NET_TM {index.form.tm}",
        f"#define EDGEYOLO_NET_TN {index.form.tn}",
        *(f"#define EDGEYOLO_NET_{name}_IMAGE_BYTES {size}u" for name, size in sizes),
        *_rows("edgeyolo_net_tensor", "tensors", tensors, remarks=[t.name for t in program.tensors]),
        f"#define EDGEYOLO_NET_INPUT {program.input}",
        f"#define EDGEYOLO_NET_OUTPUTS {len(program.outputs)}",
        f"static const int32_t edgeyolo_net_outputs[{len(program.outputs)}] = {_braces(program.outputs)};",
        *_op_lines(program, index),
        *_detector_lines(program),
    ]
