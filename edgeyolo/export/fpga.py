"""``--target fpga``: quantise to powers of two, lower to the integer program, and write a verified bundle."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeyolo import __version__
from edgeyolo.bundle import MODEL, PROGRAM, write_manifest
from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.export.budget import Budget, quantise_within
from edgeyolo.export.costs import blob_bytes
from edgeyolo.export.golden import write_golden
from edgeyolo.export.labels import LabelledSet
from edgeyolo.export.ledger import Ledger, measure
from edgeyolo.export.ledger_stages import INTEGER, Stage, ledger_stages, onnx_heads
from edgeyolo.export.oracle import Oracle
from edgeyolo.export.pictures import PictureSet
from edgeyolo.export.prepare import Parity, Stages
from edgeyolo.frontend import Source
from edgeyolo.lower.blob_index import BlobForm
from edgeyolo.lower.blobs import write_blobs
from edgeyolo.lower.fixed import lower_fixed
from edgeyolo.lower.seed_v1 import SEED_V1, SEED_V1_BITS, write_seed_v1
from edgeyolo.ort import model_bytes
from edgeyolo.output import check_free, new_folder
from edgeyolo.packing import LAYOUTS
from edgeyolo.passes.dyadic_leaky import DyadicLeaky
from edgeyolo.passes.graph import read_detector
from edgeyolo.passes.pixel_input import PixelInput
from edgeyolo.profile import TargetProfile, check_program, load_profile
from edgeyolo.program import IntegerProgram
from edgeyolo.program_facts import program_facts
from edgeyolo.program_image import encode_program
from edgeyolo.progress import Log
from edgeyolo.quant.calibrate import copy_model
from edgeyolo.quant.compare import LayerReport, compare_layers, head_snr
from edgeyolo.quant.config import GRANULARITIES, QuantConfig, parse_keep
from edgeyolo.quant.quantise import QuantResult, quantise

AGREEMENT_PICTURES = 64
"""Calibration pictures of the ledger where there is no labelled set."""
REPORT_PICTURES = 8

Polish = Callable[[QuantResult, PictureSet, Log], QuantResult]


@dataclass(frozen=True)
class FpgaRequest:
    """What to write and where.

    Args:
        output: the bundle's folder.
        layout: ``oihw``, ``ohwi``, ``tiled`` or ``seed-v1``.
        formats: any of ``bin``, ``mem``, ``coe``, ``h``.
        golden: pictures whose every layer is stored.
        max_drop: largest loss that is not an error: of AP with labels, of agreement (1 - F1) without.
        polish: adds a candidate to the quantisation before it is lowered.
        budget: chooses the bits of layers that ``config.keep`` does not name; None: all have ``config.bits``.
    """

    output: Path
    profile: TargetProfile
    config: QuantConfig
    layout: str
    formats: tuple[str, ...]
    golden: int = 1
    max_drop: float | None = None
    force: bool = False
    polish: Polish | None = None
    budget: Budget | None = None

    @property
    def partial(self) -> Path:
        """Beside the output: a folder for finished layers, from which the same request goes on after a crash."""
        output = self.output.absolute()
        return output.with_name(f"{output.name}.partial")

    def check_free(self) -> None:
        """Refuse an output that cannot be made, and finished layers that are none: their folder is deleted."""
        check_free(self.output, force=self.force)
        if os.path.lexists(self.partial) and not _only_layers(self.partial):
            raise InputError(
                "this is where finished layers are kept meanwhile, but it has something else; it is left alone",
                where=self.partial,
                hint="choose another folder with -o",
            )

    @classmethod
    def of(cls, output: Path, options: dict[str, Any]) -> FpgaRequest:
        """Read the command line's options; what contradicts the board or is out of range is refused before any work."""
        profile = load_profile("fpga", options["board"])
        finest = (
            "per-tensor" if options["layout"] == SEED_V1 else max(profile.granularity, key=GRANULARITIES[::-1].index)
        )
        granularity = options["granularity"] or finest
        config = QuantConfig(
            options["bits"], options["act_bits"], granularity, options["method"],
            tuple(keep for text in options["keep"] for keep in parse_keep(text)),
            options["equalise"], options["correct_bias"], _head_bits(options, profile), options["align"],
            options["reconstruct"], options["recipe"],
        )  # fmt: skip
        budget = Budget.of(options["avg_bits"], options["max_bytes"], options["act_share"], options["max_drop"])
        check_widths(config, profile)
        layout = options["layout"] or profile.layout
        formats = tuple(part.strip() for part in options["formats"].split(","))
        if layout == SEED_V1:
            _check_seed_v1(granularity, formats)
        elif layout in LAYOUTS:
            BlobForm.of(profile, layout, formats)
        else:
            allowed = ", ".join((*LAYOUTS, SEED_V1))
            raise InputError("unknown weight layout", where="--layout", got=layout, allowed=allowed)
        if options["golden"] < 0:
            raise InputError("the number of golden pictures is negative", where="--golden", got=options["golden"])
        drop = options["max_drop"]
        if drop is not None and not 0 <= drop <= 1:
            raise InputError("out of range", where="--max-drop", got=drop, allowed="0 to 1")
        shared = (options["golden"], drop, options["force"])
        return cls(output, profile, config, layout, formats, *shared, budget=budget)


