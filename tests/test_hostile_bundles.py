"""Bundles made to hurt: whatever is in them, only our own errors come out, and nothing outside is ever read."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_surgery import edit_manifest, repair
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import refusal, tree

from edgeyolo.bundle import MAX_FILES, PROGRAM, Bundle, sha256
from edgeyolo.detector import MAX_CLASSES, MAX_HEADS, MAX_NUMBER, MAX_SIDE, Detector
from edgeyolo.errors import BundleError, EdgeYoloError, InputError
from edgeyolo.program_image import decode_program
from edgeyolo.progress import Log
from edgeyolo.verify import verify

NESTED = "[" * 100_000 + "]" * 100_000
SEED = 20_240_601
ATOMS: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 255, 4097, 1 << 31, 1 << 63, 10**30, -(10**30), 0.5, 1e308, 1e-300),
    *(float("inf"), float("nan"), "", "x", "../x", "/etc/passwd", "a\\b", "\0", "\ud800", "é" * 300),
    *([], {}, [[]], [None] * 3, [[]] * 50, {"bytes": 1}),
)


@pytest.fixture
def bundle(good_bundle: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(good_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def spare(good_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One copy for many cases that each put back what they change."""
    return Path(shutil.copytree(good_bundle, tmp_path_factory.mktemp("spare") / "bundle"))


def check(bundle: Path) -> None:
    """Everything of ``verify`` but ONNX Runtime and the C compiler."""
    verify(bundle, Log(quiet=True), skip=("ort", "engine"))


def refused(bundle: Path, what: str) -> None:
    with pytest.raises(BundleError, match=what):
        Bundle.open(bundle)
    message = refusal("verify", bundle)
    assert what in message and len(message) < 10_000


# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../secret", "golden/../../secret", "/etc/passwd", "..\\secret", "C:\\x", "a\0b", "", ".", "..", "./program.bin",
     "golden//index.txt", "program.bin/", "golden/./index.txt", "\ud800", "x" * 5000],
)  # fmt: skip
def test_a_listed_path_never_leaves_the_bundle(bundle: Path, name: str) -> None:
    secret = b"secret"
    (bundle.parent / "secret").write_bytes(secret)
    edit_manifest(bundle, lambda m: m["files"].update({name: {"bytes": len(secret), "sha256": sha256(secret)}}))
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    assert len(str(caught.value)) < 2000


def test_links_out_of_the_bundle_are_not_followed(bundle: Path) -> None:
    secret = bundle.parent / "secret"
    secret.write_bytes((bundle / PROGRAM).read_bytes())
    (bundle / PROGRAM).unlink()
    (bundle / PROGRAM).symlink_to(secret)
    refused(bundle, "leaves the bundle")
    (bundle / PROGRAM).unlink()
    (bundle / PROGRAM).write_bytes(secret.read_bytes())
    shutil.move(bundle / "golden", bundle.parent / "golden")
    (bundle / "golden").symlink_to(bundle.parent / "golden")
    refused(bundle, "leaves the bundle")


def test_a_loop_of_links_is_refused(bundle: Path) -> None:
    (bundle / PROGRAM).unlink()
    (bundle / PROGRAM).symlink_to(PROGRAM)
    refused(bundle, "program.bin")


def test_escape_sequences_do_not_reach_the_terminal(bundle: Path) -> None:
    edit_manifest(bundle, lambda m: m["files"].update({"\x1b[2Jgone": {"bytes": 1, "sha256": ""}}))
    assert "\x1b" not in refusal("verify", bundle)
    with pytest.raises(BundleError, match="gone"):
        Bundle.open(bundle)


# --- sizes and counts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [-1, 1 << 40, 1 << 70, 1.0, "6", None, True])
def test_sizes_that_are_not_the_files_are_refused(bundle: Path, size: object) -> None:
    edit_manifest(bundle, lambda m: m["files"][PROGRAM].update(bytes=size))
    refused(bundle, "program.bin")


def test_a_sparse_giant_is_refused_before_it_is_read(bundle: Path) -> None:
    """A file of a terabyte that occupies nothing: reading it would end this process."""
    with (bundle / PROGRAM).open("wb") as file:
        file.truncate(1 << 40)
    edit_manifest(bundle, lambda m: m["files"][PROGRAM].update(bytes=1 << 40))
    refused(bundle, "1099511627776 bytes")
    (bundle / PROGRAM).unlink()
    os.truncate(bundle / "manifest.json", 1 << 40)
    refused(bundle, "the manifest is too large")


def test_too_many_files_are_refused(bundle: Path) -> None:
    entry = {"bytes": 0, "sha256": sha256(b"")}
    edit_manifest(bundle, lambda m: m["files"].update({str(i): entry for i in range(MAX_FILES)}))
    refused(bundle, "too many files")


def test_a_claimed_million_of_golden_pictures_is_refused(bundle: Path) -> None:
    (bundle / "golden/index.txt").write_text("EYGOLD1 1000000 15\n", "ascii")
    repair(bundle)
    assert "golden" in refusal("verify", bundle, "--skip", "ort", "--skip", "engine")


