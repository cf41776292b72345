"""From files to network pixels: find pictures, decode them, resize them. numpy and Pillow only.

Where decoders and resizers differ, this follows Darknet, so that a network sees what it would see there:

- Bilinear resizing maps the first pixel to the first and the last to the last, as Darknet's ``resize_image`` does, and
  takes the four nearest pixels; it does not average when it shrinks. The result is rounded to 8 bit. (Measured on
  Darknet's dog.jpg with yolo-fastest-1.1: scores within .006 of Darknet's; pixel centres at half integers, as
  ``cv2.resize`` has them, are off by up to .021, Pillow's averaging filter by .10. One code of noise in every pixel, as
  between two JPEG decoders, moves the same scores by .007.)
- The EXIF orientation is applied, as ``cv2.imread`` does in Darknet built with OpenCV. Alpha is dropped, 16-bit samples
  keep their high byte.
- Grey is 0.299 R + 0.587 G + 0.114 B of the original pixels.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from edgeyolo.detector import Preprocess
from edgeyolo.errors import InputError
from edgeyolo.postprocess import Size, placement

Pixels = npt.NDArray[np.uint8]
Result = TypeVar("Result")

EXIF_ORIENTATION = 0x0112

MAX_PIXELS = 1 << 26
"""Pictures with more pixels than this (67 million, 200 MB decoded) are refused before they are decoded."""

MAX_LIST_BYTES = 1 << 26
"""Size limit of a list file: 64 MiB."""

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"})
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""The decoders that may run. Pillow has others, some of which start external programs."""


class Picture(NamedTuple):
    """A decoded picture on its way to the network: (width, height) of the original, (C, H, W) uint8 network pixels."""

    path: Path
    size: Size
    pixels: Pixels


Skipped = list[tuple[Path, str]]


def list_images(source: Path) -> list[Path]:
    """List the pictures that ``source`` stands for.

    Args:
        source: a picture; a folder, searched recursively (only its ``images`` folder, if it has one) in sorted order;
            or a ``.txt`` list with one path a line, relative to the list's folder, ``#`` starting a comment line.

    Raises:
        InputError: it is missing, unreadable or holds no pictures. Whether a file decodes is found out later.
    """
    try:
        if source.is_dir():
            found = _search(source / "images" if (source / "images").is_dir() else source)
        elif source.suffix.lower() == ".txt":
            found = _read_list(source)
        else:
            with source.open("rb"):
                return [source]
    except OSError as error:
        raise InputError("cannot read the pictures", where=source, got=error.strerror or repr(error)) from error
    except ValueError as error:
        raise InputError("this is not a path or a list of paths", where=repr(source), got=str(error)) from error
    if not found:
        raise InputError("no pictures found", where=source, allowed=" ".join(sorted(EXTENSIONS)))
    return found


def _search(folder: Path) -> list[Path]:
    """Find all files with a picture's extension below ``folder``, sorted, hidden ones left out."""
    next(folder.iterdir(), None)  # a folder that may not be read raises here; the walk would pass over it in silence
    walk = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    return sorted(p for p in walk if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))


def _read_list(path: Path) -> list[Path]:
    """Read the paths in a list file."""
    if path.stat().st_size > MAX_LIST_BYTES:
        raise InputError("the list is too long", where=path, got=path.stat().st_size, allowed=f"{MAX_LIST_BYTES} bytes")
    lines = (line.strip() for line in path.read_text("utf-8").splitlines())
    return [path.parent / line for line in lines if line and not line.startswith("#")]


def load_image(path: Path) -> Pixels:
    """Decode a picture to (H, W, 3) uint8 RGB, upright.

    Raises InputError if it is missing, not a picture, damaged, truncated or larger than ``MAX_PIXELS``.
    """
    return _guarded(path, _pixels)


def load_images(paths: Iterable[Path], where: Path) -> Iterator[Pixels]:
    """Decode one picture after the other, as ``load_image`` does.

    Raises InputError behind the last one, which names those that do not decode.
    """
    broken = []
    for path in paths:
        try:
            yield load_image(path)
        except InputError as error:
            broken.append(f"{path.name}: {error.what}")
    if broken:
        raise InputError("pictures that do not decode", where=where, got="; ".join(broken[:5]), hint="remove them")


def image_size(path: Path) -> Size:
    """(width, height) of the upright picture, from its header; whether the rest decodes is found out later.

    Raises InputError if it is missing, not a picture or larger than ``MAX_PIXELS``.
    """
    return _guarded(path, _upright_size)


