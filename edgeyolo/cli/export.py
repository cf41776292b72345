"""``edgeyolo export``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgeyolo.cli.options import MODEL_OPTIONS, QUANT_OPTIONS, RECIPE_OPTIONS, embedded_default

if TYPE_CHECKING:
    from edgeyolo.export.fpga import Polish

EPILOG = """\b
Examples:
  edgeyolo export --target fpga --bits 4
  edgeyolo export yolo.cfg --weights yolo.weights --calib pictures/ --target fpga --bits 4 -o out/fpga
  edgeyolo export yolo.cfg --weights yolo.weights --calib pictures/ --target tensorrt --board orin-nano -o out/trt
  edgeyolo export yolo.cfg --weights yolo.weights --calib pictures/ --target mobile --board raspberry-pi-5 -o out/pi
  edgeyolo export yolo.cfg --weights yolo.weights --calib pictures/ --target mobile --candidates -o out/measure
  edgeyolo export yolo.cfg --weights yolo.weights --calib pictures/ --target mobile --measured phone.jsonl -o out/pi
  edgeyolo export yolo.cfg --weights yolo.weights --target onnx --decode --nms --dynamic-batch -o yolo.onnx
  edgeyolo export model.onnx --calib list.txt --target fpga --bits 4 --keep first,head,depthwise=8 --layout tiled
  edgeyolo export model.onnx --calib coco128/train --data coco128/val --target fpga --format bin,mem --max-drop 0.01

Without MODEL: the detector of handwritten digits that comes with the package, its calibration recipe and its labelled
scenes; nothing else is needed.

