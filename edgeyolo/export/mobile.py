"""``--target mobile``: float32, float16 and int8 graphs for ONNX Runtime on CPUs of phones and small boards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeyolo import __version__
from edgeyolo.bench.record import read_records
from edgeyolo.bundle import MODEL, write_manifest
from edgeyolo.errors import InputError
from edgeyolo.export.costs import constant_bytes
from edgeyolo.export.fpga import AGREEMENT_PICTURES, REPORT_PICTURES, check_raw
from edgeyolo.export.labels import LabelledSet
from edgeyolo.export.ledger import Ledger, measure
from edgeyolo.export.ledger_stages import Stage, float_stages, onnx_heads
from edgeyolo.export.mobile_candidates import Candidates, make_candidates
from edgeyolo.export.mobile_choice import (
    BROWSER,
    Choice,
    decide,
    default_choice,
    measure_here,
    measured_there,
    place_of,
)
from edgeyolo.export.mobile_golden import mobile_golden
from edgeyolo.export.ort_files import ort_files
from edgeyolo.export.pictures import PictureSet
from edgeyolo.export.prepare import PARITY_PICTURES, Parity, Stages, parity
from edgeyolo.export.usability import Usability, usability
from edgeyolo.frontend import Source
from edgeyolo.lower.mobile.formats import encode
from edgeyolo.lower.mobile.half import to_half
from edgeyolo.lower.mobile.quantise import quantise_mobile
from edgeyolo.lower.tensorrt.quantise import Int8Config, Int8Result
from edgeyolo.mobile import (
    CPU,
    SAMPLE,
    MobileBoard,
    check_host,
    check_shapes,
    choose_provider,
    host_threads,
    load_mobile,
    sample_file,
    session_facts,
)  # fmt: skip
from edgeyolo.ort import model_bytes
from edgeyolo.output import check_free, new_folder
from edgeyolo.passes.graph import read_detector, with_types
from edgeyolo.passes.opset import OLDEST, with_opset
from edgeyolo.passes.widen import widened
from edgeyolo.progress import Log
from edgeyolo.quant.calibrate import peak_values
from edgeyolo.quant.compare import LayerReport, compare_layers

VARIANTS = ("int8", "fp16", "fp32")
"""What every bundle holds, each as NAME.onnx; float16 cannot be kept in an .ort file, the others have one."""
CHECKED = ("fp32", "int8")
"""Those that the checker of accelerators sees: it knows operators, not float16."""
REFINEMENTS = ("equalise", "correct_bias", "reconstruct")
USABILITY, MEASURED = "usability.txt", "measured.jsonl"


@dataclass(frozen=True)
class MobileRequest:
    """What to write and where.

    Args:
        output: the bundle's folder.
        board: what it is for.
        int8: how to quantise.
        variant: one of ``VARIANTS`` to be model.onnx; None: what is fast, as far as that is known.
        auto: measure on this machine, and keep float what int8 makes slower.
        measured: records of the candidates from the device, in place of ``auto``.
        candidates: write only what is to be measured on a device.
        provider: the execution provider that shall run it; None: the board's first.
        golden: pictures to store with what ONNX Runtime computes for them.
        max_drop: largest loss of int8 that is not an error: of AP with labels, of agreement without.
    """

    output: Path
    board: MobileBoard
    int8: Int8Config
    variant: str | None = None
    auto: bool = False
    measured: Path | None = None
    candidates: bool = False
    provider: str | None = None
    golden: int = 1
    max_drop: float | None = None
    force: bool = False

    @classmethod
    def of(cls, output: Path, options: Mapping[str, Any]) -> MobileRequest:
        """Read the command line's options; what cannot work is refused before any work."""
        board = load_mobile(options["board"])
        provider = choose_provider(board, options["provider"])
        if options["auto"]:
            check_host(board)
        ways = ("auto", "measured", "candidates", "precision")
        if len(given := [f"--{name}" for name in ways if options[name]]) > 1:
            raise InputError("each of these is another way to choose", got=", ".join(given), hint="keep one of them")
        if provider != CPU and (options["auto"] or options["measured"]):
            raise InputError(
                "what is measured is the CPU provider, which says nothing about another one", got=provider,
                hint="measure the bundle with that provider on the device, then choose with --precision",
            )  # fmt: skip
        if options["measured"] is not None:
            read_records(options["measured"])  # what cannot be read is said before any work
        if options["golden"] < 1:
            raise InputError("a bundle needs golden pictures", where="--golden", got=options["golden"], allowed="1 ...")
        drop = options["max_drop"]
        if drop is not None and not 0 <= drop <= 1:
            raise InputError("out of range", where="--max-drop", got=drop, allowed="0 to 1")
        keep = tuple(part.strip() for part in options["keep_float"].split(",") if part.strip() not in ("", "none"))
        config = Int8Config(options["method"], keep, *(bool(options[key]) for key in REFINEMENTS))
        return cls(
            output, board, config, options["precision"], options["auto"], options["measured"], options["candidates"],
            options["provider"], options["golden"], drop, options["force"],
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class MobileResult:
    """What was written, for tables and JSON.

    Args:
        quant: the candidates; the best of them is the int8 graph.
        choice: which variant is model.onnx, and why.
        ledger: what every stage costs.
        layers: quantised values against float.
        usable: what ONNX Runtime's checker says of accelerators, by variant.
        files: path -> bytes.
        facts: the manifest's.
    """

    quant: Int8Result
    choice: Choice
    ledger: Ledger
    layers: tuple[LayerReport, ...]
    usable: dict[str, Usability]
    files: dict[str, int]
    facts: dict[str, Any]


def export_mobile(
    source: Source, model: ir.Model, parities: list[Parity], pictures: PictureSet, request: MobileRequest,
    stages: Stages, log: Log, labels: LabelledSet | None = None,
) -> MobileResult:  # fmt: skip
    """Make all variants of the prepared float ``model`` and write the bundle.

    Args:
        source, model, parities: from the front end, and of it by ``prepare``.
        pictures: for calibration; the ledger is about them too where there are no ``labels``.
        request: what to write.
        stages: as ``prepare`` left it.
        log: receives stages and progress.
        labels: labelled pictures for the ledger.

    Raises:
        UnsupportedError: nothing can be quantised, or the graph already decodes its boxes.
        InputError: the provider wants fixed shapes and the model has others.
    """
    check_free(request.output, force=request.force)
    model = _ready(model, request)
    choice = _choose(model, pictures, request, log)
    quant = _quantise(model, pictures, replace(request.int8, keep_float=choice.keep_float), log)
    variants = _variants(model, quant, pictures, request)
    if request.board.channel_block > 1:
        parities = [*parities, parity("widened", model, variants["fp32"], list(pictures.spread(PARITY_PICTURES)))]
    for name, variant in variants.items():
        stages.save(f"50-{name}", variant)
    with log.stage("ledger") as details:
        best = quant.best
        layers = compare_layers(best.reference, best.model, best.scales.acts, pictures.spread(REPORT_PICTURES))
        ledger = _ledger(source, quant, variants, request, pictures, stages, log, labels)
        details += [ledger.text, f"head SNR {ledger.snr_db:.1f} dB"]
    usable = {name: usability(model_bytes(variants[name])) for name in CHECKED}
    record = {"parity": [asdict(p) for p in parities], **ledger.to_json()}
    facts = _facts(source, request, quant, choice, usable, record)
    with log.stage("write") as details, new_folder(request.output, force=request.force) as folder:
        contents = _contents(variants, choice, usable, pictures, request)
        contents["report.json"] = _json([layer.to_json() for layer in layers])
        for name, data in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        write_manifest(folder, facts, read_detector(model))
        details.append(f"{len(contents) + 1} files")
    sizes = {name: len(data) for name, data in contents.items()}
    return MobileResult(quant, choice, ledger, tuple(layers), usable, sizes, facts)


def export_candidates(
    source: Source, model: ir.Model, pictures: PictureSet, request: MobileRequest, log: Log
) -> Candidates:  # fmt: skip
    """Write the graphs that ``measured`` will choose from, for another device. Arguments, errors: ``export_mobile``."""
    check_free(request.output, force=request.force)
    model = _ready(model, request)
    with log.stage("candidates") as details, new_folder(request.output, force=request.force) as folder:
        made = make_candidates(model, pictures, request.board, request.int8.keep_float)
        made.write(folder)
        facts = {
            "tool": f"edgeyolo {__version__}", "target": "mobile-candidates", "profile": asdict(request.board),
            "source": {"name": source.name, "sha256": source.sha256, "notes": list(source.notes)},
            "keep_float": {name: list(keep) for name, keep in made.keep_float.items()},
        }  # fmt: skip
        write_manifest(folder, facts, read_detector(model))
        details.append(f"{len(made.graphs)} graphs")
    return made


def _ready(model: ir.Model, request: MobileRequest) -> ir.Model:
    """The prepared model as the board reads it. Raises what ``export_mobile`` raises."""
    check_raw(model)
    model = in_opset(model, request.board)
    _check_provider(model, request)
    return model


def in_opset(model: ir.Model, board: MobileBoard) -> ir.Model:
    """``model`` in an opset that integers can be written in and that the board's ONNX Runtime reads, with all types.

    Raises UnsupportedError where it needs a newer one.
    """
    present = model.graph.opset_imports[""]
    allowed = min(max(present, OLDEST), board.max_opset)
    return with_types(with_opset(model, allowed))


def _check_provider(model: ir.Model, request: MobileRequest) -> None:
    """Refuse shapes that the provider cannot take."""
    known = {
        str(value.name): [dim if isinstance(dim, int) else None for dim in value.shape or ()]
        for value in model.graph.inputs
    }
    check_shapes(request.board, choose_provider(request.board, request.provider), known)


def _choose(model: ir.Model, pictures: PictureSet, request: MobileRequest, log: Log) -> Choice:
    """By what was measured here or there; without that by what is known."""
    board, keep = request.board, request.int8.keep_float
    if not request.auto and request.measured is None:
        return default_choice(model, keep, request.variant, board)
    with log.stage("measure") as details:
        made = make_candidates(model, pictures, board, keep)
        if request.measured is not None:
            records = measured_there(made, request.measured, board)
            first = records["fp32"]
            where = place_of(first, request.measured)
            threads = None if first.backend.startswith(BROWSER) else first.threads
        else:
            records, where, threads = measure_here(made, pictures, host_threads(board), log), "here", None
        choice = replace(decide(records, made.keep_float, where), threads=threads)
        details.append(choice.reason)
    return choice


def _quantise(model: ir.Model, pictures: PictureSet, config: Int8Config, log: Log) -> Int8Result:
    with log.stage("quantise") as details:
        quant = quantise_mobile(model, pictures, config, lambda items, title: log.track(items, title, len(items)))
        details.append(f"{len(quant.placement.weighted)} layers int8, {len(quant.placement.floats)} float")
        details += [f"{c.name}: head SNR {c.head_snr_db:.1f} dB" for c in quant.candidates]
    return quant


def _variants(
    model: ir.Model, quant: Int8Result, pictures: PictureSet, request: MobileRequest
) -> dict[str, ir.Model]:  # fmt: skip
    """All precisions as the board likes them."""
    board = request.board
    plain = {
        "int8": encode(quant.best.model, board.int8_format.upper()),
        "fp16": to_half(model, peak_values(model, pictures.spread(REPORT_PICTURES))),
        "fp32": model,
    }
    return {name: widened(variant, board.channel_block) for name, variant in plain.items()}


def _ledger(
    source: Source, quant: Int8Result, variants: dict[str, ir.Model], request: MobileRequest, pictures: PictureSet,
    stages: Stages, log: Log, labels: LabelledSet | None,
) -> Ledger:  # fmt: skip
    """Run every stage on the labelled pictures, or on some of the calibration's; the int8 variant comes last."""
    rows = float_stages(stages.models)
    macs = rows[-1].macs

    def row(name: str, model: ir.Model, kept: bool | None = None, *, optimise: bool = False) -> Stage:
        return Stage(name, partial(onnx_heads, model, optimise=optimise), constant_bytes(model), macs, kept)

    rows.append(row("float16", variants["fp16"], optimise=True))
    rows += [row(c.name, c.model, c is quant.best) for c in quant.candidates]
    rows.append(row(f"int8 as {request.board.int8_format.upper()}", variants["int8"]))
    sample = pictures.spread(AGREEMENT_PICTURES) if labels is None else labels.pictures
    return measure(rows, read_detector(source.model), sample, labels, log)


def _contents(
    variants: dict[str, ir.Model], choice: Choice, usable: dict[str, Usability], pictures: PictureSet,
    request: MobileRequest,
) -> dict[str, bytes]:  # fmt: skip
    """Path -> content of everything but the layers' report and the manifest."""
    graphs = {name: model_bytes(model) for name, model in variants.items()}
    contents = {f"{name}.onnx": data for name, data in graphs.items()}
    contents[MODEL] = graphs[choice.variant]
    contents |= ort_files({name: graphs[name] for name in VARIANTS if name != "fp16"}, request.board, request.provider)
    contents |= mobile_golden(variants, list(pictures.spread(request.golden)))
    contents[SAMPLE] = sample_file()
    contents[USABILITY] = "\n".join(f"# {name}.onnx\n{found.text}" for name, found in usable.items()).encode()
    if choice.records:
        contents[MEASURED] = "".join(record.to_line() for record in choice.records).encode()
    return contents


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()


def _facts(
    source: Source, request: MobileRequest, quant: Int8Result, choice: Choice, usable: dict[str, Usability],
    ledger: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Everything the manifest states besides files and detector."""
    session = session_facts(request.board, request.provider)
    session["threads"] = choice.threads or session["threads"]
    # On x86 ONNX Runtime comes as a full build, which makes more of the .onnx file than an .ort file may hold.
    plain = choice.variant == "fp16" or request.board.machine == "x86_64"
    shipped = f"{choice.variant}.{'onnx' if plain else 'ort'}"
    return {
        "tool": f"edgeyolo {__version__}",
        "target": "mobile",
        "source": {"name": source.name, "sha256": source.sha256, "notes": list(source.notes)},
        "profile": asdict(request.board),
        "options": {
            **asdict(request.int8),
            "variant": request.variant,
            "auto": request.auto,
            "measured": request.measured and request.measured.name,
        },
        "choice": choice.to_json(),
        "session": {**session, "model": shipped},
        "layers": {"int8": sorted(quant.placement.weighted), "float": quant.placement.floats},
        "usability": [{"variant": name, **asdict(row)} for name, found in usable.items() for row in found.rows],
        "ledger": ledger,
    }
