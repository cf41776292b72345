"""``edgeyolo eval``: the accuracy of a model on a labelled data set."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from edgeyolo.cli.models import Opened, open_model
from edgeyolo.cli.options import runner_option
from edgeyolo.cli.sheets import SheetRequest, agreement_json, agreement_text, sheet_options, side
from edgeyolo.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from edgeyolo.agreement import Agreement
    from edgeyolo.bootstrap import Ratio
    from edgeyolo.datasets import Dataset
    from edgeyolo.evaluate import Findings, Score
    from edgeyolo.postprocess import Detections
    from edgeyolo.sheet import Sheet

EPILOG = """\b
Examples:
  edgeyolo eval
  edgeyolo eval yolo.cfg --weights yolo.weights --data coco128/val --names coco.names
  edgeyolo eval out/yf-fpga --data voc/:val --json
  edgeyolo eval model.onnx --data set.data:val --convention darknet --conf 0.005
  edgeyolo eval out/yf-fpga --against yolo.cfg --against-weights yolo.weights --data coco128/val --sheet sheet.html

Figures are comparable only under equal settings, which is why they are printed. Those of OpenCV and PyTorch scripts
usually come with --sampling centres --nms default, and some with --no-clip.
"""


@click.command(epilog=EPILOG)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--data", metavar="SOURCE", help="Labelled pictures: a folder, a file or scenes:val.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Score at most N pictures, evenly spread.")
@click.option("--weights", metavar="FILE", type=click.Path(path_type=Path), help="Weights of a Darknet .cfg.")
@click.option("--names", metavar="FILE", type=click.Path(path_type=Path), help="The model's class names, one a line.")
@runner_option
@click.option("--conf", default=0.001, show_default=True, type=click.FloatRange(0, 1), help="Score threshold.")
@click.option("--iou", default=0.45, show_default=True, type=click.FloatRange(0, 1), help="Overlap that suppresses.")
@click.option("--max-det", default=100, show_default=True, type=click.IntRange(min=1), help="Boxes per picture.")
@click.option(
    "--nms",
    default="model",
    show_default=True,
    type=click.Choice(["model", "default", "greedynms", "diounms"]),
    help="Suppression: the model's own, plain IoU, or Darknet's two.",
)
@click.option(
    "--sampling",
    default="corners",
    show_default=True,
    type=click.Choice(["corners", "centres"]),
    help="Resize as Darknet and detect do, or with pixel centres at half integers as OpenCV does.",
)
@click.option("--clip/--no-clip", default=True, show_default=True, help="Cut boxes off at the picture's border.")
@click.option(
    "--convention",
    default="coco",
    show_default=True,
    type=click.Choice(["coco", "darknet"]),
    help="COCO's average precision, or Darknet's map.",
)
@sheet_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
@click.option("--force", is_flag=True, help="Replace the file of an earlier sheet.")
def eval(
    model: Path | None,
    data: str | None,
    limit: int | None,
    weights: Path | None,
    names: Path | None,
    runner: str,
    as_json: bool,
    force: bool,
    **choices: Any,
) -> None:
    """Score MODEL on a labelled data set.

    MODEL is a bundle folder, an .onnx file exported by this tool, or a Darknet .cfg with --weights; without it the
    default model that comes with the tool is scored on its own pictures. Boxes are found as by detect. Classes are
    matched by name where the model and the data set both have names, else by index.
    """
    from edgeyolo.evaluate import Setting, find, score_findings, spread
    from edgeyolo.progress import Log

    request = SheetRequest.take(choices, force=force, curves=True)
    setting, log = Setting(**choices), Log(quiet=as_json)
    opened, second = request.open_against(_open(model, runner, weights, names), names)
    dataset, source = _dataset(opened, model, data)
    if limit is not None:
        dataset, source = spread(dataset, limit), f"{source}, at most {limit} pictures"
    results = []
    for each in (opened, second):
        if each is not None:
            findings = find(each.runner, each.detector, dataset, setting, log)
            results.append(Result(each, findings, score_findings(findings, setting)))
    if request.sheet is not None:
        from edgeyolo.sheet import write_sheet

        paths = [path for path in (model or Path(opened.name), request.against) if path is not None]
        write_sheet(request.sheet, _sheet(results, paths, source, request.sheet_pictures), force=force)
    if as_json:
        click.echo(json.dumps(_document(results, source), indent=1))
    else:
        _print(results, source)
        if request.sheet is not None:
            log.say(f"sheet: {request.sheet}")


class Result(NamedTuple):
    """One model's results."""

    model: Opened
    findings: Findings
    score: Score


