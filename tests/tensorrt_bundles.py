"""Bundles of the tiny model for the TensorRT target: fixtures and questions that several tests share.

TensorRT-RTX is left out where a test is not about it: nobody waits for it, and results do not depend on its presence.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgeyolo.targets.jetson import tensorrt_api
from test_build_sh import FAKE, VERSIONS
from tiny_models import Tiny, edgeyolo, refusal, succeed, tree

from edgeyolo.bundle import MODEL, Bundle
from edgeyolo.export.device_files import CONF, TYPED
from edgeyolo.ort import Arrays, open_session, run

PLAIN = ("--no-equalise", "--no-reconstruct", "--no-correct-bias")
"""Rounding to nearest and nothing else: quicker."""


@contextmanager
def no_rtx() -> Iterator[None]:
    """As if TensorRT-RTX were not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorrt_api, "RTX", ())
        yield


@pytest.fixture(name="without_rtx", scope="module")
def without_rtx_fixture() -> Iterator[None]:
    """The acceptance check skips; for a whole module."""
    with no_rtx():
        yield


@pytest.fixture(name="source", scope="module")
def source_fixture(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a float ONNX file."""
    path = tmp_path_factory.mktemp("float") / "tiny.onnx"
    succeed("export", *tiny.model(), "--target", "onnx", "--names", tiny.names, "-o", path)
    return path


@pytest.fixture(name="symbolic", scope="module")
def symbolic_fixture(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a symbolic batch."""
    path = tmp_path_factory.mktemp("symbolic") / "tiny.onnx"
    succeed("export", *tiny.model(), "--target", "onnx", "--dynamic-batch", "-o", path)
    return path


@pytest.fixture(name="command")
def command_fixture(source: Path, tiny: Tiny) -> tuple[object, ...]:
    """An export with two pictures."""
    return with_pictures(source, tiny)


def with_pictures(model: Path, tiny: Tiny) -> tuple[object, ...]:
    """An export of ``model`` with two pictures, without its options."""
    return "export", model, "--target", "tensorrt", "--calib", tiny.pictures, "--calib-limit", 2


def export(command: tuple[object, ...], output: Path, *more: object) -> dict[str, Any]:
    """Export, check what holds for every bundle, and return the manifest."""
    succeed(*command, "-o", output, *more)
    bundle = Bundle.open(output)
    present = set(tree(output)) - {"manifest.json"}
    assert present == set(bundle.manifest["files"]), "nothing is there that the manifest does not list"
    for name in (MODEL, TYPED):
        if name in present:
            onnx.checker.check_model(bundle.read(name), full_check=True)
    return bundle.manifest


def settings(bundle: Path) -> dict[str, str]:
    """The rows of build.conf."""
    return dict(line.split("=", 1) for line in (bundle / CONF).read_text("utf-8").splitlines())


def print_command(bundle: Path, folder: Path, version: str) -> list[str]:
    """What build.sh would call where this trtexec is."""
    code, options = VERSIONS[version]
    fake = folder / f"trtexec-{version}"
    fake.write_text(FAKE.replace("@CODE@", code).replace("@OPTIONS@", options).replace("@RECORD@", "/dev/null"))
    fake.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "TRTEXEC": str(fake)}
    done = subprocess.run(
        ["sh", str(bundle / "build.sh"), "--print"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def npy(bundle: Path, name: str) -> np.ndarray:
    array: np.ndarray = np.load(bundle / "golden/000" / name, allow_pickle=False)
    return array


def opset(path: Path) -> int:
    return int(onnx.load(path).opset_import[0].version)


def compute(path: Path, feed: np.ndarray) -> Arrays:
    return run(open_session(path, optimise=False), feed)


KINDS = {
    "int8": (),
    "fp16": ("--precision", "fp16"),
    "fp32": ("--precision", "fp32"),
    "decode": ("--decode",),
    "nms": ("--nms", "--conf", "0.1"),
    "dynamic": ("--dynamic-batch", "--max-batch", "3", "--decode"),
    "dla": ("--board", "orin-nx", "--precision", "fp16", "--dla", "0"),
}


@pytest.fixture(name="good", scope="module")
def good_fixture(source: Path, symbolic: Path, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of each kind with two golden pictures; nobody changes them."""
    folder, bundles = tmp_path_factory.mktemp("good"), {}
    with no_rtx():
        for kind, options in KINDS.items():
            bundles[kind] = folder / kind
            plain = PLAIN if "--precision" not in options else ()
            model = symbolic if kind == "dynamic" else source
            succeed(*with_pictures(model, tiny), "-o", bundles[kind], "--golden", 2, *options, *plain)
    return bundles


@pytest.fixture(name="bundle")
def bundle_fixture(good: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the int8 bundle, to be spoilt."""
    return Path(shutil.copytree(good["int8"], tmp_path / "bundle"))


def verdict(bundle: Path, *more: object, code: int = 0) -> dict[str, tuple[str, str]]:
    """The checks by name: status and detail. TensorRT-RTX is left out."""
    result = edgeyolo("verify", bundle, "--skip", "rtx", "--json", *more)
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    document = json.loads(result.stdout)
    assert document["equal"] == (code == 0)
    checks = {check["name"]: (check["status"], check["detail"]) for check in document["checks"]}
    assert (code == 1) == any(status == "failed" for status, _ in checks.values())
    return checks


def damaged(bundle: Path, *more: object) -> str:
    """The message where the bundle cannot be used: exit code 2 and nothing on stdout, whatever it holds."""
    return refusal("verify", bundle, "--skip", "rtx", "--json", *more)