@dataclass(frozen=True, eq=False)
class FpgaResult:
    """What was written, for tables and JSON."""

    quant: QuantResult
    program: IntegerProgram
    ledger: Ledger
    layers: tuple[LayerReport, ...]
    slopes: dict[float, str]
    slope_snr_db: float | None
    files: dict[str, int]
    compared: int
    facts: dict[str, Any]
    config: QuantConfig


def _only_layers(folder: Path) -> bool:
    """Whether ``folder`` has nothing but what ``SavedLayers`` writes."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return all(re.fullmatch(r"[0-9a-f]{16}(/[0-9]{4}\.(npz|part))?", name) for name in names)


def check_widths(config: QuantConfig, profile: TargetProfile) -> None:
    """Raise InputError, before any work, if the board lacks what ``config`` asks for."""
    wanted: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("--bits", config.bits, profile.weight_bits),
        ("--act-bits", config.act_bits, profile.activation_bits),
        ("--head-bits", config.head_bits, profile.activation_bits),
        ("--granularity", config.granularity, profile.granularity),
    ]
    for keep in config.keep:
        wanted.append(("--keep", keep.weight_bits, profile.weight_bits))
        if keep.act_bits is not None:
            wanted.append(("--keep", keep.act_bits, profile.activation_bits))
    for option, value, allowed in wanted:
        if value not in allowed:
            what = f"board {profile.name} does not have this"
            raise InputError(what, where=option, got=value, allowed=", ".join(map(str, allowed)))


def _head_bits(options: dict[str, Any], profile: TargetProfile) -> int:
    """As asked, or as many as the board has; the older family of files knows one width of activations."""
    if options["head_bits"] is not None:
        return int(options["head_bits"])
    return int(options["act_bits"]) if options["layout"] == SEED_V1 else max(profile.activation_bits)


def _check_seed_v1(granularity: str, formats: tuple[str, ...]) -> None:
    """Refuse what that family of files has no place for, before any work."""
    if granularity != "per-tensor":
        raise InputError(
            "layout seed-v1 has one weight exponent per layer", where="--granularity", got=granularity,
            allowed="per-tensor",
        )  # fmt: skip
    if "bin" not in formats or not {"bin", "h"}.issuperset(formats):
        raise InputError(
            "layout seed-v1 consists of .bin files", where="--format", got=",".join(formats), allowed="bin"
        )


def export_fpga(
    source: Source, model: ir.Model, parities: list[Parity], pictures: PictureSet, request: FpgaRequest,
    stages: Stages, log: Log, labels: LabelledSet | None = None,
) -> FpgaResult:  # fmt: skip
    """Quantise the prepared float ``model`` on ``pictures`` and write the bundle.

    Args:
        source, model, parities: from the front end, and of it by ``prepare``.
        pictures: for calibration; the ledger is about them too where there are no ``labels``.
        request: what to write.
        stages: as ``prepare`` left it: what it keeps are the ledger's float stages.
        log: receives stages and progress.
        labels: labelled pictures for the ledger.

    Raises:
        UnsupportedError: the model or the options ask for what the integer program or the board cannot do.
    """
    request.check_free()
    check_raw(model)
    exact, slopes, slope_snr = fixed_point_form(model, pictures, stages, log)
    with log.stage("quantise") as details:
        quant, request = _quantise(source, exact, pictures, request, log, labels)
        first, best = quant.steps[0], max(quant.steps, key=lambda step: step.head_snr_db)
        details.append(f"{best.name}: head SNR {best.head_snr_db:.1f} dB")
        if best is not first:
            details.append(f"{first.name}: {first.head_snr_db:.1f} dB")
    if request.polish is not None:
        quant = request.polish(quant, pictures, log)
    stages.save("50-quantised", quant.model)
    with log.stage("lower") as details:
        program = lower_fixed(quant.model)
        check_program(program, request.profile)
        details.append(f"{len(program.ops)} operations, peak activations {program.arena_bytes:,} bytes")
    with log.stage("ledger") as details:
        layers = tuple(
            compare_layers(quant.reference, quant.model, quant.plan.free_acts(), pictures.spread(REPORT_PICTURES))
        )
        ledger = _ledger(source, quant, program, pictures, request, stages, log, labels)
        details += [ledger.text, f"head SNR {ledger.snr_db:.1f} dB"]
    record = {
        "parity": [asdict(p) for p in parities],
        "slopes": {str(k): v for k, v in slopes.items()},
        "refinement": [asdict(s) for s in quant.steps],
        **ledger.to_json(),
    }
    facts = _facts(source, program, request, record)
    with log.stage("write") as details, new_folder(request.output, force=request.force) as folder:
        compared = _write(folder, quant.model, program, pictures, request, facts, layers)
        written = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
        details.append(f"{len(written)} files; {compared:,} golden elements equal to ONNX Runtime's")
    shutil.rmtree(request.partial, ignore_errors=True)
    return FpgaResult(quant, program, ledger, layers, slopes, slope_snr, written, compared, facts, request.config)


def _quantise(
    source: Source, exact: ir.Model, pictures: PictureSet, request: FpgaRequest, log: Log, labels: LabelledSet | None
) -> tuple[QuantResult, FpgaRequest]:  # fmt: skip
    """Quantise as asked, or within a budget; returns the request with the bits that were chosen."""

    def make(config: QuantConfig) -> QuantResult:
        return quantise(exact, pictures, config, lambda i, title: log.track(i, title, len(i)), request.partial)

    def loss(quant: QuantResult) -> float:
        sample = pictures.spread(AGREEMENT_PICTURES) if labels is None else labels.pictures
        pair = [Stage("source", partial(onnx_heads, source.model, optimise=True), 0, 0)]
        pair.append(Stage(INTEGER, partial(onnx_heads, quant.model, optimise=False), 0, 0))
        return measure(pair, read_detector(source.model), sample, labels, log).drop

    if request.budget is None:
        return make(request.config), request
    quant, config = quantise_within(
        exact, pictures, request.config, request.budget, request.profile, make, loss, log
    )  # fmt: skip
    return quant, replace(request, config=config)


def _ledger(
    source: Source, quant: QuantResult, program: IntegerProgram, pictures: PictureSet, request: FpgaRequest,
    stages: Stages, log: Log, labels: LabelledSet | None,
) -> Ledger:  # fmt: skip
    """Run every stage of this export on the labelled pictures, or on some of the calibration's."""
    sample = pictures.spread(AGREEMENT_PICTURES) if labels is None else labels.pictures
    images = blob_bytes(program, request.profile, request.layout, source.name)
    rows = ledger_stages(stages.models, quant, program, images, len(sample))
    return measure(rows, read_detector(source.model), sample, labels, log)


