"""``edgeyolo export``: the main job."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgeyolo.cli.options import MODEL_OPTIONS, QUANT_OPTIONS, RECIPE_OPTIONS, embedded_default

if TYPE_CHECKING:
    from edgeyolo.export.fpga import FpgaRequest, FpgaResult, Polish
    from edgeyolo.export.labels import LabelledSet
    from edgeyolo.export.pictures import PictureSet
    from edgeyolo.export.prepare import Stages
    from edgeyolo.frontend import Source
    from edgeyolo.progress import Log
    from edgeyolo.quant.diagnose import Diagnosis

EPILOG = """\b
Examples:
  edgeyolo export --target fpga --bits 4
  edgeyolo export yolo.cfg --weights yolo.weights --calib pictures/ --target fpga --bits 4 -o out/fpga
  edgeyolo export yolo.cfg --weights yolo.weights --target onnx --decode --nms --dynamic-batch -o yolo.onnx
  edgeyolo export model.onnx --calib list.txt --target fpga --bits 4 --keep first,head,depthwise=8 --layout tiled
  edgeyolo export model.onnx --calib coco128/train --data coco128/val --target fpga --format bin,mem --max-drop 0.01

Without MODEL: the detector of handwritten digits that comes with the package, its calibration recipe and its labelled
scenes; nothing else is needed.

