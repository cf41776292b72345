"""Where everything stands in the weight images: planned from the integer program alone, without touching a weight.

Reader and writer share ``plan_blobs``: an index that came from a file is believed only where it equals the plan.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgeyolo.errors import BundleError, InputError, UnsupportedError
from edgeyolo.packing import LAYOUTS, Shape4, layout_size, packed_size, tile_counts
from edgeyolo.profile import TargetProfile
from edgeyolo.program import Conv, IntegerProgram, Lookup

VERSION = 1
FORMATS = ("bin", "mem", "coe", "h")
IMAGES = ("weights", "bias", "shift", "table")


@dataclass(frozen=True)
class BlobForm:
    """How images are laid out: the choices of a profile and of the command line.

    Args:
        layout: order of a convolution's weights: ``oihw``, ``ohwi`` or ``tiled``.
        tm: output channels of a tile.
        tn: input channels of a tile.
        alignment: bytes; every section starts at a multiple.
        word_bits: width of a word in the text formats.
        endianness: ``little`` or ``big`` order of bytes in such a word.
        formats: which of ``bin``, ``mem``, ``coe``, ``h`` are written.
    """

    layout: str
    tm: int
    tn: int
    alignment: int
    word_bits: int
    endianness: str
    formats: tuple[str, ...]

    def __post_init__(self) -> None:
        # An index may come from a hostile file: these limits keep every later size computable and every loop finite.
        numbers = (self.tm, self.tn, self.alignment, self.word_bits)
        if any(type(n) is not int or not 1 <= n <= 4096 for n in numbers) or self.word_bits % 8:
            raise BundleError("impossible geometry of weight images", got=numbers, allowed="1 to 4096, words of bytes")
        unknown = sorted({str(f) for f in self.formats} - set(FORMATS))
        if unknown or not self.formats:
            raise InputError("unknown format of weight files", got=", ".join(unknown), allowed=", ".join(FORMATS))
        if self.layout not in LAYOUTS:
            raise InputError("unknown weight layout", got=self.layout, allowed=", ".join(LAYOUTS))
        if self.endianness not in ("little", "big"):
            raise BundleError("unknown byte order", got=self.endianness, allowed="little, big")

    @classmethod
    def of(cls, profile: TargetProfile, layout: str, formats: Sequence[str]) -> BlobForm:
        """Take the geometry from ``profile``; ``formats`` are put in a fixed order."""
        known = [f for f in FORMATS if f in formats]
        geometry = (profile.tm, profile.tn, profile.alignment, profile.word_bits, profile.endianness)
        return cls(layout, *geometry, (*known, *sorted(set(formats) - set(known))))


@dataclass(frozen=True)
class Section:
    """``nbytes`` bytes from ``offset`` of one image."""

    offset: int
    nbytes: int


@dataclass(frozen=True)
class ConvBlob:
    """One convolution's sections and what is needed to read them.

    Args:
        name: the operation's name.
        op: its index in the program.
        shape: (O, I/groups, KH, KW).
        bits: bits per weight code, signed.
        tiles: (m-tiles, n-tiles) of layout ``tiled``; (0, 0) otherwise.
        weights: section of the weights image, packed codes.
        bias: section of the bias image, int32 little-endian.
        shift: section of the shift image, int8.
        weight_frac: (O,) fraction bits of the weights.
        input_frac: fraction bits of the input tensor.
        output_frac: fraction bits of the output tensor.
    """

    name: str
    op: int
    shape: Shape4
    bits: int
    tiles: tuple[int, int]
    weights: Section
    bias: Section
    shift: Section
    weight_frac: tuple[int, ...]
    input_frac: int
    output_frac: int


@dataclass(frozen=True)
class TableBlob:
    """One lookup table: ``entries`` codes in a section of the table image, int16 little-endian."""

    name: str
    op: int
    entries: int
    table: Section


@dataclass(frozen=True)
class BlobIndex:
    """Everything about a folder of weight images but the bytes.

    Args:
        form: the layout choices.
        convs: in execution order.
        tables: in execution order.
        image_bytes: size of each image in the order of ``IMAGES``; an image of 0 bytes is not written.
        version: of this record.
    """

    form: BlobForm
    convs: tuple[ConvBlob, ...]
    tables: tuple[TableBlob, ...]
    image_bytes: tuple[int, int, int, int]
    version: int = VERSION

    def to_json(self) -> str:
        """Canonical JSON text; ``from_json`` is its inverse."""
        return json.dumps(asdict(self), sort_keys=True, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> BlobIndex:
        """Parse ``to_json``'s text. Raises BundleError on anything else; ``read_blobs`` checks what it says."""
        try:
            data: dict[str, Any] = json.loads(text)
            form = data.pop("form")
            index = cls(
                BlobForm(**{**form, "formats": tuple(form["formats"])}),
                tuple(_conv(item) for item in data.pop("convs")),
                tuple(TableBlob(**{**item, "table": Section(**item["table"])}) for item in data.pop("tables")),
                tuple(data.pop("image_bytes")),
                **data,
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BundleError("the index of the weight images cannot be read", got=repr(error)[:200]) from error
        if index.version != VERSION:
            raise BundleError("unknown version of the weight index", got=index.version, allowed=VERSION)
        return index


def _conv(item: dict[str, Any]) -> ConvBlob:
    sections = {key: Section(**item[key]) for key in ("weights", "bias", "shift")}
    lists = {key: tuple(item[key]) for key in ("shape", "tiles", "weight_frac")}
    return ConvBlob(**{**item, **sections, **lists})


class _Layout:
    """Hands out aligned sections of one image, front to back."""

    def __init__(self, alignment: int) -> None:
        self.alignment, self.end = alignment, 0

    def take(self, nbytes: int) -> Section:
        offset = -(-self.end // self.alignment) * self.alignment
        self.end = offset + nbytes
        return Section(offset, nbytes)

    def size(self, word_bytes: int) -> int:
        """Bytes of the whole image: whole alignment units and whole words."""
        unit = math.lcm(self.alignment, word_bytes)
        return -(-self.end // unit) * unit


def plan_blobs(program: IntegerProgram, form: BlobForm) -> BlobIndex:
    """Place every convolution's weights, bias and shifts and every lookup table.

    Raises UnsupportedError for a program without a convolution.
    """
    weights, bias, shift, table = images = tuple(_Layout(form.alignment) for _ in IMAGES)
    convs: list[ConvBlob] = []
    tables: list[TableBlob] = []
    for index, op in enumerate(program.ops):
        if isinstance(op, Conv):
            o, i, kh, kw = shape = op.weight.shape
            bits = op.weight_type.bits
            size = packed_size(layout_size((o, i, kh, kw), form.layout, form.tm, form.tn), bits)
            convs.append(
                ConvBlob(
                    op.name,
                    index,
                    shape,
                    bits,
                    tile_counts(shape, form.tm, form.tn) if form.layout == "tiled" else (0, 0),
                    weights.take(size),
                    bias.take(4 * o),
                    shift.take(o),
                    tuple(int(f) for f in op.weight_frac),
                    program.tensors[op.input].frac,
                    program.tensors[op.output].frac,
                )
            )
        elif isinstance(op, Lookup):
            tables.append(TableBlob(op.name, index, len(op.table), table.take(2 * len(op.table))))
    if not convs:
        raise UnsupportedError("the program has no convolution, so there are no weights to write")
    sizes = tuple(image.size(form.word_bits // 8) for image in images)
    return BlobIndex(form, tuple(convs), tuple(tables), (sizes[0], sizes[1], sizes[2], sizes[3]))
