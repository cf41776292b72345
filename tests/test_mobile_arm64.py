"""ONNX Runtime on arm64 computes and finds the same, with the instructions of a Raspberry Pi 4 and of a Raspberry Pi 5.

An x86 cannot say: other kernels run there, and those for S8S8 saturate on processors without VNNI.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_models import Tiny, succeed

from edgeyolo.frontend.onnx_file import load_onnx
from edgeyolo.images import iter_images
from edgeyolo.ort import open_session, run
from edgeyolo.postprocess import CONF, detect
from edgeyolo.quant.calibrate import to_float

ROOT, QEMU = os.environ.get("EDGEYOLO_ARM64", ""), shutil.which("qemu-aarch64-static")
pytestmark = pytest.mark.skipif(
    not ROOT or QEMU is None, reason="slow, and needs Python for arm64: .ci/arm64 downloads it and runs this under qemu"
)

BOARDS = {"raspberry-pi-4": "cortex-a72", "raspberry-pi-5": "cortex-a76"}
"""What qemu imitates: the first has neither dot products nor float16 arithmetic, and stops where a kernel uses them."""
PICTURES = 2
EXACT, CODES = 0.001, 0.05
"""How far scores may be off: by the order of float sums, or by rounding once where the definition rounds twice."""
TOLERANCE = {"fp32.onnx": EXACT, "fp32.ort": EXACT, "fp16.onnx": 0.01, "int8.onnx": CODES, "int8.ort": CODES}
EXACT_PIXELS, PIXELS = 0.5, 3.0

ALL_PICTURES = """
import json, sys, sample
models, pictures = map(json.loads, sys.argv[1:])
for model in models:
    for picture in pictures:
        print("#", model, picture, flush=True)
        sample.main(picture, model)
"""


class Found(NamedTuple):
    """One object: its class, score and corners in the picture."""

    name: str
    score: float
    box: tuple[float, ...]


class Board(NamedTuple):
    """A bundle for a board and the processor that stands for it."""

    bundle: Path
    cpu: str

    def python(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run Python for arm64 in the bundle."""
        command = [str(QEMU), "-cpu", self.cpu, "-L", ROOT, f"{ROOT}/usr/bin/python3.11", *map(str, arguments)]
        home = {"PYTHONHOME": f"{ROOT}/usr", "PYTHONPATH": f"{ROOT}/site"}
        return subprocess.run(
            command, cwd=self.bundle, env=home, capture_output=True, text=True, timeout=300, check=False
        )


@pytest.fixture(scope="module", params=BOARDS)
def board(request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Board:
    out = tmp_path_factory.mktemp("arm64") / request.param
    succeed(
        "export", *tiny.model(), "--calib", tiny.pictures, "--target", "mobile", "--board", request.param,
        "--golden", PICTURES, "--no-reconstruct", "-o", out,
    )  # fmt: skip
    return Board(out, BOARDS[request.param])


def test_it_is_proven_there(board: Board) -> None:
    done = board.python("-m", "edgeyolo", "verify", board.bundle, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert {check["status"] for check in checks.values()} == {"passed"}, checks
    assert set(TOLERANCE) <= set(checks)


def test_its_sample_finds_the_same(board: Board, tiny: Tiny) -> None:
    pictures = [str(path) for path in sorted(tiny.pictures.iterdir())[:PICTURES]]
    done = board.python("-c", ALL_PICTURES, json.dumps(list(TOLERANCE)), json.dumps(pictures))
    assert done.returncode == 0, done.stderr
    blocks = [block.splitlines() for block in done.stdout.split("# ")[1:]]
    assert [block[0] for block in blocks] == [f"{model} {picture}" for model in TOLERANCE for picture in pictures]
    for title, *lines in blocks:
        model, picture = title.split(" ", 1)
        right = defined(board.bundle / f"{Path(model).stem}.onnx", Path(picture))
        assert len(right) > 1, title
        alike(right, [parse(line) for line in lines], TOLERANCE[model], title)


def defined(model: Path, picture: Path) -> list[Found]:
    """What is right: the graph without optimisations, on this machine, and the tool's own decoding."""
    graph, detector = load_onnx(model)
    (image,) = iter_images([picture], detector.preprocess)
    found = detect(
        list(run(open_session(graph, optimise=False), to_float(image.pixels, detector)).values()), detector, image.size
    )
    rows = zip(found.classes.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    return [Found(detector.class_name(index), score, tuple(box)) for index, score, box in rows]


def parse(line: str) -> Found:
    name, score, *box = line.rsplit(" ", 5)
    return Found(name, float(score), tuple(map(float, box)))


def alike(right: list[Found], got: list[Found], score: float, title: str) -> None:
    """Whatever is not next to the threshold has a partner on the other side."""
    pixels = EXACT_PIXELS if score == EXACT else PIXELS
    for ours, theirs in ((right, got), (got, right)):
        for one in ours:
            partners = [
                other for other in theirs
                if other.name == one.name and abs(other.score - one.score) <= score
                and max(abs(a - b) for a, b in zip(other.box, one.box, strict=True)) <= pixels
            ]  # fmt: skip
            assert partners or one.score <= CONF + score, (title, one, right, got)
