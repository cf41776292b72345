"""Time a bundle's C engine against ONNX Runtime float32 on the same picture, one core each, interleaved in one run.

    python benchmarks/engine_vs_ort.py BUNDLE FLOAT.onnx PICTURE

Prints medians, the 5th and 95th percentile over rounds, and the ratio of the medians. The float model is the one that
``edgeyolo export --target onnx`` writes.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import numpy as np

from edgeyolo.bundle import PROGRAM, Bundle
from edgeyolo.images import load_image, to_input
from edgeyolo.ort import open_session, run
from edgeyolo.program import Conv
from edgeyolo.runners.engine import EngineRunner
from edgeyolo.runners.integer import BundleRunner, input_codes

ROUNDS, REPEATS = 15, 10


def main(bundle: Path, model: Path, picture: Path) -> None:
    """Print one line a contender, in milliseconds an inference, decoding and NMS left out."""
    opened = Bundle.open(bundle)
    runner = BundleRunner(bundle)
    program, preprocess = runner.program, opened.detector.preprocess
    pixels = to_input(load_image(picture), preprocess)
    codes = input_codes(program, pixels)
    feed = pixels[None].astype(np.float32) / np.float32(255)
    session = open_session(model, threads=1)
    macs = sum(
        op.weight.size * int(np.prod(program.tensors[op.output].shape[1:]))
        for op in program.ops
        if isinstance(op, Conv)
    )
    with EngineRunner(opened.read(PROGRAM)) as engine:
        rows: dict[str, list[float]] = {"C engine": [], "ORT float32": []}
        for _ in range(ROUNDS):
            rows["C engine"].append(engine.time(codes, REPEATS).median_ns / 1e6)
            times = []
            for _ in range(REPEATS):
                start = time.perf_counter_ns()
                run(session, feed)
                times.append(time.perf_counter_ns() - start)
            rows["ORT float32"].append(float(np.median(times)) / 1e6)
    for name, values in rows.items():
        low, median, high = np.percentile(values, [5, 50, 95])
        click.echo(f"{name:<12} {median:8.3f} ms (5 % {low:.3f}, 95 % {high:.3f})  {macs / median / 1e6:6.2f} GMAC/s")
    ratio = np.median(rows["C engine"]) / np.median(rows["ORT float32"])
    click.echo(f"C engine / ORT float32 = {ratio:.2f}, {macs / 1e6:.1f} MMAC, one core each")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
