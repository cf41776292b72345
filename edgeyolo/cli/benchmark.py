"""``edgeyolo benchmark``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from edgeyolo.errors import InputError

if TYPE_CHECKING:
    from edgeyolo.bench.record import RunRecord

Number = TypeVar("Number", int, float)

INTERRUPTED = 130
"""As shells have it: 128 and the number of the signal."""

EPILOG = """\b
Examples:
  edgeyolo benchmark out/digits-fpga
  edgeyolo benchmark yolo.onnx out/yolo-trt --backend ort,openvino --threads 1,2 --images pictures/
  edgeyolo benchmark yolo.onnx --backend ort,ncnn --json results.jsonl --html report.html
  edgeyolo benchmark yolo.onnx out/yolo8 --data coco128/val --conf 0.25,0.001 --html report.html
  edgeyolo benchmark yolo.onnx --scenario Server,Offline --qps 20

One frame is a picture file to boxes: decoding and resizing, the network, decoding of heads, NMS. Contenders run
interleaved, each in a process of its own that is paused while another runs. Thresholds decide how long NMS takes, so
they stand in every row. Scenarios are those of MLPerf: SingleStream, MultiStream (8 frames a query), Offline (all at
once), Server (frames arrive at random); with mlcommons-loadgen as the generator where it is installed. Energy is read
where the machine tells (RAPL, INA3221, NVML).

