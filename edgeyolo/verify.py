"""Prove a bundle: Python integers = ONNX Runtime = the compiled C engine, every layer, tolerance 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import numpy as np

from edgeyolo import __version__
from edgeyolo.bundle import MODEL, PROGRAM, Bundle
from edgeyolo.errors import BundleError, EdgeYoloError, InputError
from edgeyolo.export.golden import GOLDEN_INDEX, Contender, first_difference, golden_index, golden_name, layer_codes
from edgeyolo.export.pictures import PictureSet
from edgeyolo.lower.blob_index import BlobIndex, plan_blobs
from edgeyolo.lower.blobs import INDEX_FILE, BlobCodes, encode_images, read_blobs
from edgeyolo.lower.ctables import header_files
from edgeyolo.lower.seed_v1 import SEED_V1, SEED_V1_BITS, seed_files
from edgeyolo.program import Conv, IntegerProgram, Lookup, is_float32_exact
from edgeyolo.program_facts import program_facts
from edgeyolo.program_image import decode_program, encode_program
from edgeyolo.progress import Log
from edgeyolo.runners.engine import EngineRunner, is_own_engine
from edgeyolo.runners.integer import Codes, input_codes

CHECKS = ("golden", "ort", "engine")
"""What the Python integers are compared with: stored golden data, ONNX Runtime, the C engine."""
MAX_GOLDEN = 1000


@dataclass(frozen=True)
class Difference:
    """The first layer of one picture in which a contender differs from the Python integers."""

    contender: str
    picture: str
    layer: str
    detail: str


@dataclass
class Verdict:
    """What was compared and what differed.

    Args:
        layers: operations of the program.
        pictures: how many pictures were run.
        elements: compared elements per contender.
        differences: empty when everything is equal.
        float32_exact: convolutions whose worst-case accumulator float32 holds exactly, for any input; of
        ``convolutions``.
    """

    layers: int
    convolutions: int
    float32_exact: int
    pictures: int = 0
    elements: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)


def verify(
    path: Path, log: Log, *, skip: Sequence[str] = (), more: Path | None = None, trust_engine: bool = False
) -> Verdict:
    """Check a bundle's files, its parts against each other, and its arithmetic.

    Args:
        path: the bundle.
        skip: those of ``CHECKS`` that this machine cannot do (no ONNX Runtime, no C compiler).
        more: further pictures beside the golden ones.
        trust_engine: compile and run the bundle's engine even where its C files are not this version's own; without
            it the installed engine runs the bundle's program instead.

    Raises:
        InputError, BundleError: the bundle is missing, damaged or inconsistent, or a tool is missing.
    """
    if set(skip) >= set(CHECKS):
        raise InputError("every comparison is skipped", where="--skip", got=", ".join(sorted(set(skip))))
    with log.stage("files") as details:
        bundle = Bundle.open(path)
        image = bundle.read(PROGRAM)
        program = replace(decode_program(image, str(path / PROGRAM)), detector=bundle.detector)
        _check_facts(bundle, program)
        details.append(f"{len(bundle.manifest['files'])} files match size and SHA-256")
        details.append(_check_weights(bundle, program))
    contenders: dict[str, Contender] = {}
    if "ort" not in skip:
        with log.stage("oracle") as details:
            contenders["ort"] = _oracle(bundle, program)
            details.append(f"{MODEL} lowers to this very program")
    if "engine" not in skip:
        with log.stage("engine") as details:
            bundled = trust_engine or is_own_engine(path / "engine")
            contenders["engine"] = EngineRunner(image, path / "engine" if bundled else None).layers
            details.append(f"compiled from {'the bundle' if bundled else 'this installation'}")
        if not bundled:
            log.warn(
                "the bundle's engine sources are not this version's, so they were not run; this version's engine was. "
                "--trust-engine compiles and runs the bundle's."
            )
    convs = [op for op in program.ops if isinstance(op, Conv)]
    exact = sum(is_float32_exact(op, program.tensors[op.input].qtype) for op in convs)
    verdict = Verdict(len(program.ops), len(convs), exact)
    pictures = [*_golden(bundle, program, compare="golden" not in skip), *_more(more, program)]
    if not pictures:
        raise InputError("nothing to compare: the bundle has no golden pictures", where=path, hint="add --pictures DIR")
    for name, codes, stored in log.track(pictures, "comparing every layer", len(pictures)):
        _compare(program, name, codes(), {**contenders, **({"golden": stored} if stored else {})}, verdict)
    return verdict


def _compare(
    program: IntegerProgram, name: str, codes: Codes, contenders: dict[str, Contender], verdict: Verdict
) -> None:
    """Run one picture everywhere and record the first difference of each contender."""
    expected = layer_codes(program, codes)
    verdict.pictures += 1
    for contender, run in contenders.items():
        for index, (op, want, got) in enumerate(zip(program.ops, expected, run(codes), strict=True)):
            verdict.elements[contender] = verdict.elements.get(contender, 0) + want.size
            detail = first_difference(want, got)
            if detail:
                verdict.differences.append(Difference(contender, name, f"{index} {op.name}", detail))
                break


def _check_facts(bundle: Bundle, program: IntegerProgram) -> None:
    """Compare what the manifest repeats of the program with the program."""
    wrong = [key for key, value in program_facts(program).items() if bundle.manifest.get(key) != value]
    if wrong:
        raise BundleError(
            f"the manifest does not describe {PROGRAM}", where=bundle.path, got=", ".join(wrong), hint="export it again"
        )


def _check_weights(bundle: Bundle, program: IntegerProgram) -> str:
    """Compare every file in ``weights/`` with the program's own constants; returns a sentence."""
    options, source = bundle.manifest.get("options"), bundle.manifest["source"]
    if isinstance(options, dict) and options.get("layout") == SEED_V1:
        seed = seed_files(program, stem=Path(str(source.get("name"))).stem, bits=SEED_V1_BITS)
        _check_same(bundle, {f"weights/{name}": data for name, data in seed.contents.items()})
        return f"{len(seed.contents)} weight files are the program's"
    index = BlobIndex.from_json(bundle.read(f"weights/{INDEX_FILE}").decode("utf-8", "replace"))
    plan, formats = plan_blobs(program, index.form), index.form.formats
    _check_same(bundle, {f"weights/{INDEX_FILE}": plan.to_json().encode()})
    if sum(plan.image_bytes) > sum(bundle.manifest["files"][name]["bytes"] for name in bundle.names("weights/")):
        raise BundleError("the weight images are larger than their files", where=bundle.path / "weights")
    if set(formats) - {"h"}:
        _check_images(read_blobs(bundle.path / "weights", plan, program), program)
    done = f"weights equal the program's ({len(plan.convs)} convolutions)"
    if "h" not in formats:
        return done
    if bundle.manifest["tool"] != f"edgeyolo {__version__}":
        return f"{done}; C headers of {bundle.manifest['tool'][:40]} checked by hash only"
    headers = header_files(program, plan, encode_images(program, plan), str(source.get("sha256")))
    _check_same(bundle, {f"weights/headers/{name}": text.encode("ascii") for name, text in headers.items()})
    return done


