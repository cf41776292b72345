"""Boards of the TensorRT target: the shipped files, what each can compute, and what a mistake in a file gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeyolo.errors import InputError
from edgeyolo.jetson import PRECISIONS, check_precision, load_jetson, parse_jetson
from edgeyolo.profile_file import list_boards

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "targets" / "jetson"
ORIN = (FOLDER / "orin-nano.toml").read_text("utf-8")
NAMES = ("agx-orin", "agx-xavier", "gpu", "nano", "orin-nano", "orin-nx", "tx2", "xavier-nx")


def test_every_shipped_board_loads_and_is_named_after_its_file() -> None:
    assert list_boards()["jetson"] == NAMES
    for name in NAMES:
        board = load_jetson(name)
        assert board.name == name
        assert list(board.tensorrt) == sorted(board.tensorrt, key=lambda v: [int(part) for part in v.split(".")])
        # What TensorRT 8 builds from is written for the oldest parser, and its Q/DQ needs opset 13.
        assert board.max_opset == (13 if board.tensorrt[0] == "8.2" else 17)


def test_the_table_in_the_docs_is_what_the_files_say() -> None:
    rows = [line.split("|")[1:-1] for line in (ROOT / "docs" / "tensorrt.md").read_text("utf-8").splitlines()]
    table = {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows if len(row) == 7}
    for name in NAMES:
        board = load_jetson(name)
        lists = (board.compute_capability, board.precisions, (str(board.dla_cores),), board.jetpack, board.tensorrt)
        assert table[name] == [", ".join(items) for items in lists] + [str(board.max_opset)]


def test_the_image_copies_what_exists_and_is_not_ignored() -> None:
    """The one part of Dockerfile.jetson that changes with the checkout."""
    lines = (ROOT / "Dockerfile.jetson").read_text("utf-8").splitlines()
    copied = {
        name for line in lines if line.startswith("COPY ") and "--from" not in line for name in line.split()[1:-1]
    }
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    assert copied == allowed
    assert copied >= {"pyproject.toml", "edgeyolo", "targets", "calibration"}
    assert all((ROOT / name).exists() for name in copied)


def test_the_default_board_is_an_orin_nano() -> None:
    board = load_jetson()
    assert (board.name, board.compute_capability, board.dla_cores) == ("orin-nano", ("8.7",), 0)


@pytest.mark.parametrize("name", ["nano", "tx2"])
def test_int8_is_refused_with_the_reason_where_the_gpu_has_none(name: str) -> None:
    board = load_jetson(name)
    with pytest.raises(InputError) as caught:
        check_precision(board, "int8")
    message = str(caught.value)
    assert f"compute capability {board.compute_capability[0]}" in message
    assert "--precision fp16" in message
    check_precision(board, "fp16")
    check_precision(board, "fp32")


def test_all_other_boards_compute_every_precision() -> None:
    for name in set(NAMES) - {"nano", "tx2"}:
        for precision in PRECISIONS:
            check_precision(load_jetson(name), precision)
    with pytest.raises(InputError, match="int8, fp16, fp32"):
        check_precision(load_jetson("gpu"), "int4")


def test_tensorrt_rtx_is_offered_for_what_it_can_build_for() -> None:
    rtx = {name: board.rtx_sm for name in NAMES if (board := load_jetson(name)).rtx_sm}
    assert rtx == {"gpu": ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")}
    known = {capability.replace(".", "") for capability in load_jetson("gpu").compute_capability}
    assert {sm.removeprefix("SM") for sm in rtx["gpu"]} == known - {"90", "100"}


def test_rtx_names_are_those_of_tensorrt_rtx() -> None:
    rtx = pytest.importorskip("tensorrt_rtx_bindings")
    assert set(load_jetson("gpu").rtx_sm) <= set(rtx.ComputeCapability.__members__)


def test_a_board_of_ones_own_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(ORIN.replace('name = "orin-nano"', 'name = "mine"').replace("dla_cores = 0", "dla_cores = 1"))
    board = load_jetson(str(path))
    assert (board.name, board.dla_cores) == ("mine", 1)


def test_an_unknown_board_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="agx-orin, agx-xavier, gpu, nano, orin-nano, orin-nx, tx2, xavier-nx"):
        load_jetson("jetson-orin-nano")


def test_all_mistakes_are_listed_at_once() -> None:
    text = ORIN.replace("dla_cores = 0", "dla_cores = 3").replace('"8.7"', '"sm87"').replace("rtx_sm", "rtx")
    text = text.replace("max_opset = 17", "max_opset = true").replace("[refused]", "[refused]\nint8 = 8")
    with pytest.raises(InputError) as caught:
        parse_jetson(text, "mine.toml")
    message = str(caught.value)
    for fragment in ("dla_cores = 3", "compute_capability = ['sm87']", "unknown key 'rtx'", "missing key 'rtx_sm'"):
        assert fragment in message
    assert "max_opset must be int" in message
    assert "refused must be a table of text" in message


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ('"int8"]', "]", "exactly once"),
        ("[refused]", '[refused]\nint8 = "why"', "exactly once"),
        ('["fp32", "fp16", "int8"]\n', '["fp16", "int8"]\n', "must have fp32"),
        ("workspace_mib = 1024", "workspace_mib = 8193", "larger than memory_mib"),
        ('tensorrt = ["8.5", "8.6", "10.3", "10.16"]', "tensorrt = []", "not empty"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(before: str, after: str, complaint: str) -> None:
    assert before in ORIN
    with pytest.raises(InputError, match=complaint):
        parse_jetson(ORIN.replace(before, after), "mine.toml")
