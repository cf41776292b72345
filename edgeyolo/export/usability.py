"""Whether an accelerator of a phone is worth trying, as far as ONNX Runtime's mobile usability checker can tell.

An execution provider takes the operators it knows; each group of them that hangs together is a partition, and between
partitions data goes to and fro. The checker counts both from lists of operators that ONNX Runtime ships, without a
phone and without network. It looks at operators only, not at their attributes or at speed: ``MAYBE`` means measure.
It knows NNAPI and Core ML; for XNNPACK the list is ours (targets/mobile/xnnpack_ops.md).
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any

from edgeyolo.errors import InputError

XNNPACK_OPS = "xnnpack_ops.md"
XNNPACK_NOTE = "XNNPACK runs on the CPU: between its parts no data is copied to a device, but changes its layout.\n"


@dataclass(frozen=True)
class UsabilityRow:
    """One provider.

    Args:
        provider: its name for people; Core ML has two forms with different operators.
        supported, nodes: operators of the model that it takes, and all.
        partitions: groups of those; the fewer the better.
        verdict: ``YES``, ``MAYBE`` or ``NO``, the checker's.
    """

    provider: str
    supported: int
    nodes: int
    partitions: int
    verdict: str


@dataclass(frozen=True)
class Usability:
    """The report for people, and the same as numbers."""

    text: str
    rows: tuple[UsabilityRow, ...]


def usability(model: bytes) -> Usability:
    """Check an ONNX file for every provider that ONNX Runtime can check.

    Raises InputError where the file contradicts itself, so that its shapes cannot be inferred.
    """
    import onnx
    from onnxruntime.tools.mobile_helpers import usability_checker as checker

    coreml = {
        "CoreML NeuralNetwork": "coreml_supported_neuralnetwork_ops.md",
        "CoreML MLProgram": "coreml_supported_mlprogram_ops.md",
    }
    checks: dict[str, Callable[..., Any]] = {"NNAPI": checker.check_nnapi_partitions}
    checks |= {name: partial(checker.check_coreml_partitions, config_filename=file) for name, file in coreml.items()}
    # It looks for lists in a folder of its own, to which a whole path adds nothing.
    ours = str(files("edgeyolo.targets.mobile").joinpath(XNNPACK_OPS))
    checks["XNNPACK"] = partial(checker.check_coreml_partitions, config_filename=ours)
    bare = onnx.load_model_from_string(model)
    del bare.graph.value_info[:]  # what other tools left there may be out of date
    try:
        shaped = onnx.shape_inference.infer_shapes(bare, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise InputError("the shapes in the model cannot be inferred", got=str(error)[:500]) from error
    log = io.StringIO()
    logger = logging.Logger("usability", logging.INFO)  # of its own, so that nothing else's settings matter
    logger.addHandler(logging.StreamHandler(log))
    dynamic, unknown = checker.check_shapes(shaped.graph, logger)
    rows = []
    for name, check in checks.items():
        # The check of shapes takes an input that is left out, such as the roi of a Resize, for one of unknown shape.
        # So it only runs where there are such shapes.
        found = check(shaped, require_fixed_input_sizes=bool(dynamic or unknown))
        verdict = found.suitability().name
        logger.info(f"\n{name}: {verdict}")
        found.print_analysis(logger, name)
        rows.append(UsabilityRow(name, found.num_supported_nodes, found.num_nodes, found.num_partitions, verdict))
    return Usability(f"{log.getvalue()}\n{XNNPACK_NOTE}", tuple(rows))
