"""Compare us with peers on the same work in one run: time and memory of exports, then latency, NMS, FPS and memory.

    python benchmarks/peers.py digits yolov3-tiny-shaped yolov3-shaped models/yolo-fastest-1.1.cfg \
        --calib coco128/train --images coco128/val --work out/peers [--quick]

A model is a .cfg with its .weights beside it, ``digits`` (the detector that comes with the package), or a name of
``shaped.py``. Every export is a process of its own, timed from its start to its end; its memory is the most that it or
a process that it waited for held. Then all contenders of a model run interleaved. FOLDER/exports.jsonl and
FOLDER/latency.jsonl only grow; ``readme_table.py`` makes the tables of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click import echo

from edgeyolo.bench.contender import Contender
from edgeyolo.bench.frames import Setting
from edgeyolo.bench.harness import Plan, measure
from edgeyolo.bench.machine import machine_facts
from edgeyolo.bench.record import RunRecord, append_records
from edgeyolo.bench.tables import run_table
from edgeyolo.frontend.darknet import describe_darknet
from edgeyolo.images import list_images
from edgeyolo.progress import Log

HERE = Path(__file__).resolve().parent
LARGE_MACS = 10_000_000_000
"""A network of more is not quantised by us here: rebuilding every layer of it takes the better part of an hour."""
LAUNCH = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:], check=False).returncode)"
"""A small process in between: the system counts as a process's memory what its starter held, too."""
RUNS = (
    (".onnx", ("ort", "openvino", "ncnn", "opencv")),
    ("-fpga8", ("ort", "openvino", "engine")),
    ("-trt8", ("ort",)),
    ("-mobile8/int8.onnx", ("ort", "openvino")),
    ("-static8.onnx", ("ort",)),
    (".tflite", ("litert",)),
)
"""What an export is called behind the model's name, and the backends that run it; the first is the reference."""
LOW = 0.001
"""The other threshold: NMS has everything to do. It costs all backends alike, so only the reference is measured."""


@dataclass(frozen=True)
class Export:
    """One way from a model to a file.

    Args:
        step: its name in the results.
        suffix: of what it makes, behind the model's name.
        command: what makes it; the output is the last argument.
    """

    step: str
    suffix: str
    command: list[str]


@dataclass(frozen=True)
class Options:
    """What the user asked for; see ``main``."""

    calib: str
    images: Path
    work: Path
    limit: int | None
    threads: list[int]
    plan: Plan
    litert_python: str
    steps: list[str]


def find_model(word: str, work: Path) -> Path:
    """The .cfg that a word stands for, with its .weights beside it; made or copied into ``work`` where needed."""
    if word == "digits":
        from edgeyolo import assets

        for source in (Path(assets.__file__).with_name(name) for name in ("digits.cfg", "digits.weights")):
            shutil.copyfile(source, work / source.name)
        return work / "digits.cfg"
    if word.endswith(".cfg"):
        return Path(word)
    from shaped import write

    cfg, weights = (work / f"{word}{suffix}" for suffix in (".cfg", ".weights"))
    return cfg if weights.is_file() else write(word, work)[0]


def host_board() -> str:
    """The board of the mobile target that is most like this machine."""
    facts = machine_facts()
    if facts["machine"] != "x86_64":
        return "raspberry-pi-5"
    return "x86-vnni" if any("vnni" in flag for flag in facts["cpu_flags"]) else "x86-avx2"


def exports(cfg: Path, options: Options) -> list[Export]:
    """All ways that suit a model; whoever reads ``.onnx`` comes after it is made."""
    name, work = cfg.stem, options.work
    ours = [sys.executable, "-m", "edgeyolo", "export", str(cfg), "--weights", str(cfg.with_suffix(".weights"))]
    peer = [sys.executable, str(HERE / "convert.py")]
    limit = [] if options.limit is None else ["--calib-limit", str(options.limit)]
    calib = ["--calib", options.calib, *limit]
    peer_calib = ["--calib", options.calib, *(word.replace("--calib-limit", "--limit") for word in limit)]
    onnx = str(work / f"{name}.onnx")
    fpga = [*ours, "--target", "fpga", "--bits", "8", *calib]
    mobile = [*ours, "--target", "mobile", "--board", host_board(), "--auto", *calib]
    tensorrt = [*ours, "--target", "tensorrt", "--board", "gpu", "--no-accept", *calib]
    found = [Export("edgeyolo onnx", ".onnx", [*ours, "--target", "onnx", "-o"])]
    if sum(layer.macs for layer in describe_darknet(cfg).layers) <= LARGE_MACS:
        found += [
            Export("edgeyolo fpga, 8 bits", "-fpga8", [*fpga, "-o"]),
            Export("edgeyolo fpga, 8 bits, --recipe fast", "-fpga8-fast", [*fpga, "--recipe", "fast", "-o"]),
            Export("edgeyolo tensorrt, 8 bits", "-trt8", [*tensorrt, "-o"]),
            Export("edgeyolo mobile, 8 bits, --auto", "-mobile8", [*mobile, "-o"]),
        ]
    litert = [options.litert_python, str(HERE / "convert.py")]
    return [
        *found,
        Export("ORT quantize_static, 8 bits", "-static8.onnx", [*peer, *peer_calib, "static8", onnx]),
        Export("pnnx to ncnn", "-ncnn", [*peer, "ncnn", onnx]),
        Export("OpenVINO convert_model", "-openvino", [*peer, "openvino", onnx]),
        Export("litert-torch", ".tflite", [*litert, "litert", str(cfg)]),
    ]


