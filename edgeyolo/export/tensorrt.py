"""``--target tensorrt``: Q/DQ or float16 graphs that TensorRT 8.5 to 11 build, with what builds and runs them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from edgeyolo import __version__
from edgeyolo.bundle import write_manifest
from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.export.acceptance import Acceptance, accept
from edgeyolo.export.costs import constant_bytes
from edgeyolo.export.device_files import device_files, golden_files
from edgeyolo.export.fpga import AGREEMENT_PICTURES, REPORT_PICTURES, check_raw
from edgeyolo.export.labels import LabelledSet
from edgeyolo.export.ledger import Ledger, measure
from edgeyolo.export.ledger_stages import Execute, Stage, float_stages, onnx_heads
from edgeyolo.export.pictures import PictureSet
from edgeyolo.export.prepare import Parity, Stages
from edgeyolo.frontend import Source
from edgeyolo.jetson import JetsonBoard, check_precision, default_precision, load_jetson
from edgeyolo.lower.tensorrt.dla import Fallback, dla_fallbacks
from edgeyolo.lower.tensorrt.execute import TypedGraph
from edgeyolo.lower.tensorrt.operators import check_operators
from edgeyolo.lower.tensorrt.placement import Placement
from edgeyolo.lower.tensorrt.quantise import Int8Config, Int8Result, quantise_int8
from edgeyolo.lower.tensorrt.typed import behind_heads, to_typed, unsafe_layers
from edgeyolo.ort import model_bytes
from edgeyolo.output import check_free, new_folder
from edgeyolo.passes.decode import add_decode
from edgeyolo.passes.graph import read_detector, with_types
from edgeyolo.passes.nms import add_nms
from edgeyolo.passes.opset import OLDEST, with_opset
from edgeyolo.progress import Log
from edgeyolo.quant.calibrate import copy_model, peak_values, to_float
from edgeyolo.quant.compare import LayerReport, compare_layers

REFINEMENTS = ("equalise", "correct_bias", "reconstruct")
CONSTRAINTS = (8, 4)
"""The first TensorRT with precision constraints for single layers."""
UNSAFE_NAME = re.compile(r"[^A-Za-z0-9_./:+@-]")
"""What build.sh refuses in the name of a layer."""
INPUT_NAME = re.compile(r"[A-Za-z0-9_./+@-]+")
"""What it takes as the name of the input."""
SHIPPED = {"int8": "int8, else float16", "fp16": "float16", "fp32": "float32"}
"""The ledger's last row: what TensorRT builds from."""


