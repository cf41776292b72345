"""How long suppression takes: ours against ONNX Runtime's operator and others, one thread, interleaved in one process.

    python benchmarks/nms.py [--sizes 100,1000,10000,25200] [--classes 80] [--rounds 20] [--json out.jsonl]

The candidates are drawn with a fixed seed, as a detector with a low threshold makes them: objects with sides from 2 to
60 % of the picture (log-uniform), uniformly placed, each with one class and one peak score (beta(1, 3)). A candidate
belongs to a random object; its centre is off by 8 % of its sides and those by a factor of e^(+-.12) (normal), its score
is .3 to 1 of the peak, and in 15 % of cases its class is another. Two scenes: as many objects as a tenth of the
candidates, where the 300 boxes to keep are soon found, and 60 objects, where most candidates fall.

IoU .45, 300 boxes kept. Ours get float64, as decoding gives it; peers get float32 that was prepared beforehand, and
shift every class to a place of its own, within what is timed. That rounds: ``differ`` counts indices that are not ours.
Every contender is called once to fill the caches, then timed, then it is the next one's turn.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from click import echo
from onnx import TensorProto, helper, numpy_helper

from edgeyolo.errors import InputError
from edgeyolo.nms import IOU, MAX_DET, compile_nms, nms

Array = npt.NDArray[Any]
Run = Callable[[], Array]
REFERENCE = "ORT NonMaxSuppression"
OURS = "edgeyolo, numpy"
STEP = 4.0
"""Distance between the places of two classes; a box is shorter."""
BLOCK = 128


def candidates(n: int, objects: int, classes: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Boxes (n, 4) float64 relative to the picture, scores (n,) and classes (n,); see above."""
    rng = np.random.default_rng(seed)
    side, aspect = np.exp(rng.uniform(np.log(0.02), np.log(0.6), objects)), np.exp(rng.normal(0, 0.4, objects))
    sizes = np.clip(np.stack([side * aspect, side / aspect], axis=1), 0.01, 0.95)
    centres, peaks = rng.uniform(0, 1, (objects, 2)), rng.beta(1, 3, objects)
    names, own = rng.integers(0, classes, objects), rng.integers(0, objects, n)
    centre = centres[own] + rng.normal(0, 0.08, (n, 2)) * sizes[own]
    half = sizes[own] * np.exp(rng.normal(0, 0.12, (n, 2))) / 2
    scores = peaks[own] * rng.uniform(0.3, 1, n)
    chosen = np.where(rng.random(n) < 0.15, rng.integers(0, classes, n), names[own])
    return np.concatenate([centre - half, centre + half], axis=1), scores, chosen


def ort_session() -> ort.InferenceSession:
    """One graph: shift the boxes by their classes, suppress, give the indices."""
    constants = {
        "step": np.float32(STEP),
        "last": np.array([1]),
        "front": np.array([0]),
        "two_fronts": np.array([0, 1]),
        "most": np.array([MAX_DET]),
        "iou": np.array([IOU], np.float32),
        "column": np.array(2),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["classes"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["numbers", "last"], ["rows"]),
            helper.make_node("Mul", ["rows", "step"], ["offsets"]),
            helper.make_node("Add", ["boxes", "offsets"], ["shifted"]),
            helper.make_node("Unsqueeze", ["shifted", "front"], ["batch"]),
            helper.make_node("Unsqueeze", ["scores", "two_fronts"], ["ranks"]),
            helper.make_node("NonMaxSuppression", ["batch", "ranks", "most", "iou"], ["selected"]),
            helper.make_node("Gather", ["selected", "column"], ["stay"], axis=1),
        ],
        "nms",
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n"]),
            helper.make_tensor_value_info("classes", TensorProto.INT64, ["n"]),
        ],
        [helper.make_tensor_value_info("stay", TensorProto.INT64, ["k"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def columns(boxes: Array, scores: Array, classes: Array) -> tuple[Array, Array]:
    """(5, n) x1, y1, x2, y2 and area, classes apart, best first; and the order that was."""
    order = np.argsort(-scores)
    x1, y1, x2, y2 = (boxes + np.float32(STEP) * classes[:, None].astype(np.float32))[order].T
    return np.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)]), order


def overlaps(a: Array, b: Array) -> Array:
    """IoU of boxes (5, ...) with boxes (5, ...), broadcast."""
    common = np.maximum(np.minimum(a[2], b[2]) - np.maximum(a[0], b[0]), 0)
    common *= np.maximum(np.minimum(a[3], b[3]) - np.maximum(a[1], b[1]), 0)
    result: Array = common / (a[4] + b[4] - common)
    return result


def greedy(boxes: Array, scores: Array, classes: Array) -> Array:
    """The loop that textbooks have: take the best, drop what overlaps it, until nothing is left."""
    sorted_boxes, order = columns(boxes, scores, classes)
    kept, rest = [], np.arange(len(order))
    while len(rest) and len(kept) < MAX_DET:
        kept.append(rest[0])
        apart = np.flatnonzero(overlaps(sorted_boxes[:, 1:], sorted_boxes[:, :1]) <= IOU) + 1
        sorted_boxes, rest = sorted_boxes.take(apart, axis=1), rest[apart]
    stay: Array = order[np.array(kept)]
    return stay