def _open(model: Path | None, runner: str, weights: Path | None, names: Path | None) -> Opened:
    """Open MODEL, or the default model."""
    from edgeyolo.assets import CFG, NAMES, WEIGHTS

    if model is not None:
        return open_model(model, runner, weights, names)
    if weights is not None:
        raise InputError("weights of no model", where="--weights", hint="name the .cfg as MODEL")
    opened = open_model(CFG, runner, WEIGHTS, names or NAMES)
    return opened._replace(name=f"{CFG.name} (comes with edgeyolo)")


def _dataset(opened: Opened, model: Path | None, data: str | None) -> tuple[Dataset, str]:
    """Read the pictures; those of the default model serve a model of the same classes."""
    from edgeyolo.assets import DATA
    from edgeyolo.datasets import load_dataset
    from edgeyolo.datasets.scenes import NAMES

    if data is None and model is not None and opened.detector.names != NAMES:
        raise InputError(
            "say on which labelled pictures the model is scored",
            where=opened.name,
            hint=f"give them with --data; those of the default model ({DATA}) show other classes",
        )
    source = data or DATA
    return load_dataset(source), source


def _sheet(results: list[Result], paths: list[Path], source: str, limit: int) -> Sheet:
    """What the sheet shows: only boxes that score enough to be looked at."""
    from edgeyolo.sheet import Sheet, Subject

    findings, score = results[0].findings, results[0].score
    sides = [
        side(result.model, path, _visible(result), result.score) for result, path in zip(results, paths, strict=True)
    ]
    pictures = [Subject(s.name, s.load, _labels(s.boxes, s.classes)) for s in findings.samples]
    facts = f"{source}: {score.pictures} pictures, {score.boxes} boxes, {len(score.per_class)} classes that occur"
    problems = "".join(f"; label problem: {count} x {reason}" for reason, count in _problems(score).items())
    settings = (*_settings(results), f"pictures and agreement: boxes that score above {_shown_conf(score):g}")
    title = "edgeyolo eval: " + " against ".join(Path(result.model.name).name for result in results)
    other = sides[1] if len(sides) > 1 else None
    return Sheet(title, facts + problems, settings, findings.names, pictures, sides[0], other, limit)


def _shown_conf(score: Score) -> float:
    """Average precision takes every box; people and the agreement of two models only those that ``detect`` shows."""
    from edgeyolo.postprocess import CONF

    return max(score.setting.conf, CONF)


def _visible(result: Result) -> list[Detections]:
    """The detections above that score. They are those that ``detect`` finds: a better box is never suppressed."""
    found = result.findings.found
    return [replace(d, boxes=d.boxes[k], scores=d.scores[k], classes=d.classes[k])
            for d, k in ((d, d.scores > _shown_conf(result.score)) for d in found)]  # fmt: skip


def _labels(boxes: Any, classes: Any) -> Detections:
    """A picture's labels as certain detections."""
    from edgeyolo.postprocess import Detections

    return Detections(boxes, boxes[:, 0] * 0 + 1, classes)


def _agreement(results: list[Result]) -> Agreement:
    """How far both models see the same objects."""
    from edgeyolo.agreement import Agreement

    total = Agreement()
    for got, expected in zip(*(_visible(result) for result in results), strict=True):
        total.add(expected, got)
    return total