Exit codes: 0 done, 1 a contender failed (its row says why; the others are there), 2 bad input, 130 interrupted (what
was measured is kept).
"""


@click.command(epilog=EPILOG)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--weights", type=click.Path(path_type=Path), help="Weights of a Darknet .cfg.")
@click.option("--backend", "backends", default="", help="ort, engine, torch, ncnn, openvino ... [default: by model].")
@click.option("--threads", default="1", show_default=True, help="Numbers of threads to measure with, such as 1,2.")
@click.option("--images", type=click.Path(path_type=Path), help="Pictures: file, folder or list [default: scenes].")
@click.option("--conf", default="0.25", show_default=True, help="Score thresholds to measure with, such as 0.25,0.001.")
@click.option("--iou", default=0.45, show_default=True, type=click.FloatRange(0, 1), help="Overlap threshold.")
@click.option("--max-det", default=300, show_default=True, type=click.IntRange(min=1), help="Boxes that may stay.")
@click.option("--batch", default="1", show_default=True, help="Pictures at a time, such as 1,2,4,8.")
@click.option("--scenario", default="", help="SingleStream, MultiStream, Offline, Server [default: one after another].")
@click.option("--qps", type=click.FloatRange(min=0, min_open=True), help="Frames a second that come in Server.")
@click.option("--data", metavar="SOURCE", help="Labelled pictures: AP of every model in every backend.")
@click.option("--seconds", default=5.0, show_default=True, help="Measure so long at least, in the mean of contenders.")
@click.option(
    "--frames", default=50, show_default=True, help="And so many frames at least, of at most so many pictures."
)
@click.option(
    "--warmup", default=10.0, show_default=True, help="Seconds of warm-up at most; it ends when times settle."
)
@click.option(
    "--json", "results", type=click.Path(path_type=Path), help="Append one JSON line a contender to this file."
)
@click.option("--html", type=click.Path(path_type=Path), help="Write a report with plots.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write the table as CSV.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table as Markdown.")
@click.option("--force", is_flag=True, help="Replace files of --html, --csv and --markdown.")
@click.pass_context
def benchmark(
    context: click.Context, models: tuple[Path, ...], weights: Path | None, backends: str, threads: str,
    images: Path | None, conf: str, iou: float, max_det: int, batch: str, scenario: str, qps: float | None,
    data: str | None, seconds: float, frames: int, warmup: float, results: Path | None, html: Path | None,
    csv_file: Path | None, markdown: Path | None, force: bool,
) -> None:  # fmt: skip
    """Measure latency, NMS time and FPS of every MODEL in every backend that suits it, interleaved in one run."""
    from edgeyolo.bench.contenders import Variants, check_installed, find_contenders
    from edgeyolo.bench.energy import open_meter
    from edgeyolo.bench.frames import Setting
    from edgeyolo.bench.harness import Plan, ending_like_ctrl_c, measure
    from edgeyolo.bench.record import append_records
    from edgeyolo.bench.tables import run_table
    from edgeyolo.output import write_file
    from edgeyolo.progress import Log

    texts = _texts(html, csv_file, markdown, results, force=force)
    settings = [Setting(value, iou, max_det) for value in _numbers(conf, float, "--conf")]
    threads_, batches = _numbers(threads, int, "--threads"), _numbers(batch, int, "--batch")
    variants = Variants(_words(backends), threads_, batches, settings, _words(scenario))
    plan, log = Plan(seconds, frames, warmup, qps, data), Log()
    contenders = find_contenders(models, variants, weights)
    check_installed(contenders)
    _check_data(data)
    with ExitStack() as stack:
        stack.enter_context(ending_like_ctrl_c())
        pictures = _pictures(images, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeyolo-"))))
        if images is None:
            log.say(f"no --images given: {len(pictures)} generated scenes of digits, so NMS has little to do")
        records = measure(contenders, pictures, plan, log, open_meter)
    log.table(run_table(records))
    if results is not None:
        append_records(results, records)
    for path, form in texts.items():
        write_file(path, form(records).encode(), force=force)
    if any(record.status == "stopped" for record in records):
        context.exit(INTERRUPTED)
    if any(record.status == "failed" for record in records):
        context.exit(1)


def _texts(
    html: Path | None, csv_file: Path | None, markdown: Path | None, results: Path | None, *, force: bool
) -> dict[Path, Callable[[Sequence[RunRecord]], str]]:
    """What makes the text of each file, once they are known to be writable. Raises InputError."""
    from edgeyolo.bench.record import check_results
    from edgeyolo.bench.tables import run_csv, run_markdown
    from edgeyolo.output import check_free_file

    texts: dict[Path, Callable[[Sequence[RunRecord]], str]] = {}
    texts |= {path: form for path, form in ((csv_file, run_csv), (markdown, run_markdown)) if path is not None}
    if html is not None:
        from edgeyolo.bench.report import need_plots, report_html

        need_plots()
        texts[html] = report_html
    for path in texts:
        check_free_file(path, force=force)
    if results is not None:
        check_results(results)
    named = [path.absolute() for path in (html, csv_file, markdown, results) if path is not None]
    if len(set(named)) < len(named):
        raise InputError("one file for two kinds of results", got=", ".join(map(str, named)))
    return texts


def _check_data(data: str | None) -> None:
    """Refuse what every contender would stumble over. Raises InputError."""
    if data is None:
        return
    from edgeyolo.datasets import load_dataset
    from edgeyolo.evaluate import need_metric

    need_metric()
    if not load_dataset(data).samples:
        raise InputError("there are no labelled pictures", where="--data", got=data)


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _numbers(text: str, kind: type[Number], option: str) -> list[Number]:
    try:
        return list(dict.fromkeys(kind(word) for word in _words(text)))
    except ValueError as error:
        raise InputError("not a list of numbers", where=option, got=text, allowed="such as 1,2") from error


def _pictures(images: Path | None, folder: Path) -> list[Path]:
    """Files that decode; those that do not are refused by name, since every contender would trip over them."""
    from PIL import Image

    from edgeyolo.images import list_images, load_images

    if images is None:
        from edgeyolo.datasets import SCENES, load_dataset

        paths = []
        for i, sample in enumerate(load_dataset(SCENES).samples):
            paths.append(folder / f"scene-{i}.jpg")
            Image.fromarray(sample.load()).save(paths[-1], quality=95)
        return paths
    paths = list_images(images)
    for _ in load_images(paths, images):
        pass
    return paths
