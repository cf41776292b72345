"""``edgeyolo detect``: run a model on pictures and say what is in them."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeyolo.cli.models import Opened, open_model
from edgeyolo.cli.options import runner_option
from edgeyolo.cli.sheets import SheetRequest, agreement_json, agreement_text, sheet_options, side
from edgeyolo.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from edgeyolo.agreement import Agreement
    from edgeyolo.detector import Detector
    from edgeyolo.images import Picture
    from edgeyolo.postprocess import Classification, Detections
    from edgeyolo.sheet import Sheet

MANY = 8
"""A progress bar appears from this many pictures on."""

EPILOG = """\b
Examples:
  edgeyolo detect out/yf-fpga pictures/dog.jpg
  edgeyolo detect model.onnx pictures/ --out drawn --conf 0.4
  edgeyolo detect yolo.cfg --weights yolo.weights dog.jpg --names coco.names
  edgeyolo detect out/yf-fpga list.txt --json > found.json
  edgeyolo detect out/yf-fpga pictures/ --against model.onnx --sheet sheet.html
"""


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """What counts as a detection; stated in every output."""

    conf: float
    iou: float
    max_det: int


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--weights", metavar="FILE", type=click.Path(path_type=Path), help="Weights of a Darknet .cfg.")
@click.option("--conf", default=0.25, show_default=True, type=click.FloatRange(0, 1), help="Score threshold.")
@click.option("--iou", default=0.45, show_default=True, type=click.FloatRange(0, 1), help="Overlap threshold.")
@click.option("--max-det", default=300, show_default=True, type=click.IntRange(min=1), help="Boxes per picture.")
@click.option("-o", "--out", metavar="DIR", type=click.Path(path_type=Path), help="Write the pictures with boxes here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
@click.option("--names", metavar="FILE", type=click.Path(path_type=Path), help="Class names, one a line.")
@runner_option
@sheet_options
@click.option("--force", is_flag=True, help="Write into an existing folder, replace an existing sheet.")
def detect(
    model: Path,
    sources: tuple[Path, ...],
    weights: Path | None,
    conf: float,
    iou: float,
    max_det: int,
    out: Path | None,
    as_json: bool,
    names: Path | None,
    runner: str,
    force: bool,
    **options: Any,
) -> None:
    """Run MODEL on pictures, folders or list files and print what it finds.

    MODEL is a bundle folder, an .onnx file exported by this tool, or a Darknet .cfg with --weights. The picture is
    resized as the model's metadata says; boxes are in pixels of the original picture.
    """
    from edgeyolo.images import list_images

    request = SheetRequest.take(options, force=force, curves=model.is_dir())
    if out is not None and os.path.lexists(out) and not (force and out.is_dir()):
        hint = "choose another one with -o, or add --force" if out.is_dir() else "choose another one with -o"
        raise InputError("the output folder exists", where=out, hint=hint)
    paths = [path for source in sources for path in list_images(source)]
    opened, second = request.open_against(open_model(model, runner, weights, names), names)
    _check_boxes(opened, second, request)
    run = Run(opened, Thresholds(conf, iou, max_det), [], [])
    used: set[str] = set()
    found: list[dict[str, Any]] = []
    with _drawings(out, force) as folder:
        for picture, result in _results(run, paths):
            found.append(_record(picture, result, opened.detector))
            if not as_json:
                _print_table(found[-1])
            if folder is not None:
                _save_drawing(folder / _unused(picture.path.stem, used), picture.path, result, opened.detector)
            if request.wanted:
                run.kept.append((picture.path, result))
    runs = [run] if second is None else [run, _run_again(run, second)]
    if request.sheet is not None:
        from edgeyolo.sheet import write_sheet

        write_sheet(request.sheet, _sheet(runs, [model, request.against], sources, request.sheet_pictures), force=force)
    if as_json:
        click.echo(json.dumps(_document(runs, found), indent=1))
    else:
        _print_summary(runs, found, out, request.sheet)


@dataclasses.dataclass(frozen=True)
class Run:
    """One model on all pictures: ``kept`` has what a sheet or a comparison needs, ``skipped`` what does not decode."""

    model: Opened
    thresholds: Thresholds
    kept: list[tuple[Path, Detections | Classification]]
    skipped: list[tuple[Path, str]]


def _check_boxes(opened: Opened, second: Opened | None, request: SheetRequest) -> None:
    """Refuse to compare what has no boxes."""
    from edgeyolo.postprocess import is_classifier

    for each in (opened, second):
        if request.wanted and each is not None and is_classifier(each.detector):
            raise InputError("a sheet and a comparison need boxes; this is a classifier", where=each.name)


def _run_again(first: Run, second: Opened) -> Run:
    """The second model on the pictures of the first."""
    run = Run(second, first.thresholds, [], [])
    run.kept.extend((picture.path, result) for picture, result in _results(run, [path for path, _ in first.kept]))
    return run


def _boxes(run: Run) -> list[Detections]:
    """What a run found; ``_check_boxes`` has seen to it that there are no others."""
    from edgeyolo.postprocess import Detections

    return [result for _, result in run.kept if isinstance(result, Detections)]


def _agreement(runs: list[Run]) -> Agreement:
    """How far both models see the same objects."""
    from edgeyolo.agreement import Agreement

    total = Agreement()
    for got, expected in zip(*(_boxes(run) for run in runs), strict=True):
        total.add(expected, got)
    return total


def _sheet(runs: list[Run], paths: list[Path | None], sources: tuple[Path, ...], limit: int) -> Sheet:
    """What the sheet shows."""
    from edgeyolo.images import load_image
    from edgeyolo.sheet import Sheet, Subject

    detector = runs[0].model.detector
    names = [detector.class_name(c) for c in range(detector.classes)]
    sides = [side(run.model, path, _boxes(run)) for run, path in zip(runs, paths, strict=False) if path is not None]
    pictures = [Subject(str(path), partial(load_image, path)) for path, _ in runs[0].kept]
    title = "edgeyolo detect: " + " against ".join(Path(run.model.name).name for run in runs)
    data = f"{len(pictures)} pictures of {', '.join(map(str, sources))}"
    settings = tuple(dict.fromkeys(_thresholds_text(run) for run in runs))
    return Sheet(title, data, settings, names, pictures, sides[0], sides[1] if len(sides) > 1 else None, limit)


def _document(runs: list[Run], found: list[dict[str, Any]]) -> dict[str, Any]:
    """The results as JSON has them."""
    run = runs[0]
    document = {
        "model": run.model.name,
        "thresholds": {**dataclasses.asdict(run.thresholds), "nms": run.model.detector.nms_kind},
        "pictures": found,
        "skipped": [{"path": str(path), "reason": reason} for path, reason in run.skipped],
    }
    for other in runs[1:]:
        document["against"] = {"model": other.model.name, "agreement": agreement_json(_agreement(runs))}
    return document


@contextmanager
def _drawings(out: Path | None, force: bool) -> Iterator[Path | None]:
    """Give the folder to draw into: a new one appears whole or not at all; an existing one needs ``force``."""
    from edgeyolo.output import new_folder

    if out is None or (force and out.is_dir()):
        yield out
    else:
        with new_folder(out) as folder:
            yield folder


def _results(run: Run, paths: list[Path]) -> Iterator[tuple[Picture, Detections | Classification]]:
    """Run the model on one picture after the other, behind a progress bar if there are many."""
    from rich.console import Console
    from rich.progress import track

    from edgeyolo import postprocess
    from edgeyolo.images import iter_images

    console = Console(stderr=True)
    shown = track(paths, "detecting", console=console, transient=True, disable=len(paths) < MANY)
    runner, detector = run.model.runner, run.model.detector
    for picture in iter_images(shown, detector.preprocess, run.skipped):
        runner.set_inputs(picture.pixels)
        runner.infer()
        if postprocess.is_classifier(detector):
            yield picture, postprocess.classify(runner.outputs(), detector)
        else:
            options = dataclasses.asdict(run.thresholds)
            yield picture, postprocess.detect(runner.outputs(), detector, picture.size, **options)


def _record(picture: Picture, result: Detections | Classification, detector: Detector) -> dict[str, Any]:
    """Return one picture's result as JSON has it; a classifier's entries have no box."""
    boxes = getattr(result, "boxes", None)
    entries: list[dict[str, Any]] = []
    for i, (index, score) in enumerate(zip(result.classes.tolist(), result.scores.tolist(), strict=True)):
        entry = {"class": detector.class_name(index), "class_id": index, "score": round(score, 4)}
        entries.append(entry if boxes is None else {**entry, "box": [round(v, 1) for v in boxes[i].tolist()]})
    kind = "classes" if boxes is None else "detections"
    return {"path": str(picture.path), "width": picture.size[0], "height": picture.size[1], kind: entries}


def _printable(text: str) -> str:
    """Replace control characters: file and class names come from others, a terminal obeys escape sequences."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _table(title: str, entries: list[dict[str, Any]]) -> Table:
    """Lay out one picture's result."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    table.add_column("class")
    table.add_column("score", justify="right")
    for name in ("x1", "y1", "x2", "y2") if "box" in entries[0] else ():
        table.add_column(name, justify="right")
    for entry in entries:
        cells = [f"{entry['score']:.3f}", *(f"{v:.0f}" for v in entry.get("box", ()))]
        table.add_row(Text(_printable(entry["class"])), *cells)
    return table


def _console() -> Console:
    """Return a console that prints text as it is: names from files are never markup."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def _print_table(record: dict[str, Any]) -> None:
    """Print one picture's table and its counts per class."""
    console = _console()
    title = _printable(f"{record['path']}  {record['width']} x {record['height']}")
    entries = record.get("detections", record.get("classes"))
    if not entries:
        console.print(f"{title}\n  nothing found\n")
        return
    console.print(_table(title, entries))
    if "detections" in record:
        counts = Counter(_printable(entry["class"]) for entry in entries)
        console.print("  " + ", ".join(f"{name} {count}" for name, count in counts.most_common()) + "\n")


