"""``edgeyolo diagnose``: which layers lose the accuracy, and which options give it back."""

from __future__ import annotations

import json
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgeyolo.cli.options import MODEL_OPTIONS, QUANT_OPTIONS, embedded_default
from edgeyolo.errors import InputError, printable

if TYPE_CHECKING:
    import onnx_ir as ir
    from rich.table import Table

    from edgeyolo.detector import Detector
    from edgeyolo.export.labels import LabelledSet
    from edgeyolo.export.pictures import PictureSet
    from edgeyolo.profile import TargetProfile
    from edgeyolo.progress import Log
    from edgeyolo.quant.config import QuantConfig
    from edgeyolo.quant.diagnose import Diagnosis

JUDGED = 64
"""Pictures on which detections are compared where there are no labels."""
NOT_REPEATED = {"model", "target", "output", "force", "diagnose", "as_json", "report", "save_stages"}
"""Parameters of export that its next run sets anew, or that change nothing in the bundle."""

EPILOG = """\b
Examples:
  edgeyolo diagnose --bits 4
  edgeyolo diagnose yolo.cfg --weights yolo.weights --calib pictures/ --granularity per-tensor
  edgeyolo diagnose model.onnx --calib coco128/train --data coco128/val --bits 4 --max-drop 0.02

Without MODEL: the detector of handwritten digits that comes with the package, with its own pictures and labels.
"""


