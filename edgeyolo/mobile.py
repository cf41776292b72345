"""Boards for ONNX Runtime on CPUs: phones and small computers, what their cores multiply well, how to open a session.

``profile_file.py`` reads the files; the shipped ones are ``targets/mobile/*.toml``, and they state their sources.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from edgeyolo.errors import InputError
from edgeyolo.profile_file import Rule, find_offences, make_profile, parse_toml, read_profile

DEFAULT_BOARD = "android-arm64"
INT8_FORMATS = ("s8s8", "u8s8", "u8u8")
"""Types of activations and weights, signed or unsigned."""
CPU, XNNPACK = "CPUExecutionProvider", "XnnpackExecutionProvider"
PROVIDERS = (CPU, XNNPACK, "NnapiExecutionProvider", "CoreMLExecutionProvider")
SAMPLE = "sample.py"
"""Runs a picture through a bundle with numpy, onnxruntime and Pillow only."""


@dataclass(frozen=True)
class MobileBoard:
    """One board, or a family of phones. The field names are the TOML file's keys.

    Args:
        name: identifies the board in manifests and messages.
        description: one sentence for people.
        machine: what ``uname -m`` says there: ``aarch64`` or ``x86_64``.
        onnxruntime: the oldest ONNX Runtime that the profile is for, ``major.minor``.
        max_opset: the newest ONNX opset of that version; at least 19, which the float16 graph has.
        int8_format: one of ``INT8_FORMATS``: what its int8 kernels compute fast and without saturation.
        int8_reason: one sentence for people: why this format, and the source.
        slow_int8: kinds of layers with which int8 was measured to be slower than float32 on such processors.
        channel_block: convolutions get whole blocks of so many channels, filled up with zeros; 1: as they are.
        fp16_kernels: 1 where ONNX Runtime's CPU provider has float16 arithmetic; 0: it converts to float32 and back.
        threads: intra-op threads, usually the big cores; 0 for one a physical core.
        spinning: 1: idle threads wait at full load, 0: they sleep (batteries).
        providers: execution providers of the board's ONNX Runtime packages, the default one first.
        fixed_shapes: those of them that take no layer whose shape is not fixed.
        options: ``PROVIDER.OPTION`` and its value.
    """

    name: str
    description: str
    machine: str
    onnxruntime: str
    max_opset: int
    int8_format: str
    int8_reason: str
    slow_int8: tuple[str, ...]
    channel_block: int
    fp16_kernels: int
    threads: int
    spinning: int
    providers: tuple[str, ...]
    fixed_shapes: tuple[str, ...]
    options: dict[str, str]


_RULES: dict[str, Rule] = {
    "name": re.compile(r"[a-z0-9][a-z0-9._-]{0,63}"),
    "machine": ("aarch64", "x86_64"),
    "onnxruntime": re.compile(r"\d{1,2}\.\d{1,2}"),
    "max_opset": range(19, 27),
    "int8_format": INT8_FORMATS,
    "int8_reason": re.compile(r"\S[^\n]{10,400}\."),
    "slow_int8": ("depthwise",),
    "channel_block": range(1, 65),
    "fp16_kernels": range(2),
    "threads": range(65),
    "spinning": range(2),
    "providers": PROVIDERS,
    "fixed_shapes": PROVIDERS,
}


def parse_mobile(text: str, where: object) -> MobileBoard:
    """Read a board from TOML text. Raises InputError that lists everything that is wrong with it."""
    data = parse_toml(text, where)
    offences = find_offences(data, MobileBoard, _RULES, may_be_empty=("fixed_shapes", "slow_int8"))
    # Keys that contradict each other can only be compared where each of them is sound.
    offences = offences or _contradictions(data)
    return make_profile(MobileBoard, data, offences, where, "targets/mobile/android-arm64.toml")


def _contradictions(data: Mapping[str, Any]) -> list[str]:
    providers, found = data["providers"], []
    if len(set(providers)) < len(providers):
        found.append("providers names one of them twice")
    if CPU not in providers:
        found.append(f"providers must have {CPU}: it takes what the others leave")
    found += [f"fixed_shapes has {p}, providers does not" for p in data["fixed_shapes"] if p not in providers]
    owners = {key: key.partition(".")[0] for key in data["options"] if re.fullmatch(r"\w+\.\w+", key)}
    found += [f"options has {key!r}, not a PROVIDER.OPTION" for key in data["options"] if key not in owners]
    found += [f"options has {key}, providers does not" for key, owner in owners.items() if owner not in providers]
    return found


def load_mobile(board: str | None = None) -> MobileBoard:
    """Load a board of the mobile target.

    Args:
        board: name of a shipped board, or the path of a TOML file (it ends in ``.toml``); default ``android-arm64``.

    Raises InputError for an unknown board (the known ones are listed) and for an unusable file.
    """
    return parse_mobile(*read_profile("mobile", board or DEFAULT_BOARD))


def choose_provider(board: MobileBoard, wanted: str | None = None) -> str:
    """``wanted``, or the board's default. Raises InputError where the board's packages do not have it."""
    if wanted is None or wanted in board.providers:
        return wanted or board.providers[0]
    raise InputError(
        f"{board.name} does not have this execution provider",
        where=board.description,
        got=wanted,
        allowed=", ".join(board.providers),
        hint=f"leave it out for {board.providers[0]}, or take another --board",
    )


def check_host(board: MobileBoard) -> None:
    """Raise InputError where this machine's processor is of another kind: its times say nothing about the board."""
    if platform.machine() != board.machine:
        raise InputError(
            f"{board.name} cannot be measured on this machine", where="--auto", got=platform.machine(),
            allowed=board.machine, hint="--candidates writes what to measure on the device, --measured reads it",
        )  # fmt: skip