def _print_summary(runs: list[Run], found: list[dict[str, Any]], out: Path | None, sheet: Path | None) -> None:
    """Print totals, what was skipped, where pictures went and what counted as a detection."""
    console = _console()
    total = sum(len(record.get("detections", ())) for record in found)
    console.print(f"{len(found)} picture(s), {total} detection(s)")
    for other in runs[1:]:
        console.print(_printable(agreement_text(_agreement(runs), other.model.name)))
    for path, reason in runs[0].skipped:
        console.print(_printable(f"  skipped {path}: {reason}"))
    if out is not None:
        console.print(_printable(f"drawn pictures: {out}{os.sep}"))
    if sheet is not None:
        console.print(_printable(f"sheet: {sheet}"))
    console.print(_thresholds_text(runs[0]))


def _thresholds_text(run: Run) -> str:
    """What counts as a detection."""
    t, kind = run.thresholds, run.model.detector.nms_kind
    return f"score > {t.conf:g}, overlap <= {t.iou:g} ({kind}), at most {t.max_det} boxes a picture"


def _unused(stem: str, used: set[str]) -> str:
    """Choose a file name: equal names from different folders get a number."""
    name, count = f"{stem}.jpg", 1
    while name in used:
        name, count = f"{stem}-{count + 1}.jpg", count + 1
    used.add(name)
    return name


def _save_drawing(target: Path, path: Path, result: Detections | Classification, detector: Detector) -> None:
    """Write the picture at ``path`` with its boxes to ``target``."""
    from edgeyolo.draw import draw_classification, draw_detections
    from edgeyolo.images import load_image
    from edgeyolo.output import write_file
    from edgeyolo.postprocess import Detections

    image = load_image(path)
    if isinstance(result, Detections):
        drawn = draw_detections(image, result, detector)
    else:
        drawn = draw_classification(image, result, detector)
    data = io.BytesIO()
    drawn.save(data, "JPEG", quality=92)
    write_file(target, data.getvalue(), force=True)
