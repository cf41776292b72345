"""How codes become bytes: the packed bit stream, and the orders in which a convolution's weights can stand in it.

docs/blob-layouts.md is the normative text. Everything here has an inverse that checks what it reads.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from edgeyolo.errors import BundleError, InputError
from edgeyolo.qtype import MAX_BITS, Array, IntArray

LAYOUTS = ("oihw", "ohwi", "tiled")
Shape4 = tuple[int, int, int, int]


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits occupy."""
    return (count * bits + 7) // 8


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MAX_BITS:
        raise InputError("number of bits cannot be packed", got=bits, allowed=f"1 to {MAX_BITS}")


def pack_bits(codes: Array, bits: int) -> bytes:
    """Pack codes to a little-endian bit stream: element i in bits [i*bits, (i+1)*bits), bit k in byte k//8 at k%8.

    Args:
        codes: any shape, taken in row-major order. A signed dtype is stored in two's complement.
        bits: 1 to 16 per element; the last byte is filled up with zeros.

    Raises InputError where a code does not fit: the range is that of the dtype's signedness.
    """
    _check_bits(bits)
    flat = np.ravel(codes)
    if flat.dtype.kind not in "iu":
        raise InputError("only integers can be packed", got=flat.dtype)
    signed = flat.dtype.kind == "i"
    lo, hi = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if flat.size and not lo <= int(flat.min()) <= int(flat.max()) <= hi:
        raise InputError(
            f"codes do not fit {bits} bits", got=f"{flat.min()} to {flat.max()} ({flat.dtype})", allowed=f"{lo} to {hi}"
        )
    words = flat.astype("<i2" if signed else "<u2").view(np.uint8).reshape(-1, 2)
    return np.packbits(np.unpackbits(words, axis=1, count=bits, bitorder="little"), bitorder="little").tobytes()


def unpack_bits(data: bytes | memoryview, bits: int, count: int, signed: bool) -> npt.NDArray[np.int32]:
    """Invert ``pack_bits``: (count,) int32 codes.

    Raises BundleError unless ``data`` has exactly ``packed_size(count, bits)`` bytes and its padding bits are zero.
    """
    _check_bits(bits)
    if count < 0 or len(data) != packed_size(count, bits):
        raise BundleError(
            f"packed data of {count} codes of {bits} bits has the wrong size",
            got=f"{len(data)} bytes",
            allowed=f"{packed_size(max(count, 0), bits)} bytes",
        )
    stream = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if stream[count * bits :].any():
        raise BundleError("the padding bits of packed data are not zero", got=f"last byte 0x{data[-1]:02x}")
    words = np.zeros((count, 16), np.uint8)
    words[:, :bits] = stream[: count * bits].reshape(count, bits)
    codes = np.packbits(words, axis=1, bitorder="little").view("<u2").ravel().astype(np.int32)
    sign = 1 << (bits - 1) if signed else 0
    return (codes ^ sign) - sign


def tile_counts(shape: Shape4, tm: int, tn: int) -> tuple[int, int]:
    """How many tiles of ``tm`` output by ``tn`` input channels cover an (O, I, KH, KW) weight: (m-tiles, n-tiles)."""
    return -(-shape[0] // tm), -(-shape[1] // tn)


def layout_size(shape: Shape4, layout: str, tm: int, tn: int) -> int:
    """Codes that an (O, I, KH, KW) weight has in ``layout``, the zeros of partial tiles included."""
    _check_layout(layout, tm, tn)
    if layout != "tiled":
        return shape[0] * shape[1] * shape[2] * shape[3]
    tiles_m, tiles_n = tile_counts(shape, tm, tn)
    return tiles_m * tiles_n * shape[2] * shape[3] * tm * tn


def _check_layout(layout: str, tm: int, tn: int) -> None:
    if layout not in LAYOUTS:
        raise InputError("unknown weight layout", got=layout, allowed=", ".join(LAYOUTS))
    if tm < 1 or tn < 1:
        raise InputError("tile sizes must be at least 1", got=f"tm {tm}, tn {tn}")


def to_layout(weight: IntArray, layout: str, tm: int, tn: int) -> IntArray:
    """Put the codes of one convolution in storage order: 1-D, same dtype.

    Args:
        weight: (O, I, KH, KW); I is the number of input channels per group.
        layout: ``oihw``, ``ohwi``, or ``tiled``: m-tile, n-tile, KH, KW, tm, tn, partial tiles filled up with zeros.
        tm: output channels of one tile; used by ``tiled`` only.
        tn: input channels of one tile; used by ``tiled`` only.
    """
    _check_layout(layout, tm, tn)
    if layout == "oihw":
        return weight.reshape(-1)
    if layout == "ohwi":
        return weight.transpose(0, 2, 3, 1).reshape(-1)
    o, i, kh, kw = weight.shape
    tiles_m, tiles_n = tile_counts((o, i, kh, kw), tm, tn)
    padded = np.pad(weight, ((0, tiles_m * tm - o), (0, tiles_n * tn - i), (0, 0), (0, 0)))
    return padded.reshape(tiles_m, tm, tiles_n, tn, kh, kw).transpose(0, 2, 4, 5, 1, 3).reshape(-1)


def from_layout(flat: IntArray, shape: Iterable[int], layout: str, tm: int, tn: int) -> IntArray:
    """Invert ``to_layout``: (O, I, KH, KW) codes. Raises BundleError on a wrong size or a non-zero filler."""
    o, i, kh, kw = shape
    size = layout_size((o, i, kh, kw), layout, tm, tn)
    if flat.shape != (size,):
        raise BundleError(f"weights in layout {layout} have the wrong size", got=flat.shape, allowed=(size,))
    if layout == "oihw":
        return flat.reshape(o, i, kh, kw)
    if layout == "ohwi":
        return flat.reshape(o, kh, kw, i).transpose(0, 3, 1, 2)
    tiles_m, tiles_n = tile_counts((o, i, kh, kw), tm, tn)
    tiles = flat.reshape(tiles_m, tiles_n, kh, kw, tm, tn)
    padded = tiles.transpose(0, 4, 1, 5, 2, 3).reshape(tiles_m * tm, tiles_n * tn, kh, kw)
    if padded[o:].any() or padded[:, i:].any():
        raise BundleError("the filler of partial weight tiles is not zero", where=f"weight {(o, i, kh, kw)}")
    return padded[:o, :i]