@dataclass(frozen=True)
class TensorRTRequest:
    """What to write and where.

    Args:
        output: the bundle's folder.
        board: what it is for.
        precision: ``int8`` (the rest float16), ``fp16`` or ``fp32``.
        int8: how to quantise.
        decode, nms, conf, iou: boxes, and suppression, inside the graph.
        max_batch: with a symbolic batch the largest that the engine takes; None: the batch is 1.
        dla: number of the deep learning accelerator to use, or None.
        accept: let TensorRT-RTX build the graph, where it is installed, and refuse what it refuses.
        golden: pictures to store with what ONNX Runtime computes for them.
        max_drop: largest loss that is not an error: of AP with labels, of agreement without.
    """

    output: Path
    board: JetsonBoard
    precision: str
    int8: Int8Config
    decode: bool = False
    nms: bool = False
    conf: float = 0.25
    iou: float = 0.45
    max_batch: int | None = None
    dla: int | None = None
    accept: bool = True
    golden: int = 1
    max_drop: float | None = None
    force: bool = False

    @property
    def decode_asked(self) -> bool:
        """Whether boxes are decoded inside the graph."""
        return self.decode or self.nms

    @classmethod
    def of(cls, output: Path, options: Mapping[str, Any]) -> TensorRTRequest:
        """Read the command line's options; what the board cannot do is refused before any work."""
        board = load_jetson(options["board"])
        precision = options["precision"] or default_precision(board, options["dla"])
        check_precision(board, precision)
        _check_dla(board, options["dla"], precision, dynamic=options["dynamic_batch"])
        keep = tuple(part.strip() for part in options["keep_float"].split(",") if part.strip() not in ("", "none"))
        if options["golden"] < 0:
            raise InputError("the number of golden pictures is negative", where="--golden", got=options["golden"])
        drop = options["max_drop"]
        if drop is not None and not 0 <= drop <= 1:
            raise InputError("out of range", where="--max-drop", got=drop, allowed="0 to 1")
        return cls(
            output, board, precision, Int8Config(options["method"], keep, *(bool(options[key]) for key in REFINEMENTS)),
            options["decode"], options["nms"], options["conf"], options["iou"],
            options["max_batch"] if options["dynamic_batch"] else None, options["dla"], options["accept"],
            options["golden"], drop,
            options["force"],
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class TensorRTResult:
    """What was written, for tables and JSON.

    Args:
        quant: the candidates; None without int8.
        ledger: what every stage costs.
        layers: values with pairs against float.
        unsafe: layers that stay float32, with the reason.
        fallbacks: layers that the DLA leaves to the GPU.
        accepted: what TensorRT-RTX says of the typed graph.
        files: path -> bytes.
        facts: the manifest's.
    """

    quant: Int8Result | None
    ledger: Ledger
    layers: tuple[LayerReport, ...]
    unsafe: dict[str, str]
    fallbacks: tuple[Fallback, ...]
    accepted: Acceptance
    files: dict[str, int]
    facts: dict[str, Any]


def export_tensorrt(
    source: Source, model: ir.Model, parities: list[Parity], pictures: PictureSet, request: TensorRTRequest,
    stages: Stages, log: Log, labels: LabelledSet | None = None,
) -> TensorRTResult:  # fmt: skip
    """Quantise the prepared float ``model`` as asked and write the bundle.

    Args:
        source, model, parities: from the front end, and of it by ``prepare``.
        pictures: for calibration; the ledger is about them too where there are no ``labels``.
        request: what to write.
        stages: as ``prepare`` left it.
        log: receives stages and progress.
        labels: labelled pictures for the ledger.

    Raises:
        UnsupportedError: nothing can be quantised, or the graph already decodes its boxes.
    """
    check_free(request.output, force=request.force)
    check_raw(model)
    check_operators(model)
    _check_input(model)
    if model.graph.opset_imports[""] < OLDEST:
        model = with_opset(model, OLDEST)
    model = with_types(model)
    for node in model.graph:  # build.sh names layers on a command line
        node.name = UNSAFE_NAME.sub("_", str(node.name))
    fallbacks = _dla(model, request, log)
    quant = _quantise(model, pictures, request, log)
    raw = model if quant is None else quant.best.model
    with log.stage("types") as details:
        unsafe = (
            {}
            if request.precision == "fp32"
            else unsafe_layers(raw, peak_values(raw, pictures.spread(REPORT_PICTURES)))
        )
        final = _finished(raw, request)
        float32 = sorted({*unsafe, *behind_heads(final)})
        typed = to_typed(final, float32) if request.precision != "fp32" else final
        details.extend(f"{name} stays float32: {reason}" for name, reason in list(unsafe.items())[:3])
    stages.save("50-quantised", final)
    stages.save("60-typed", typed)
    _check_constraints(request, float32)
    with log.stage("accept") as details:
        accepted = _accept(typed, request)
        details.append(accepted.text)
    with log.stage("ledger") as details:
        layers = _report(quant, pictures)
        raw_typed = to_typed(raw, list(unsafe)) if request.precision != "fp32" else raw
        ledger = _ledger(source, quant, raw_typed, request, pictures, stages, log, labels)
        details += [ledger.text, f"head SNR {ledger.snr_db:.1f} dB"]
    record = {"parity": [asdict(p) for p in parities], **ledger.to_json()}
    facts = _facts(source, request, quant, unsafe, record)
    facts["layers"]["typed_float32"] = float32
    with log.stage("write") as details, new_folder(request.output, force=request.force) as folder:
        sizes = _write(folder, final, typed, float32, pictures, request, facts, layers)
        details.append(f"{len(sizes) + 1} files")
    return TensorRTResult(quant, ledger, layers, unsafe, fallbacks, accepted, sizes, facts)


def _write(
    folder: Path, final: ir.Model, typed: ir.Model, float32: list[str], pictures: PictureSet, request: TensorRTRequest,
    facts: dict[str, Any], layers: tuple[LayerReport, ...],
) -> dict[str, int]:  # fmt: skip
    """Fill the bundle's folder; returns the bytes of every file but the manifest."""
    golden = list(pictures.spread(request.golden)) if request.golden else []
    contents = golden_files(final, typed, request.precision, golden)
    contents |= device_files(final, typed, request, float32)
    report = json.dumps([layer.to_json() for layer in layers], indent=1, sort_keys=True)
    contents["report.json"] = f"{report}\n".encode()
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "build.sh").chmod(0o755)
    write_manifest(folder, facts, read_detector(final))
    return {name: len(data) for name, data in contents.items()}


