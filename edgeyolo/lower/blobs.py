"""Weight images for hardware: one file of weights, one of biases, one of shifts; docs/blob-layouts.md is normative.

``write_blobs`` makes them, ``read_blobs`` gives the codes back and refuses what is not exactly what would be written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeyolo import __version__
from edgeyolo.errors import BundleError
from edgeyolo.lower.blob_files import coe_text, mem_text, parse_coe, parse_mem, text_limit, write_files
from edgeyolo.lower.blob_index import FORMATS, IMAGES, BlobForm, BlobIndex, Section, plan_blobs
from edgeyolo.lower.ctables import header_files
from edgeyolo.packing import from_layout, layout_size, pack_bits, to_layout, unpack_bits
from edgeyolo.profile import TargetProfile, check_program
from edgeyolo.program import Conv, Int8, Int16, Int32, IntegerProgram, Lookup

INDEX_FILE = "blobs.json"
_TEXTS = {"mem": (mem_text, parse_mem), "coe": (coe_text, parse_coe)}


@dataclass(frozen=True, eq=False)
class ConvCodes:
    """What the images hold of one convolution: weight (O, I/groups, KH, KW) int8, bias (O,) int32, shift (O,) int8."""

    weight: Int8
    bias: Int32
    shift: Int8


@dataclass(frozen=True, eq=False)
class BlobCodes:
    """All codes of a folder of images, by the operation's index in the program."""

    convs: dict[int, ConvCodes]
    tables: dict[int, Int16]


def encode_images(program: IntegerProgram, index: BlobIndex) -> dict[str, bytes]:
    """Produce the images that ``index`` describes, by the names of ``IMAGES``; gaps and ends are zero."""
    images = {name: bytearray(size) for name, size in zip(IMAGES, index.image_bytes, strict=True)}

    def put(image: str, section: Section, data: bytes) -> None:
        if len(data) != section.nbytes:
            raise BundleError("the program and its weight index disagree", where=image, got=len(data))
        images[image][section.offset : section.offset + section.nbytes] = data

    for blob in index.convs:
        op = program.ops[blob.op]
        assert isinstance(op, Conv)
        codes = to_layout(op.weight, index.form.layout, index.form.tm, index.form.tn)
        put("weights", blob.weights, pack_bits(codes, blob.bits))
        put("bias", blob.bias, op.bias.astype("<i4").tobytes())
        put("shift", blob.shift, op.shift.astype("i1").tobytes())
    for entry in index.tables:
        lookup = program.ops[entry.op]
        assert isinstance(lookup, Lookup)
        put("table", entry.table, lookup.table.astype("<i2").tobytes())
    return {name: bytes(data) for name, data in images.items()}


def write_blobs(
    program: IntegerProgram,
    folder: Path,
    *,
    layout: str,
    profile: TargetProfile,
    formats: Sequence[str],
    source_sha256: str,
) -> BlobIndex:
    """Write the images of ``program`` and their index ``blobs.json`` into ``folder``, all or nothing.

    Args:
        program: the integer program.
        folder: created if missing; files of the same names are replaced.
        layout: ``oihw``, ``ohwi`` or ``tiled``.
        profile: gives tile sizes, alignment, word width and what is legal.
        formats: any of ``bin`` (``weights.bin``, ...), ``mem``, ``coe`` and ``h`` (``headers/*.h``).
        source_sha256: hash of the model the program came from, for the headers' first line.

    Returns the index. Raises UnsupportedError if the profile forbids something in the program, InputError for an
    unknown layout or format and if the disk refuses.
    """
    check_program(program, profile)
    index = plan_blobs(program, BlobForm.of(profile, layout, formats))
    images = encode_images(program, index)
    form = index.form
    files: dict[str, bytes] = {INDEX_FILE: index.to_json().encode()}
    for name, data in images.items():
        if not data:
            continue
        title = f"edgeyolo {__version__} source sha256 {source_sha256}, {name} image, {len(data)} bytes"
        if "bin" in form.formats:
            files[f"{name}.bin"] = data
        for suffix, (render, _) in _TEXTS.items():
            if suffix in form.formats:
                files[f"{name}.{suffix}"] = render(data, form.word_bits, form.endianness, title).encode("ascii")
    if "h" in form.formats:
        headers = header_files(program, index, images, source_sha256)
        files.update({f"headers/{name}": text.encode("ascii") for name, text in headers.items()})
    write_files(folder, files)
    return index


