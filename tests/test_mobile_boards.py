"""Boards of the mobile target: the shipped files, what a mistake in one gets, and how a session is opened on each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeyolo.errors import InputError
from edgeyolo.mobile import check_shapes, choose_provider, host_threads, load_mobile, parse_mobile, session_facts
from edgeyolo.profile_file import list_boards

CPU, XNNPACK, NNAPI = "CPUExecutionProvider", "XnnpackExecutionProvider", "NnapiExecutionProvider"
NAMES = ("android-arm64", "ios-arm64", "raspberry-pi-4", "raspberry-pi-5", "x86-avx2", "x86-vnni")
ANDROID = (Path(__file__).parents[1] / "targets" / "mobile" / "android-arm64.toml").read_text("utf-8")


def test_every_shipped_board_loads_and_is_named_after_its_file() -> None:
    assert list_boards()["mobile"] == NAMES
    assert [load_mobile(name).name for name in NAMES] == list(NAMES)
    assert load_mobile().name == "android-arm64"


def test_signed_int8_saturates_on_x86_without_vnni_only() -> None:
    formats = {name: load_mobile(name).int8_format for name in NAMES}
    assert formats == {name: "s8s8" for name in NAMES[:4]} | {"x86-avx2": "u8u8", "x86-vnni": "u8s8"}
    assert {name for name in NAMES if load_mobile(name).machine == "aarch64"} == set(NAMES[:4])
    assert "dot product" in load_mobile("raspberry-pi-5").int8_reason
    assert "saturates" in load_mobile("x86-avx2").int8_reason


def test_cpu_is_the_default_everywhere() -> None:
    """A YOLO with LeakyRelu breaks into many parts on XNNPACK, a quantised one on Core ML; NNAPI is deprecated."""
    assert {choose_provider(load_mobile(name)) for name in NAMES} == {CPU}


def test_a_session_has_the_provider_with_its_options_and_cpu_behind_it() -> None:
    ios = session_facts(load_mobile("ios-arm64"), "CoreMLExecutionProvider")
    assert ios["providers"][0][1]["ModelFormat"] == "MLProgram"
    assert [name for name, _ in ios["providers"]] == ["CoreMLExecutionProvider", CPU]
    assert session_facts(load_mobile("raspberry-pi-5")) == {"threads": 4, "spinning": 1, "providers": [[CPU, {}]]}


def test_xnnpack_has_its_own_threads_and_onnx_runtime_none_beside() -> None:
    board = load_mobile()
    assert (session_facts(board)["threads"], session_facts(board, XNNPACK)["threads"]) == (4, 1)
    assert session_facts(board, XNNPACK)["providers"][0] == [XNNPACK, {"intra_op_num_threads": "4"}]


def test_a_provider_that_the_board_does_not_have_is_refused() -> None:
    with pytest.raises(InputError, match="does not have this execution provider") as caught:
        session_facts(load_mobile("raspberry-pi-5"), XNNPACK)
    assert (caught.value.got, caught.value.allowed) == (XNNPACK, CPU)


def test_dynamic_shapes_are_refused_where_the_provider_takes_fixed_ones_only() -> None:
    board = load_mobile()
    shapes = {"image": (1, 3, "height", None), "fixed": (1, 3, 64, 64), "batch": ("n", 3), "negative": (-1, 3)}
    check_shapes(board, CPU, shapes)
    check_shapes(board, NNAPI, {"fixed": shapes["fixed"]})
    with pytest.raises(InputError, match="needs fixed shapes") as caught:
        check_shapes(board, NNAPI, shapes)
    assert caught.value.got == "image: 1, 3, height, None; batch: n, 3; negative: -1, 3"


def test_all_mistakes_in_a_file_are_listed_at_once() -> None:
    text = (
        ANDROID.replace('"s8s8"', '"s4s8"')
        .replace("threads = 4\n", 'threads = "4"\n')
        .replace("spinning = 0", "spining = 0")
    )
    with pytest.raises(InputError) as caught:
        parse_mobile(text, "mine.toml")
    message = str(caught.value)
    for fragment in (
        "int8_format = 's4s8'",
        "threads must be int",
        "unknown key 'spining'",
        "missing key 'spinning'",
        "compare it with targets/mobile/android-arm64.toml",
    ):
        assert fragment in message


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ('providers = ["CPUExecutionProvider", ', "providers = [", "providers must have CPUExecutionProvider"),
        (f', "{NNAPI}"]\nfixed', "]\nfixed", f"fixed_shapes has {NNAPI}, providers does not"),
        (f'"{CPU}", "{XNNPACK}"', f'"{CPU}", "{CPU}"', "names one of them twice"),
        ("XnnpackExecutionProvider.intra", "CoreMLExecutionProvider.intra", "providers does not"),
        ('"XnnpackExecutionProvider.intra_op_num_threads"', '"threads"', "not a PROVIDER.OPTION"),
        ("(onnxruntime pull request 9902).", "", "int8_reason = "),
    ],
)
def test_keys_that_contradict_each_other_are_refused(before: str, after: str, complaint: str) -> None:
    assert before in ANDROID
    with pytest.raises(InputError, match=complaint):
        parse_mobile(ANDROID.replace(before, after), "mine.toml")


def test_an_onnx_runtime_without_the_opset_of_the_float16_graph_is_refused() -> None:
    assert parse_mobile(ANDROID.replace("max_opset = 21", "max_opset = 19"), "mine.toml").max_opset == 19
    with pytest.raises(InputError, match="max_opset = 18"):
        parse_mobile(ANDROID.replace("max_opset = 21", "max_opset = 18"), "mine.toml")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not confine a process to processors")
def test_threads_are_no_more_than_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert [host_threads(load_mobile(name)) for name in ("android-arm64", "x86-avx2")] == [1, 1]