def _check_dla(board: JetsonBoard, core: int | None, precision: str, *, dynamic: bool) -> None:
    """Refuse a DLA that is not there, or what none can do."""
    if core is None:
        return
    if core not in range(board.dla_cores):
        allowed = ", ".join(map(str, range(board.dla_cores))) or f"none: {board.name} has no DLA"
        raise InputError("the board has no such DLA core", where="--dla", got=core, allowed=allowed)
    if precision != "fp16":
        reason = "float32" if precision == "fp32" else "int8 from Q/DQ: it wants a calibrator, which TensorRT 11 ended"
        what = f"a DLA does not compute {reason}"
        raise InputError(what, where="--precision", got=precision, allowed="fp16", hint="add --precision fp16")
    if dynamic:
        raise InputError("a DLA needs a fixed batch", got="--dla and --dynamic-batch", hint="leave one of them out")


def _check_constraints(request: TensorRTRequest, float32: list[str]) -> None:
    """TensorRT before 8.4 cannot be told to keep layers in float32."""
    oldest = min(tuple(map(int, version.split("."))) for version in request.board.tensorrt)
    if request.precision == "fp16" and float32 and oldest < CONSTRAINTS:
        raise UnsupportedError(
            f"TensorRT {'.'.join(map(str, oldest))} of {request.board.name} cannot keep layers in float32",
            got=", ".join(float32[:8]),
            hint="use --precision fp32" + ", or raw heads: without --decode and --nms" * request.decode_asked,
        )


def _check_input(model: ir.Model) -> None:
    """The name of the input stands on trtexec's command line."""
    name = str(model.graph.inputs[0].name)
    if not INPUT_NAME.fullmatch(name):
        allowed = "letters, digits and _ . / + @ -"
        raise UnsupportedError(
            "the input's name cannot be given to trtexec", got=name, allowed=allowed, hint="rename it"
        )


def _accept(typed: ir.Model, request: TensorRTRequest) -> Acceptance:
    """TensorRT-RTX's answer; what it refuses is not written unless the user leaves the question out."""
    if not request.accept:
        return Acceptance("skipped", "--no-accept")
    answer = accept(typed, request.board.rtx_sm, request.max_batch)
    if answer.status == "refused":
        hint = "edgeyolo lint explains pairs; --no-accept writes the bundle all the same"
        raise UnsupportedError("TensorRT-RTX refuses this model", got=answer.text, hint=hint)
    return answer