@pytest.mark.parametrize(
    "text", [NESTED, '{"files":' * 50_000, "", "{", "nul", '{"a":' + "9" * 5000 + "}", "\ufeff{}", "[1,2"]
)
def test_a_manifest_that_is_no_json_object_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text, "utf-8")
    with pytest.raises(BundleError):
        Bundle.open(bundle)


@pytest.mark.parametrize("depth", [50, 400, 800, 900, 950, 970, 980, 985, 990, 995, 1000, 5000])
def test_deep_nesting_anywhere_is_refused(bundle: Path, depth: int) -> None:
    """Around the interpreter's own limit a text can be parsed in one place and be too deep in another."""
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    manifest["detector"] = "@"
    text = json.dumps(manifest).replace('"@"', "[" * depth + "]" * depth)
    (bundle / "manifest.json").write_text(text, "utf-8")
    with pytest.raises(EdgeYoloError):
        Bundle.open(bundle)


# --- the detector ----------------------------------------------------------------------------------------------------


def set_path(document: Any, path: tuple[str | int, ...], value: object) -> Any:
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = value
    return document


HUGE = 10**9
ABSURD: list[tuple[tuple[str | int, ...], Any]] = [
    *((("preprocess", "width"), v) for v in (HUGE, 0, -1, 320.0, "320", None, True, [320])),
    *((("preprocess", "height"), v) for v in (MAX_SIDE + 1, 0, 10**400)),
    *((("preprocess", "channels"), v) for v in (0, 4, HUGE)),
    *((("preprocess", "scale"), v) for v in (0, -1, float("nan"), float("inf"), 1e300, "1/255")),
    *((("preprocess", "fill"), v) for v in (-1, 256, 127.5)),
    *((("preprocess", "resize"), v) for v in ("crop", None, ["stretch"])),
    *((("heads", 0, "stride"), v) for v in ([-8, 8], [0, 8], [8], [8, 8, 8], 8, [float("nan"), 8], ["8", 8])),
    *((("heads", 0, "anchors"), v) for v in ([[float("nan"), 1]], [[1]], [[-1, 1]], [], [[1, 1e9]], [[1, 1]] * 2000)),
    *((("heads", 0, "classes"), v) for v in (HUGE, 0, -1, MAX_CLASSES + 1, 2.5, None)),
    *((("heads", 0, "scale_x_y"), v) for v in (float("nan"), float("-inf"), 2 * MAX_NUMBER, None)),
    *((("heads", 0, "new_coords"), v) for v in (1, "yes", None)),
    *((("heads", 0, "kind"), v) for v in ("yolo9", None, 1, ["yolo"])),
    *((("heads", 0, "output"), v) for v in (None, 1, "x" * 5000)),
    *((("heads",), v) for v in (None, {}, "heads", [None], [[]])),
    *((("names",), v) for v in (None, "person", [1], [["x"]], ["x" * 5000], ["x"] * (MAX_CLASSES + 1))),
    *((("nms_kind",), v) for v in ("corners", None, 0)),
    *((("beta_nms",), v) for v in (float("nan"), None, "0.6")),
    *((("extra",), v) for v in ([], {"a": 1}, {"a": "x" * 5000}, None)),
    *((("source",), v) for v in (None, 1)),
    (("unknown",), 1),
    (("preprocess", "unknown"), 1),
    (("heads", 0, "unknown"), 1),
]


@pytest.mark.parametrize(("path", "value"), ABSURD, ids=[f"{'.'.join(map(str, p))}={str(v)[:20]}" for p, v in ABSURD])
def test_absurd_detector_facts_are_refused_by_name(
    good_bundle: Path, path: tuple[str | int, ...], value: object
) -> None:
    facts = json.loads((good_bundle / "manifest.json").read_text("utf-8"))["detector"]
    set_path(facts, path, value)
    with pytest.raises(InputError) as caught:
        Detector.from_json(json.dumps(facts))
    assert str(path[-1]) in str(caught.value) and len(str(caught.value)) < 1000


def test_too_many_heads_and_missing_keys_are_refused(good_bundle: Path) -> None:
    facts = json.loads((good_bundle / "manifest.json").read_text("utf-8"))["detector"]
    with pytest.raises(InputError, match="heads"):
        Detector.from_json(json.dumps({**facts, "heads": facts["heads"] * MAX_HEADS}))
    for key in ("source", "preprocess"):
        with pytest.raises(InputError, match=f"missing keys.*{key}"):
            Detector.from_json(json.dumps({k: v for k, v in facts.items() if k != key}))
    for text in ("null", "[]", "1", '"x"', "{}", NESTED, "{", ""):
        with pytest.raises(InputError):
            Detector.from_json(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), value=JSON)
