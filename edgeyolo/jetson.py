"""Boards for TensorRT: Jetson modules and desktop GPUs, what their hardware computes and what their software parses.

``profile_file.py`` reads the files; the shipped ones are ``targets/jetson/*.toml``, and they state their sources.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeyolo.errors import InputError
from edgeyolo.profile_file import Rule, find_offences, make_profile, parse_toml, read_profile

PRECISIONS = ("int8", "fp16", "fp32")
"""Fastest first."""
DEFAULT_BOARD = "orin-nano"


@dataclass(frozen=True)
class JetsonBoard:
    """One board, or a family of GPUs. The field names are the TOML file's keys.

    Args:
        name: identifies the board in manifests and messages.
        description: one sentence for people.
        compute_capability: of its GPU, such as ``8.7``; several where the profile stands for a family.
        precisions: those of ``PRECISIONS`` that the hardware accelerates.
        refused: the other precisions, each with the reason.
        dla_cores: deep learning accelerators beside the GPU.
        jetpack: releases of NVIDIA's system image that the profile covers; empty for desktop GPUs.
        tensorrt: ``major.minor`` of the TensorRT versions in those releases, oldest first.
        max_opset: the newest ONNX opset that the oldest of them parses.
        memory_mib: memory that the GPU can use (on a Jetson it shares it with the CPU).
        workspace_mib: how much of it the builder may use for scratch by default.
        rtx_sm: members of TensorRT-RTX's ``ComputeCapability`` for this hardware; empty where TensorRT-RTX has none.
    """

    name: str
    description: str
    compute_capability: tuple[str, ...]
    precisions: tuple[str, ...]
    refused: dict[str, str]
    dla_cores: int
    jetpack: tuple[str, ...]
    tensorrt: tuple[str, ...]
    max_opset: int
    memory_mib: int
    workspace_mib: int
    rtx_sm: tuple[str, ...]


_VERSION = re.compile(r"\d{1,2}\.\d{1,2}")
_RULES: dict[str, Rule] = {
    "name": re.compile(r"[a-z0-9][a-z0-9._-]{0,63}"),
    "compute_capability": re.compile(r"\d{1,2}\.\d"),
    "precisions": PRECISIONS,
    "dla_cores": range(3),
    "jetpack": _VERSION,
    "tensorrt": _VERSION,
    "max_opset": range(9, 26),
    "memory_mib": range(1, 1 << 22),
    "workspace_mib": range(1, 1 << 22),
    "rtx_sm": re.compile(r"SM\d{2,3}"),
}


def parse_jetson(text: str, where: object) -> JetsonBoard:
    """Read a board from TOML text. Raises InputError that lists everything that is wrong with it."""
    data = parse_toml(text, where)
    offences = find_offences(data, JetsonBoard, _RULES, may_be_empty=("jetpack", "rtx_sm"))
    # Keys that contradict each other can only be compared where each of them is sound.
    return make_profile(JetsonBoard, data, offences or _contradictions(data), where, "targets/jetson/orin-nano.toml")


def _contradictions(data: Mapping[str, Any]) -> list[str]:
    offered, refused = set(data["precisions"]), set(data["refused"])
    found = []
    if offered | refused != set(PRECISIONS) or offered & refused:
        found.append(f"precisions and refused must name each of {', '.join(PRECISIONS)} exactly once")
    if "fp32" not in offered:
        found.append("precisions must have fp32: TensorRT computes it on every GPU")
    if data["workspace_mib"] > data["memory_mib"]:
        found.append("workspace_mib is larger than memory_mib")
    return found


def load_jetson(board: str | None = None) -> JetsonBoard:
    """Load a board of the TensorRT target.

    Args:
        board: name of a shipped board, or the path of a TOML file (it ends in ``.toml``); default ``orin-nano``.

    Raises InputError for an unknown board (the known ones are listed) and for an unusable file.
    """
    return parse_jetson(*read_profile("jetson", board or DEFAULT_BOARD))


def default_precision(board: JetsonBoard, dla: int | None = None) -> str:
    """The fastest that ``board`` accelerates; a DLA runs no Q/DQ."""
    return next(p for p in PRECISIONS if p in board.precisions and (p != "int8" or dla is None))


def check_precision(board: JetsonBoard, precision: str) -> None:
    """Raise InputError with the reason, and with what to do, where ``board`` does not accelerate ``precision``."""
    if precision in board.precisions:
        return
    offered = [p for p in PRECISIONS if p in board.precisions]
    reason = board.refused.get(precision)
    raise InputError(
        f"{board.name} does not run {precision}: {reason}" if reason else "unknown precision",
        where=board.description,
        got=precision,
        allowed=", ".join(offered),
        hint=f"use --precision {offered[0]}, or another --board",
    )
