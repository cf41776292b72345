"""The readers of labelled data sets, on small hand-made sets with good and broken labels."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeyolo.datasets import Dataset, load_dataset
from edgeyolo.datasets.data_yaml import read_data_yaml
from edgeyolo.datasets.files import below, read_bytes
from edgeyolo.datasets.oxford_hand import _boxes
from edgeyolo.datasets.yolo import label_path
from edgeyolo.errors import EdgeYoloError, InputError
from edgeyolo.images import image_size, load_image

SETS = Path(__file__).parent / "fixtures" / "datasets"


def told(dataset: Dataset) -> Counter[tuple[str, str, str]]:
    """Problems as (file name with line, reason, action)."""
    return Counter((Path(p.where).name, p.reason, p.action) for p in dataset.problems)


def content(dataset: Dataset) -> dict[str, list[tuple[int, list[float]]]]:
    """Every sample's classes and boxes."""
    return {s.name: [(int(c), b) for c, b in zip(s.classes, s.boxes.tolist(), strict=True)] for s in dataset.samples}


YOLO_BROKEN = {
    ("a.txt:2", "out of range", "repaired"),
    ("a.txt:4", "said twice", "dropped"),
    ("a.txt:5", "not from 0 to 1", "dropped"),
    ("a.txt:6", "empty box", "dropped"),
    ("a.txt:7", "not a number", "dropped"),
    ("a.txt:8", "unreadable line", "dropped"),
    ("b.png", "no labels for the picture", "kept"),
    ("c.png", "no labels for the picture", "kept"),
}


def test_yolo_tree_keeps_good_labels_and_tells_every_other():
    dataset = load_dataset(SETS / "yolo")
    assert dataset.names == tuple("01234567")
    first = [(1, [10, 7.5, 30, 22.5]), (0, [28, 12, 40, 18]), (7, [18, 13.5, 22, 16.5]), (0, [10, 3, 30, 18])]
    assert content(dataset) == {
        "train/a.png": first,
        "train/b.png": [],
        "train/c.png": [],
        "val/d.png": [(0, [15, 12, 25, 18])],
    }
    assert set(told(dataset)) == YOLO_BROKEN | {("z.txt", "labels without a picture", "dropped")}
    assert dataset.counts()["kept", "no labels for the picture"] == 2
    assert "1 x out of range (repaired)" in dataset.summary()


def test_samples_have_the_promised_types_and_load_their_picture():
    for sample in load_dataset(SETS / "yolo").samples:
        assert sample.boxes.dtype == np.float32 and sample.boxes.shape == (len(sample.classes), 4)
        assert sample.classes.dtype == np.int64
        pixels = sample.load()
        assert pixels.dtype == np.uint8 and pixels.shape == (sample.size[1], sample.size[0], 3)


def test_data_yaml_gives_names_and_splits():
    train = load_dataset(f"{SETS}/yaml/data.yaml:train")
    assert train.names == ("cat", "dog")
    assert set(told(train)) == YOLO_BROKEN | {("a.txt:3", "unknown class", "dropped")}
    val = load_dataset(SETS / "yaml" / "data.yaml", split="val")
    assert content(val) == {"d.png": [(0, [15, 12, 25, 18])]}
    with pytest.raises(InputError, match="which split"):
        load_dataset(SETS / "yaml" / "data.yaml")


def test_split_of_a_yolo_tree_is_a_folder_of_images():
    assert [s.name for s in load_dataset(SETS / "yolo", split="val").samples] == ["val/d.png"]
    with pytest.raises(InputError, match="no such split"):
        load_dataset(SETS / "yolo", split="test")


def test_given_names_match_by_name_and_drop_the_rest():
    swapped = load_dataset(SETS / "yaml" / "data.yaml", ("dog", "cat"), split="val")
    assert swapped.samples[0].classes.tolist() == [1]
    one = load_dataset(SETS / "coco", ["dog"])
    assert one.names == ("dog",)
    assert one.samples[0].classes.tolist() == [0]
    with pytest.raises(InputError, match="none of the data set's classes"):
        load_dataset(SETS / "coco", ["zebra"])


def test_darknet_paths_start_from_a_parent_folder():
    source = SETS / "darknet" / "oxfordhand" / "oxfordhand.data"
    train = load_dataset(source, split="train")
    assert train.names == ("hand",)
    assert content(train) == {"images/hand_1.png": [(0, [10, 12, 30, 18])]}
    assert told(train) == Counter({("gone.png", "missing picture", "left out"): 1})
    assert [s.name for s in load_dataset(f"{source}:valid").samples] == ["images/hand_2.png"]
    assert content(load_dataset(source.parent / "valid.txt", ["hand"]))["images/hand_2.png"] == [(0, [8, 12, 12, 18])]


def test_labels_may_stand_beside_the_pictures():
    assert content(load_dataset(SETS / "darknet" / "flat")) == {"hand_3.png": [(0, [0, 12, 20, 18])]}
    assert label_path(Path("a/images/b/images/c.jpg")) == Path("a/images/b/labels/c.txt")


