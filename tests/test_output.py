"""Nobody ever sees half a result, and nothing but an earlier bundle is ever replaced."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from edgeyolo.errors import InputError
from edgeyolo.output import FORMAT, check_free, check_free_file, new_folder, write_file

FULL = OSError(errno.ENOSPC, "No space left on device")
as_user = pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def make_bundle(folder: Path) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "version": 1}), "utf-8")
    return folder


def fill(target: Path, *, force: bool = False) -> None:
    with new_folder(target, force=force) as folder:
        (folder / "part").mkdir()
        (folder / "part/new").write_text("new", "utf-8")


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "a/b/out"
    with new_folder(target) as folder:
        (folder / "file").write_text("x", "utf-8")
        assert not target.exists()
        assert folder.parent == target.parent, "a rename works within one file system only"
    assert names(tmp_path) == ["a", "a/b", "a/b/out", "a/b/out/file"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), SystemExit(1), InputError("no")])
def test_whatever_happens_inside_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), new_folder(tmp_path / "a/b/out") as folder:
        (folder / "file").write_text("x", "utf-8")
        raise error
    assert names(tmp_path) == []


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No space left"), new_folder(tmp_path / "a/out") as folder:
        (folder / "file").write_text("x", "utf-8")
        raise FULL
    with pytest.raises(InputError, match="File name too long"):
        fill(tmp_path / "a" / ("n" * 300))
    assert names(tmp_path) == []


def test_parents_that_were_there_stay(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError), new_folder(tmp_path / "mine/made/out"):
        raise FULL
    assert names(tmp_path) == ["mine"]


def test_an_existing_folder_needs_force(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "out")
    with pytest.raises(InputError, match="--force"):
        fill(bundle)
    assert names(bundle) == ["manifest.json"]
    fill(bundle, force=True)
    assert names(tmp_path) == ["out", "out/part", "out/part/new"]


def test_an_empty_folder_is_replaced_with_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="--force"):
        fill(tmp_path / "out")
    fill(tmp_path / "out", force=True)
    assert (tmp_path / "out/part/new").is_file()


@pytest.mark.parametrize(
    "manifest",
    [None, '{"name": "my web page", "icons": []}', "[]", "not json", "[" * 100_000, '"edgeyolo-bundle"', "{}"],
)
def test_force_never_replaces_a_folder_that_is_no_bundle(tmp_path: Path, manifest: str | None) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "photo.jpg").write_bytes(b"photo")
    if manifest is not None:
        (precious / "manifest.json").write_text(manifest, "utf-8")
    before = names(tmp_path)
    with pytest.raises(InputError, match="not a bundle"):
        fill(precious, force=True)
    assert names(tmp_path) == before and (precious / "photo.jpg").read_bytes() == b"photo"


def test_force_replaces_neither_files_nor_links(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    (tmp_path / "file").write_text("x", "utf-8")
    (tmp_path / "link").symlink_to(bundle)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = names(tmp_path)
    for name in ("file", "link", "dangling"):
        with pytest.raises(InputError, match="left alone"):
            fill(tmp_path / name, force=True)
    assert names(tmp_path) == before


def test_the_old_bundle_stands_until_the_new_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "out")
    original = Path.rename

    def refuse_new(self: Path, target: Path) -> Path:
        if (self / "part").is_dir():
            raise FULL
        return original(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(InputError, match="No space left"):
        fill(bundle, force=True)
    assert names(tmp_path) == ["out", "out/manifest.json"]


def test_a_parent_that_is_a_file_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", "utf-8")
    for target in (tmp_path / "file/out", tmp_path / "file/deep/out"):
        with pytest.raises(InputError, match="not a folder"):
            check_free(target, force=False)
        with pytest.raises(InputError, match="not a folder"):
            check_free_file(target, force=True)
    with pytest.raises(InputError, match="exists"):
        check_free(Path("/"), force=True)


@as_user
def test_a_parent_without_permission_is_refused_before_the_work(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    for check in (check_free, check_free_file):
        with pytest.raises(InputError, match="permission"):
            check(closed / "out", force=False)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "a/model.onnx", b"first")
    with pytest.raises(InputError, match="--force"):
        write_file(tmp_path / "a/model.onnx", b"second")
    write_file(tmp_path / "a/model.onnx", b"second", force=True)
    assert (tmp_path / "a/model.onnx").read_bytes() == b"second"
    assert (tmp_path / "a/model.onnx").stat().st_mode & 0o777 == 0o644

    def full(*_: object) -> None:
        raise FULL

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        write_file(tmp_path / "a/model.onnx", b"third", force=True)
    with pytest.raises(InputError, match="No space left"):
        write_file(tmp_path / "b/model.onnx", b"third")
    assert names(tmp_path) == ["a", "a/model.onnx"] and (tmp_path / "a/model.onnx").read_bytes() == b"second"


def test_a_file_never_replaces_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        write_file(tmp_path / "model.onnx", b"x", force=True)
    assert (tmp_path / "model.onnx").is_dir()
