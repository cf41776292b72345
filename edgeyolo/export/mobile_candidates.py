"""The graphs among which a measurement decides: float32, float16, and int8 graphs that keep different layers float.

Speed does not depend on the integers' values, so the int8 ones are quantised without any refinement, on few pictures.
The same model, pictures and options make the same bytes, by which a record from another device is recognised.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgeyolo.errors import UnsupportedError
from edgeyolo.export.pictures import PictureSet
from edgeyolo.lower.mobile.formats import encode
from edgeyolo.lower.mobile.half import to_half
from edgeyolo.lower.mobile.quantise import candidates, quantise_mobile
from edgeyolo.lower.tensorrt.quantise import Int8Config
from edgeyolo.mobile import MobileBoard
from edgeyolo.ort import model_bytes
from edgeyolo.passes.widen import widened
from edgeyolo.quant.calibrate import peak_values

PICTURES = 4
"""Enough to run; what they show does not change the time of a network."""


@dataclass(frozen=True)
class Candidates:
    """What may be measured.

    Args:
        graphs: ONNX files by name, ``fp32`` first, then ``fp16``, ``int8``, ``int8-1`` and so on.
        keep_float: of each int8 graph the layers that stay float in it.
    """

    graphs: dict[str, bytes]
    keep_float: dict[str, tuple[str, ...]]

    def write(self, folder: Path) -> list[Path]:
        """Write NAME.onnx of each into ``folder``; their paths in order."""
        paths = [folder / f"{name}.onnx" for name in self.graphs]
        for path, data in zip(paths, self.graphs.values(), strict=True):
            path.write_bytes(data)
        return paths


def make_candidates(
    model: ir.Model, pictures: PictureSet, board: MobileBoard, keep_float: tuple[str, ...]
) -> Candidates:  # fmt: skip
    """All candidates of a float ``model``.

    Args:
        model: float graph.
        pictures: for calibration, of which a few are used.
        board: says the integers' format.
        keep_float: what the user wants to be float whatever is measured.

    Raises UnsupportedError if ``keep_float`` leaves nothing to quantise.
    """
    few = pictures.spread(PICTURES)

    def ready(variant: ir.Model) -> bytes:
        return model_bytes(widened(variant, board.channel_block))

    graphs = {"fp32": ready(model), "fp16": ready(to_half(model, peak_values(model, few)))}
    keeps: dict[str, tuple[str, ...]] = {}
    wanted = [(part for part in found if part != "head") for found in candidates(model)]
    for keep in dict.fromkeys(tuple(dict.fromkeys((*keep_float, *more))) for more in wanted):
        name = f"int8-{len(keeps)}" if keeps else "int8"
        config = Int8Config("minmax", keep, equalise=False, correct_bias=False, reconstruct=False)
        try:
            quantised = quantise_mobile(model, few, config).best.model
        except UnsupportedError:
            if not keeps:  # the user's own choice, of which all others are more
                raise
            continue
        graphs[name], keeps[name] = ready(encode(quantised, board.int8_format.upper())), keep
    return Candidates(graphs, keeps)
