"""``edgeyolo benchmark``."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from edgeyolo.errors import InputError

SCENES = "scenes:val:8"
"""What is looked at without --images: generated scenes of digits."""

EPILOG = """\b
Examples:
  edgeyolo benchmark out/digits-fpga
  edgeyolo benchmark yolo.onnx out/yolo-trt --backend ort,openvino --threads 1,2 --images pictures/
  edgeyolo benchmark yolo.onnx --backend ort,ncnn --json results.jsonl --markdown table.md

One frame is a picture file to boxes: decoding and resizing, the network, decoding of heads, NMS. Contenders run
interleaved, each in a process of its own that is paused while another runs. Thresholds decide how long NMS takes, so
they stand in every row.

Exit codes: 0 done, 1 a contender failed (its row says why; the others are there), 2 bad input.
"""


@click.command(epilog=EPILOG)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--weights", type=click.Path(path_type=Path), help="Weights of a Darknet .cfg.")
@click.option("--backend", "backends", default="", help="ort, engine, torch, ncnn, openvino ... [default: by model].")
@click.option("--threads", default="1", show_default=True, help="Numbers of threads to measure with, such as 1,2.")
@click.option("--images", type=click.Path(path_type=Path), help="Pictures: file, folder or list [default: scenes].")
@click.option("--conf", default=0.25, show_default=True, type=click.FloatRange(0, 1), help="Score threshold.")
@click.option("--iou", default=0.45, show_default=True, type=click.FloatRange(0, 1), help="Overlap threshold.")
@click.option("--max-det", default=300, show_default=True, type=click.IntRange(min=1), help="Boxes that may stay.")
@click.option("--seconds", default=5.0, show_default=True, help="Measure every contender for so long at least.")
@click.option("--frames", default=50, show_default=True, help="And so many frames at least.")
@click.option(
    "--warmup", default=10.0, show_default=True, help="Seconds of warm-up at most; it ends when times settle."
)
@click.option(
    "--json", "results", type=click.Path(path_type=Path), help="Append one JSON line a contender to this file."
)
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write the table as CSV.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table as Markdown.")
@click.option("--force", is_flag=True, help="Replace files of --csv and --markdown.")
@click.pass_context
def benchmark(
    context: click.Context, models: tuple[Path, ...], weights: Path | None, backends: str, threads: str,
    images: Path | None, conf: float, iou: float, max_det: int, seconds: float, frames: int, warmup: float,
    results: Path | None, csv_file: Path | None, markdown: Path | None, force: bool,
) -> None:  # fmt: skip
    """Measure latency, NMS time and FPS of every MODEL in every backend that suits it, interleaved in one run."""
    from edgeyolo.bench.contenders import find_contenders
    from edgeyolo.bench.frames import Setting
    from edgeyolo.bench.harness import Plan, measure
    from edgeyolo.bench.record import append_records
    from edgeyolo.bench.tables import run_csv, run_markdown, run_table
    from edgeyolo.output import check_free_file, write_file
    from edgeyolo.progress import Log

    texts = {path: form for path, form in ((csv_file, run_csv), (markdown, run_markdown)) if path is not None}
    for path in texts:
        check_free_file(path, force=force)
    plan, log = Plan(seconds, frames, warmup), Log()
    contenders = find_contenders(models, _words(backends), _numbers(threads), weights)
    with ExitStack() as stack:
        pictures = _pictures(images, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeyolo-"))))
        if images is None:
            log.say(f"no --images given: {len(pictures)} generated scenes of digits, so NMS has little to do")
        records = measure(contenders, pictures, Setting(conf, iou, max_det), plan, log)
    if results is not None:
        append_records(results, records)
    for path, form in texts.items():
        write_file(path, form(records).encode(), force=force)
    log.table(run_table(records))
    if any(record.status == "failed" for record in records):
        context.exit(1)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError as error:
        raise InputError("not a number of threads", where="--threads", got=text, allowed="such as 1,2") from error


def _pictures(images: Path | None, folder: Path) -> list[Path]:
    """Files that decode; those that do not are refused by name, since every contender would trip over them."""
    from PIL import Image

    from edgeyolo.images import list_images, load_image

    if images is None:
        from edgeyolo.datasets import load_dataset

        paths = []
        for i, sample in enumerate(load_dataset(SCENES).samples):
            paths.append(folder / f"scene-{i}.jpg")
            Image.fromarray(sample.load()).save(paths[-1], quality=95)
        return paths
    paths, broken = list_images(images), []
    for path in paths:
        try:
            load_image(path)
        except InputError as error:
            broken.append(f"{path.name}: {error.what}")
    if broken:
        raise InputError("pictures that do not decode", where=images, got="; ".join(broken[:5]), hint="remove them")
    return paths
