"""Check, time and inspect a TensorRT engine on its device: numpy, TensorRT and cuda-python only, Python 3.8 or newer.

    python3 runner.py check ENGINE [--golden DIR]               against ONNX Runtime's outputs in the bundle
    python3 runner.py bench ENGINE [--batch N] [--seconds S] [--json]
    python3 runner.py inspect ENGINE                            layers as JSON

Exit code 0: good, 1: ``check`` found a difference beyond the tolerance, 2: cannot run. From Python, ``runner.Engine``
has the four methods load, set_inputs, infer, outputs.

An engine file is code: whoever made it decides what runs on the GPU and in this process. Only the file whose path is
given is ever loaded; nothing is searched for.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.jetson import tensorrt_api as api
    from targets.jetson.engine import Engine

    Floats = npt.NDArray[np.float32]
else:  # in a bundle the modules lie beside this file, elsewhere in the same package
    _HERE = __package__ + "." if __package__ else ""
    api = importlib.import_module(_HERE + "tensorrt_api")
    Engine = importlib.import_module(_HERE + "engine").Engine

COMMON_ROWS = 0.5
"""Least share of the rows of an integer output (the boxes that suppression keeps) that both sides have, over all golden
pictures: rounding moves boxes across a threshold, a wrong suppression shares almost none."""
MIN_RUNS = 10
BENCH_NOTE = (
    "one run is set_inputs + infer + outputs of random pixels; not inside: reading and letterboxing a picture, and"
    " decoding and suppression unless they are part of the graph"
)


class Comparison:
    """One output against its golden values, over all pictures. Integer outputs compare as sets of rows."""

    def __init__(self, integer: bool) -> None:
        self.integer = integer
        self.signal = self.noise = self.worst = 0.0
        self.common = self.rows = 0

    def add(self, golden: Floats, got: Floats) -> None:
        """Count one picture. Raises TensorRTError where shapes differ that should not."""
        if self.integer:
            ours, theirs = ({tuple(row) for row in values.reshape(-1, values.shape[-1])} for values in (got, golden))
            self.common += 2 * len(ours & theirs)
            self.rows += len(ours) + len(theirs)
            return
        if golden.shape != got.shape:
            raise api.TensorRTError(
                "an output has another shape than its golden values",
                got=got.shape,
                allowed=golden.shape,
                hint="rebuild the engine from this bundle",
            )
        wide, difference = golden.astype(np.float64), got.astype(np.float64) - golden
        self.signal += float(np.square(wide).sum())
        self.noise += float(np.square(difference).sum())
        self.worst = float(np.maximum(self.worst, np.abs(difference).max(initial=0.0)))  # keeps a NaN

    def verdict(self, tolerance_db: float) -> tuple[bool, str]:
        """Whether it is within the tolerance, and the row to print."""
        if self.integer:
            share = self.common / self.rows if self.rows else 1.0
            return share >= COMMON_ROWS, f"{share:.1%} of the rows in common, allowed from {COMMON_ROWS:.0%}"
        ratio = self.signal / self.noise if self.noise else np.inf
        decibel = 10 * float(np.log10(ratio)) if ratio > 0 else -np.inf if ratio == 0 else np.nan
        row = f"{decibel:.1f} dB, allowed from {tolerance_db:g} dB, worst difference {self.worst:.6g}"
        return decibel >= tolerance_db, row


def check(path: Path, golden: Path) -> bool:
    """Run the golden inputs and print one row an output; True where all are within the bundle's tolerance.

    Raises:
        TensorRTError: the golden data is missing or does not fit, or the engine cannot run.
    """
    index, pictures = _golden(golden)
    with Engine() as engine:
        engine.load(path)
        tolerance = index["tolerance_db"].get(engine.precision)
        if tolerance is None or sorted(index["outputs"]) != sorted(engine.names):
            raise api.TensorRTError(
                "the engine and the golden data do not belong together",
                where=golden,
                got=f"precision {engine.precision or 'unknown'}, outputs {', '.join(engine.names)}",
                allowed=f"precision {', '.join(index['tolerance_db'])}, outputs {', '.join(index['outputs'])}",
                hint="build.sh writes the precision beside the engine; build with it",
            )
        found = {n: Comparison(np.dtype(d).kind in "iu") for n, d in zip(engine.names, engine.dtypes)}  # noqa: B905
        for picture in pictures:
            engine.set_inputs(np.load(picture / "input.npy", allow_pickle=False))
            engine.infer()
            got = dict(zip(engine.names, engine.outputs()))  # noqa: B905
            for k, name in enumerate(index["outputs"]):
                found[name].add(np.load(picture / f"output-{k}.npy", allow_pickle=False), got[name])
    verdicts = {name: found[name].verdict(float(tolerance)) for name in index["outputs"]}
    for name, (good, row) in verdicts.items():
        sys.stdout.write(f"{'ok  ' if good else 'FAIL'} {name}: {row}\n")
    sys.stdout.write(f"{len(pictures)} pictures, {engine.precision}, {engine.gpu}\n")
    return all(good for good, _ in verdicts.values())


def _golden(folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """The index of the golden data and the folders of its pictures."""
    try:
        index = json.loads((folder / "index.json").read_text("utf-8"))
        pictures = sorted(item for item in folder.iterdir() if item.is_dir())
        whole = bool(pictures) and len(pictures) == index["pictures"]
        whole = whole and isinstance(index["tolerance_db"], dict) and isinstance(index["outputs"], list)
        files = ["input.npy", *(f"output-{k}.npy" for k in range(len(index["outputs"])))]
        whole = whole and all((picture / name).is_file() for picture in pictures for name in files)
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise api.TensorRTError(
            "there is no whole golden data",
            where=folder,
            allowed="index.json and NNN/*.npy",
            hint="copy the bundle's golden folder, or name it with --golden",
        )
    return index, pictures


def bench(path: Path, batch: int | None, seconds: float) -> dict[str, Any]:
    """Time single runs, with and without CUDA graph in turn so that both meet the same clocks and temperatures.

    Args:
        path: the engine.
        batch: pictures a run; None for the smallest that the engine takes.
        seconds: how long to measure; at least ``MIN_RUNS`` runs of each kind are made.
    """
    with Engine() as engine:
        engine.load(path)
        shape = (engine.smallest[0] if batch is None else batch, *engine.smallest[1:])
        pixels = np.random.default_rng(0).random(shape, np.float32)
        times: dict[bool, list[float]] = {True: [], False: []}
        reason = None
        end = None
        while end is None or time.perf_counter() < end or len(times[False]) < MIN_RUNS:
            for graph, taken in times.items():
                engine.cuda_graph = graph
                start = time.perf_counter()
                engine.set_inputs(pixels)
                engine.infer()
                engine.outputs()
                if end is not None:
                    taken.append(time.perf_counter() - start)
                reason = engine.graph_reason if graph else reason
            end = end or time.perf_counter() + seconds  # the first round warmed up and captured
        return {
            "engine": path.name,
            "gpu": engine.gpu,
            "tensorrt": f"{engine.trt.__name__} {engine.trt.__version__}",
            "precision": engine.precision or None,
            "shape": list(shape),
            "cuda_graph": _summary(times[True], shape[0]) if reason is None else None,
            "cuda_graph_reason": reason,
            "no_cuda_graph": _summary(times[False], shape[0]),
            "note": BENCH_NOTE,
        }


def _summary(seconds: list[float], batch: int) -> dict[str, float]:
    milli = 1000 * np.asarray(seconds)
    named = {"median_ms": np.median(milli), "mean_ms": milli.mean(), "frames_per_s": 1000 * batch / milli.mean()}
    named.update({f"p{p}_ms": np.percentile(milli, p) for p in (90, 99)})
    return {"runs": len(seconds), **{name: round(float(value), 4) for name, value in named.items()}}


def _print_bench(found: dict[str, Any]) -> None:
    rows = [f"{found['engine']} on {found['gpu']}, {found['tensorrt']}, input {found['shape']}"]
    for key, title in (("cuda_graph", "CUDA graph"), ("no_cuda_graph", "no CUDA graph")):
        row = found[key]
        if row is None:
            rows.append(f"{title}: not measured: {found['cuda_graph_reason']}")
            continue
        figures = ", ".join(f"{name[:-3]} {row[name]:.3f}" for name in ("median_ms", "p90_ms", "p99_ms", "mean_ms"))
        rows.append(f"{title}: {figures} ms; {row['frames_per_s']:.1f} frames/s; {row['runs']} runs")
    sys.stdout.write("\n".join([*rows, found["note"]]) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="runner.py", description="Check, time and inspect a TensorRT engine.")
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {"check": "compare with golden data", "bench": "time it", "inspect": "print its layers as JSON"}
    made = {name: commands.add_parser(name, help=text) for name, text in texts.items()}
    for command in made.values():
        command.add_argument("engine", type=Path, help="engine file, made on this device by build.sh")
    made["check"].add_argument("--golden", type=Path, help="folder with golden data (default: the bundle's)")
    made["bench"].add_argument("--batch", type=int, help="pictures a run (default: the fewest that the engine takes)")
    made["bench"].add_argument("--seconds", type=float, default=10.0, help="how long to measure (default: 10)")
    made["bench"].add_argument("--json", action="store_true", help="one JSON object instead of text")
    args = parser.parse_args(arguments)
    try:
        if args.command == "check":
            return 0 if check(args.engine, args.golden or args.engine.absolute().parent.parent / "golden") else 1
        if args.command == "bench":
            found = bench(args.engine, args.batch, args.seconds)
            sys.stdout.write(json.dumps(found, sort_keys=True) + "\n") if args.json else _print_bench(found)
            return 0
        with Engine() as engine:
            engine.load(args.engine)
            sys.stdout.write(engine.inspect() + "\n")
            return 0
    except api.TensorRTError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