def _ratios(results: list[Result]) -> dict[str, Ratio]:
    """The model's AP as shares of the reference's; empty in a convention that does not have them."""
    from edgeyolo.bootstrap import ratios

    (_, got, score), (_, expected, _) = results
    return ratios(got.samples, expected.found, got.found) if score.setting.convention == "coco" else {}


def _problems(score: Score) -> dict[str, int]:
    """How often each kind of label problem occurs."""
    return dict(Counter(f"{p.reason} ({p.action})" for p in score.problems).most_common())


def _document(results: list[Result], data: str) -> dict[str, Any]:
    """The results as JSON has them."""
    from edgeyolo.bootstrap import ratios_json

    score = results[0].score
    thresholds = asdict(score.setting)
    convention = thresholds.pop("convention")
    document = {
        "model": results[0].model.name,
        "data": data,
        "convention": convention,
        "thresholds": {**thresholds, "nms": score.nms_kind},
        **score.values,
        "per_class": {c.name: {"AP": c.ap, "AP50": c.ap50, "boxes": c.boxes} for c in score.per_class},
        "pictures": score.pictures,
        "boxes": score.boxes,
        "label_problems": _problems(score),
    }
    for other in results[1:]:
        document["against"] = {
            "model": other.model.name,
            "nms": other.score.nms_kind,
            **other.score.values,
            "ratio": ratios_json(_ratios(results)),
            "agreement": {**agreement_json(_agreement(results)), "conf": _shown_conf(score)},
        }
    return document


def _settings(results: list[Result]) -> tuple[str, ...]:
    """What the figures rest on, one sentence each."""
    from edgeyolo.evaluate import CONVENTIONS

    score = results[0].score
    s = score.setting
    clip = "clipped to the picture" if s.clip else "not clipped"
    suppressed = f"score > {s.conf:g}, overlap <= {s.iou:g} ({score.nms_kind}), at most {s.max_det} boxes a picture"
    lines = CONVENTIONS[s.convention], f"{suppressed}, {clip}; pictures resized by {s.sampling}"
    others = (r.score.nms_kind for r in results[1:] if r.score.nms_kind != score.nms_kind)
    return *lines, *(f"the reference's own suppression: {kind}" for kind in others)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _comparison(results: list[Result]) -> Table:
    """Both models, and the first as shares of the second."""
    from rich.table import Table
    from rich.text import Text

    from edgeyolo.bootstrap import CONFIDENCE, RESAMPLES
    from edgeyolo.errors import printable

    names, found = ("AP50", "AP"), _ratios(results)
    table = Table("model")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        table.add_row(Text(printable(result.model.name)), *(_figure(result.score.values[name]) for name in names))
    if found:
        table.caption = Text(f"[{CONFIDENCE:.0%} interval] from {RESAMPLES} draws of the pictures with replacement")
        table.add_row("ratio", *(Text(str(found[name])) for name in names))
    return table


def _print(results: list[Result], source: str) -> None:
    """Print a table per class, the totals and what they rest on."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from edgeyolo.errors import printable

    def figures(score: Score) -> str:
        return "  ".join(f"{name} {_figure(score.values[name])}" for name in order)

    score, order = results[0].score, ("AP", "AP50", "AP75", "APs", "APm", "APl")
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    table = Table()
    for column in ("class", "boxes", "AP", "AP50"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for c in score.per_class:
        table.add_row(Text(printable(c.name)), str(c.boxes), _figure(c.ap), _figure(c.ap50))
    console.print(table)
    console.print(figures(score))
    for other in results[1:]:
        console.print(printable(f"{figures(other.score)}  ({other.model.name})"))
        console.print(_comparison(results))
        console.print(printable(agreement_text(_agreement(results), other.model.name)))
    console.print(printable(f"{results[0].model.name} on {source}"))
    console.print(f"{score.pictures} pictures, {score.boxes} boxes, {len(score.per_class)} classes that occur")
    for line in _settings(results):
        console.print(line)
    for reason, count in _problems(score).items():
        console.print(printable(f"label problem: {count} x {reason}"))