def _guarded(path: Path, read: Callable[[Image.Image], Result]) -> Result:
    """Open a picture, look at its size, then ``read`` it; any failure becomes an InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow only warns about, such as bad EXIF, does not hurt the pixels
            return _opened(path, read)
    except InputError:
        raise
    except Exception as error:  # on damaged files Pillow's decoders raise nearly anything
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError("cannot decode the picture", where=path, got=reason or repr(error)) from error


def _opened(path: Path, read: Callable[[Image.Image], Result]) -> Result:
    """Open and ``read``, after a look at the size."""
    with Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise InputError(
                "the picture is too large",
                where=path,
                got=f"{image.width} x {image.height}",
                allowed=f"{MAX_PIXELS} pixels",
                hint="make a smaller copy",
            )
        return read(image)


def _pixels(image: Image.Image) -> Pixels:
    """Decode."""
    image.load()
    return np.array(_to_rgb(_upright(image)))


def _upright_size(image: Image.Image) -> Size:
    """The size, turned as the EXIF orientation says; unturned when the EXIF block cannot be read."""
    if image.format == "TIFF":  # whether its size is already turned depends on Pillow's version, until it is decoded
        return _upright(image).size
    try:
        turned = image.getexif().get(EXIF_ORIENTATION) in (5, 6, 7, 8)
    except Exception:  # as in _upright
        turned = False
    return (image.height, image.width) if turned else (image.width, image.height)


def _upright(image: Image.Image) -> Image.Image:
    """Turn the picture as its EXIF orientation says; leave it when the EXIF block cannot be read."""
    try:
        return ImageOps.exif_transpose(image) or image
    except Exception:  # a damaged EXIF block does not make the pixels bad
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to 8-bit RGB. Raises InputError for floating-point samples, whose range is unknown."""
    if image.mode == "F":
        raise InputError("floating-point samples have no fixed range", got="mode F", allowed="8 or 16 bit integers")
    if image.mode.startswith("I"):  # 16 bit grey: Pillow would clip instead of scaling
        image = Image.fromarray((np.clip(np.array(image), 0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")


def to_input(image: Pixels, preprocess: Preprocess) -> Pixels:
    """Make (C, height, width) uint8 network pixels of an (H, W, 3) RGB picture; the network's input is pixels * scale.

    Raises InputError for a contract that cannot be met: it comes from a file.
    """
    width, height = preprocess.width, preprocess.height
    if preprocess.channels not in (1, 3):
        raise InputError("unsupported number of input channels", got=preprocess.channels, allowed="1 or 3")
    if not (width > 0 and height > 0 and width * height <= MAX_PIXELS and 0 <= preprocess.fill <= 255):
        got = f"{width} x {height}, fill {preprocess.fill}"
        raise InputError("impossible network input", got=got, allowed=f"up to {MAX_PIXELS} pixels, fill 0 to 255")
    if preprocess.channels == 1:
        image = np.array(Image.fromarray(image).convert("L"))[:, :, None]
    left, top, width, height = placement(preprocess, (image.shape[1], image.shape[0]))
    pixels = np.full((preprocess.height, preprocess.width, preprocess.channels), preprocess.fill, np.uint8)
    pixels[top : top + height, left : left + width] = _resize(image, width, height)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _taps(source: int, target: int) -> tuple[Any, Any, Any]:
    """Return for every target pixel its two source pixels and the weight of the second."""
    position = np.linspace(0, source - 1, target)
    low = position.astype(np.intp)
    return low, np.minimum(low + 1, source - 1), (position - low).astype(np.float32)


def _resize(image: Pixels, width: int, height: int) -> Pixels:
    """Resize (H, W, C) to (height, width, C) bilinearly; the cost depends on the target's size only."""
    x0, x1, fx = _taps(image.shape[1], width)
    y0, y1, fy = _taps(image.shape[0], height)
    fx, fy = fx[None, :, None], fy[:, None, None]

    def row(y: Any) -> npt.NDArray[np.float32]:
        a, b = (image[y[:, None], x[None, :]].astype(np.float32) for x in (x0, x1))
        mixed: npt.NDArray[np.float32] = a + (b - a) * fx
        return mixed

    upper, lower = row(y0), row(y1)
    blend: Pixels = np.rint(upper + (lower - upper) * fy).astype(np.uint8)
    return blend


def iter_images(paths: Iterable[Path], preprocess: Preprocess, skipped: Skipped | None = None) -> Iterator[Picture]:
    """Decode and resize one picture after the other.

    Args:
        paths: from ``list_images``.
        preprocess: the network's input contract.
        skipped: receives (path, reason) of every picture that does not decode.

    Raises:
        InputError: at the end, if no picture decoded.
    """
    skipped = [] if skipped is None else skipped
    count = 0
    for path in paths:
        try:
            image = load_image(path)
        except InputError as error:
            skipped.append((path, f"{error.what}: {error.got}"))
            continue
        count += 1
        yield Picture(path, (image.shape[1], image.shape[0]), to_input(image, preprocess))
    if not count:
        got = "; ".join(f"{path}: {reason}" for path, reason in skipped[:3])
        raise InputError(f"none of {len(skipped)} pictures could be decoded", got=got or None)
