"""The stages that the ledger compares, each with what executes it and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from edgeyolo.errors import InputError
from edgeyolo.export.costs import graph_macs, plan_bytes, program_macs
from edgeyolo.images import Pixels
from edgeyolo.ort import model_bytes, open_session, run
from edgeyolo.passes.graph import read_detector
from edgeyolo.postprocess import Floats
from edgeyolo.program import IntegerProgram
from edgeyolo.program_image import encode_program
from edgeyolo.qtype import TensorQuant
from edgeyolo.quant.calibrate import to_float
from edgeyolo.quant.quantise import QuantResult
from edgeyolo.runners.engine import EngineRunner
from edgeyolo.runners.integer import Codes, input_codes, run_integer

FLOAT_STAGES = {
    "10-exported": "source",
    "20-folded": "BN folded",
    "30-simplified": "simplified",
    "40-fixed-form": "fixed form",
}
"""Saved stage -> its row. Fixed form: raw pixels in, dyadic slopes inside."""
INTEGER = "integer program"
ENGINE_PAYS = 1 << 30
"""MACs from which on compiling the engine (1.5 s) is quicker than numpy (2.4 ns a MAC against 0.2)."""

Heads = list[Floats]
"""Raw outputs (1, C, grid_h, grid_w) in the order of ``detector.heads``."""
Execute = Callable[[Pixels], Heads]


@dataclass(frozen=True, eq=False)
class Stage:
    """One row to be: ``open`` gives what turns network pixels into raw heads; the rest as in ``LedgerRow``."""

    name: str
    open: Callable[[], Execute]
    nbytes: int
    macs: int
    kept: bool | None = None


def float_stages(floats: dict[str, ir.Model]) -> list[Stage]:
    """The rows of the models of ``FLOAT_STAGES`` that there are, in order."""
    return [
        Stage(name, partial(onnx_heads, model, optimise=True), len(model_bytes(model)), graph_macs(model))
        for name, model in ((name, floats[key]) for key, name in FLOAT_STAGES.items() if key in floats)
    ]


def ledger_stages(
    floats: dict[str, ir.Model], quant: QuantResult, program: IntegerProgram, images: int, pictures: int
) -> list[Stage]:
    """The stages of one export, in order.

    Args:
        floats: the models of ``FLOAT_STAGES`` that there are.
        quant: the candidates.
        program: what the kept one was lowered to.
        images: bytes of the weight images.
        pictures: how many each stage will see, which decides whether compiling the engine pays.
    """
    stages = float_stages(floats)
    macs = program_macs(program)
    for candidate in quant.candidates:
        run_exactly = partial(onnx_heads, candidate.model, optimise=False)
        kept = candidate.model is quant.model
        stages.append(Stage(candidate.name, run_exactly, plan_bytes(candidate.plan), macs, kept))
    run_program = partial(program_heads, program, engine=macs * pictures >= ENGINE_PAYS)
    return [*stages, Stage(INTEGER, run_program, images, macs)]


def onnx_heads(model: ir.Model, *, optimise: bool) -> Execute:
    """Execute an ONNX graph; a quantised one is exact with ``optimise`` off."""
    session, detector = open_session(model, optimise=optimise), read_detector(model)

    def execute(pixels: Pixels) -> Heads:
        values = run(session, to_float(pixels, detector), [head.output for head in detector.heads])
        return [values[head.output] for head in detector.heads]

    return execute


def program_heads(program: IntegerProgram, *, engine: bool) -> Execute:
    """Execute an integer program in the C engine, or in numpy, which gives the same integers."""
    outputs = [program.tensors[i] for i in program.outputs]
    run_codes: Callable[[Codes], list[Codes]] = partial(run_integer, program)
    if engine:
        with suppress(InputError):  # there is no C compiler
            run_codes = EngineRunner(encode_program(program)).run

    def execute(pixels: Pixels) -> Heads:
        results = run_codes(input_codes(program, pixels))
        return [TensorQuant.pow2(t.qtype, t.frac).dequantise(r)[None] for t, r in zip(outputs, results, strict=True)]

    return execute