def host_threads(board: MobileBoard) -> int:
    """Threads to measure with on this machine: those of the board, as far as this process has processors for them."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(board.threads or cpus, cpus)


def check_shapes(board: MobileBoard, provider: str, inputs: Mapping[str, Sequence[int | str | None]]) -> None:
    """Raise InputError where ``provider`` wants fixed shapes and an input has another; all such inputs are listed.

    Args:
        board: the board.
        provider: from ``choose_provider``.
        inputs: the shape of each graph input; what is not a positive number is not fixed.
    """
    loose = {name: s for name, s in inputs.items() if not all(isinstance(size, int) and size > 0 for size in s)}
    if loose and provider in board.fixed_shapes:
        raise InputError(
            f"{provider} on {board.name} needs fixed shapes",
            got="; ".join(f"{name}: {', '.join(map(str, shape))}" for name, shape in loose.items()),
            allowed="a number for every dimension",
            hint=f"export the network with a fixed input size, or use {CPU}",
        )


def session_facts(board: MobileBoard, provider: str | None = None) -> dict[str, Any]:
    """How to open a session on ``board``: what a manifest has under ``session``, where ``sample.py`` reads it.

    Args:
        board: the board.
        provider: see ``choose_provider``; the CPU provider stands behind every other one.

    Returns:
        ``threads``, ``spinning`` (0 or 1) and ``providers``, a list of [name, options].
    """
    first = choose_provider(board, provider)
    options = {
        name: {key.partition(".")[2]: value for key, value in board.options.items() if key.startswith(f"{name}.")}
        for name in dict.fromkeys((first, CPU))
    }
    # XNNPACK has threads of its own, which ONNX Runtime's would only disturb (its page, "Recommended configuration").
    own = first == XNNPACK
    return {
        "threads": 1 if own else board.threads,
        "spinning": 0 if own else board.spinning,
        "providers": [[name, given] for name, given in options.items()],
    }


def sample_file() -> bytes:
    """The sample for a bundle. It reads networks all of whose heads are of kind ``yolo``."""
    return files("edgeyolo.targets.mobile").joinpath(SAMPLE).read_bytes()