def test_darknet_names_must_be_as_many_as_classes(tmp_path):
    (tmp_path / "a.names").write_text("x\ny\n")
    (tmp_path / "l.txt").write_text("")
    (tmp_path / "a.data").write_text("classes=3\ntrain=l.txt\nnames=a.names\n")
    with pytest.raises(InputError, match="disagree"):
        load_dataset(tmp_path / "a.data")


def test_coco_json():
    dataset = load_dataset(SETS / "coco")
    assert dataset.names == ("cat", "dog")
    assert content(dataset) == {"1.png": [(1, [10, 5, 30, 20]), (0, [30, 20, 40, 25])]}
    assert set(told(dataset)) == {
        ("instances_val2017.json: images[2]", "unreadable entry", "left out"),
        ("instances_val2017.json: images[4]", "unreadable entry", "left out"),
        ("instances_val2017.json: annotations[1]", "out of range", "repaired"),
        ("instances_val2017.json: annotations[2]", "unknown class", "dropped"),
        ("instances_val2017.json: annotations[3]", "outside the picture", "dropped"),
        ("instances_val2017.json: annotations[4]", "not a number", "dropped"),
        ("instances_val2017.json: annotations[5]", "unreadable entry", "dropped"),
        ("instances_val2017.json: annotations[6]", "a crowd", "dropped"),
        ("instances_val2017.json: annotations[7]", "labels without a picture", "dropped"),
        ("2.png", "the picture has another size than its labels say", "left out"),
        ("gone.png", "missing picture", "left out"),
    }


def test_voc_xml_counts_from_one_and_refuses_a_doctype():
    dataset = load_dataset(SETS / "voc")
    assert dataset.names == ("cow", "sheep")
    assert content(dataset) == {"000001": [(1, [10, 5, 30, 20]), (0, [0, 0, 40, 30])]}
    assert set(told(dataset)) == {
        ("000001.xml: object[1]", "difficult", "kept"),
        ("000001.xml: object[2]", "not a number", "dropped"),
        ("000002.xml", "unreadable labels", "left out"),
        ("000003.png", "unreadable labels", "left out"),
    }
    assert any(p.got == "a DOCTYPE" for p in dataset.problems)
    split = load_dataset(SETS / "voc", split="val")
    assert [s.name for s in split.samples] == ["000001"]
    assert ("000009", "listed but without labels", "left out") in told(split)


def test_dior_reads_the_upright_boxes():
    dataset = load_dataset(SETS / "dior")
    assert content(dataset) == {"11726": [(0, [0, 0, 20, 15])]}
    assert dataset.problems == ()


def test_visdrone():
    dataset = load_dataset(SETS / "visdrone")
    assert dataset.names[3] == "car"
    assert content(dataset) == {"0001.png": [(3, [10, 5, 30, 20]), (0, [35, 5, 40, 15])]}
    assert set(told(dataset)) == {
        ("0001.txt:2", "an ignored region", "dropped"),
        ("0001.txt:3", "an ignored region", "dropped"),
        ("0001.txt:4", "out of range", "repaired"),
        ("0001.txt:5", "unreadable line", "dropped"),
        ("0002.png", "unreadable labels", "left out"),
        ("0009.txt", "labels without a picture", "dropped"),
    }


def test_bdd100k():
    dataset = load_dataset(SETS / "bdd")
    table = "bdd100k_labels_images_val.json: "
    assert dataset.names == ("bike", "car")
    assert content(dataset) == {"x-1.png": [(1, [10.5, 5, 30, 20])], "x-2.png": []}
    assert set(told(dataset)) == {
        (f"{table}[0].labels[1]", "not a box", "dropped"),
        (f"{table}[0].labels[2]", "not a number", "dropped"),
        (f"{table}[0].labels[3]", "unreadable entry", "dropped"),
        (f"{table}[2]", "unreadable entry", "left out"),
        ("x-2.png", "no labels for the picture", "kept"),
    }


def test_oxford_hand_boxes_are_around_the_corners():
    """The first file is plain, the second compressed."""
    corners = [(0, [10, 5, 30, 20]), (0, [15, 6, 25, 15])]
    dataset = load_dataset(SETS / "oxford_hand")
    assert dataset.names == ("hand",)
    assert content(dataset) == {"hand_1.png": corners, "hand_2.png": corners}
    assert dataset.problems == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names no pictures"),
        ("train: [a, b]\n", "beyond"),
        ("train: a\nnames: {0: x}\n", "beyond"),
        ("train: a\nnames:\n  1: x\n", "run from 0"),
        ("train: a\nnc: 3\nnames: [x, y]\n", "disagree"),
        ("train: a\nnames: [x, &y]]\n", "beyond"),
        ("train: a\nnames:\n- x\n  - y: z\n  w\n", "beyond"),
        ("  train: a\n", "beyond"),
    ],
)
def test_data_yaml_beyond_the_subset_is_refused(tmp_path, text, reason):
    path = tmp_path / "data.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=reason):
        read_data_yaml(path)


