"""Recipes of sets that consist of files; those of generated scenes are in test_scenes.py."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from edgeyolo.datasets.recipe import load_recipe, recipe_dataset
from edgeyolo.errors import InputError

SETS = Path(__file__).parent / "fixtures" / "datasets"


def _recipe(folder: Path, **changes: object) -> Path:
    files = [p for p in sorted((SETS / "oxford_hand").rglob("*")) if p.is_file()]
    shutil.copytree(SETS / "oxford_hand", folder / "hands", dirs_exist_ok=True)
    values = {"name": '"hands"', "description": '"two"', "source": '"hands"', "count": 2} | changes
    lines = [f"{key} = {value}" for key, value in values.items()]
    lines += [
        "[preprocess]",
        "width = 32",
        "height = 32",
        "channels = 3",
        'resize = "letterbox"',
        "fill = 127",
        "[files]",
    ]
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f'"{path.relative_to(SETS / "oxford_hand").as_posix()}" = "{digest}"')
    target = folder / "hands.toml"
    target.write_text("\n".join(lines))
    return target


def test_recipe_of_files_finds_a_changed_and_a_missing_one(tmp_path):
    recipe = load_recipe(_recipe(tmp_path))
    assert recipe.preprocess.resize == "letterbox"
    assert len(recipe_dataset(recipe).samples) == 2
    (tmp_path / "hands" / "images" / "hand_1.png").write_bytes(b"other")
    (tmp_path / "hands" / "annotations" / "hand_2.mat").unlink()
    with pytest.raises(InputError) as caught:
        recipe_dataset(recipe)
    assert "hand_1.png differs" in str(caught.value) and "hand_2.mat is missing" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"count": '"2"'}, "bad count"),
        ({"colour": 1}, "unknown colour"),
        ({"source": '"scenes:train"'}, "missing seed"),
        ({"count": 3}, "2 pictures instead of 3"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path, changes, got):
    with pytest.raises(InputError) as caught:
        recipe_dataset(load_recipe(_recipe(tmp_path, **changes)))
    assert got in str(caught.value)
