"""Where calibration pictures come from, and that their number does not fill the memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_models import PICTURES, SIZE, Tiny

from edgeyolo import assets
from edgeyolo.datasets import Dataset, Sample, load_dataset
from edgeyolo.detector import Detector, Head, Preprocess
from edgeyolo.errors import InputError
from edgeyolo.export import pictures
from edgeyolo.export.labels import check_labels
from edgeyolo.export.pictures import Entry, PictureSet
from edgeyolo.images import Pixels, to_input

SQUARE = Preprocess(SIZE, SIZE)


def test_a_folder_a_list_and_a_data_set_are_the_same_pictures(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.pictures, tmp_path / "images")
    (tmp_path / "labels").mkdir()
    for path in (tmp_path / "images").iterdir():
        (tmp_path / "labels" / f"{path.stem}.txt").write_text("0 .5 .5 .2 .2\n", "utf-8")
    (tmp_path / "set.yaml").write_text("path: .\nval: images\nnames: [thing]\n", "utf-8")
    (tmp_path / "list.txt").write_text("".join(f"images/picture-{i}.jpg\n" for i in range(PICTURES)), "utf-8")
    wanted = [p.tobytes() for p in PictureSet.find(tiny.pictures, SQUARE)]
    assert len(set(wanted)) == PICTURES
    for source in (tmp_path, tmp_path / "set.yaml", f"{tmp_path}/set.yaml:val", str(tmp_path / "list.txt")):
        assert [p.tobytes() for p in PictureSet.find(source, SQUARE)] == wanted


def test_scenes_and_the_embedded_recipe_calibrate() -> None:
    scenes = load_dataset("scenes:train:4:1000").samples
    wanted = [to_input(sample.load(), SQUARE) for sample in scenes]
    found = PictureSet.find("scenes:train:4:1000", SQUARE)
    np.testing.assert_array_equal(np.stack(list(found)), np.stack(wanted))
    recipe = PictureSet.find(assets.CALIBRATION, SQUARE, 2)
    np.testing.assert_array_equal(next(iter(recipe)), wanted[0])
    assert len(recipe) == 2


@pytest.mark.parametrize("kept", [0, 2, 1000])
def test_what_does_not_fit_the_cache_is_decoded_again(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "CACHE_BYTES", kept * 3 * SIZE * SIZE)
    found = PictureSet.find("scenes:train:4", SQUARE)
    assert len(found.cache) == min(kept, 4)
    first, again = (np.stack(list(found)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert [p.name for p in found.spread(2).paths] == [found.paths[0].name, found.paths[3].name]
    np.testing.assert_array_equal(np.stack(list(found.spread(2))), first[[0, 3]])


def test_what_a_data_set_leaves_out_is_listed(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.pictures, tmp_path / "images")
    (tmp_path / "set.data").write_text("valid = list.txt\n", "utf-8")
    names = [*(f"images/picture-{i}.jpg" for i in range(3)), "images/missing.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(names), "utf-8")
    path = tmp_path / "images/picture-1.jpg"
    path.write_bytes(path.read_bytes()[:700])
    found = PictureSet.find(tmp_path / "set.data", SQUARE)
    assert [p.name for p in found.paths] == ["picture-0.jpg", "picture-2.jpg"]
    assert sorted(Path(p).name for p, _ in found.skipped) == ["missing.jpg", "picture-1.jpg"]


@pytest.mark.parametrize("source", ["scenes:test", "scenes:val:0", "nowhere:val", "nowhere", "no.toml", "no.json"])
def test_sources_that_are_not_there_are_named(source: str) -> None:
    with pytest.raises(InputError) as caught:
        PictureSet.find(source, SQUARE)
    assert source.split(":", maxsplit=1)[0] in str(caught.value)


def flat(grey: int) -> Callable[[], Pixels]:
    """What decodes to one grey."""
    return lambda: np.full((SIZE, SIZE, 3), grey, np.uint8)


def broken() -> Pixels:
    raise InputError("cannot decode the picture", got="truncated")


def test_pictures_of_one_name_are_kept_apart() -> None:
    """Lists name pictures in several folders, and a data set knows those outside of it by their file names only."""
    found = PictureSet.of([Entry(Path("000.png"), flat(grey)) for grey in (10, 20, 30)], SQUARE)
    assert [int(p[0, 0, 0]) for p in found] == [10, 20, 30] == [int(p[0, 0, 0]) for p in found.spread(3)]


def test_a_broken_picture_takes_only_its_own_labels_along() -> None:
    samples = [
        Sample("000.png", (SIZE, SIZE), np.array([[0, 0, 9, 9]], np.float32), np.array([c]), load)
        for c, load in ((0, flat(10)), (1, broken), (2, flat(30)))
    ]
    head = Head("h", "yolo", stride=(8.0, 8.0), anchors=((9.0, 9.0),), classes=3)
    found = check_labels(Dataset(("a", "b", "c"), samples), "set", Detector("test", SQUARE, (head,)))
    assert [int(s.classes[0]) for s in found.samples] == [0, 2]
    assert [int(p[0, 0, 0]) for p in found.pictures] == [10, 30]
    assert found.problems == {"picture does not decode (left out)": 1}