Exit codes: 0 done, 1 golden data differ from ONNX Runtime's, 2 bad input, 3 done but AP (with --data) or the agreement
with the float model (without) fell by more than --max-drop.
"""


SHOWN_LAYERS = 10
"""Of --diagnose."""
FPGA_ONLY = {
    *("data", "data_limit", "calib_limit", "bits", "act_bits", "head_bits", "keep", "granularity", "method"),
    *(
        "equalise",
        "align",
        "correct_bias",
        "reconstruct",
        "recipe",
        "avg_bits",
        "max_bytes",
        "act_share",
        "board",
        "layout",
        "formats",
        "golden",
    ),
    *("max_drop", "report", "diagnose"),
}
ONNX_ONLY = {"dynamic_batch", "decode", "nms", "conf", "iou"}


def _options(command: Any) -> Any:
    """All options, grouped as the help shows them."""
    path = click.Path(path_type=Path)
    for option in reversed([
        click.option("--target", required=True, type=click.Choice(["fpga", "onnx"]), help="What to make."),
        click.option("-o", "--output", type=path, help="Bundle folder or .onnx file [default: out/MODEL-TARGET]."),
        click.option("--force", is_flag=True, help="Replace an earlier result."),
        *MODEL_OPTIONS,
        click.option("--calib", metavar="SOURCE", help="Calibration pictures: folder, list, data set, recipe .toml."),
        click.option("--calib-limit", type=click.IntRange(min=1), help="Use at most so many of them."),
        click.option("--data", metavar="SOURCE", help="Labelled pictures: what every stage does to AP, one row each."),
        click.option("--data-limit", type=click.IntRange(min=1), help="Use at most so many of them, evenly spread."),
        *QUANT_OPTIONS,
        *RECIPE_OPTIONS,
        click.option("--board", help="Board profile: a name or a .toml file [default: generic]."),
        click.option("--layout", help="Weight order: oihw, ohwi, tiled or seed-v1 [default: the board's]."),
        click.option("--format", "formats", default="bin,h", show_default=True, help="Weight files: bin, mem, coe, h."),
        click.option("--golden", default=1, show_default=True, help="Pictures to store with every layer's output."),
        click.option("--max-drop", type=float, help="Exit 3 if AP (with --data) or F1 (without) falls by more."),
        click.option("--report", is_flag=True, help="Print the table of all layers."),
        click.option("--diagnose", is_flag=True, help="Name the layers that lose the accuracy, and suggest --keep."),
        click.option("--simplify/--no-simplify", default=True, help="Run onnxsim, checked numerically."),
        click.option("--dynamic-batch", is_flag=True, help="--target onnx: symbolic batch size."),
        click.option("--decode", is_flag=True, help="--target onnx: boxes and scores instead of raw heads."),
        click.option("--nms", is_flag=True, help="--target onnx: NonMaxSuppression in the graph; implies --decode."),
        click.option("--conf", default=0.25, show_default=True, help="Score threshold of --nms."),
        click.option("--iou", default=0.45, show_default=True, help="Overlap threshold of --nms."),
        click.option("--save-stages", type=path, help="Write the model after every stage into this folder."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."),
    ]):  # fmt: skip
        command = option(command)
    return command


@click.command(epilog=EPILOG)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@_options
def export(model: Path | None, **options: Any) -> None:
    """Turn MODEL (.cfg with --weights, or .onnx) into what a target needs."""
    run_export(model, options)


def run_export(model: Path | None, options: dict[str, Any], polish: Polish | None = None) -> None:
    """What ``export`` does with its ``options``; ``polish`` adds a candidate to the quantisation."""
    from edgeyolo.cli.diagnose import export_command
    from edgeyolo.errors import InputError
    from edgeyolo.progress import Log

    log = Log(quiet=options["as_json"])
    _refuse_idle_options(options["target"], nms=options["nms"], data=model is None or options["data"] is not None)
    command = export_command(model)
    if model is None:
        hint = "edgeyolo export MODEL ..., or neither for the embedded default"
        model = embedded_default(options, pictures=options["target"] == "fpga", hint=hint)
        text = f"no MODEL given: the embedded default, {model.name}"
        if options["target"] == "fpga":
            text += f", calibrated on {Path(options['calib']).name}, judged on {options['data']}"
        log.say(text)
    if not model.is_file():
        raise InputError("no such model", where=model, allowed=".cfg (with --weights) or .onnx")
    output = options["output"] or Path("out") / f"{model.stem}-{options['target']}"
    if options["target"] == "onnx":
        _onnx(model, output if output.suffix == ".onnx" else output.with_name(output.name + ".onnx"), options, log)
    else:
        _fpga(model, output, options, log, command, polish)


def _refuse_idle_options(target: str, *, nms: bool, data: bool) -> None:
    """An option that was given and would do nothing is a mistake, not a detail."""
    from edgeyolo.errors import InputError

    context = click.get_current_context()
    given = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    reasons = [(f"with --target {target}", FPGA_ONLY if target == "onnx" else ONNX_ONLY)]
    if not nms:
        reasons.append(("without --nms", {"conf", "iou"}))
    if not data:
        reasons.append(("without --data", {"data_limit"}))
    for reason, names in reasons:
        idle = [p.opts[0] for p in context.command.params if p.name in given & names]
        if idle:
            raise InputError(f"these options do nothing {reason}", got=", ".join(idle), hint="leave them out")


def _load(model: Path, options: dict[str, Any], log: Log) -> Source:
    from edgeyolo.frontend import load_source

    keys = ("weights", "imgsz", "names", "bn_eps", "dynamic_batch")
    with log.stage("load") as details:
        source = load_source(model, **{key: options[key] for key in keys})
        details += [f"{model.name}, {sum(1 for _ in source.model.graph)} nodes", *source.notes]
    return source


def _onnx(model: Path, output: Path, options: dict[str, Any], log: Log) -> None:
    from edgeyolo.export.float_onnx import export_onnx
    from edgeyolo.export.pictures import PictureSet
    from edgeyolo.export.prepare import PARITY_PICTURES, Stages, prepare
    from edgeyolo.output import check_free_file
    from edgeyolo.passes.graph import read_detector

    check_free_file(output, force=options["force"])
    source = _load(model, options, log)
    detector = read_detector(source.model)
    pictures = list(PictureSet.find(options["calib"], detector.preprocess, PARITY_PICTURES)) if options["calib"] else []
    ready, parities = prepare(
        source.model, pictures, Stages(options["save_stages"]), log, simplified=options["simplify"]
    )  # fmt: skip
    keys = ("decode", "nms", "conf", "iou", "force")
    export_onnx(ready, output, log, **{key: options[key] for key in keys})
    if options["as_json"]:
        parity = {p.stage: p.max_abs_difference for p in parities}
        click.echo(json.dumps({"output": str(output), "bytes": output.stat().st_size, "parity": parity}, indent=1))


def _fpga(
    model: Path, output: Path, options: dict[str, Any], log: Log, command: list[str], polish: Polish | None
) -> None:
    from edgeyolo.errors import InputError
    from edgeyolo.export.fpga import FpgaRequest, export_fpga
    from edgeyolo.export.ledger import check_drop
    from edgeyolo.export.prepare import PARITY_PICTURES, Stages, prepare

    request = replace(FpgaRequest.of(output, options), polish=polish)
    request.check_free()
    if options["calib"] is None:
        raise InputError("quantisation needs calibration pictures", hint="add --calib FOLDER")
    source, pictures, labels = _inputs(model, options, log)
    stages = Stages(options["save_stages"])
    ready, parities = prepare(
        source.model, list(pictures.spread(PARITY_PICTURES)), stages, log, simplified=options["simplify"]
    )  # fmt: skip
    result = export_fpga(source, ready, parities, pictures, request, stages, log, labels)
    _warn(result, log)
    found = _diagnosis(result, pictures, labels, request, stages, log) if options["diagnose"] else None
    if options["as_json"]:
        skipped = [str(path) for path, _ in pictures.skipped]
        extra = {"pictures": len(pictures), "skipped": skipped, "lost": result.ledger.lost}
        extra |= {"diagnosis": found.to_json()} if found else {}
        click.echo(json.dumps({"output": str(output), **result.facts, **extra, "seconds": log.seconds}, indent=1))
    else:
        from edgeyolo.export.tables import print_result

        print_result(result, request, log, full=options["report"])
        if found:
            from edgeyolo.cli.diagnose import print_diagnosis

            print_diagnosis(found, [*command, "-o", f"{output}-kept"], log, SHOWN_LAYERS)
    check_drop(result.ledger, request.max_drop, output)


def _diagnosis(
    result: FpgaResult, pictures: PictureSet, labels: LabelledSet | None, request: FpgaRequest, stages: Stages, log: Log
) -> Diagnosis:
    """Ask which layers are guilty of what the ledger shows."""
    from edgeyolo.cli.diagnose import run_diagnosis
    from edgeyolo.lower.seed_v1 import SEED_V1

    profile = request.profile
    if request.layout == SEED_V1:  # those files have no place for an exponent per channel
        profile = replace(profile, granularity=("per-tensor",))
    with log.stage("diagnose"):
        return run_diagnosis(
            stages.models["40-fixed-form"], pictures, result.config, log, profile=profile, labels=labels,
            max_drop=request.max_drop if labels is not None else None, calibrate=len(pictures), top=SHOWN_LAYERS,
        )  # fmt: skip


def _inputs(model: Path, options: dict[str, Any], log: Log) -> tuple[Source, PictureSet, LabelledSet | None]:
    """Load model, calibration pictures and labelled pictures; what does not go together is refused here."""
    from edgeyolo.datasets import load_dataset
    from edgeyolo.evaluate import spread
    from edgeyolo.export.labels import check_labels
    from edgeyolo.export.pictures import PictureSet
    from edgeyolo.passes.graph import read_detector

    data = options["data"]
    dataset = None if data is None else load_dataset(data)
    if dataset is not None and options["data_limit"]:
        dataset = spread(dataset, options["data_limit"])
    source = _load(model, options, log)
    detector = read_detector(source.model)
    with log.stage("pictures") as details:
        labels = None
        if dataset is not None:
            labels = check_labels(dataset, data, detector, lambda indices: log.track(indices, "labelled pictures"))
            details.append(f"{len(labels.samples)} labelled with {labels.boxes} boxes")
            if labels.problems:
                counts = ", ".join(f"{count} x {reason}" for reason, count in labels.problems.items())
                log.warn(f"label problems in {data}: {counts}")
        pictures = PictureSet.find(
            options["calib"], detector.preprocess, options["calib_limit"],
            lambda indices: log.track(indices, "calibration pictures"),
        )  # fmt: skip
        details.append(f"{len(pictures)} calibration pictures")
        if pictures.skipped:
            path, reason = pictures.skipped[0]
            log.warn(f"{len(pictures.skipped)} picture(s) skipped that do not decode, first {path}: {reason}")
    return source, pictures, labels


def _warn(result: FpgaResult, log: Log) -> None:
    """Say it when the result no longer sees what the float model sees."""
    from edgeyolo.export.ledger import JUDGED_AP

    ledger = result.ledger
    figures = f"{ledger.text}, head SNR {ledger.snr_db:.1f} dB"
    if ledger.lost:
        log.warn(
            f"AGREEMENT WITH THE FLOAT MODEL IS LOST: {figures}. This bundle does not compute what the model computes. "
            "Try more --bits, or --keep first,head,depthwise=8; edgeyolo diagnose names the layers to keep."
        )
    elif ledger.ap is not None and ledger.ap[0] < JUDGED_AP:
        log.warn(f"the float model itself finds next to nothing: {figures}. Check --names, --imgsz and the labels.")
    elif not ledger.agreement.judged:
        log.warn(f"there are no detections to compare: {figures}. Calibrate on pictures that show what it detects.")
