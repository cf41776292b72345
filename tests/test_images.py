"""Finding, decoding and resizing pictures, good ones and hostile ones."""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeyolo import images
from edgeyolo.detector import Preprocess
from edgeyolo.errors import InputError

JPEG_TOLERANCE = 3
"""Codes: JPEG is lossy even at its best quality."""


@pytest.fixture
def photo() -> np.ndarray:
    """A smooth (30, 40, 3) picture whose corners differ."""
    y, x = np.mgrid[0:30, 0:40]
    return np.stack([x * 6, y * 8, 255 - x * 3 - y * 4], axis=2).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def test_list_images_of_a_folder_is_recursive_sorted_and_ignores_other_files(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "a/1.jpg", "c.webp", "a/notes.md", ".hidden.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert images.list_images(tmp_path) == [tmp_path / "a/1.jpg", tmp_path / "b/2.PNG", tmp_path / "c.webp"]


def test_list_images_of_a_data_set_takes_its_images_folder(tmp_path: Path) -> None:
    for name in ("images/x/1.jpg", "labels/1.txt", "masks/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert images.list_images(tmp_path) == [tmp_path / "images/x/1.jpg"]


def test_list_file_paths_are_relative_to_the_list(tmp_path: Path) -> None:
    listing = tmp_path / "train.txt"
    listing.write_text("# first\nimages/1.jpg\n\n  /data/2.jpg  \r\n#last", "utf-8")
    assert images.list_images(listing) == [tmp_path / "images/1.jpg", Path("/data/2.jpg")]


@pytest.mark.parametrize("content", [b"", b"# only a comment\n", b"\xff\xfe\x00", b"a\0b.jpg\n\xff"])
def test_list_file_without_usable_paths_is_refused(tmp_path: Path, content: bytes) -> None:
    listing = tmp_path / "list.txt"
    listing.write_bytes(content)
    with pytest.raises(InputError):
        images.list_images(listing)


def test_missing_and_empty_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        images.list_images(tmp_path / "nothing.jpg")
    with pytest.raises(InputError, match="no pictures"):
        images.list_images(tmp_path)
    with pytest.raises(InputError):
        images.list_images(Path("a\0b"))


def test_a_list_that_is_too_long_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_LIST_BYTES", 10)
    (tmp_path / "list.txt").write_text("a.jpg\n" * 2, "utf-8")
    with pytest.raises(InputError, match="too long"):
        images.list_images(tmp_path / "list.txt")


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.ppm", "a.tif", "a.webp"])
def test_lossless_formats_decode_exactly(tmp_path: Path, photo: np.ndarray, name: str) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    np.testing.assert_array_equal(images.load_image(save(tmp_path / name, photo, **options)), photo)


def test_grey_alpha_palette_and_16_bit_become_rgb(tmp_path: Path, photo: np.ndarray) -> None:
    grey = photo[:, :, 0]
    as_rgb = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(images.load_image(save(tmp_path / "grey.png", grey)), as_rgb)

    deep = grey.astype(np.uint16) * 256 + 255
    np.testing.assert_array_equal(images.load_image(save(tmp_path / "deep.png", deep)), as_rgb)

    alpha = np.dstack([photo, np.arange(40, dtype=np.uint8)[None].repeat(30, axis=0)])
    np.testing.assert_array_equal(images.load_image(save(tmp_path / "alpha.png", alpha)), photo)

    palette = Image.fromarray(grey // 64).convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50, 0, 255, 0, 9, 9, 9])
    palette.save(tmp_path / "palette.png", transparency=b"\x00\x80\xff\xff")
    expected = np.array([[10, 20, 30], [200, 100, 50], [0, 255, 0], [9, 9, 9]], np.uint8)[grey // 64]
    np.testing.assert_array_equal(images.load_image(tmp_path / "palette.png"), expected)

    black_and_white = Image.fromarray(grey > 100)
    black_and_white.save(tmp_path / "one-bit.png")
    np.testing.assert_array_equal(images.load_image(tmp_path / "one-bit.png")[:, :, 1], (grey > 100) * 255)


def test_float_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="range"):
        images.load_image(save(tmp_path / "float.tif", np.zeros((4, 4), np.float32)))


def test_exif_orientation_is_applied(tmp_path: Path, photo: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show rotated by 90 degrees clockwise
    path = save(tmp_path / "turned.jpg", photo, exif=exif, quality=100, subsampling=0)
    loaded = images.load_image(path).astype(int)
    assert np.abs(loaded - np.rot90(photo, -1)).max() <= JPEG_TOLERANCE


def test_a_multi_picture_file_gives_its_first_picture(tmp_path: Path, photo: np.ndarray) -> None:
    second = Image.fromarray(255 - photo)
    path = save(tmp_path / "a.jpg", photo, format="MPO", save_all=True, append_images=[second], quality=100)
    assert Image.open(path).format == "MPO"
    assert np.abs(images.load_image(path).astype(int) - photo).mean() <= JPEG_TOLERANCE


def test_damaged_exif_leaves_the_picture_usable(tmp_path: Path, photo: np.ndarray) -> None:
    warnings.simplefilter("error")
    broken = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\xff\xff\xff\xff"
    loaded = images.load_image(save(tmp_path / "broken.jpg", photo, exif=broken, quality=100, subsampling=0))
    assert np.abs(loaded.astype(int) - photo).max() <= JPEG_TOLERANCE


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nearly nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", body) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1 << 16, 1 << 16), (images.MAX_PIXELS + 1, 1), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_refused_before_decoding(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(*size))
    with pytest.raises(InputError, match=r"too large|cannot decode"):
        images.load_image(path)


def test_size_limit_comes_before_the_decoder(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.png", photo)
    monkeypatch.setattr(images, "MAX_PIXELS", photo.shape[0] * photo.shape[1] - 1)
    with pytest.raises(InputError, match="too large"):
        images.load_image(path)


def test_every_truncation_and_random_damage_is_one_clear_error(tmp_path: Path, photo: np.ndarray) -> None:
    generator = np.random.default_rng(0)
    path = tmp_path / "damaged"
    refused = 0
    for name in ("a.png", "a.jpg", "a.bmp", "a.tif", "a.gif", "a.webp"):
        whole = save(tmp_path / name, photo).read_bytes()
        for case in range(60):
            data = bytearray(whole)
            if case < 30:
                data = data[: generator.integers(0, len(data))]
            else:
                for _ in range(8):
                    data[generator.integers(0, len(data))] = generator.integers(0, 256)
            path.write_bytes(data)
            try:
                assert images.load_image(path).dtype == np.uint8
            except InputError:
                refused += 1
    assert refused > 100


def test_formats_that_start_programs_are_never_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(InputError, match="cannot decode"):
        images.load_image(path)


def scalar_resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bilinear as Darknet's resize_image: corners on corners, one pixel after the other."""
    out = np.zeros((height, width, image.shape[2]))
    for i in range(height):
        for j in range(width):
            y = i * (image.shape[0] - 1) / max(height - 1, 1)
            x = j * (image.shape[1] - 1) / max(width - 1, 1)
            top, left = math.floor(y), math.floor(x)
            bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            for (row, wy), (column, wx) in [
                ((r, c))
                for r in ((top, 1 - y + top), (bottom, y - top))
                for c in ((left, 1 - x + left), (right, x - left))
            ]:
                out[i, j] += wy * wx * image[row, column]
    return out


@pytest.mark.parametrize("size", [(17, 13), (40, 30), (64, 96), (1, 1)])
def test_stretch_is_bilinear_without_averaging(photo: np.ndarray, size: tuple[int, int]) -> None:
    pixels = images.to_input(photo, Preprocess(*size))
    expected = scalar_resize(photo, *size).transpose(2, 0, 1)
    assert pixels.shape == (3, size[1], size[0]) and pixels.dtype == np.uint8
    half_a_code = 0.5 + 1e-3  # rounding to 8 bit, after float32 arithmetic
    assert np.abs(pixels - expected).max() <= half_a_code


def test_same_size_is_the_same_picture(photo: np.ndarray) -> None:
    np.testing.assert_array_equal(images.to_input(photo, Preprocess(40, 30)), photo.transpose(2, 0, 1))


def test_letterbox_pads_evenly_with_the_fill_value(photo: np.ndarray) -> None:
    pixels = images.to_input(photo, Preprocess(40, 50, resize="letterbox", fill=114))
    np.testing.assert_array_equal(pixels[:, 10:40], photo.transpose(2, 0, 1))
    assert (pixels[:, :10] == 114).all() and (pixels[:, 40:] == 114).all()


def test_one_channel_is_luma(photo: np.ndarray) -> None:
    pixels = images.to_input(photo, Preprocess(40, 30, channels=1))
    luma = photo @ np.array([0.299, 0.587, 0.114])
    assert pixels.shape == (1, 30, 40)
    assert np.abs(pixels[0] - luma).max() <= 1  # Pillow rounds its fixed-point sum
    with pytest.raises(InputError, match="channels"):
        images.to_input(photo, Preprocess(40, 30, channels=2))


@pytest.mark.parametrize("contract", [{"width": 10**6, "height": 10**6}, {"width": 0}, {"fill": 256}])
def test_impossible_contracts_are_refused(photo: np.ndarray, contract: dict[str, int]) -> None:
    with pytest.raises(InputError, match="impossible"):
        images.to_input(photo, Preprocess(**{"width": 8, "height": 8, **contract}))


def test_iter_images_skips_and_counts_what_does_not_decode(tmp_path: Path, photo: np.ndarray) -> None:
    good = save(tmp_path / "good.png", photo)
    bad, missing = tmp_path / "bad.jpg", tmp_path / "missing.jpg"
    bad.write_bytes(good.read_bytes()[:60])
    skipped: images.Skipped = []
    found = list(images.iter_images([bad, good, missing], Preprocess(8, 8), skipped))
    assert [(p.path, p.size, p.pixels.shape) for p in found] == [(good, (40, 30), (3, 8, 8))]
    assert [path for path, _ in skipped] == [bad, missing]
    assert all(reason for _, reason in skipped)


def test_iter_images_refuses_when_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").touch()
    with pytest.raises(InputError, match="none of 1 pictures"):
        list(images.iter_images([tmp_path / "bad.jpg"], Preprocess(8, 8)))