Exit codes: 0 done, 1 golden data differ from ONNX Runtime's, 2 bad input, 3 done but AP (with --data) or the agreement
with the float model (without) fell by more than --max-drop.
"""


TARGETS = ("fpga", "tensorrt", "mobile", "onnx")
ONLY_FOR = {
    **dict.fromkeys(
        (
            *("bits", "act_bits", "head_bits", "keep", "granularity", "align", "recipe"),
            *("avg_bits", "max_bytes", "act_share", "layout", "formats", "diagnose"),
        ),
        ("fpga",),
    ),
    **dict.fromkeys(
        (
            *("data", "data_limit", "calib_limit", "board", "golden", "max_drop", "report"),
            *("method", "equalise", "correct_bias", "reconstruct"),
        ),
        ("fpga", "tensorrt", "mobile"),
    ),
    **dict.fromkeys(("precision", "keep_float"), ("tensorrt", "mobile")),
    **dict.fromkeys(("dla", "max_batch", "accept"), ("tensorrt",)),
    **dict.fromkeys(("auto", "measured", "candidates", "provider"), ("mobile",)),
    **dict.fromkeys(("dynamic_batch", "decode", "nms", "conf", "iou"), ("tensorrt", "onnx")),
}
"""Options that mean nothing to some targets, with those that they are for."""
IDLE_FOR_CANDIDATES = {
    *("data", "data_limit", "golden", "max_drop", "report", "method", "equalise", "correct_bias", "reconstruct"),
}
"""What changes no time changes nothing where times are to be measured."""


def _options(command: Any) -> Any:
    """All options, grouped as the help shows them."""
    path = click.Path(path_type=Path)
    for option in reversed([
        click.option("--target", required=True, type=click.Choice(TARGETS), help="What to make."),
        click.option("-o", "--output", type=path, help="Bundle folder or .onnx file [default: out/MODEL-TARGET]."),
        click.option("--force", is_flag=True, help="Replace an earlier result."),
        *MODEL_OPTIONS,
        click.option("--calib", metavar="SOURCE", help="Calibration pictures: folder, list, data set, recipe .toml."),
        click.option("--calib-limit", type=click.IntRange(min=1), help="Use at most so many of them."),
        click.option("--data", metavar="SOURCE", help="Labelled pictures: what every stage does to AP, one row each."),
        click.option("--data-limit", type=click.IntRange(min=1), help="Use at most so many of them, evenly spread."),
        *QUANT_OPTIONS,
        *RECIPE_OPTIONS,
        click.option("--board", help="Board: a name or .toml file [default: generic, orin-nano, android-arm64]."),
        click.option("--precision", type=click.Choice(["int8", "fp16", "fp32"]),
                     help="tensorrt: what to make [default: fastest]; mobile: which variant is model.onnx [by board]."),
        click.option(
            "--keep-float", default="head", show_default=True, metavar="LAYERS",
            help="tensorrt, mobile: what stays float in int8: first, head, depthwise, name patterns, or none.",
        ),
        click.option("--auto", is_flag=True, help="mobile: measure here, keep float what int8 makes slower."),
        click.option("--candidates", is_flag=True, help="mobile: write only the graphs to measure on another device."),
        click.option("--measured", type=path, metavar="FILE", help="mobile: --auto by a device's records of them."),
        click.option("--provider", help="mobile: execution provider that shall run it [default: the board's first]."),
        click.option("--dla", type=click.IntRange(min=0), help="TensorRT: use this deep learning accelerator."),
        click.option("--accept/--no-accept", default=True, help="TensorRT: TensorRT-RTX, if installed, must build it."),
        click.option("--layout", help="Weight order: oihw, ohwi, tiled or seed-v1 [default: the board's]."),
        click.option("--format", "formats", default="bin,h", show_default=True, help="Weight files: bin, mem, coe, h."),
        click.option("--golden", default=1, show_default=True, help="Pictures to store with every layer's output."),
        click.option("--max-drop", type=float, help="Exit 3 if AP (with --data) or F1 (without) falls by more."),
        click.option("--report", is_flag=True, help="Print the table of all layers."),
        click.option("--diagnose", is_flag=True, help="Name the layers that lose the accuracy, and suggest --keep."),
        click.option("--simplify/--no-simplify", default=True, help="Run onnxsim, checked numerically."),
        click.option("--dynamic-batch", is_flag=True, help="Symbolic batch size (tensorrt, onnx)."),
        click.option("--max-batch", default=8, show_default=True, type=click.IntRange(min=1),
                     help="TensorRT: the largest batch with --dynamic-batch."),
        click.option("--decode", is_flag=True, help="Boxes and scores instead of raw heads (tensorrt, onnx)."),
        click.option("--nms", is_flag=True, help="NonMaxSuppression in the graph; implies --decode."),
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
    from edgeyolo.cli.targets import to_fpga, to_mobile, to_onnx, to_tensorrt
    from edgeyolo.errors import InputError
    from edgeyolo.progress import Log

    log = Log(quiet=options["as_json"])
    _refuse_idle_options(
        options["target"],
        data=model is None or options["data"] is not None,
        calib=model is None or options["calib"] is not None,
    )
    command = export_command(model)
    if model is None:
        hint = "edgeyolo export MODEL ..., or neither for the embedded default"
        model = embedded_default(options, pictures=options["target"] != "onnx", hint=hint)
        text = f"no MODEL given: the embedded default, {model.name}"
        if options["target"] != "onnx":
            text += f", calibrated on {Path(options['calib']).name}, judged on {options['data']}"
        log.say(text)
    if not model.is_file():
        raise InputError("no such model", where=model, allowed=".cfg (with --weights) or .onnx")
    output = options["output"] or Path("out") / f"{model.stem}-{options['target']}"
    if options["target"] == "onnx":
        to_onnx(model, output if output.suffix == ".onnx" else output.with_name(output.name + ".onnx"), options, log)
    elif options["target"] == "tensorrt":
        to_tensorrt(model, output, options, log)
    elif options["target"] == "mobile":
        to_mobile(model, output, options, log)
    else:
        to_fpga(model, output, options, log, command, polish)


def _refuse_idle_options(target: str, *, data: bool, calib: bool) -> None:
    """An option that was given and would do nothing is a mistake, not a detail."""
    from edgeyolo.errors import InputError

    context = click.get_current_context()
    given = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    reasons = [(f"with --target {target}", {name for name, targets in ONLY_FOR.items() if target not in targets})]
    if not context.params.get("nms"):
        reasons.append(("without --nms", {"conf", "iou"}))
    if not context.params.get("dynamic_batch"):
        reasons.append(("without --dynamic-batch", {"max_batch"}))
    if not data:
        reasons.append(("without --data", {"data_limit"}))
    precision = context.params.get("precision")
    if target == "tensorrt" and precision is None:
        from edgeyolo.jetson import default_precision, load_jetson

        precision = default_precision(load_jetson(context.params["board"]), context.params["dla"])
    if context.params.get("candidates"):
        reasons.append(("with --candidates", IDLE_FOR_CANDIDATES))
    if not calib:
        reasons.append(("without --calib", {"calib_limit"}))
    if target == "tensorrt" and precision in ("fp16", "fp32"):
        reasons.append(
            (f"with --precision {precision}", {"keep_float", "method", "equalise", "correct_bias", "reconstruct"})
        )
    for reason, names in reasons:
        idle = [p.opts[0] for p in context.command.params if p.name in given & names]
        if idle:
            raise InputError(f"these options do nothing {reason}", got=", ".join(idle), hint="leave them out")