def _options(command: Any) -> Any:
    """All options; those that export has too mean the same."""
    for option in reversed([
        *MODEL_OPTIONS,
        click.option("--calib", metavar="SOURCE", help="Calibration pictures: folder, list, data set, recipe .toml."),
        click.option(
            "--calib-limit", default=16, show_default=True, type=click.IntRange(min=1),
            help="Quantise on so many of them, evenly spread: it is done many times.",
        ),
        click.option("--data", metavar="SOURCE", help="Labelled pictures: AP of every suggestion."),
        click.option("--data-limit", type=click.IntRange(min=1), help="Use at most so many of them, evenly spread."),
        click.option("--max-drop", type=float, help="With --data: the loss of AP that is no loss."),
        *QUANT_OPTIONS,
        click.option("--board", help="Board profile, which limits suggestions: a name or a .toml [default: generic]."),
        click.option("--top", default=10, show_default=True, type=click.IntRange(min=1), help="Layers to show."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."),
    ]):  # fmt: skip
        command = option(command)
    return command


@click.command(epilog=EPILOG)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@_options
def diagnose(model: Path | None, **options: Any) -> None:
    """Name the layers of MODEL (.cfg with --weights, or .onnx) that quantisation hurts most.

    Every layer is quantised alone, the noisiest are given back their float values, and the --keep that helps most is
    found and measured. The last line is the command to run.
    """
    from edgeyolo.export.fpga import check_raw, fixed_point_form
    from edgeyolo.export.prepare import PARITY_PICTURES, Stages, prepare
    from edgeyolo.frontend import load_source
    from edgeyolo.passes.graph import read_detector
    from edgeyolo.profile import load_profile
    from edgeyolo.progress import Log

    command = export_command(model)
    path = model or embedded_default(options, pictures=True, hint="edgeyolo diagnose MODEL")
    profile = load_profile("fpga", options["board"])
    config = _config(options, profile)
    if options["calib"] is None:
        raise InputError("quantisation needs calibration pictures", hint="add --calib FOLDER")
    if options["data"] is None and (options["max_drop"] is not None or options["data_limit"] is not None):
        raise InputError("--max-drop and --data-limit do nothing without --data", hint="add --data, or leave them out")
    if options["max_drop"] is not None and not 0 <= options["max_drop"] <= 1:  # click's range lets nan pass
        raise InputError("out of range", where="--max-drop", got=options["max_drop"], allowed="0 to 1")
    log, stages = Log(quiet=options["as_json"]), Stages(None)
    with log.stage("load") as details:
        source = load_source(path, **{key: options[key] for key in ("weights", "imgsz", "names", "bn_eps")})
        details += [path.name, *source.notes]
    check_raw(source.model)
    pictures, labels = _pictures(options, read_detector(source.model), log)
    ready, _ = prepare(source.model, list(pictures.spread(PARITY_PICTURES)), stages, log)
    exact, _, _ = fixed_point_form(ready, pictures, stages, log)
    with log.stage("diagnose"):
        found = run_diagnosis(
            exact, pictures, config, log, profile=profile, labels=labels, max_drop=options["max_drop"],
            calibrate=options["calib_limit"], top=options["top"],
        )  # fmt: skip
    if options["as_json"]:
        recommended = found.recommended
        extra = {"command": None if recommended is None else with_options(command, recommended.candidate.options)}
        click.echo(json.dumps({"model": str(path), **found.to_json(), **extra, "seconds": log.seconds}, indent=1))
    else:
        print_diagnosis(found, command, log, options["top"])


def _config(options: dict[str, Any], profile: TargetProfile) -> QuantConfig:
    """What the user asked for, refused where the board has no such bits or granularity."""
    from edgeyolo.export.fpga import check_widths
    from edgeyolo.quant.config import GRANULARITIES, QuantConfig, parse_keep

    finest = max(profile.granularity, key=GRANULARITIES[::-1].index)
    keep = tuple(keep for text in options["keep"] for keep in parse_keep(text))
    config = QuantConfig(
        options["bits"], options["act_bits"], options["granularity"] or finest, options["method"], keep,
        options["equalise"], options["correct_bias"], options["head_bits"] or max(profile.activation_bits),
        options["align"],
    )  # fmt: skip
    check_widths(config, profile)
    return config


def _pictures(
    options: dict[str, Any], detector: Detector, log: Log
) -> tuple[PictureSet, LabelledSet | None]:  # fmt: skip
    """Calibration pictures, and the labelled ones if there are any."""
    from edgeyolo.datasets import load_dataset
    from edgeyolo.evaluate import spread
    from edgeyolo.export.labels import check_labels
    from edgeyolo.export.pictures import PictureSet

    labels = None
    with log.stage("pictures") as details:
        limit = max(options["calib_limit"], JUDGED)
        pictures = PictureSet.find(options["calib"], detector.preprocess, limit)
        details.append(f"{len(pictures)}, {min(len(pictures), options['calib_limit'])} of them calibrate")
        if pictures.skipped:
            log.warn(f"{len(pictures.skipped)} picture(s) skipped that do not decode, first {pictures.skipped[0][0]}")
        if options["data"] is not None:
            dataset = load_dataset(options["data"])
            if options["data_limit"]:
                dataset = spread(dataset, options["data_limit"])
            labels = check_labels(dataset, options["data"], detector)
            details.append(f"{len(labels.samples)} labelled with {labels.boxes} boxes")
    return pictures, labels


def run_diagnosis(
    model: ir.Model, pictures: PictureSet, config: QuantConfig, log: Log, *, profile: TargetProfile | None = None,
    labels: LabelledSet | None = None, max_drop: float | None = None, calibrate: int = 16, top: int = 10,
) -> Diagnosis:  # fmt: skip
    """Diagnose a model in fixed form (``export.fpga.fixed_point_form``).

    Args:
        model: the float graph.
        pictures: ``calibrate`` of them, evenly spread, calibrate; without labels ``JUDGED`` of them compare detections.
        config: the quantisation in question.
        log: receives the progress bars.
        profile: the board, which limits the suggestions.
        labels: what AP is measured on.
        max_drop: with labels: how close to float AP the layers given back must bring it.
        top: of how many layers the gains are measured.
    """
    from edgeyolo.quant import diagnose as core

    judge = partial(_judge, pictures.spread(JUDGED), labels, log)
    return core.diagnose(
        model, list(pictures.spread(calibrate)), config, profile=profile, judge=judge, max_drop=max_drop, top=top,
        track=lambda items, title: log.track(items, title, len(items)),
    )  # fmt: skip


def _judge(
    pictures: PictureSet, labels: LabelledSet | None, log: Log, models: list[ir.Model]
) -> list[dict[str, float | None]]:
    """F1 against the first model's detections, and with labels AP and AP50."""
    from edgeyolo.export.ledger import measure
    from edgeyolo.export.ledger_stages import Stage, onnx_heads
    from edgeyolo.passes.graph import read_detector

    stages = [Stage("comparing detections", partial(onnx_heads, model, optimise=False), 0, 0) for model in models]
    rows = measure(stages, read_detector(models[0]), pictures, labels, log).rows
    if labels is None:
        return [{"F1": row.f1} for row in rows]
    return [{"F1": row.f1, "AP": row.ap, "AP50": row.ap50} for row in rows]


def export_command(model: Path | None) -> list[str]:
    """The export that the running command line asks about: every option given that changes what export writes."""
    from edgeyolo.cli.export import export

    context = click.get_current_context()
    known = {param.name for param in export.params} - NOT_REPEATED
    words = ["edgeyolo", "export", *([] if model is None else [str(model)]), "--target", "fpga"]
    for param in context.command.params:
        name = str(param.name)
        if name not in known or context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        if isinstance(value, bool):
            words.append((param.opts if value else param.secondary_opts)[0])
        else:
            for item in value if param.multiple else [value]:
                words += [param.opts[0], str(item)]
    return words


def with_options(command: list[str], options: tuple[str, ...]) -> str:
    """The command as a shell takes it, with a suggestion's options added, or replaced where it has them already."""
    words = list(command)
    for key, value in zip(options[::2], options[1::2], strict=True):
        if key != "--keep" and key in words:
            words[words.index(key) + 1] = value
        else:
            words += [key, value]
    return shlex.join(words)


def print_diagnosis(found: Diagnosis, command: list[str], log: Log, top: int) -> None:
    """Print the layers, what it takes, the suggestions and the command to run."""
    log.table(_layers(found, top))
    log.results.print(printable(verdict(found)), soft_wrap=True)
    log.table(_suggestions(found))
    for name, outcome in (("best", found.best), ("best per byte", found.thriftiest)):
        if outcome is not None:
            judged = outcome.scores.get("AP") is not None
            gains = (f"{found.gain(outcome):+.3f} AP, " if judged else "") + f"{found.gain_db(outcome):+.1f} dB"
            figures = f"{gains} for {found.added(outcome):,} more bytes of weights"
            log.results.print(printable(f"{name}: {outcome.candidate.text} ({figures})"), soft_wrap=True)
    if found.recommended is None:
        log.results.print("no suggestion helps: keep what you have, or use more bits everywhere")
    else:
        log.results.print(
            "next: " + printable(with_options(command, found.recommended.candidate.options)), soft_wrap=True
        )


def verdict(found: Diagnosis) -> str:
    """Who is guilty, in a sentence or two."""
    b, layers = found.bisection, len(found.layers)
    goal = f"{b.measure} {b.start:.3g} -> {b.goal:.3g}"
    took = f"{b.count} of {layers} layers given back reach the goal ({goal})"
    if found.guilty:
        names = ", ".join(layer.name for layer in found.guilty)
        return f"{len(found.guilty)} of {layers} layers stand out: {names}. {took}."
    from edgeyolo.quant.diagnose import HEALTHY_DB

    if found.now.head_snr_db >= HEALTHY_DB:
        return f"Nothing stands out: the heads' SNR is {found.now.head_snr_db:.1f} dB, so few detections change."
    share = sum(layer.share for layer in found.layers[:10])
    return f"No few layers stand out: {took}; the first ten make {share:.0%} of the noise."


def _layers(found: Diagnosis, top: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"layers by the noise they make alone, {found.rank_pictures} pictures", box=box.SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True
    for column, justify in (
        ("#", "right"), ("layer", "left"), ("kind", "left"), ("bits", "right"), ("noise %\nw / a", "right"),
        ("alone\ndB", "right"), ("gain dB\nw / a", "right"), ("why", "left"),
    ):  # fmt: skip
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for rank, layer in enumerate(found.layers[:top], 1):
        bits = f"{'-' if layer.weight_bits is None else layer.weight_bits}/{layer.act_bits}"
        gains = " / ".join("-" if g is None else f"{g:+.1f}" for g in (layer.gain_weights_db, layer.gain_acts_db))
        shares = f"{layer.weight_share * 100:.0f} / {layer.act_share * 100:.0f}"
        name, why = Text(printable(layer.name)), Text(printable(layer.reason))
        table.add_row(str(rank), name, layer.kind, bits, shares, f"{layer.alone_db:.1f}", gains, why)
    return table


def _suggestions(found: Diagnosis) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"suggestions, quantised on {found.pictures} pictures and measured", box=box.SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True
    table.add_column("options", overflow="fold")
    scores = list(found.float_scores)
    for column in ("SNR dB", *scores, "weight bytes"):
        table.add_column(column, justify="right", no_wrap=True)

    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    table.add_row("float", "", *(figure(found.float_scores[key]) for key in scores), "")
    for outcome in found.outcomes:
        candidate = outcome.candidate
        text = (candidate.text or "as asked") + (" (yardstick)" if candidate.yardstick else "")
        values = [figure(outcome.scores[key]) for key in scores]
        table.add_row(Text(printable(text)), f"{outcome.head_snr_db:.1f}", *values, f"{candidate.weight_bytes:,}")
    return table