def check_raw(model: ir.Model) -> None:
    """Refuse a graph that decodes its boxes itself: integers end where the heads end."""
    present = [str(value.name) for value in model.graph.outputs]
    wanted = [head.output for head in read_detector(model).heads]
    if set(present) != set(wanted):
        raise UnsupportedError(
            "the model's outputs are not the raw heads that its metadata names",
            got=", ".join(present),
            allowed=", ".join(wanted),
            hint="export it to ONNX without --decode and --nms",
        )


def fixed_point_form(
    model: ir.Model, pictures: PictureSet, stages: Stages, log: Log
) -> tuple[ir.Model, dict[float, str], float | None]:
    """Raw pixels in, dyadic slopes inside; returns the model, the changed slopes and what they cost in head SNR."""
    with log.stage("fixed form") as details:
        exact, leaky = copy_model(model), DyadicLeaky()
        snr = None
        PixelInput()(exact)
        if leaky(exact).modified:
            snr = head_snr(model, exact, pictures.spread(REPORT_PICTURES))
            details += [f"slope {old} -> {new}" for old, new in leaky.changed.items()]
            details.append(f"head SNR {snr:.1f} dB")
    stages.save("40-fixed-form", exact)
    return exact, leaky.changed, snr


def _facts(source: Source, program: IntegerProgram, request: FpgaRequest, ledger: dict[str, Any]) -> dict[str, Any]:
    """Everything the manifest states besides files and detector."""
    return {
        "tool": f"edgeyolo {__version__}",
        "target": "fpga",
        "source": {"name": source.name, "sha256": source.sha256, "notes": list(source.notes)},
        "profile": asdict(request.profile),
        "options": {**asdict(request.config), "layout": request.layout, "formats": list(request.formats)},
        "ledger": ledger,
        **program_facts(program),
    }


def _write(
    folder: Path, model: ir.Model, program: IntegerProgram, pictures: PictureSet, request: FpgaRequest,
    facts: dict[str, Any], layers: tuple[LayerReport, ...],
) -> int:  # fmt: skip
    """Fill the bundle's folder; returns how many golden elements were compared with the oracle."""
    (folder / MODEL).write_bytes(model_bytes(model))
    (folder / PROGRAM).write_bytes(encode_program(program))
    if request.layout == SEED_V1:
        seed = write_seed_v1(program, folder / "weights", stem=Path(facts["source"]["name"]).stem, bits=SEED_V1_BITS)
        facts = {**facts, "seed_v1": {"notes": list(seed.notes)}}
    else:
        write_blobs(
            program, folder / "weights", layout=request.layout, profile=request.profile, formats=request.formats,
            source_sha256=facts["source"]["sha256"],
        )  # fmt: skip
    engine = folder / "engine"
    engine.mkdir()
    for item in sorted(files("edgeyolo.targets.engine").iterdir(), key=lambda entry: entry.name):
        if item.name.endswith((".c", ".h")) or item.name == "Makefile":
            (engine / item.name).write_bytes(item.read_bytes())
    compared = 0
    if request.golden:
        oracle = partial(Oracle(model).layers, program)
        compared = write_golden(program, oracle, list(pictures.spread(request.golden)), folder)
    report = [layer.to_json() for layer in layers]
    (folder / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    assert program.detector is not None
    write_manifest(folder, facts, program.detector)
    return compared
