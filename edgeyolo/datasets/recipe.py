"""Recipes: a TOML file that says which pictures a set consists of, so that it can be had again bit by bit.

    name = "scenes"
    description = "..."
    source = "scenes:train"          # or a folder, from the recipe's own
    count = 64
    seed = 1                         # of a generator
    sha256 = "..."                   # of a generator's scenes, see ``digest``
    [preprocess]                     # as in Preprocess, without scale
    [files]                          # of a folder: "path" = "sha256" of every picture and label file

Every key but ``seed`` and ``sha256`` (generators) or ``files`` (folders) is required; another is an error.
"""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeyolo.datasets.files import below, read_bytes, read_text
from edgeyolo.datasets.load import load_dataset
from edgeyolo.datasets.sample import Dataset
from edgeyolo.datasets.scenes import MAX_COUNT, MAX_SEED
from edgeyolo.detector import MAX_SIDE, RESIZES, Preprocess
from edgeyolo.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_PICTURE_BYTES = 1 << 28
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Recipe:
    """One set.

    Args:
        path: the recipe's file.
        name, description: for people.
        source: ``scenes:train`` or ``scenes:val``, or a folder relative to the recipe's.
        count: number of pictures.
        preprocess: how a picture becomes network pixels; its ``scale`` is the model's business.
        seed: of a generator, else None.
        sha256: of a generator's scenes, else "".
        files: path below the source -> sha256; empty for a generator.
    """

    path: Path
    name: str
    description: str
    source: str
    count: int
    preprocess: Preprocess
    seed: int | None
    sha256: str
    files: dict[str, str]


def load_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises InputError that lists every missing, unknown or ill-typed key."""
    try:
        data: dict[str, Any] = tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError("the recipe is not TOML", where=path, got=str(error)) from error
    generated = str(data.get("source", "")).startswith("scenes:")
    checks = {
        **{key: _is_text for key in ("name", "description", "source")},
        "count": lambda v: _is_int(v, 1, MAX_COUNT),
        "preprocess": _is_preprocess,
        **(
            {"seed": lambda v: _is_int(v, 0, MAX_SEED - 1), "sha256": _is_sha256}
            if generated
            else {"files": lambda v: isinstance(v, dict) and len(v) > 0 and all(map(_is_sha256, v.values()))}
        ),
    }
    wrong = [f"missing {key}" for key in checks if key not in data] + [
        f"unknown {key}" for key in data if key not in checks
    ]
    wrong += [f"bad {key}" for key, check in checks.items() if key in data and not check(data[key])]
    if wrong:
        raise InputError("the recipe cannot be used", where=path, got=", ".join(wrong), allowed=", ".join(checks))
    values = {"seed": None, "sha256": "", "files": {}, **data, "preprocess": Preprocess(**data["preprocess"])}
    return Recipe(path, **values)


def recipe_dataset(recipe: Recipe) -> Dataset:
    """The set itself, after a check that it is the very same. Raises InputError that lists what differs."""
    if recipe.seed is not None:
        dataset = load_dataset(f"{recipe.source}:{recipe.count}:{recipe.seed}")
        if digest(dataset) != recipe.sha256:
            raise InputError(
                "the scenes differ from the recipe's on this machine",
                where=recipe.path,
                hint="the JPEG decoder may be another: reinstall pillow and scikit-learn from PyPI",
            )
        return dataset
    folder, wrong = recipe.path.parent / recipe.source, []
    for name, sha256 in recipe.files.items():
        file = below(folder, name)
        if file is None or not file.is_file():
            wrong.append(f"{name} is missing")
        elif hashlib.sha256(read_bytes(file, MAX_PICTURE_BYTES)).hexdigest() != sha256:
            wrong.append(f"{name} differs")
    dataset = load_dataset(folder) if not wrong else Dataset((), ())
    if not wrong and len(dataset.samples) != recipe.count:
        wrong.append(f"{len(dataset.samples)} pictures instead of {recipe.count}")
    if wrong:
        raise InputError("the files are not those of the recipe", where=recipe.path, got="; ".join(wrong[:10]))
    return dataset


def digest(dataset: Dataset) -> str:
    """SHA-256 over the pixels, boxes (float32) and classes (int64) of all pictures in order, little-endian."""
    total = hashlib.sha256()
    for sample in dataset.samples:
        for array, kind in ((sample.load(), "u1"), (sample.boxes, "<f4"), (sample.classes, "<i8")):
            total.update(array.astype(kind).tobytes())
    return total.hexdigest()


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 4096


def _is_int(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_preprocess(value: object) -> bool:
    """width, height, channels, resize and fill; nothing else."""
    if not isinstance(value, dict) or set(value) != {"width", "height", "channels", "resize", "fill"}:
        return False
    sides = all(_is_int(value[key], 1, MAX_SIDE) for key in ("width", "height"))
    return sides and value["channels"] in (1, 3) and value["resize"] in RESIZES and _is_int(value["fill"], 0, 255)
