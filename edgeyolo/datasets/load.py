"""One door to every data set: recognises the format and calls its reader."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeyolo.datasets import scenes
from edgeyolo.datasets.bdd import read_bdd
from edgeyolo.datasets.check import assemble
from edgeyolo.datasets.coco import read_coco
from edgeyolo.datasets.darknet import listed_pictures, read_data_file
from edgeyolo.datasets.data_yaml import read_data_yaml
from edgeyolo.datasets.files import below, read_json, read_text, split_folder
from edgeyolo.datasets.oxford_hand import NAMES as HAND_NAMES
from edgeyolo.datasets.oxford_hand import read_oxford_hand
from edgeyolo.datasets.sample import Dataset, Problem
from edgeyolo.datasets.visdrone import NAMES as VISDRONE_NAMES
from edgeyolo.datasets.visdrone import read_visdrone
from edgeyolo.datasets.voc import read_voc
from edgeyolo.datasets.yolo import label_path, orphans, read_yolo
from edgeyolo.detector import read_names
from edgeyolo.errors import InputError
from edgeyolo.images import EXTENSIONS, list_images

FORMATS = (
    "scenes:SPLIT[:COUNT[:SEED]]; a YOLO tree (images/ and labels/) or its data.yaml; a Darknet .data or list file; "
    "a COCO or BDD100K .json; a folder with VOC (Annotations/*.xml), VisDrone or Oxford-hand annotations"
)
SPLITS = ("train", "val", "valid", "test", "trainval")


def load_dataset(source: Path | str, names: Sequence[str] | Path | None = None, *, split: str | None = None) -> Dataset:
    """Read a labelled data set of any known format.

    Args:
        source: ``scenes:val`` (``train``; optionally ``:COUNT:SEED``), or a file or folder as in ``FORMATS``, to which
            ``:SPLIT`` may be added.
        names: class names, or a file of them, in the order wanted; without them those of the set, else the names that
            occur in alphabetical order, else numbers.
        split: ``train``, ``val``, ...: for sets that have splits; must be said where there are several.

    Raises:
        InputError: the source is missing, not recognised, or without one usable picture; a file of it is too large or
            not of its format. What is wrong with single labels and pictures is in ``Dataset.problems`` instead.
    """
    given = read_names(names) if isinstance(names, Path) else tuple(names or ())
    if isinstance(source, str) and source.partition(":")[0] == "scenes" and not Path(source).exists():
        return _scenes(source, split)
    path, split = _path_and_split(source, split)
    try:
        if path.is_dir():
            return _folder(path, given, split)
        if path.suffix.lower() == ".json":
            return _json(path, path.parent, given, split)
        return _text(path, given, split)
    except OSError as error:
        raise InputError("cannot read the data set", where=path, got=error.strerror or repr(error)) from error


def _scenes(source: str, split: str | None) -> Dataset:
    """``scenes:val:100:7``."""
    try:
        words = source.split(":")[1:]
        wanted = words[0] if words and words[0] else split or "val"
        count = int(words[1]) if len(words) > 1 else scenes.DEFAULT_COUNT.get(wanted, 1)
        seed = int(words[2]) if len(words) > 2 else 0
        if len(words) > 3:
            raise ValueError
    except ValueError as error:
        raise InputError("cannot read the source", got=source, allowed="scenes:SPLIT[:COUNT[:SEED]]") from error
    return Dataset(scenes.NAMES, scenes.SceneDataset(wanted, count, seed))


def _path_and_split(source: Path | str, split: str | None) -> tuple[Path, str | None]:
    """Take ``:SPLIT`` off the source."""
    path = Path(source)
    try:
        if path.exists():
            return path, split
        head, colon, tail = str(source).rpartition(":")
        if colon and tail in SPLITS and Path(head).exists():
            return Path(head), tail
    except (OSError, ValueError) as error:
        raise InputError("this is not a path", where=repr(source)[:200], got=str(error)) from error
    raise InputError("there is no such data set", where=str(source)[:200], allowed=FORMATS)


def _text(path: Path, given: tuple[str, ...], split: str | None) -> Dataset:
    """data.yaml, .data and lists of pictures."""
    suffix, pictures = path.suffix.lower(), path
    own: tuple[str, ...] = ()
    if suffix in (".yaml", ".yml", ".data"):
        splits, own = read_data_yaml(path) if suffix != ".data" else read_data_file(path)
        pictures = _chosen(splits, split, path)
    elif suffix != ".txt":
        raise InputError("the format of the data set is not known", where=path, allowed=FORMATS)
    if pictures.is_dir():
        return _yolo(list_images(pictures), pictures, own, given)
    return _yolo(listed_pictures(pictures), pictures.parent, own, given)


def _chosen(splits: dict[str, Path], split: str | None, path: Path) -> Path:
    """The split asked for, or the only one."""
    wanted = "val" if split == "valid" else split
    if wanted is None and len(splits) == 1:
        return next(iter(splits.values()))
    if wanted not in splits:
        allowed = ", ".join(f"{path}:{name}" for name in splits)
        raise InputError("say which split of the data set is meant", where=path, got=split, allowed=allowed)
    return splits[wanted]


def _yolo(pictures: list[Path], root: Path, own: tuple[str, ...], given: tuple[str, ...]) -> Dataset:
    problems: list[Problem] = []
    return assemble(read_yolo(pictures, root, problems), problems, own=own, given=given)


def _json(path: Path, root: Path, given: tuple[str, ...], split: str | None) -> Dataset:
    """COCO and BDD100K; the pictures are searched for beside the file and above it."""
    data, problems = read_json(path), list[Problem]()
    if isinstance(data, list):
        folder = _picture_folder(path, root, _first(data, "name"), split)
        return assemble(read_bdd(data, path, folder, problems), problems, given=given)
    if not isinstance(data, dict) or "images" not in data:
        raise InputError("this is neither COCO nor BDD100K", where=path, allowed=FORMATS)
    folder = _picture_folder(path, root, _first(data["images"], "file_name"), split)
    own, items = read_coco(data, path, folder, problems)
    return assemble(items, problems, own=own, given=given)


def _first(entries: object, key: str) -> str:
    """The first picture's name in a list of entries."""
    found = (
        (e[key] for e in entries if isinstance(e, dict) and isinstance(e.get(key), str))
        if isinstance(entries, list)
        else ()
    )
    return next(iter(found), "")