def _dla(model: ir.Model, request: TensorRTRequest, log: Log) -> tuple[Fallback, ...]:
    """What the DLA will leave to the GPU, said before any work."""
    if request.dla is None:
        return ()
    found = tuple(dla_fallbacks(model, request.precision))
    log.say(f"DLA {request.dla}: {len(found)} of {sum(1 for _ in model.graph)} layers fall back to the GPU")
    for fallback in found:
        log.say(f"  {fallback.layer} ({fallback.op_type}): {fallback.reason}")
    return found


def _quantise(model: ir.Model, pictures: PictureSet, request: TensorRTRequest, log: Log) -> Int8Result | None:
    if request.precision != "int8":
        return None
    with log.stage("quantise") as details:
        quant = quantise_int8(model, pictures, request.int8, lambda items, title: log.track(items, title, len(items)))
        details.append(f"{len(quant.placement.weighted)} layers int8, {len(quant.placement.floats)} float")
        details += [f"{c.name}: head SNR {c.head_snr_db:.1f} dB" for c in quant.candidates]
    return quant


def _finished(raw: ir.Model, request: TensorRTRequest) -> ir.Model:
    """Decoding and suppression added as asked, in an opset that the board's oldest TensorRT reads."""
    final = copy_model(raw)
    if request.decode_asked:
        add_decode(final, read_detector(final))
    if request.nms:
        add_nms(final, request.iou, request.conf)
    for index, node in enumerate(final.graph):
        node.name = node.name or f"decode.{index}"
    newest = request.board.max_opset
    final = with_opset(final, newest) if final.graph.opset_imports[""] > newest else final
    # As a reader of the file has it: verify makes the typed graph of that, and wants the same bytes.
    return ir.from_proto(onnx.load_model_from_string(model_bytes(final)))


def _report(quant: Int8Result | None, pictures: PictureSet) -> tuple[LayerReport, ...]:
    if quant is None:
        return ()
    best = quant.best
    return tuple(compare_layers(best.reference, best.model, best.scales.acts, pictures.spread(REPORT_PICTURES)))


def _ledger(
    source: Source, quant: Int8Result | None, typed: ir.Model, request: TensorRTRequest, pictures: PictureSet,
    stages: Stages, log: Log, labels: LabelledSet | None,
) -> Ledger:  # fmt: skip
    """Run every stage on the labelled pictures, or on some of the calibration's; raw heads throughout."""
    rows = float_stages(stages.models)
    macs = rows[-1].macs
    for candidate in quant.candidates if quant is not None else ():
        execute = partial(onnx_heads, candidate.model, optimise=False)
        kept = quant is not None and candidate is quant.best
        rows.append(Stage(candidate.name, execute, constant_bytes(candidate.model), macs, kept))
    rows.append(Stage(SHIPPED[request.precision], partial(_typed_heads, typed), constant_bytes(typed), macs))
    sample = pictures.spread(AGREEMENT_PICTURES) if labels is None else labels.pictures
    return measure(rows, read_detector(source.model), sample, labels, log)


def _typed_heads(model: ir.Model) -> Execute:
    """Execute a typed graph as a device rounds it."""
    graph, detector = TypedGraph(model), read_detector(model)
    names = [head.output for head in detector.heads]
    return lambda pixels: list(graph(to_float(pixels, detector), names).values())


def _facts(
    source: Source, request: TensorRTRequest, quant: Int8Result | None, unsafe: dict[str, str], ledger: dict[str, Any]
) -> dict[str, Any]:
    """Everything the manifest states besides files and detector."""
    placement = Placement() if quant is None else quant.placement
    options = {key: getattr(request, key) for key in ("precision", "decode", "nms", "conf", "iou", "max_batch", "dla")}
    return {
        "tool": f"edgeyolo {__version__}",
        "target": "tensorrt",
        "source": {"name": source.name, "sha256": source.sha256, "notes": list(source.notes)},
        "profile": asdict(request.board),
        "options": {**options, **(asdict(request.int8) if quant is not None else {})},
        "layers": {"int8": sorted(placement.weighted), "float": placement.floats, "float32": unsafe},
        "ledger": ledger,
    }
