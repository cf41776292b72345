"""Files of weight images: the two text formats that FPGA tools load, their parsers, and all-or-nothing writing.

Both text formats carry the bytes of the binary image, one word of ``word_bits`` bits a line; docs/blob-layouts.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgeyolo.errors import BundleError, InputError

MAX_COMMENT_BYTES = 4096


def _words(data: bytes, word_bits: int, endianness: str) -> list[str]:
    """Cut ``data`` into words of ``word_bits`` bits, each as hex digits, most significant first."""
    width = word_bits // 8
    rows = np.frombuffer(data, np.uint8).reshape(-1, width)
    digits = (rows[:, ::-1] if endianness == "little" else rows).tobytes().hex()
    return [digits[i : i + 2 * width] for i in range(0, len(digits), 2 * width)]


def _bytes(words: list[str], word_bits: int, endianness: str, where: Path) -> bytes:
    """Invert ``_words``; BundleError unless every word has exactly the digits of its width."""
    width = word_bits // 8
    digit = re.compile(f"[0-9a-f]{{{2 * width}}}")
    bad = next((i for i, word in enumerate(words) if digit.fullmatch(word) is None), None)
    if bad is not None:
        raise BundleError("not a word of the image", where=where, got=f"word {bad}: {words[bad][:40]!r}")
    rows = np.frombuffer(bytes.fromhex("".join(words)), np.uint8).reshape(-1, width)
    return (rows[:, ::-1] if endianness == "little" else rows).tobytes()


def _order(word_bits: int, endianness: str) -> str:
    digits = "last" if endianness == "little" else "first"
    return f"{word_bits} bit words, {endianness}-endian: the byte at the lowest address is the {digits} two digits"


def mem_text(data: bytes, word_bits: int, endianness: str, title: str) -> str:
    """Render an image for Verilog's $readmemh: comments, the address 0, one hex word a line."""
    lines = [f"// {title}", f"// {_order(word_bits, endianness)}", "@0", *_words(data, word_bits, endianness)]
    return "\n".join(lines) + "\n"


def coe_text(data: bytes, word_bits: int, endianness: str, title: str) -> str:
    """Render an image as an AMD/Xilinx memory initialisation file of radix 16 (syntax: UG896)."""
    head = [f"; {title}", f"; {_order(word_bits, endianness)}", "memory_initialization_radix=16;"]
    vector = ",\n".join(_words(data, word_bits, endianness))
    return "\n".join([*head, "memory_initialization_vector=", vector]) + ";\n"


def text_limit(nbytes: int, word_bits: int) -> int:
    """Bytes that the text of an image of ``nbytes`` bytes cannot exceed."""
    return MAX_COMMENT_BYTES + 2 * nbytes + 2 * (nbytes * 8 // word_bits)


def parse_mem(text: str, word_bits: int, endianness: str, where: Path) -> bytes:
    """Read ``mem_text`` back. Raises BundleError on anything else."""
    lines = [line for line in text.splitlines() if not line.startswith("//")]
    if lines[:1] != ["@0"]:
        raise BundleError("the image does not start at address 0", where=where, got=lines[:1])
    return _bytes(lines[1:], word_bits, endianness, where)


def parse_coe(text: str, word_bits: int, endianness: str, where: Path) -> bytes:
    """Read ``coe_text`` back. Raises BundleError on anything else."""
    lines = [line for line in text.splitlines() if not line.startswith(";")]
    if lines[:2] != ["memory_initialization_radix=16;", "memory_initialization_vector="]:
        raise BundleError("not a radix 16 memory initialisation file", where=where, got=[s[:40] for s in lines[:2]])
    words = lines[2:]
    marks = [word[-1:] for word in words]
    if marks != [","] * (len(words) - 1) + [";"]:
        raise BundleError("the vector of the image is cut off", where=where)
    return _bytes([word[:-1] for word in words], word_bits, endianness, where)


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write ``contents`` (relative name to bytes) under ``folder``, all or none.

    Raises InputError if the disk refuses; what this call had written is removed.
    """
    written: list[Path] = []
    try:
        for name, data in contents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            written.append(path)
            path.write_bytes(data)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise InputError("cannot write the weight files", where=folder, got=error) from error
