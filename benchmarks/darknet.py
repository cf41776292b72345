"""Time Darknet itself, as Debian packages it, against ONNX Runtime on the same network and pictures, one thread each.

    python benchmarks/darknet.py MODEL.cfg [MODEL.cfg ...] --images PICTURES [--rounds 20] [--json out.jsonl]

NAME.weights stands beside NAME.cfg. Debian's package is pjreddie's program of 2018, without OpenMP or a BLAS, called
through ``network_predict`` of libdarknet.so. Both get the same pixels, which we resize before anything is timed. Each
program has a process of its own, and they take turns: Darknet, ONNX Runtime, Darknet, ...; only one of them has
anything to do at a time. First the last head that Darknet computes is compared with ours; where they differ the result
is that it cannot run the model, and no time.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from click import echo

LIBRARY = Path("/usr/lib/darknet/libdarknet.so")
TOLERANCE = 1e-3
"""Of probabilities and raw sizes: float32 sums of another order."""
CHECKED = 4
"""Pictures whose results are compared."""
FLOATS = ctypes.POINTER(ctypes.c_float)
Array = npt.NDArray[np.float32]


def open_darknet(cfg: Path, weights: Path, length: int) -> Callable[[Array], Array]:
    """Load a network into this process; what runs (C, H, W) in [0, 1] and returns its last layer's ``length`` values.

    The library ends the process where it does not know something, and prints on standard output.
    """
    library = ctypes.CDLL(str(LIBRARY))
    library.load_network.restype = ctypes.c_void_p
    library.load_network.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]
    library.set_batch_network.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.network_predict.restype = FLOATS
    library.network_predict.argtypes = [ctypes.c_void_p, FLOATS]
    network = library.load_network(os.fsencode(cfg), os.fsencode(weights), 0)
    library.set_batch_network(network, 1)

    def predict(x: Array) -> Array:
        found = library.network_predict(network, x.ctypes.data_as(FLOATS))
        return np.ctypeslib.as_array(found, (length,)).copy()

    return predict


def open_ort(model: Path, output: str) -> Callable[[Array], Array]:
    """Load an ONNX file into this process; what runs (C, H, W) in [0, 1] and returns that output, flat and raw."""
    from edgeyolo.ort import open_session, run

    session = open_session(model, threads=1)
    return lambda x: np.ravel(run(session, x[None], [output])[output])


def serve(pipe: Connection, make: Callable[..., Callable[[Array], Array]], arguments: tuple[Any, ...]) -> None:
    """Be a process: answer every picture with (milliseconds, result), and print nothing."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    run = make(*arguments)
    while (x := pipe.recv()) is not None:
        start = time.perf_counter_ns()
        result = run(x)
        pipe.send(((time.perf_counter_ns() - start) / 1e6, result))


class Program:
    """A process that runs one network."""

    def __init__(self, make: Callable[..., Callable[[Array], Array]], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, make, arguments), daemon=True)
        self._process.start()
        other.close()

    def run(self, x: Array) -> tuple[float, Array]:
        """Milliseconds and result of one picture. Raises EOFError if the process has ended."""
        try:
            self._pipe.send(x)
            answer: tuple[float, Array] = self._pipe.recv()
        except OSError as error:
            raise EOFError from error
        return answer

    def alive(self) -> bool:
        """Whether the process still runs."""
        self._process.join(0.5)
        return self._process.is_alive()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def activated(raw: Array) -> npt.NDArray[np.float64]:
    """What Darknet's [yolo] layer of 2018 makes of raw (anchors, 5 + classes, cells), flat: logistic but w, h."""
    result = 1 / (1 + np.exp(-raw.astype(np.float64)))
    result[:, 2:4] = raw[:, 2:4]
    return result.ravel()


def export(cfg: Path, output: Path) -> None:
    """Write our float ONNX file, by pjreddie's rule for batch norm. Ends the program if that fails."""
    words = [str(cfg), "--weights", str(cfg.with_suffix(".weights")), "--bn-eps", "pjreddie", "-o", str(output)]
    command = [sys.executable, "-m", "edgeyolo", "export", "--target", "onnx", *words]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.decode(errors="replace"))


def measure(cfg: Path, images: Path, rounds: int) -> dict[str, Any]:
    """One record of one model: its state is ``ok``, ``wrong`` (other results) or ``ended`` (Darknet's process did)."""
    from edgeyolo.bench.backends.source import read_onnx
    from edgeyolo.bench.machine import machine_facts
    from edgeyolo.images import list_images, load_image, to_input

    record: dict[str, Any] = {"model": cfg.stem, "machine": machine_facts()}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model.onnx")
        export(cfg, model)
        detector = read_onnx(model)[0]
        head, size = detector.heads[-1], detector.preprocess
        grid = round(size.width / head.stride[0]) * round(size.height / head.stride[1])
        shape = len(head.anchors), 5 + head.classes, grid
        pictures = [
            to_input(load_image(path), size).astype(np.float32) * np.float32(size.scale) for path in list_images(images)
        ]
        ours = Program(open_ort, model, head.output)
        theirs = Program(open_darknet, cfg, cfg.with_suffix(".weights"), math.prod(shape))
        try:
            for x in pictures[:CHECKED]:
                apart = np.abs(theirs.run(x)[1] - activated(ours.run(x)[1].reshape(shape))).max()
                record["apart"] = max(record.get("apart", 0.0), float(apart))
            if not record["apart"] <= TOLERANCE:
                return {**record, "status": "wrong"}
            return {**record, "status": "ok", **take_turns(theirs, ours, pictures, rounds)}
        except EOFError:
            if not ours.alive():
                raise
            return {**record, "status": "ended"}
        finally:
            theirs.close()
            ours.close()


def take_turns(theirs: Program, ours: Program, pictures: list[Array], rounds: int) -> dict[str, Any]:
    """Medians in milliseconds, and Darknet's as a multiple of ONNX Runtime's with its interval."""
    from edgeyolo.bench.stats import ratio

    times = np.array([[p.run(pictures[i % len(pictures)])[0] for p in (theirs, ours)] for i in range(rounds)])
    darknet, ort = np.median(times, axis=0).round(3).tolist()
    found = ratio(times[:, :1], times[:, 1:])
    bounds = {key: round(value, 3) for key, value in asdict(found).items()}
    return {"darknet_ms": darknet, "ort_ms": ort, "ratio": bounds, "rounds": rounds, "pictures": len(pictures)}


def sentence(record: dict[str, Any]) -> str:
    """One line on one record."""
    if record["status"] == "ended":
        return f"{record['model']}: Darknet's process ended by itself: it cannot run this model"
    if record["status"] == "wrong":
        return f"{record['model']}: Darknet's last head is off by {record['apart']:.3g}: it cannot run this model"
    r = record["ratio"]
    return (
        f"{record['model']}: Darknet {record['darknet_ms']:.1f} ms, ORT {record['ort_ms']:.1f} ms, "
        f"ratio {r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]; last head apart by at most {record['apart']:.1e}"
    )


def main() -> None:
    """Print a line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="pictures: a file, a folder or a list")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="append a line a model to this file")
    options = parser.parse_args()
    if not LIBRARY.is_file():
        parser.exit(2, f"there is no {LIBRARY}: apt-get install darknet\n")
    for cfg in options.models:
        record = measure(cfg, options.images, options.rounds)
        echo(sentence(record))
        if options.json:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
