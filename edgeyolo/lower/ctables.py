"""C headers of constants: ``layer_NNN.h`` for every operation that has constants and ``network.h`` for everything else.

Tables only, never code: C99 that is also C++, complete enough to compute the whole network from. NNN is the operation's
index, all identifiers begin with ``edgeyolo_`` or ``EDGEYOLO_``, and every table is ``static const``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from edgeyolo import __version__
from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.lower.blob_index import BlobIndex, ConvBlob, Section, TableBlob
from edgeyolo.lower.cnetwork import comment_text, network_body
from edgeyolo.program import Conv, IntegerProgram, Lookup

_PER_LINE = 24


def _table(ctype: str, name: str, values: Sequence[int]) -> Iterable[str]:
    """Lines of one constant array."""
    # INT32_MIN has no literal of its own in C: 2147483648 is a positive number that does not fit.
    texts = ["(-2147483647 - 1)" if v == -(1 << 31) else str(v) for v in values]
    yield f"static const {ctype} {name}[{len(values)}] = {{"
    for start in range(0, len(texts), _PER_LINE):
        yield " " + ", ".join(texts[start : start + _PER_LINE]) + ","
    yield "};"


def _small(values: Iterable[int], what: str) -> list[int]:
    found = [int(v) for v in values]
    if not all(-(1 << 15) <= v < 1 << 15 for v in found):
        raise UnsupportedError("a number does not fit the header's int16", where=what, got=max(found, key=abs))
    return found


def _bytes_of(image: bytes, section: Section) -> bytes:
    return image[section.offset : section.offset + section.nbytes]


def conv_header(op: Conv, blob: ConvBlob, index: BlobIndex, weights: bytes) -> list[str]:
    """Lines of one convolution's header; ``weights`` is the weights image."""
    symbol = f"layer_{blob.op:03d}"
    macro, name = f"EDGEYOLO_{symbol.upper()}", f"edgeyolo_{symbol}"
    form = index.form
    tiles = f", tm {form.tm}, tn {form.tn}" if form.layout == "tiled" else ""
    o, i, kh, kw = blob.shape
    return [
        f"/* Operation {blob.op}, convolution {comment_text(op.name)}: weights of {blob.bits} bits in layout "
        f"{form.layout}{tiles},",
        "   packed as in the weights image: element i in bits [i*bits, (i+1)*bits), bit k in byte k/8 at k%8. */",
        f"#define {macro}_OUT {o}",
        f"#define {macro}_IN {i}",
        f"#define {macro}_KERNEL_H {kh}",
        f"#define {macro}_KERNEL_W {kw}",
        f"#define {macro}_BITS {blob.bits}",
        f"#define {macro}_WEIGHT_BYTES {blob.weights.nbytes}",
        *_table("uint8_t", f"{name}_weight", list(_bytes_of(weights, blob.weights))),
        "/* At the accumulator's scale, 2^-(input fraction bits + weight fraction bits). */",
        *_table("int32_t", f"{name}_bias", op.bias.tolist()),
        "/* The accumulator is divided by 2^shift, rounding half to even. */",
        *_table("int8_t", f"{name}_shift", op.shift.tolist()),
        "/* weight = code * 2^-frac */",
        *_table("int16_t", f"{name}_weight_frac", _small(op.weight_frac, op.name)),
    ]


def lookup_header(op: Lookup, entry: TableBlob, lowest: int) -> list[str]:
    """Lines of one lookup table's header; ``lowest`` is the input code of entry 0."""
    symbol = f"layer_{entry.op:03d}"
    return [
        f"/* Operation {entry.op}, table {comment_text(op.name)}: y = table[x - ({lowest})]. */",
        f"#define EDGEYOLO_{symbol.upper()}_ENTRIES {entry.entries}",
        f"#define EDGEYOLO_{symbol.upper()}_LOWEST ({lowest})",
        *_table("int16_t", f"edgeyolo_{symbol}_table", op.table.tolist()),
    ]


def _header(file: str, body: Iterable[str], source_sha256: str) -> str:
    guard = "EDGEYOLO_" + file.upper().replace(".", "_")
    lines = [
        f"/* edgeyolo {__version__} source sha256 {source_sha256} */",
        f"#ifndef {guard}",
        f"#define {guard}",
        "#include <stdint.h>",
        *body,
        f"#endif /* {guard} */",
    ]
    return "\n".join(lines) + "\n"


def header_files(
    program: IntegerProgram, index: BlobIndex, images: dict[str, bytes], source_sha256: str
) -> dict[str, str]:
    """Render all headers.

    Args:
        program: the integer program.
        index: the plan of its weight images.
        images: the images by name; the arrays repeat their bytes.
        source_sha256: 64 hex digits, the hash of the model the program came from.

    Returns file name to text. Raises InputError for a malformed hash.
    """
    if re.fullmatch(r"[0-9a-f]{64}", source_sha256) is None:
        raise InputError("not a sha256", got=source_sha256[:80], allowed="64 hex digits")
    files: dict[str, str] = {}

    def add(file: str, body: Iterable[str]) -> None:
        files[file] = _header(file, body, source_sha256)

    for blob in index.convs:
        conv = program.ops[blob.op]
        assert isinstance(conv, Conv)
        add(f"layer_{blob.op:03d}.h", conv_header(conv, blob, index, images["weights"]))
    for entry in index.tables:
        lookup = program.ops[entry.op]
        assert isinstance(lookup, Lookup)
        lowest = program.tensors[lookup.input].qtype.lo
        add(f"layer_{entry.op:03d}.h", lookup_header(lookup, entry, lowest))
    add("network.h", network_body(program, index))
    return files
