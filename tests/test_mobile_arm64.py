"""ONNX Runtime on arm64 computes and finds the same, with the instructions of a Raspberry Pi 4 and of a Raspberry Pi 5.

An x86 cannot say: other kernels run there, and those for S8S8 saturate on processors without VNNI.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_models import Tiny, succeed

from edgeyolo.export.mobile_golden import EXACT
from edgeyolo.frontend.onnx_file import load_onnx
from edgeyolo.images import iter_images
from edgeyolo.lower.mobile.formats import encode
from edgeyolo.mobile import SAMPLE
from edgeyolo.ort import open_session, run
from edgeyolo.postprocess import CONF, detect
from edgeyolo.quant.calibrate import to_float

ROOT, QEMU = os.environ.get("EDGEYOLO_ARM64", ""), shutil.which("qemu-aarch64-static")
pytestmark = pytest.mark.skipif(
    not ROOT or QEMU is None, reason="slow, and needs Python for arm64: .ci/arm64 downloads it and runs this under qemu"
)

BOARDS = {"raspberry-pi-4": ("cortex-a72", "0xd08"), "raspberry-pi-5": ("cortex-a76", "0xd0b")}
"""What qemu imitates, and its part number. The first has neither dot products nor float16 arithmetic: where a kernel
uses them, the process dies. (Seen in the translated code: SDOT for int8 and FMLA on eight float16 on the second,
SMULL and SADALP, and float32, on the first.)"""
SUMS, HALVES = (0.001, 0.1), (0.01, 0.5)
"""How far scores and corners (pixels) may be off: sums of floats have another order, and the sample prints tenths of a
pixel; float16 kernels round where the definition does not (seen: 0.004 and 0.42)."""
TOLERANCE = {"fp32.onnx": SUMS, "fp32.ort": SUMS, "fp16.onnx": HALVES, "int8.onnx": SUMS, "int8.ort": SUMS}

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
    root: Path

    def python(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run Python for arm64 in the bundle."""
        command = [
            str(QEMU),
            "-cpu",
            self.cpu,
            "-L",
            str(self.root),
            f"{ROOT}/usr/bin/python3.11",
            *map(str, arguments),
        ]
        home = {"PYTHONHOME": f"{ROOT}/usr", "PYTHONPATH": f"{ROOT}/site"}
        return subprocess.run(
            command, cwd=self.bundle, env=home, capture_output=True, text=True, timeout=300, check=False
        )


@pytest.fixture(scope="module", params=BOARDS)
def board(request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Board:
    folder = tmp_path_factory.mktemp("arm64")
    out, (cpu, part) = folder / request.param, BOARDS[request.param]
    succeed(
        "export", *tiny.model(), "--calib", tiny.pictures, "--target", "mobile", "--board", request.param,
        "--golden", 2, "--no-reconstruct", "-o", out,
    )  # fmt: skip
    return Board(out, cpu, file_system(folder / "root", part))


def file_system(root: Path, part: str) -> Path:
    """What the emulated process sees instead of this machine's files.

    ONNX Runtime identifies the processor by /proc/cpuinfo as well, and that of another architecture crashes it.
    """
    (root / "proc").mkdir(parents=True)
    for name in ("lib", "usr"):
        (root / name).symlink_to(Path(ROOT, name))
    core = f"CPU implementer : 0x41\nCPU architecture: 8\nCPU variant : 0x0\nCPU part : {part}\nCPU revision : 3\n"
    cores = [f"processor : {index}\n{core}" for index in range(os.cpu_count() or 1)]
    (root / "proc/cpuinfo").write_text("\n".join(cores), "utf-8")
    return root


def test_it_is_proven_there(board: Board) -> None:
    done = board.python("-m", "edgeyolo", "verify", board.bundle, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert {check["status"] for check in checks.values()} == {"passed"}, checks
    assert set(TOLERANCE) <= set(checks)


def test_its_sample_finds_the_same(board: Board, tiny: Tiny) -> None:
    pictures = [str(path) for path in sorted(tiny.pictures.iterdir())]
    done = board.python("-c", ALL_PICTURES, json.dumps(list(TOLERANCE)), json.dumps(pictures))
    assert done.returncode == 0, done.stderr
    blocks = [block.splitlines() for block in done.stdout.split("# ")[1:]]
    assert [block[0] for block in blocks] == [f"{model} {picture}" for model in TOLERANCE for picture in pictures]
    for title, *lines in blocks:
        model, picture = title.split(" ", 1)
        right = expected(board.bundle / f"{Path(model).stem}.onnx", Path(picture))
        assert len(right) > 1, title
        alike(right, [parse(line) for line in lines], TOLERANCE[model], title)


def test_which_int8_kernels_were_tested(board: Board, tiny: Tiny) -> None:
    """On a processor without dot products, those that ONNX Runtime takes for a Raspberry Pi 4 run, the others die."""
    older = board._replace(cpu="cortex-a72")  # /proc/cpuinfo goes on naming the board's own
    done = older.python(SAMPLE, tiny.pictures / "picture-0.jpg", "int8.ort")
    assert done.returncode == (0 if board.cpu == older.cpu else -signal.SIGILL), done.stdout + done.stderr


def expected(model: Path, picture: Path) -> list[Found]:
    """What is right: fused int8 kernels that saturate nowhere, floats as defined, and the tool's own decoding."""
    graph, detector = load_onnx(model)
    (image,) = iter_images([picture], detector.preprocess)
    int8 = model.stem == "int8"
    session = open_session(encode(graph, EXACT) if int8 else graph, optimise=int8)
    outputs = run(session, to_float(image.pixels, detector))
    found = detect([outputs[head.output][0] for head in detector.heads], detector, image.size)
    rows = zip(found.classes.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    return [Found(detector.class_name(index), score, tuple(box)) for index, score, box in rows]


def parse(line: str) -> Found:
    name, score, *box = line.rsplit(" ", 5)
    return Found(name, float(score), tuple(map(float, box)))


def alike(right: list[Found], got: list[Found], tolerance: tuple[float, float], title: str) -> None:
    """Whatever is not next to the threshold has a partner on the other side."""
    score, pixels = tolerance
    for ours, theirs in ((right, got), (got, right)):
        for one in ours:
            partners = [
                other for other in theirs
                if other.name == one.name and abs(other.score - one.score) <= score
                and max(abs(a - b) for a, b in zip(other.box, one.box, strict=True)) <= pixels
            ]  # fmt: skip
            assert partners or one.score <= CONF + score, (title, one, right, got)