def make(export: Export, name: str, work: Path) -> dict[str, Any]:
    """Run one export as a process; its record. What it made stays in ``work``."""
    output = work / f"{name}{export.suffix}"
    if output.is_dir():
        shutil.rmtree(output)
    output.unlink(missing_ok=True)
    errors = work / "stderr.txt"
    start = time.perf_counter()
    with errors.open("wb") as stream:
        command = [sys.executable, "-S", "-c", LAUNCH, *export.command, str(output)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen would wait for it again
    lines = errors.read_text("utf-8", errors="replace").splitlines()
    errors.unlink()
    return {
        "model": name, "step": export.step, "status": "failed" if process.returncode else "ok",
        "reason": (lines or [f"exit code {process.returncode}"])[-1][:200] if process.returncode else None,
        "seconds": round(seconds, 2), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "bytes": sum(p.stat().st_size for p in [output, *output.rglob("*")] if p.is_file()),
    }  # fmt: skip


def contenders(name: str, options: Options) -> list[Contender]:
    """All that can run what was exported; the reference with the low threshold comes last."""
    found = [
        Contender(f"{name}{suffix.removesuffix('.onnx')} {backend} x{count}", path, backend, count)
        for suffix, backends in RUNS
        if (path := options.work / f"{name}{suffix}").exists()
        for backend in backends
        for count in ([1] if backend == "engine" else options.threads)
    ]
    if found:
        first = found[0]
        label = f"{first.label}, score > {LOW}"
        found.append(Contender(label, first.path, first.backend, first.threads, setting=Setting(LOW)))
    return found


def compare(word: str, options: Options, log: Log) -> list[RunRecord]:
    """Export one model in all ways, then measure what came out, as far as asked."""
    cfg = find_model(word, options.work)
    if "exports" in options.steps:
        export_all(cfg, options, log)
    if "latency" not in options.steps:
        return []
    return measure(contenders(cfg.stem, options), list_images(options.images), options.plan, log)


def export_all(cfg: Path, options: Options, log: Log) -> None:
    """Export one model in all ways."""
    with (options.work / "exports.jsonl").open("a", encoding="utf-8") as file:
        for export in exports(cfg, options):
            record = make(export, cfg.stem, options.work)
            log.say(f"{cfg.stem}: {export.step}: {record['reason'] or ''} {record['seconds']:.1f} s")
            file.write(json.dumps({**record, "limit": options.limit, "machine": machine_facts()}) + "\n")
            file.flush()


def main() -> None:
    """Compare every model, and append what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="a .cfg, digits, yolov3-tiny-shaped, yolov3-shaped")
    parser.add_argument("--calib", required=True, help="calibration pictures, as edgeyolo export takes them")
    parser.add_argument("--images", required=True, type=Path, help="pictures to measure with")
    parser.add_argument("--work", required=True, type=Path, help="folder for models and results")
    parser.add_argument("--limit", type=int, help="calibrate with at most so many pictures")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--seconds", type=float, default=10.0, help="measure every contender for so long at least")
    parser.add_argument("--frames", type=int, default=30, help="and so many frames at least")
    parser.add_argument("--quick", action="store_true", help="4 calibration pictures, one thread, 5 frames: a trial")
    parser.add_argument("--litert-python", default=sys.executable, help="a Python with edgeyolo and litert-torch")
    parser.add_argument("--steps", default="exports,latency", help="what to do; latency of what is there already")
    given = parser.parse_args()
    plan = Plan(0, 5, 1) if given.quick else Plan(given.seconds, given.frames)
    threads = [1] if given.quick else [int(word) for word in given.threads.split(",")]
    limit = 4 if given.quick else given.limit
    given.work.mkdir(parents=True, exist_ok=True)
    options = Options(
        given.calib, given.images, given.work, limit, threads, plan, given.litert_python, given.steps.split(",")
    )
    log = Log()
    for word in given.models:
        records = compare(word, options, log)
        if records:
            append_records(options.work / "latency.jsonl", records)
            log.table(run_table(records))
    echo(options.work / "latency.jsonl")


if __name__ == "__main__":
    main()
