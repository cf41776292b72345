"""The stages that every target shares: BN folding and simplification, each with its numeric parity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeyolo.detector import Preprocess
from edgeyolo.errors import InputError
from edgeyolo.images import Pixels
from edgeyolo.ort import model_bytes, open_session, run
from edgeyolo.passes.fold_batchnorm import FoldBatchNorm
from edgeyolo.passes.graph import drop_unused, read_detector
from edgeyolo.passes.merge_pad_pool import MergePadPool
from edgeyolo.passes.simplify import count_nodes, simplify
from edgeyolo.progress import Log
from edgeyolo.quant.calibrate import copy_model, to_float

PARITY_PICTURES = 4


@dataclass(frozen=True)
class Parity:
    """Largest absolute difference of the raw heads over a stage, on ``pictures`` real pictures (0: noise)."""

    stage: str
    max_abs_difference: float
    pictures: int

    @property
    def text(self) -> str:
        """For people."""
        where = f"{self.pictures} pictures" if self.pictures else "noise, no pictures given"
        return f"heads differ by at most {self.max_abs_difference:.1e} ({where})"


class Stages:
    """Keeps the model after every stage by its name, and writes it into a folder where there is one."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.models: dict[str, ir.Model] = {}

    def save(self, name: str, model: ir.Model) -> None:
        """Keep ``model`` and write ``<name>.onnx``. Raises InputError if the disk refuses."""
        self.models[name] = model
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{name}.onnx").write_bytes(model_bytes(model))
        except OSError as error:
            raise InputError("cannot save a stage", where=self.folder / name, got=error.strerror) from error


def prepare(
    model: ir.Model, pictures: Sequence[Pixels], stages: Stages, log: Log, *, simplified: bool = True
) -> tuple[ir.Model, list[Parity]]:
    """Fold BatchNorm and simplify.

    Args:
        model: from a front end, batch 1 or symbolic.
        pictures: a few network pictures for the parity figures; none: seeded noise is used and said so.
    """
    stages.save("10-exported", model)
    parities: list[Parity] = []
    with log.stage("fold BN") as details:
        folded, fold = copy_model(model), FoldBatchNorm()
        fold(folded)
        drop_unused(folded)
        parities.append(parity("folded", model, folded, pictures))
        details += [f"{fold.folded} folded", *fold.declined, parities[-1].text]
    stages.save("20-folded", folded)
    if not simplified:
        MergePadPool()(folded)
        return folded, parities
    with log.stage("simplify") as details:
        simple, _ = simplify(folded)
        MergePadPool()(simple)
        parities.append(parity("simplified", folded, simple, pictures))
        before, after = (sum(count_nodes(m).values()) for m in (folded, simple))
        details += [f"{before} -> {after} nodes", parities[-1].text]
    stages.save("30-simplified", simple)
    return simple, parities


def parity(stage: str, before: ir.Model, after: ir.Model, pictures: Sequence[Pixels]) -> Parity:
    """Compare the raw outputs of two float models."""
    sessions = [(open_session(m, optimise=False), read_detector(m)) for m in (before, after)]
    worst = 0.0
    for pixels in pictures or _noise(read_detector(before).preprocess):
        expected, got = (run(session, to_float(pixels, detector)) for session, detector in sessions)
        worst = max([worst, *(float(np.abs(got[name] - value).max()) for name, value in expected.items())])
    return Parity(stage, worst, len(pictures))


def _noise(preprocess: Preprocess) -> Iterable[Pixels]:
    generator = np.random.default_rng(0)
    shape = (preprocess.channels, preprocess.height, preprocess.width)
    return [generator.integers(0, 256, shape, dtype=np.uint8)]
