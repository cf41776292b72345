"""``edgeyolo eval``: the accuracy of a model on a labelled data set."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeyolo.evaluate import Score

EPILOG = """\b
Examples:
  edgeyolo eval yolo.cfg --weights yolo.weights --data coco128/val --names coco.names
  edgeyolo eval out/yf-fpga --data voc/:val --json
  edgeyolo eval model.onnx --data set.data:val --convention darknet --conf 0.005

Figures are comparable only under equal settings, which is why they are printed. Those of OpenCV and PyTorch scripts
usually come with --sampling centres --nms default, and some with --no-clip.
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="SOURCE", help="Labelled pictures: a folder, a file or scenes:val.")
@click.option("--weights", metavar="FILE", type=click.Path(path_type=Path), help="Weights of a Darknet .cfg.")
@click.option("--names", metavar="FILE", type=click.Path(path_type=Path), help="The model's class names, one a line.")
@click.option(
    "--runner",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "ort", "integer", "engine"]),
    help="What executes the model: ONNX Runtime, the numpy interpreter or the C engine.",
)
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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
def eval(
    model: Path,
    data: str,
    weights: Path | None,
    names: Path | None,
    runner: str,
    as_json: bool,
    **choices: Any,
) -> None:
    """Score MODEL on a labelled data set.

    MODEL is a bundle folder, an .onnx file exported by this tool, or a Darknet .cfg with --weights. Boxes are found as
    by detect. Classes are matched by name where the model and the data set both have names, else by index.
    """
    from edgeyolo.cli.detect import _named
    from edgeyolo.datasets import load_dataset
    from edgeyolo.evaluate import Setting, evaluate
    from edgeyolo.progress import Log
    from edgeyolo.runners import open_runner

    opened = open_runner(model, runner, weights)
    detector = _named(opened.detector, names, model)
    score = evaluate(opened, detector, load_dataset(data), Setting(**choices), Log(quiet=as_json))
    if as_json:
        click.echo(json.dumps(_document(score, model, data), indent=1))
    else:
        _print(score)


def _problems(score: Score) -> dict[str, int]:
    """How often each kind of label problem occurs."""
    return dict(Counter(f"{p.reason} ({p.action})" for p in score.problems).most_common())


def _document(score: Score, model: Path, data: str) -> dict[str, Any]:
    """The result as JSON has it."""
    thresholds = asdict(score.setting)
    convention = thresholds.pop("convention")
    return {
        "model": str(model),
        "data": data,
        "convention": convention,
        "thresholds": {**thresholds, "nms": score.nms_kind},
        **score.values,
        "per_class": {c.name: {"AP": c.ap, "AP50": c.ap50, "boxes": c.boxes} for c in score.per_class},
        "pictures": score.pictures,
        "boxes": score.boxes,
        "label_problems": _problems(score),
    }


def _print(score: Score) -> None:
    """Print a table per class, the totals and what they rest on."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from edgeyolo.errors import printable
    from edgeyolo.evaluate import CONVENTIONS

    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    table = Table()
    for column in ("class", "boxes", "AP", "AP50"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for c in score.per_class:
        table.add_row(Text(printable(c.name)), str(c.boxes), figure(c.ap), figure(c.ap50))
    console.print(table)
    order = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    console.print("  ".join(f"{name} {figure(score.values[name])}" for name in order))
    s = score.setting
    console.print(f"{score.pictures} pictures, {score.boxes} boxes, {len(score.per_class)} classes that occur")
    console.print(CONVENTIONS[s.convention])
    clip = "clipped to the picture" if s.clip else "not clipped"
    suppressed = f"score > {s.conf:g}, overlap <= {s.iou:g} ({score.nms_kind}), at most {s.max_det} boxes a picture"
    console.print(f"{suppressed}, {clip}; pictures resized by {s.sampling}")
    for reason, count in _problems(score).items():
        console.print(printable(f"label problem: {count} x {reason}"))