def test_any_json_at_any_key_of_the_manifest_is_answered(spare: Path, data: st.DataObject, value: object) -> None:
    text = (spare / "manifest.json").read_text("utf-8")
    manifest = json.loads(text)
    paths = [p for p in _paths(manifest) if p]
    set_path(manifest, data.draw(st.sampled_from(paths)), value)
    try:
        (spare / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        _answer(lambda: check(spare))
    finally:
        (spare / "manifest.json").write_text(text, "utf-8")


def _paths(document: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [at, *(path for key, value in inner for path in _paths(value, (*at, key)))]


def _answer(action: Callable[[], object]) -> bool:
    """Whether it was accepted; anything but one of our errors fails the test."""
    try:
        action()
    except EdgeYoloError as error:
        assert len(str(error)) < 10_000
        return False
    return True


# --- damaged files ---------------------------------------------------------------------------------------------------


def spoil(data: bytes, rng: random.Random) -> bytes:
    """Truncate, insert, flip bits, or write extreme words."""
    kind = rng.random()
    if kind < 0.15 or not data:
        return data[: rng.randrange(len(data) + 1)]
    at = rng.randrange(len(data))
    if kind < 0.25:
        return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]
    spoilt = bytearray(data)
    if kind < 0.45 and len(data) >= 4:
        at = rng.randrange(len(data) - 3) // 4 * 4
        word = rng.choice((0, 1, 255, 32767, 65536, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
        spoilt[at : at + 4] = struct.pack("<I", word)
    for _ in range(rng.choice((1, 1, 2, 16))):
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def spoil_json(text: str, rng: random.Random) -> str:
    """Put an odd value at a random place, or remove or double one."""
    document = json.loads(text)
    path = rng.choice([p for p in _paths(document) if p])
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    kind = rng.random()
    if kind < 0.7:
        holder[path[-1]] = rng.choice(ATOMS)
    elif kind < 0.85:
        del holder[path[-1]]
    elif isinstance(holder, list):
        holder.append(holder[path[-1]])
    else:
        holder[rng.choice(("", "../x", "other"))] = holder[path[-1]]
    return json.dumps(document)


def test_damaged_program_images_are_refused_or_sound(good_bundle: Path) -> None:
    """With a repaired CRC, so that every check behind it is reached."""
    image, rng = (good_bundle / PROGRAM).read_bytes(), random.Random(SEED)
    accepted = 0
    for _ in range(600):
        spoilt = bytearray(spoil(image, rng))
        if len(spoilt) >= 16:
            struct.pack_into("<I", spoilt, 8, len(spoilt))
            struct.pack_into("<I", spoilt, 12, zlib.crc32(bytes(spoilt[16:])))
        accepted += _answer(lambda data=bytes(spoilt): decode_program(data, "spoilt"))
    assert 0 < accepted < 300, "a changed weight is a sound program, most other changes are not"


def test_damaged_manifests_are_answered(spare: Path) -> None:
    text, rng = (spare / "manifest.json").read_text("utf-8"), random.Random(SEED)
    try:
        for _ in range(60):
            (spare / "manifest.json").write_bytes(spoil(text.encode(), rng))
            _answer(lambda: Bundle.open(spare))
            (spare / "manifest.json").write_text(spoil_json(text, rng), "utf-8")
            _answer(lambda: Bundle.open(spare))
    finally:
        (spare / "manifest.json").write_text(text, "utf-8")


def test_damaged_files_with_repaired_hashes_are_answered(spare: Path) -> None:
    rng, files = random.Random(SEED), tree(spare)
    names = [name for name in files if name != "manifest.json" and not name.startswith("engine/")]
    for _ in range(25):
        name = rng.choice(names)
        (spare / name).write_bytes(spoil(files[name], rng))
        repair(spare)
        _answer(lambda: check(spare))
        (spare / name).write_bytes(files[name])
    for _ in range(25):
        name = "weights/blobs.json"
        (spare / name).write_text(spoil_json(files[name].decode(), rng), "utf-8")
        repair(spare)
        assert not _answer(lambda: check(spare)), "the index has one legal form"
        (spare / name).write_bytes(files[name])
    (spare / "manifest.json").write_bytes(files["manifest.json"])
    check(spare)


def test_damaged_onnx_files_are_answered(spare: Path) -> None:
    rng, files = random.Random(SEED), tree(spare)
    for _ in range(30):
        (spare / "model.onnx").write_bytes(spoil(files["model.onnx"], rng))
        repair(spare)
        _answer(lambda: verify(spare, Log(quiet=True), skip=("engine",)))
    for name in ("model.onnx", "manifest.json"):
        (spare / name).write_bytes(files[name])
    assert not verify(spare, Log(quiet=True), skip=("engine",)).differences


def test_a_foreign_engine_is_not_run(bundle: Path, tmp_path: Path) -> None:
    """Verifying a stranger's bundle compiles C: only our own sources may run unasked."""
    trace = tmp_path / "trace"
    source = f'#include <stdio.h>\nint main(void) {{ fclose(fopen("{trace}", "w")); return 0; }}\n'
    (bundle / "engine/selftest.c").write_text(source, "utf-8")
    repair(bundle)
    log = Log(quiet=True)
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    assert not verify(bundle, log, skip=("ort",)).differences
    assert not trace.exists()
    os.mkfifo(bundle / "engine/unlisted.c")
    assert not verify(bundle, log, skip=("ort",)).differences