@pytest.mark.parametrize(
    "names",
    ["names: ['a b', c]", "names: [\n  'a b',\n  c,\n]", "names:\n- a b\n- c", "names:\n  1: c\n  0: 'a b' # x"],
)
def test_data_yaml_names_in_every_form(tmp_path, names):
    path = tmp_path / "data.yaml"
    path.write_text(f"train: here\nnc: 2\n{names}\nroboflow:\n  url: http://x\n")
    assert read_data_yaml(path).names == ("a b", "c")


def test_unknown_and_empty_sources_are_refused_with_what_is_allowed(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "x.csv").write_text("a")
    (tmp_path / "x.json").write_text('{"a": 1}')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for source in (
        tmp_path,
        tmp_path / "x.csv",
        tmp_path / "x.json",
        tmp_path / "deep.json",
        tmp_path / "none",
        "a\0b",
    ):
        with pytest.raises(InputError):
            load_dataset(source)


def test_a_set_without_one_usable_picture_is_an_error(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no picture")
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .5 .1 .1\n")
    with pytest.raises(InputError, match="no labelled picture is left") as caught:
        load_dataset(tmp_path)
    assert "unreadable picture" in str(caught.value)


def test_files_are_bounded_and_stay_in_their_folder(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", 5) == b"12345"
    with pytest.raises(InputError, match="too large"):
        read_bytes(tmp_path / "a", 4)
    assert below(tmp_path, "b/c.png") == tmp_path / "b" / "c.png"
    assert [below(tmp_path, name) for name in ("../x", "/x", "b/../../x", "", 3, "a\0", "a\\..\\b")] == [None] * 7


def test_a_mat_file_that_grows_is_refused(tmp_path):
    packed = zlib.compress(bytes(1 << 25))
    head = b"MATLAB 5.0".ljust(124) + b"\x00\x01IM"
    path = tmp_path / "bomb.mat"
    path.write_bytes(head + struct.pack("<II", 15, len(packed)) + packed)
    with pytest.raises(InputError, match=r"\.mat") as caught:
        _boxes(path)
    assert "decompressed" in str(caught.value)


DAMAGED = {
    "yolo": "labels/train/a.txt",
    "darknet/oxfordhand/oxfordhand.data": ".",
    "coco": "annotations/instances_val2017.json",
    "voc": "Annotations/000001.xml",
    "visdrone": "annotations/0001.txt",
    "bdd": "labels/bdd100k_labels_images_val.json",
    "oxford_hand": "annotations/hand_1.mat",
    "yaml/data.yaml": ".",
}


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(SETS, tmp_path_factory.mktemp("damaged") / "datasets"))


@pytest.mark.parametrize("source", DAMAGED)
def test_damaged_files_give_our_errors_only(copies, source):
    """Cuts, flipped bytes and replaced parts of each label file: a data set or an EdgeYoloError, no other error."""
    path = copies / source / DAMAGED[source] if DAMAGED[source] != "." else copies / source
    whole = path.read_bytes()
    rng = np.random.default_rng(5)
    usable = 0
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 6)):
            at = int(rng.integers(len(data)))
            junk = (
                b"\0",
                b"\xff\xfe",
                b"9" * 400,
                b"-1e999",
                b"{",
                b'"',
                b"null",
                b"\n",
                b"<a>",
                bytes([rng.integers(256)]),
            )
            data[at : at + int(rng.integers(9))] = junk[rng.integers(len(junk))]
        path.write_bytes(data[: int(rng.integers(len(data)))] if rng.random() < 0.2 else data)
        try:
            dataset = load_dataset(copies / source, split="train" if DAMAGED[source] == "." else None)
        except EdgeYoloError:
            continue
        usable += 1
        for sample in dataset.samples:
            width, height = sample.size
            assert (sample.boxes[:, :2] >= 0).all() and (sample.boxes[:, 2:] <= (width, height)).all()
            assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
            assert ((sample.classes >= 0) & (sample.classes < len(dataset.names))).all()
    path.write_bytes(whole)
    assert usable > 0


JSON_KEYS = st.sampled_from(
    ["images", "annotations", "categories", "id", "name", "file_name", "bbox", "labels", "box2d"]
)
PLAIN = st.none() | st.integers() | st.floats() | st.text()


@given(st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(JSON_KEYS, inner)))
def test_any_json_is_read_or_refused(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(value))
    with pytest.raises(EdgeYoloError):
        load_dataset(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_size_is_that_of_the_upright_picture(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (12, 8)).save(path, exif=exif)
    height, width, _ = load_image(path).shape
    assert image_size(path) == (width, height) == ((8, 12) if orientation > 4 else (12, 8))


def test_coco128_is_read_whole(data):
    dataset = load_dataset(data / "coco128" / "val", data / "models" / "coco.names")
    rows = sum(len(p.read_text().splitlines()) for p in (data / "coco128" / "val" / "labels").glob("*.txt"))
    dropped = sum(p.action == "dropped" for p in dataset.problems)
    assert len(dataset.samples) == 128
    assert sum(len(s.boxes) for s in dataset.samples) + dropped == rows