def _check_images(codes: BlobCodes, program: IntegerProgram) -> None:
    for number, op in enumerate(program.ops):
        parts: list[tuple[str, Codes, Codes, str]] = []
        if isinstance(op, Conv):
            blob = codes.convs[number]
            parts.append(("weight", op.weight, blob.weight, "o, i, y, x"))
            parts += [("bias", op.bias, blob.bias, "o"), ("shift", op.shift, blob.shift, "o")]
        elif isinstance(op, Lookup):
            parts.append(("table", op.table, codes.tables[number], "entry"))
        for part, want, got, axes in parts:
            if detail := first_difference(want, got, axes):
                raise BundleError(
                    "the weight images differ from the program", where=f"layer {number} {op.name}, {part}", got=detail
                )


def _check_same(bundle: Bundle, expected: dict[str, bytes]) -> None:
    wrong = [name for name, data in expected.items() if bundle.read(name) != data]
    if wrong:
        got = ", ".join(wrong[:20])
        raise BundleError("weight files differ from the program", where=bundle.path, got=got, hint="export it again")


def _oracle(bundle: Bundle, program: IntegerProgram) -> Contender:
    """Open the QDQ file, and prove that the program is its lowering; a device without ONNX skips this check."""
    from edgeyolo.export.oracle import Oracle
    from edgeyolo.frontend.onnx_file import load_onnx
    from edgeyolo.lower.fixed import lower_fixed

    model, detector = load_onnx(bundle.path / MODEL)
    try:
        lowered = lower_fixed(model)
    except EdgeYoloError:
        raise
    except Exception as error:  # a hostile graph can break anything that reads it
        raise BundleError(f"{MODEL} cannot be lowered", where=bundle.path, got=repr(error)[:300]) from error
    if encode_program(lowered) != encode_program(program):
        raise BundleError(
            f"{PROGRAM} is not what {MODEL} lowers to",
            where=bundle.path,
            got=_program_difference(lowered, program),
            hint="export the bundle again",
        )
    if detector != bundle.detector:
        raise BundleError(f"the manifest's detector is not that of {MODEL}", where=bundle.path, hint="export it again")
    return partial(Oracle(model).layers, program)


