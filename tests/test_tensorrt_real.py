"""The embedded default and real weights as bundles for TensorRT: exported, verified, built by TensorRT-RTX."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import succeed

from edgeyolo import assets
from edgeyolo.bundle import Bundle
from edgeyolo.export.acceptance import installed

CASES = [("orin-nano", "int8"), ("gpu", "int8"), ("orin-nano", "fp16"), ("nano", "fp16")]
MIN_SNR_DB = {"int8": 8.0, "fp16": 35.0}
"""Heads against float. Seen with four pictures and without refinement of biases: from 9.5 dB in int8, 46 dB in fp16."""


def check(folder: Path, arguments: list[object], board: str, precision: str) -> None:
    """Export, look at the ledger, verify."""
    out = folder / f"{board}-{precision}"
    calm = [] if precision == "fp16" else ["--no-reconstruct", "--no-correct-bias"]
    arguments = [*arguments, "--target", "tensorrt", "--board", board, "--precision", precision, *calm, "-o", out]
    answer = json.loads(succeed("export", *arguments, "--calib-limit", 4, "--json").stdout)
    assert answer["accepted"]["status"] == ("accepted" if installed() else "skipped"), answer["accepted"]
    assert answer["ledger"]["head_snr_db"] > MIN_SNR_DB[precision] and not answer["lost"]
    manifest = Bundle.open(out).manifest
    assert bool(manifest["layers"]["int8"]) == (precision == "int8")
    checks = json.loads(succeed("verify", out, "--skip", "rtx", "--json").stdout)
    assert checks["equal"] and {c["status"] for c in checks["checks"]} == {"passed", "skipped"}


@pytest.mark.parametrize(("board", "precision"), CASES)
def test_the_default_model(board, precision, tmp_path):
    given = [assets.CFG, "--weights", assets.WEIGHTS, "--names", assets.NAMES, "--calib", assets.CALIBRATION]
    check(tmp_path, given, board, precision)


@pytest.mark.parametrize("name", ["yolo-fastest-1.1", "yolo-fastest-1.1-xl"])
@pytest.mark.parametrize(("board", "precision"), [case for case in CASES if case[0] == "orin-nano"])
def test_real_weights(name, board, precision, data, tmp_path):
    folder = data / "models" / name
    given = [folder / f"{name}.cfg", "--weights", folder / f"{name}.weights", "--calib", data / "coco128" / "train"]
    check(tmp_path, given, board, precision)
