"""C headers: they compile as C99 and C++ without a warning, and the numbers in them are the program's."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_programs import SHA, conv, small_program

from edgeyolo import __version__
from edgeyolo.detector import Head
from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.lower.blob_index import BlobIndex
from edgeyolo.lower.blobs import write_blobs
from edgeyolo.lower.ctables import header_files
from edgeyolo.profile import load_profile
from edgeyolo.program import Conv, IntegerProgram
from edgeyolo.qtype import round_shift

STRICT = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-pedantic"]
CC = shutil.which("cc") or shutil.which("gcc")
CXX = shutil.which("c++") or shutil.which("g++")
needs_cc = pytest.mark.skipif(CC is None, reason="no C compiler")


def _generate(folder: Path, program: IntegerProgram, layout: str = "tiled") -> BlobIndex:
    profile = replace(load_profile("fpga"), tm=2, tn=2, accumulator_bits=40)
    return write_blobs(program, folder, layout=layout, profile=profile, formats=("bin", "h"), source_sha256=SHA)


def _run(folder: Path, source: str, compiler: list[str], suffix: str = "c") -> list[str]:
    """Compile ``source`` against the headers, run it, and give its lines of output."""
    path = folder / f"main.{suffix}"
    path.write_text(source)
    command = [*compiler, *STRICT, "-I", str(folder / "headers"), str(path), "-o", str(folder / "main")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return subprocess.run([folder / "main"], capture_output=True, text=True, check=True).stdout.splitlines()


def _includes(folder: Path) -> str:
    names = sorted(p.name for p in (folder / "headers").iterdir())
    # Twice: the guards must hold.
    return "".join(f'#include "{name}"\n' for name in names * 2) + "#include <stdio.h>\n"


CHECKSUMS = r"""
static uint32_t fnv;
static void byte(uint32_t b) { fnv = (fnv ^ (b & 255u)) * 16777619u; }
static void word(int32_t v) { uint32_t u = (uint32_t)v; byte(u); byte(u >> 8); byte(u >> 16); byte(u >> 24); }
"""


def _fnv(data: bytes) -> int:
    value = 0
    for b in data:
        value = ((value ^ b) * 16777619) & 0xFFFFFFFF
    return value


def _checksum_program(folder: Path, index: BlobIndex) -> str:
    lines = [_includes(folder), CHECKSUMS, "int main(void) { unsigned i;"]
    for blob in index.convs:
        name = f"edgeyolo_layer_{blob.op:03d}"
        for table, call in (("weight", "byte((uint32_t)"), ("bias", "word("), ("shift", "byte((uint32_t)")):
            size = f"sizeof {name}_{table} / sizeof {name}_{table}[0]"
            lines.append(f"fnv = 0; for (i = 0; i < {size}; i++) {call}{name}_{table}[i]);")
            lines.append('printf("%lu\\n", (unsigned long)fnv);')
        lines.append(f'printf("%d\\n", (int){name}_weight_frac[{blob.shape[0] - 1}]);')
    for entry in index.tables:
        name = f"edgeyolo_layer_{entry.op:03d}_table"
        lines.append(f"fnv = 0; for (i = 0; i < sizeof {name} / sizeof {name}[0]; i++) {{")
        lines.append(f"byte((uint32_t){name}[i]); byte((uint32_t){name}[i] >> 8); }}")
        lines.append('printf("%lu\\n", (unsigned long)fnv);')
    return "\n".join([*lines, "return 0; }"])


@pytest.mark.parametrize("language", ["c99", "c++11"])
def test_tables_hold_the_bytes_of_the_images(tmp_path: Path, language: str) -> None:
    compiler = CC if language == "c99" else CXX
    if compiler is None:
        pytest.skip(f"no compiler for {language}")
    program = small_program()
    op = program.ops[0]
    assert isinstance(op, Conv)
    op.bias[:2] = -(1 << 31), (1 << 31) - 1
    index = _generate(tmp_path, program)
    source = _checksum_program(tmp_path, index)
    found = _run(tmp_path, source, [compiler, f"-std={language}"], "c" if language == "c99" else "cc")
    images = {name: (tmp_path / f"{name}.bin").read_bytes() for name in ("weights", "bias", "shift", "table")}
    expected: list[int] = []
    for blob in index.convs:
        sections = (("weights", blob.weights), ("bias", blob.bias), ("shift", blob.shift))
        expected += [_fnv(images[name][s.offset : s.offset + s.nbytes]) for name, s in sections]
        expected.append(blob.weight_frac[-1])
    expected += [_fnv(images["table"][t.table.offset : t.table.offset + t.table.nbytes]) for t in index.tables]
    assert [int(line) for line in found] == expected


# Everything but the input comes from the headers: sizes, padding, slope, bounds, packing, biases, shifts.
CONV_IN_C = r"""
static int32_t code(const uint8_t *data, long index, int bits) {
  int32_t value = 0;
  for (int k = 0; k < bits; k++) {
    long at = index * bits + k;
    value |= (int32_t)((data[at / 8] >> (at % 8)) & 1) << k;
  }
  return value >> (bits - 1) ? value - (1 << bits) : value;
}
static long place(const edgeyolo_net_conv *p, int o, int i, int y, int x) {
  const int kh = p->kernel[0], kw = p->kernel[1], inputs = p->in_channels_per_group;
  if (LAYOUT == 0) return ((long)(o * inputs + i) * kh + y) * kw + x;
  if (LAYOUT == 1) return ((long)(o * kh + y) * kw + x) * inputs + i;
  const int tm = EDGEYOLO_NET_TM, tn = EDGEYOLO_NET_TN;
  const long tile = (long)(o / tm) * p->tiles[1] + i / tn;
  return ((tile * kh * kw + y * kw + x) * tm + o % tm) * tn + i % tn;
}
static int64_t round_shift(int64_t v, int shift) {
  if (shift <= 0) return v * ((int64_t)1 << -shift);
  const int64_t one = (int64_t)1 << shift, half = one / 2;
  int64_t q = v / one, r = v % one;
  if (r < 0) { r += one; q -= 1; }
  return r > half || (r == half && (q & 1)) ? q + 1 : q;
}
int main(void) {
  const edgeyolo_net_op *op = &edgeyolo_net_ops[OP];
  const edgeyolo_net_conv *p = &edgeyolo_net_convs[op->params];
  const edgeyolo_net_tensor *in = &edgeyolo_net_tensors[op->inputs[0]], *out = &edgeyolo_net_tensors[op->output];
  const int group_out = p->out_channels / p->groups;
  if (op->kind != EDGEYOLO_NET_CONV || p->op != OP || op->input_count != 1) return 1;
  for (int o = 0; o < out->channels; o++)
    for (int y = 0; y < out->height; y++)
      for (int x = 0; x < out->width; x++) {
        int64_t acc = BIAS[o];
        for (int i = 0; i < p->in_channels_per_group; i++)
          for (int ky = 0; ky < p->kernel[0]; ky++)
            for (int kx = 0; kx < p->kernel[1]; kx++) {
              const int sy = y * p->strides[0] - p->pads[0] + ky * p->dilations[0];
              const int sx = x * p->strides[1] - p->pads[1] + kx * p->dilations[1];
              if (sy < 0 || sx < 0 || sy >= in->height || sx >= in->width) continue;
              const int channel = o / group_out * p->in_channels_per_group + i;
              acc += (int64_t)input[(channel * in->height + sy) * in->width + sx] *
                     code(WEIGHT, place(p, o, i, ky, kx), p->weight_bits);
            }
        int shift = SHIFT[o];
        if (acc < 0) { acc *= p->slope_num; shift += p->slope_log2; }
        int64_t v = round_shift(acc, shift);
        if (v < p->lo) v = p->lo;
        if (v > p->hi) v = p->hi;
        printf("%ld\n", (long)v);
      }
  return 0;
}
"""


def _reference(op: Conv, x: np.ndarray) -> np.ndarray:
    """The convolution in int64 numpy, written from docs/fixed-point.md, strides 1 and dilations 1."""
    _, height, width = x.shape
    out, per_group, kh, kw = op.weight.shape
    top, left, bottom, right = op.pads
    padded = np.pad(x.astype(np.int64), ((0, 0), (top, bottom), (left, right)))
    acc = np.zeros((out, height, width), np.int64) + op.bias[:, None, None]
    for o in range(out):
        first = o // (out // op.groups) * per_group
        for i in range(per_group):
            for ky in range(kh):
                for kx in range(kw):
                    window = padded[first + i, ky : ky + height, kx : kx + width]
                    acc[o] += window * int(op.weight[o, i, ky, kx])
    num, log2 = (1, 0) if op.leaky is None else op.leaky
    shift = np.broadcast_to(op.shift.astype(np.int64)[:, None, None], acc.shape)
    signed = np.where(acc < 0, acc * num, acc << log2)
    return np.clip(round_shift(signed, shift + log2), op.lo, op.hi)


@needs_cc
@pytest.mark.parametrize(
    ("number", "layout", "bits"),
    [(0, "tiled", 4), (0, "ohwi", 3), (0, "oihw", 8), (1, "tiled", 4), (4, "tiled", 5), (4, "oihw", 2)],
)
def test_a_convolution_computed_from_the_headers_alone_is_exact(
    tmp_path: Path, number: int, layout: str, bits: int
) -> None:
    program = small_program(bits)
    op = program.ops[number]
    assert isinstance(op, Conv)
    index = _generate(tmp_path, program, layout)
    source = program.tensors[op.input]
    x = np.random.default_rng(bits).integers(source.qtype.lo, source.qtype.hi + 1, source.shape)
    name = f"edgeyolo_layer_{number:03d}"
    numbers = ", ".join(map(str, x.ravel()))
    head = [
        _includes(tmp_path),
        f"#define OP {number}",
        f"#define LAYOUT {('oihw', 'ohwi', 'tiled').index(layout)}",
        *(f"#define {table.upper()} {name}_{table}" for table in ("weight", "bias", "shift")),
        f"static const int input[] = {{{numbers}}};",
    ]
    found = np.array(_run(tmp_path, "\n".join([*head, CONV_IN_C]), [str(CC), "-std=c99"]), np.int64)
    expected = _reference(op, x)
    assert len(np.unique(expected)) > 10  # not all saturated or zero
    assert np.array_equal(found.reshape(expected.shape), expected)
    assert index.form.layout == layout


PRINT_NETWORK = r"""
int main(void) {
  const edgeyolo_net_head *head = &edgeyolo_net_heads[0];
  for (int i = 0; i < EDGEYOLO_NET_TENSORS; i++) {
    const edgeyolo_net_tensor *t = &edgeyolo_net_tensors[i];
    printf("tensor %d %d %d %d %d %d %lu %lu\n", (int)t->channels, (int)t->height, (int)t->width, (int)t->bits,
           (int)t->is_signed, (int)t->frac, (unsigned long)t->offset, (unsigned long)t->bytes);
  }
  for (int i = 0; i < EDGEYOLO_NET_OPS; i++) {
    const edgeyolo_net_op *op = &edgeyolo_net_ops[i];
    printf("op %d %d", (int)op->kind, (int)op->output);
    for (int k = 0; k < op->input_count; k++) printf(" %d", (int)op->inputs[k]);
    printf("\n");
  }
  printf("add %d %d %d\n", (int)edgeyolo_net_adds[0].aligns[1], (int)edgeyolo_net_adds[0].shift,
         (int)edgeyolo_net_adds[0].slope_num);
  printf("pool %d %d\n", (int)edgeyolo_net_maxpools[0].kernel[0], (int)edgeyolo_net_maxpools[0].strides[1]);
  printf("up %d slice %d\n", (int)edgeyolo_net_upsamples[0].scale[1], (int)edgeyolo_net_slices[0].step[0]);
  printf("concat %d %d\n", (int)edgeyolo_net_concats[0].lo, (int)edgeyolo_net_concats[0].hi);
  printf("lookup %d %d\n", (int)edgeyolo_net_lookups[0].entries, (int)edgeyolo_net_lookups[0].lowest);
  printf("ends %d %d %d\n", EDGEYOLO_NET_INPUT, (int)edgeyolo_net_outputs[0], (int)edgeyolo_net_outputs[1]);
  printf("head %d %d %d %d %d %d\n", (int)head->output, (int)head->kind, (int)head->stride_x_milli,
         (int)head->anchor_count, (int)head->classes, (int)head->scale_x_y_milli);
  printf("head1 %d\n", (int)edgeyolo_net_heads[1].kind);
  printf("anchor %d %d\n", (int)edgeyolo_net_anchors[1][0], (int)edgeyolo_net_anchors[1][1]);
  printf("scale %d resize %d\n", EDGEYOLO_NET_INPUT_SCALE_NANO, EDGEYOLO_NET_RESIZE);
  for (int i = 0; i < EDGEYOLO_NET_NAMES; i++) printf("name %s\n", edgeyolo_net_names[i]);
  return 0;
}
"""


@needs_cc
def test_network_header_states_the_whole_topology(tmp_path: Path) -> None:
    program = small_program()
    _generate(tmp_path, program)
    found = _run(tmp_path, _includes(tmp_path) + PRINT_NETWORK, [str(CC), "-std=c99"])
    tensors = [
        f"tensor {t.shape[0]} {t.shape[1]} {t.shape[2]} {t.qtype.bits} {int(t.qtype.signed)} {t.frac} {t.offset} "
        f"{t.nbytes}"
        for t in program.tensors
    ]
    assert found[:11] == tensors
    # Kinds: 0 Conv 1 MaxPool 2 Upsample 3 Concat 4 Add 5 Slice 6 Reshape 7 Lookup; then output and inputs.
    ops = ["0 1 0", "0 2 1", "4 3 1 2", "3 4 1 3", "0 5 4", "7 6 5", "1 7 6", "2 8 7", "5 9 8", "6 10 9"]
    assert found[11:21] == [f"op {op}" for op in ops]
    assert found[21:] == [
        "add 1 1 1",
        "pool 2 2",
        "up 2 slice 2",
        "concat -128 127",
        "lookup 256 -128",
        "ends 0 5 10",
        "head 5 0 8000 2 3 1050",
        "head1 3",
        "anchor 23000 27250",
        "scale 3906250 resize 1",
        "name person",
        'name a "quoted" \\ name??/',
        "name Hund",
    ]


def test_first_line_names_generator_and_source(tmp_path: Path) -> None:
    _generate(tmp_path, small_program())
    headers = sorted((tmp_path / "headers").iterdir())
    expected = ["layer_000.h", "layer_001.h", "layer_004.h", "layer_005.h", "network.h"]
    assert [h.name for h in headers] == expected
    for header in headers:
        text = header.read_text()
        assert text.startswith(f"/* edgeyolo {__version__} source sha256 {SHA} */\n")
        names = re.findall(r"^static const .*?(\w+)\[", text, re.MULTILINE)
        assert names
        assert all(name.startswith("edgeyolo_") for name in names)
        macros = re.findall(r"^#define (\w+)", text, re.MULTILINE)
        assert all(macro.startswith("EDGEYOLO_") for macro in macros)


def test_a_hostile_layer_name_stays_inside_its_comment(tmp_path: Path) -> None:
    """The name of operation 4 tries to end the comment, to start a line and to escape one."""
    _generate(tmp_path, small_program())
    for name in ("layer_004.h", "network.h"):
        text = (tmp_path / "headers" / name).read_text()
        assert "__ point_wise _" in text
        assert "wise \\" not in text
        assert text.count("*/") == text.count("/*")


@needs_cc
def test_a_program_without_detector_or_other_kinds_compiles(tmp_path: Path) -> None:
    small = small_program()
    program = replace(small, ops=small.ops[:1], outputs=(1,), detector=None)
    _generate(tmp_path, program, "oihw")
    main = "int main(void) { return EDGEYOLO_NET_HEADS + EDGEYOLO_NET_ADDS + (EDGEYOLO_NET_OPS != 1); }"
    assert _run(tmp_path, _includes(tmp_path) + main, [str(CC), "-std=c99"]) == []


def test_what_the_headers_cannot_say_is_refused(tmp_path: Path) -> None:
    small = small_program()
    assert small.detector is not None
    with pytest.raises(InputError, match="not a sha256"):
        header_files(small, _generate(tmp_path, small), {}, "deadbeef")
    with pytest.raises(InputError, match="1 heads, 2 outputs"):
        _generate(tmp_path, replace(small, detector=replace(small.detector, heads=small.detector.heads[:1])))
    alien = (Head("a", "yolo_v99"), Head("b"))
    with pytest.raises(UnsupportedError, match="yolo_v99"):
        _generate(tmp_path, replace(small, detector=replace(small.detector, heads=alien)))
    wide = replace(conv("wide", (0, 1), (5, 3, 3, 3)), weight_frac=np.full(5, 40_000, np.int32))
    with pytest.raises(UnsupportedError, match="int16"):
        _generate(tmp_path, replace(small, ops=(wide, *small.ops[1:])))