def _program_difference(expected: IntegerProgram, got: IntegerProgram) -> str:
    """The first record in which two programs differ."""
    records = [("layer", expected.ops, got.ops), ("tensor", expected.tensors, got.tensors)]
    for kind, wanted, present in records:
        for number, (want, have) in enumerate(zip(wanted, present, strict=False)):
            if type(want) is not type(have):
                return f"{kind} {number} {want.name}: {type(have).__name__} instead of {type(want).__name__}"
            for key in (item.name for item in fields(want)):
                a, b = getattr(want, key), getattr(have, key)
                if isinstance(a, np.ndarray):
                    detail = first_difference(a, b, "o, i, y, x" if a.ndim == 4 else "o")
                else:
                    detail = None if a == b else f"{b} instead of {a}"
                if detail:
                    return f"{kind} {number} {want.name}, {key}: {detail}"
    return f"{len(got.ops)} operations instead of {len(expected.ops)}, or other outputs"


Job = tuple[str, Callable[[], Codes], Contender | None]


def _golden(bundle: Bundle, program: IntegerProgram, *, compare: bool) -> list[Job]:
    """The stored pictures; their layers are read when they are compared, if ``compare``."""
    names, layers = bundle.names("golden/"), len(program.ops)
    count = sum(name.endswith("/input.bin") for name in names)
    if not names:
        return []
    complete = count <= MAX_GOLDEN and len(names) == 1 + count * (layers + 1)
    if not complete or bundle.read(GOLDEN_INDEX) != golden_index(count, layers):
        raise BundleError(
            "the golden data does not have one file for every picture and layer, or its index is wrong",
            where=bundle.path / GOLDEN_INDEX,
            got=f"{len(names)} files, {count} inputs",
            allowed=f"at most {MAX_GOLDEN} pictures of {layers} layers",
        )
    return [_golden_job(bundle, program, number, compare) for number in range(count)]


def _golden_job(bundle: Bundle, program: IntegerProgram, number: int, compare: bool) -> Job:
    def stored(tensor: int, part: str) -> Codes:
        shape, dtype = program.tensors[tensor].shape, program.tensors[tensor].qtype.dtype
        name = golden_name(number, part)
        data = bundle.read(name)
        if len(data) != program.tensors[tensor].nbytes:
            raise BundleError("golden data has the wrong size", where=name, got=len(data), allowed=f"{shape} {dtype}")
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(shape)

    def source() -> Codes:
        codes, qtype = stored(program.input, "input"), program.tensors[program.input].qtype
        if codes.min() < qtype.lo or codes.max() > qtype.hi:
            raise BundleError(
                "a golden input has codes out of range", where=golden_name(number, "input"), allowed=qtype
            )
        return codes

    def layers(_: Codes) -> list[Codes]:
        return [stored(op.output, f"{index:03d}") for index, op in enumerate(program.ops)]

    return f"golden {number}", source, layers if compare else None


def _more(source: Path | None, program: IntegerProgram) -> Iterator[Job]:
    """Pictures of the user's own: nothing stored to compare with."""
    if source is None:
        return
    assert program.detector is not None
    pictures = PictureSet.find(source, program.detector.preprocess)
    for path, pixels in zip(pictures.paths, pictures, strict=True):
        yield path.name, partial(input_codes, program, pixels), None
