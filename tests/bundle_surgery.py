"""Change a finished bundle as an attacker would: consistently, up to the point where only proof helps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeyolo.bundle import PROGRAM, Bundle, sha256
from edgeyolo.lower.blobs import write_blobs
from edgeyolo.lower.seed_v1 import SEED_V1, SEED_V1_BITS, write_seed_v1
from edgeyolo.profile import load_profile
from edgeyolo.program import Conv, IntegerProgram
from edgeyolo.program_facts import program_facts
from edgeyolo.program_image import decode_program, encode_program


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a bundle's manifest in place."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), "utf-8")


def repair(bundle: Path) -> None:
    """Make sizes and hashes in the manifest true again, as an attacker would."""

    def fix(manifest: dict[str, Any]) -> None:
        for name, entry in manifest["files"].items():
            data = (bundle / name).read_bytes()
            entry.update(bytes=len(data), sha256=sha256(data))

    edit_manifest(bundle, fix)


def patch(path: Path, offset: int, change: Callable[[int], int] = lambda byte: byte ^ 1) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[offset] = change(data[offset])
    path.write_bytes(bytes(data))


def change_program(bundle: Path, change: Callable[[IntegerProgram], IntegerProgram]) -> IntegerProgram:
    """Write a changed program image, CRC and all; returns the changed program."""
    opened = Bundle.open(bundle)
    program = replace(change(decode_program(opened.read(PROGRAM), PROGRAM)), detector=opened.detector)
    (bundle / PROGRAM).write_bytes(encode_program(program))
    return program


def change_everywhere(bundle: Path, change: Callable[[IntegerProgram], IntegerProgram]) -> None:
    """Change the program, and with it the manifest and the weight files, but neither the model nor golden data."""
    program = change_program(bundle, change)
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    profile, formats, sha = load_profile("fpga"), manifest["options"]["formats"], manifest["source"]["sha256"]
    if manifest["options"]["layout"] == SEED_V1:
        write_seed_v1(program, bundle / "weights", stem="tiny", bits=SEED_V1_BITS)
    else:
        write_blobs(
            program, bundle / "weights", layout="oihw", profile=profile, formats=formats, source_sha256=sha
        )  # fmt: skip
    edit_manifest(bundle, lambda m: m.update(program_facts(program)))
    repair(bundle)


def change_weight(program: IntegerProgram) -> IntegerProgram:
    """Layer 3, output channel 2, input channel 1, row 0, column 2: one step up or down."""
    ops = list(program.ops)
    conv = ops[3]
    assert isinstance(conv, Conv)
    weight = conv.weight.copy()
    weight[2, 1, 0, 2] += 1 if weight[2, 1, 0, 2] < conv.weight_type.hi else -1
    ops[3] = replace(conv, weight=weight)
    return replace(program, ops=tuple(ops))
