"""Prove a bundle: Python integers = ONNX Runtime = the compiled C engine, every layer, tolerance 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from edgeyolo.bundle import MODEL, PROGRAM, Bundle
from edgeyolo.errors import BundleError, InputError
from edgeyolo.export.golden import Oracle, first_difference, golden_name, layer_codes
from edgeyolo.export.pictures import PictureSet
from edgeyolo.frontend.onnx_file import load_onnx
from edgeyolo.lower.blob_index import BlobIndex
from edgeyolo.lower.blobs import INDEX_FILE, read_blobs
from edgeyolo.lower.fixed import lower_fixed
from edgeyolo.program import Conv, IntegerProgram, accumulator_bound
from edgeyolo.program_image import decode_program, encode_program
from edgeyolo.progress import Log
from edgeyolo.quant.plan import EXACT_BITS
from edgeyolo.runners.engine import EngineRunner, is_own_engine
from edgeyolo.runners.integer import Codes, input_codes

CHECKS = ("golden", "ort", "engine")
"""What the Python integers are compared with: stored golden data, ONNX Runtime, the C engine."""
MAX_GOLDEN = 1000

Contender = Callable[[Codes], list[Codes]]


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
    with log.stage("files") as details:
        bundle = Bundle.open(path)
        image = bundle.read(PROGRAM)
        program = replace(decode_program(image, str(path / PROGRAM)), detector=bundle.detector)
        details.append(f"{len(bundle.manifest['files'])} files match size and SHA-256")
        details.append(_check_weights(bundle, program))
    contenders: dict[str, Contender] = {}
    if "ort" not in skip:
        with log.stage("oracle") as details:
            contenders["ort"] = _oracle(bundle, program, image)
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
    bounds = [accumulator_bound(op.weight, op.bias, program.tensors[op.input].qtype) for op in convs]
    verdict = Verdict(len(program.ops), len(convs), sum(bound <= 1 << EXACT_BITS for bound in bounds))
    golden = _golden(bundle, program) if "golden" not in skip else []
    pictures = [*golden, *_more(more, program)]
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


def _check_weights(bundle: Bundle, program: IntegerProgram) -> str:
    """Compare the weight images with the program's own weights."""
    name = f"weights/{INDEX_FILE}"
    if name not in bundle.manifest["files"]:
        return "weights in a foreign layout, checked by hash only"
    index = BlobIndex.from_json(bundle.read(name).decode("utf-8", "replace"))
    codes = read_blobs(bundle.path / "weights", index, program)
    convs = [(i, op) for i, op in enumerate(program.ops) if isinstance(op, Conv)]
    for number, op in convs:
        blob = codes.convs[number]
        if not (np.array_equal(op.weight, blob.weight) and np.array_equal(op.bias, blob.bias)):
            raise BundleError("the weight images differ from the program", where=f"layer {number} {op.name}")
    return f"weight images equal the program's ({len(convs)} convolutions)"


def _oracle(bundle: Bundle, program: IntegerProgram, image: bytes) -> Contender:
    """Open the QDQ file, and prove that the program is its lowering."""
    model, _ = load_onnx(bundle.path / MODEL)
    if encode_program(lower_fixed(model)) != image:
        raise BundleError(f"{PROGRAM} is not what {MODEL} lowers to", where=bundle.path, hint="export the bundle again")
    oracle = Oracle(model)
    return lambda codes: oracle.layers(program, codes)


Job = tuple[str, Callable[[], Codes], Contender | None]


def _golden(bundle: Bundle, program: IntegerProgram) -> list[Job]:
    """The stored pictures; their layers are read when they are compared."""
    count = len({name.split("/")[1] for name in bundle.names("golden/") if name.count("/") == 2})
    if count > MAX_GOLDEN:
        raise BundleError("too many golden pictures", where=bundle.path, got=count, allowed=MAX_GOLDEN)
    return [_golden_job(bundle, program, number) for number in range(count)]


def _golden_job(bundle: Bundle, program: IntegerProgram, number: int) -> Job:
    def stored(tensor: int, part: str) -> Codes:
        shape, dtype = program.tensors[tensor].shape, program.tensors[tensor].qtype.dtype
        name = golden_name(number, part)
        data = bundle.read(name)
        if len(data) != program.tensors[tensor].nbytes:
            raise BundleError("golden data has the wrong size", where=name, got=len(data), allowed=f"{shape} {dtype}")
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(shape)

    def layers(_: Codes) -> list[Codes]:
        return [stored(op.output, f"{index:03d}") for index, op in enumerate(program.ops)]

    return f"golden {number}", lambda: stored(program.input, "input"), layers


def _more(source: Path | None, program: IntegerProgram) -> Iterator[Job]:
    """Pictures of the user's own: nothing stored to compare with."""
    if source is None:
        return
    assert program.detector is not None
    pictures = PictureSet.find(source, program.detector.preprocess)
    for path, pixels in zip(pictures.paths, pictures, strict=True):
        yield path.name, partial(input_codes, program, pixels), None