def blocked(boxes: Array, scores: Array, classes: Array) -> Array:
    """128 boxes at a time: against those kept, then against one another, by matrices."""
    sorted_boxes, order = columns(boxes, scores, classes)
    kept = np.zeros(0, np.int64)
    for start in range(0, len(order), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(order)))
        mine, theirs = sorted_boxes[:, block], sorted_boxes.take(kept, axis=1)
        block = block[~(overlaps(mine[:, :, None], theirs[:, None, :]) > IOU).any(axis=1)]
        mine = sorted_boxes[:, block]
        falls = np.triu(overlaps(mine[:, :, None], mine[:, None, :]) > IOU, 1)
        alive = np.ones(len(block), bool)
        for i in np.flatnonzero(falls.any(axis=1)).tolist():
            if alive[i]:
                alive &= ~falls[i]
        kept = np.concatenate([kept, block[alive]])
        if len(kept) >= MAX_DET:
            break
    stay: Array = order[kept[:MAX_DET]]
    return stay


def opencv(boxes: Array, scores: Array, classes: Array) -> Run:
    """OpenCV's batched suppression, which takes x, y, width, height."""
    import cv2

    cv2.setNumThreads(1)
    sized = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    ids = classes.astype(np.int32)
    return lambda: np.ravel(cv2.dnn.NMSBoxesBatched(sized, scores, ids, 0.0, IOU))[:MAX_DET]


def torchvision(boxes: Array, scores: Array, classes: Array) -> Run:
    """Batched suppression as torchvision has it."""
    import torch
    from torchvision.ops import batched_nms

    torch.set_num_threads(1)
    tensors = [torch.from_numpy(array) for array in (boxes, scores, classes)]

    def run() -> Array:
        stay: Array = batched_nms(*tensors, IOU)[:MAX_DET].numpy()
        return stay

    return run


def contenders(boxes: Array, scores: Array, classes: Array) -> dict[str, Run]:
    """All that can run here."""
    small = boxes.astype(np.float32), scores.astype(np.float32), classes
    session = ort_session()
    feed = dict(zip(("boxes", "scores", "classes"), small, strict=True))
    found: dict[str, Run] = {
        REFERENCE: lambda: session.run(None, feed)[0],
        OURS: lambda: nms(boxes, scores, classes),
        "numpy, greedy": lambda: greedy(*small),
        f"numpy, blocks of {BLOCK}": lambda: blocked(*small),
    }
    try:
        compiled = compile_nms()
        found["edgeyolo, C"] = lambda: compiled(boxes, scores, classes)
    except InputError as error:
        echo(f"without our C: {error.what}", err=True)
    for name, make in (("OpenCV", opencv), ("torchvision", torchvision)):
        try:
            found[name] = make(*small)
        except ImportError:
            echo(f"without {name}: not installed", err=True)
    return found


def measure(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every contender in every round, A B C A B C."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            start = time.perf_counter_ns()
            run()
            times[name].append((time.perf_counter_ns() - start) / 1e6)
    return times


def rows(n: int, objects: int, classes: int, rounds: int) -> list[dict[str, object]]:
    """Measure one scene; one record a contender."""
    runs = contenders(*candidates(n, objects, classes))
    results = {name: set(run().tolist()) for name, run in runs.items()}
    times = {name: np.array(values) for name, values in measure(runs, rounds).items()}
    return [
        {
            "contender": name,
            "candidates": n,
            "objects": objects,
            "classes": classes,
            "kept": len(results[name]),
            "differ": len(results[name] ^ results[OURS]),
            "median_ms": round(float(np.median(values)), 4),
            "p90_ms": round(float(np.percentile(values, 90)), 4),
            "ratio_to_ort": round(float(np.median(values / times[REFERENCE])), 3),
            "rounds": rounds,
            "numpy": np.__version__,
            "onnxruntime": ort.__version__,
            "machine": platform.machine(),
        }
        for name, values in times.items()
    ]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="100,1000,10000,25200")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="append one line a row to this file")
    options = parser.parse_args()
    for n in map(int, options.sizes.split(",")):
        for objects in sorted({60, max(10, n // 10)}):
            found = rows(n, objects, options.classes, options.rounds)
            echo(f"\n{n} candidates of {objects} objects, {options.classes} classes")
            echo(f"{'':24}{'median ms':>10}{'p90 ms':>10}{'/ ORT':>8}{'kept':>6}{'differ':>8}")
            for row in found:
                echo(
                    f"{row['contender']:24}{row['median_ms']:10.3f}{row['p90_ms']:10.3f}{row['ratio_to_ort']:8.2f}"
                    f"{row['kept']:6}{row['differ']:8}"
                )
            if options.json:
                with options.json.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(row, sort_keys=True) + "\n" for row in found)


if __name__ == "__main__":
    main()