def _read_image(folder: Path, name: str, suffix: str, nbytes: int, form: BlobForm) -> bytes:
    """Read one image of ``nbytes`` bytes; the file's size is checked before its content is loaded."""
    path = folder / f"{name}.{suffix}"
    limit = nbytes if suffix == "bin" else text_limit(nbytes, form.word_bits)
    try:
        size = path.stat().st_size
        if size > limit or (suffix == "bin" and size != nbytes):
            raise BundleError("a weight image has the wrong size", where=path, got=size, allowed=limit)
        data = path.read_bytes()
        if suffix != "bin":
            data = _TEXTS[suffix][1](data.decode("ascii"), form.word_bits, form.endianness, path)
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError("a weight image cannot be read", where=path, got=error) from error
    if len(data) != nbytes:
        raise BundleError("a weight image has the wrong size", where=path, got=len(data), allowed=nbytes)
    return data


def _check_gaps(name: str, data: bytes, sections: Sequence[Section]) -> None:
    """Raise BundleError unless everything outside of ``sections`` is zero."""
    end = 0
    for section in (*sections, Section(len(data), 0)):
        if any(data[end : section.offset]):
            raise BundleError("bytes between two layers are not zero", where=f"{name} image, byte {end} onwards")
        end = section.offset + section.nbytes


def read_blobs(folder: Path, index: BlobIndex, program: IntegerProgram) -> BlobCodes:
    """Give back the codes in the images of ``folder``.

    Every format in ``index`` other than ``h`` is read, and all must carry the same bytes. ``program`` supplies names
    and shapes only; comparing the codes with its own is the caller's business.

    Raises BundleError if the index is not the one this program has, or if a file is missing, of the wrong size,
    malformed, different from its sisters, or has non-zero bytes where nothing stands.
    """
    if plan_blobs(program, index.form) != index:
        raise BundleError("the weight index does not fit the program", where=folder / INDEX_FILE)
    form = index.form
    images: dict[str, bytes] = {}
    for name, nbytes in zip(IMAGES, index.image_bytes, strict=True):
        for suffix in [f for f in FORMATS if f in form.formats and f != "h"] if nbytes else []:
            data = _read_image(folder, name, suffix, nbytes, form)
            if images.setdefault(name, data) != data:
                raise BundleError("the formats of one image disagree", where=folder / f"{name}.{suffix}")
    if not images:
        raise BundleError("only C headers were written; there is no image to read", where=folder)
    for name, sections in (
        ("weights", [c.weights for c in index.convs]),
        ("bias", [c.bias for c in index.convs]),
        ("shift", [c.shift for c in index.convs]),
        ("table", [t.table for t in index.tables]),
    ):
        _check_gaps(name, images.get(name, b""), sections)
    return _decode(index, images)


def _decode(index: BlobIndex, images: dict[str, bytes]) -> BlobCodes:
    """Unpack images whose sizes are already known to be right."""

    def get(image: str, section: Section) -> memoryview:
        return memoryview(images[image])[section.offset : section.offset + section.nbytes]

    form = index.form
    convs: dict[int, ConvCodes] = {}
    for blob in index.convs:
        count = layout_size(blob.shape, form.layout, form.tm, form.tn)
        flat = unpack_bits(get("weights", blob.weights), blob.bits, count, signed=True)
        weight = from_layout(flat, blob.shape, form.layout, form.tm, form.tn).astype(np.int8)
        bias = np.frombuffer(get("bias", blob.bias), "<i4").astype(np.int32)
        convs[blob.op] = ConvCodes(weight, bias, np.frombuffer(get("shift", blob.shift), np.int8))
    tables = {t.op: np.frombuffer(get("table", t.table), "<i2").astype(np.int16) for t in index.tables}
    return BlobCodes(convs, tables)
