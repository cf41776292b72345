"""What ``edgeyolo export`` does for each target: inputs, the work, what a person reads and what a machine reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeyolo.export.fpga import FpgaRequest, FpgaResult, Polish
    from edgeyolo.export.labels import LabelledSet
    from edgeyolo.export.ledger import Ledger
    from edgeyolo.export.mobile_candidates import Candidates
    from edgeyolo.export.pictures import PictureSet
    from edgeyolo.export.prepare import Stages
    from edgeyolo.frontend import Source
    from edgeyolo.progress import Log
    from edgeyolo.quant.diagnose import Diagnosis

SHOWN_LAYERS = 10
"""Of --diagnose."""
NOISE_PICTURES = 4


def _load(model: Path, options: dict[str, Any], log: Log) -> Source:
    from edgeyolo.frontend import load_source

    keys = ("weights", "imgsz", "names", "bn_eps", "dynamic_batch")
    with log.stage("load") as details:
        source = load_source(model, **{key: options[key] for key in keys})
        details += [f"{model.name}, {sum(1 for _ in source.model.graph)} nodes", *source.notes]
    return source


def to_onnx(model: Path, output: Path, options: dict[str, Any], log: Log) -> None:
    """One float ONNX file."""
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


def to_fpga(
    model: Path, output: Path, options: dict[str, Any], log: Log, command: list[str], polish: Polish | None
) -> None:
    """A bundle for fixed-point hardware."""
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
    _warn(result.ledger, log, FPGA_ADVICE)
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


def to_tensorrt(model: Path, output: Path, options: dict[str, Any], log: Log) -> None:
    """Graphs with Q/DQ pairs or float16 for TensorRT, with what builds and runs them."""
    from edgeyolo.errors import InputError
    from edgeyolo.export.ledger import check_drop
    from edgeyolo.export.prepare import PARITY_PICTURES, Stages, prepare
    from edgeyolo.export.tensorrt import TensorRTRequest, export_tensorrt
    from edgeyolo.output import check_free
    from edgeyolo.passes.graph import fix_batch

    request = TensorRTRequest.of(output, options)
    check_free(output, force=request.force)
    if options["calib"] is None and request.precision == "int8":
        hint = "add --calib FOLDER, or --precision fp16"
        raise InputError("int8 needs calibration pictures", hint=hint)
    source, pictures, labels = _inputs(model, options, log)
    if not options["dynamic_batch"]:
        fix_batch(source.model)
    stages = Stages(options["save_stages"])
    few = list(pictures.spread(PARITY_PICTURES)) if options["calib"] else []
    ready, parities = prepare(source.model, few, stages, log, simplified=options["simplify"])
    result = export_tensorrt(source, ready, parities, pictures, request, stages, log, labels)
    _warn(result.ledger, log, TENSORRT_ADVICE)
    if options["as_json"]:
        facts = {**result.facts, "accepted": result.accepted.to_json(), "lost": result.ledger.lost}
        click.echo(json.dumps({"output": str(output), **facts, "seconds": log.seconds}, indent=1))
    else:
        from edgeyolo.export.tensorrt_tables import print_tensorrt

        print_tensorrt(result, request, log, full=options["report"])
    check_drop(result.ledger, request.max_drop, output)


def to_mobile(model: Path, output: Path, options: dict[str, Any], log: Log) -> None:
    """float32, float16 and int8 graphs for ONNX Runtime on phones and small boards."""
    from edgeyolo.errors import InputError
    from edgeyolo.export.ledger import check_drop
    from edgeyolo.export.mobile import MobileRequest, export_candidates, export_mobile
    from edgeyolo.export.prepare import PARITY_PICTURES, Stages, prepare
    from edgeyolo.output import check_free
    from edgeyolo.passes.graph import fix_batch

    request = MobileRequest.of(output, options)
    check_free(output, force=request.force)
    if options["calib"] is None:
        raise InputError("int8 needs calibration pictures", hint="add --calib FOLDER")
    wanted = {**options, "data": None} if request.candidates else options
    source, pictures, labels = _inputs(model, wanted, log)
    fix_batch(source.model)
    stages = Stages(options["save_stages"])
    few = list(pictures.spread(PARITY_PICTURES))
    ready, parities = prepare(source.model, few, stages, log, simplified=options["simplify"])
    if request.candidates:
        _show_candidates(export_candidates(source, ready, pictures, request, log), output, options, log)
        return
    result = export_mobile(source, ready, parities, pictures, request, stages, log, labels)
    _warn(result.ledger, log, MOBILE_ADVICE)
    if options["as_json"]:
        facts = {**result.facts, "lost": result.ledger.lost}
        click.echo(json.dumps({"output": str(output), **facts, "seconds": log.seconds}, indent=1))
    else:
        from edgeyolo.export.mobile_tables import print_mobile

        print_mobile(result, request, log, full=options["report"])
    check_drop(result.ledger, request.max_drop, output)


def _show_candidates(made: Candidates, output: Path, options: dict[str, Any], log: Log) -> None:
    """What there is to measure, and how."""
    if options["as_json"]:
        sizes = {name: len(data) for name, data in made.graphs.items()}
        facts = {"output": str(output), "bytes": sizes, "keep_float": made.keep_float}
        click.echo(json.dumps({**facts, "seconds": log.seconds}, indent=1))
        return
    for name, data in made.graphs.items():
        keep = made.keep_float.get(name)
        floats = "" if keep is None else f"; float: {', '.join(keep) or 'nothing'}"
        log.say(f"{name}.onnx  {len(data):,} bytes{floats}")
    log.say(f"\nnext: edgeyolo serve {output}/*.onnx --json device.jsonl, all in turns, in the browser of the device")
    log.say(f"  or: edgeyolo benchmark {output}/*.onnx --json device.jsonl, on the device, where Python runs")
    log.say("then: this export with --measured device.jsonl in place of --candidates")


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
        if options["calib"] is None:
            log.warn("no --calib: golden data and comparisons are of noise, which shows no objects")
            return source, PictureSet.noise(detector.preprocess, NOISE_PICTURES), labels
        pictures = PictureSet.find(
            options["calib"], detector.preprocess, options["calib_limit"],
            lambda indices: log.track(indices, "calibration pictures"),
        )  # fmt: skip
        details.append(f"{len(pictures)} calibration pictures")
        if pictures.skipped:
            path, reason = pictures.skipped[0]
            log.warn(f"{len(pictures.skipped)} picture(s) skipped that do not decode, first {path}: {reason}")
    return source, pictures, labels


FPGA_ADVICE = "Try more --bits, or --keep first,head,depthwise=8; edgeyolo diagnose names the layers to keep."
TENSORRT_ADVICE = (
    "Try another --method, --keep-float head,first,depthwise, more calibration pictures, or --precision fp16."
)

MOBILE_ADVICE = "Try another --method, --keep-float head,first,depthwise, more calibration pictures, or use fp32.onnx."


def _warn(ledger: Ledger, log: Log, advice: str) -> None:
    """Say it when the result no longer sees what the float model sees."""
    from edgeyolo.export.ledger import JUDGED_AP

    figures = f"{ledger.text}, head SNR {ledger.snr_db:.1f} dB"
    if ledger.lost:
        log.warn(
            f"AGREEMENT WITH THE FLOAT MODEL IS LOST: {figures}. This bundle does not compute what the model computes. "
            f"{advice}"
        )
    elif ledger.ap is not None and ledger.ap[0] < JUDGED_AP:
        log.warn(f"the float model itself finds next to nothing: {figures}. Check --names, --imgsz and the labels.")
    elif not ledger.agreement.judged:
        log.warn(f"there are no detections to compare: {figures}. Calibrate on pictures that show what it detects.")