def _picture_folder(path: Path, root: Path, name: str, split: str | None) -> Path:
    """The folder in which the picture ``name`` stands: near the file, its parents, or their image folders."""
    words = [path.stem.rpartition("_")[2], *([split] if split else [])]
    bases = dict.fromkeys((path.parent, root, path.parent.parent, path.parent.parent.parent))
    inner = ("", "images", *words, *(f"images/{w}" for w in words), *(f"images/100k/{w}" for w in words))
    folders = [base / part for base in bases for part in inner]
    return next((f for f in folders if (found := below(f, name)) is not None and found.is_file()), path.parent)


def _folder(root: Path, given: tuple[str, ...], split: str | None) -> Dataset:
    """A folder: look for what is typical of each format."""
    annotations = next((root / name for name in ("Annotations", "annotations") if (root / name).is_dir()), None)
    if annotations is not None:
        if any(annotations.rglob("*.xml")):
            return _voc(root, annotations, given, split)
        tables = sorted(annotations.glob("*.json"))
        if tables:
            return _json(_table(tables, root, split), root, given, split)
        return _beside(root, annotations, given, split)
    for pattern in ("data.yaml", "data.yml", "*.data"):
        if found := sorted(root.glob(pattern)):
            return _text(found[0], given, split)
    if tables := sorted([*root.glob("*.json"), *(root / "labels").rglob("*.json")]):
        return _json(_table(tables, root, split), root, given, split)
    base = root / "images" if (root / "images").is_dir() else root
    pictures = list_images(split_folder(base, split))
    problems: list[Problem] = []
    if (root / "labels").is_dir() and split is None:
        orphans(pictures, root / "labels", problems)
    elif not any(label_path(picture).exists() for picture in pictures):
        raise InputError("there are pictures, but no labels of a known format", where=root, allowed=FORMATS)
    return assemble(read_yolo(pictures, base, problems), problems, given=given)


def _table(tables: list[Path], root: Path, split: str | None) -> Path:
    """The json file of a split."""
    fitting = [p for p in tables if split and split in p.stem] or tables
    exact = [p for p in fitting if p.name.startswith(("instances", "bdd100k_labels", "det_"))] or fitting
    if len(exact) != 1 or (split and split not in exact[0].stem):
        have = ", ".join(p.name for p in tables)
        raise InputError("say which split or which json file is meant", where=root, got=split, allowed=have)
    return exact[0]


def _beside(root: Path, annotations: Path, given: tuple[str, ...], split: str | None) -> Dataset:
    """VisDrone and Oxford hands: one file in ``annotations`` for each picture in ``images``."""
    pictures, problems = list_images(root), list[Problem]()
    kind = next((s for s in (".txt", ".mat") if any(annotations.glob(f"*{s}"))), None)
    if kind is None or split is not None:
        raise InputError("the format of the annotations is not known, or the set has no splits", where=root, got=split,
                         allowed=FORMATS)  # fmt: skip
    stems = {picture.stem for picture in pictures}
    for path in sorted(annotations.glob(f"*{kind}")):
        if path.stem not in stems:
            problems.append(Problem(str(path), "labels without a picture", "dropped"))
    if kind == ".txt":
        return assemble(read_visdrone(pictures, annotations, problems), problems, own=VISDRONE_NAMES, given=given)
    return assemble(read_oxford_hand(pictures, annotations, problems), problems, own=HAND_NAMES, given=given)


def _voc(root: Path, annotations: Path, given: tuple[str, ...], split: str | None) -> Dataset:
    """VOC and DIOR; DIOR's folder of rotated boxes is passed over, a split is a list in ImageSets/Main."""
    labels = sorted(p for p in annotations.rglob("*.xml") if not p.parent.name.startswith("Oriented"))
    folders = sorted(p for p in root.iterdir() if p.is_dir() and p.name.startswith(("JPEGImages", "images")))
    found = sorted(p for folder in folders or [root] for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS)
    pictures, problems = {p.stem: p for p in found}, list[Problem]()
    if split:
        rows = read_text(root / "ImageSets" / "Main" / f"{split}.txt").splitlines()
        wanted = dict.fromkeys(row.split()[0] for row in rows if row.strip())
        known = {p.stem for p in labels}
        problems += [Problem(stem, "listed but without labels", "left out") for stem in wanted if stem not in known]
        labels = [p for p in labels if p.stem in wanted]
    else:
        stems = {p.stem for p in labels}
        problems += [Problem(p.name, "unreadable labels", "left out", "no file") for p in found if p.stem not in stems]
    return assemble(read_voc(labels, pictures, root, problems), problems, given=given)
