"""Compare the quantised model with the float model on pictures: the heads' SNR, and every layer's table.

Plain cosine similarity of raw heads is a bad gate: a net that detects nothing still scores .90, because most of a
head is its channels' constant part. The head SNR here removes the float channel means from the signal first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeyolo.ort import Arrays
from edgeyolo.qtype import TensorQuant
from edgeyolo.quant.calibrate import Pixels, run_pictures


class _Sums:
    """Running sums of one value over pictures: enough for SQNR, cosine, centred SNR and saturation shares."""

    def __init__(self) -> None:
        self.signal = self.noise = self.product = self.energy = 0.0
        self.total: npt.NDArray[np.float64] | float = 0.0
        self.count = self.positions = 0
        self.clipped = self.saturated = 0

    def update(self, exact: npt.NDArray[np.float32], got: npt.NDArray[np.float32]) -> None:
        # One picture's dot products are accurate enough in float32; the sums over pictures are float64.
        a, b = exact.ravel(), got.ravel()
        error = a - b
        self.signal += float(a @ a)
        self.energy += float(b @ b)
        self.product += float(a @ b)
        self.noise += float(error @ error)
        self.total = self.total + exact.sum(axis=tuple(i for i in range(exact.ndim) if i != 1), dtype=np.float64)
        self.count += a.size
        self.positions += a.size // exact.shape[1]

    @property
    def sqnr(self) -> float:
        return _decibel(self.signal, self.noise)

    @property
    def centred_snr(self) -> float:
        """Signal power around its channel means over noise power, in dB."""
        means = float(np.sum(np.square(self.total)) / self.positions)
        return _decibel(self.signal - means, self.noise)

    @property
    def cosine(self) -> float:
        return self.product / max(float(np.sqrt(self.signal * self.energy)), 1e-30)


def _decibel(signal: float, noise: float) -> float:
    return float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30)))


@dataclass(frozen=True)
class LayerReport:
    """One quantised value against float: SQNR and cosine, share of float values beyond the range, share at its ends.

    ``frac`` is None where the scale is no power of two.
    """

    name: str
    qtype: str
    scale: float
    frac: int | None
    sqnr_db: float
    snr_db: float
    cosine: float
    clipped: float
    saturated: float

    def to_json(self) -> dict[str, object]:
        """JSON-able, rounded to what the figures are worth."""
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


def compare_layers(
    model: ir.Model, quantised: ir.Model, acts: Mapping[str, TensorQuant], pictures: Iterable[Pixels]
) -> list[LayerReport]:
    """The table of the values that ``acts`` names, in its order; the network's input is left out."""
    names = [name for name in acts if name != model.graph.inputs[0].name]
    pictures = list(pictures)
    sums = {name: _Sums() for name in names}
    runs = zip(run_pictures(model, names, pictures), run_pictures(quantised, names, pictures), strict=True)
    for exact, got in runs:
        for name in names:
            quant, s = acts[name], sums[name]
            s.update(exact[name], got[name])
            low, high = quant.dequantise(np.array([quant.qtype.lo, quant.qtype.hi]))
            s.clipped += int(np.count_nonzero((exact[name] < low) | (exact[name] > high)))
            s.saturated += int(np.count_nonzero((got[name] <= low) | (got[name] >= high)))
    return [
        LayerReport(
            name,
            str(acts[name].qtype),
            float(acts[name].scale),
            int(acts[name].frac) if acts[name].qtype.scale == "pow2" else None,
            s.sqnr,
            s.centred_snr,
            s.cosine,
            s.clipped / s.count,
            s.saturated / s.count,
        )
        for name, s in sums.items()
    ]


class HeadSnr:
    """Signal-to-noise ratio of all raw outputs together, float channel means removed from the signal."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}

    def add(self, exact: Arrays, got: Arrays) -> None:
        """Take one picture's outputs by name."""
        for name, value in exact.items():
            self._sums.setdefault(name, _Sums()).update(value, got[name])

    @property
    def decibel(self) -> float:
        """The ratio in dB over everything added."""
        sums = self._sums.values()
        signal = sum(s.signal - float(np.sum(np.square(s.total)) / s.positions) for s in sums)
        return _decibel(signal, sum(s.noise for s in sums))


def head_snr(model: ir.Model, quantised: ir.Model, pictures: Iterable[Pixels]) -> float:
    """The heads' SNR of ``quantised`` against ``model`` on pictures, in dB."""
    names, pictures, snr = [str(v.name) for v in model.graph.outputs], list(pictures), HeadSnr()
    for exact, got in zip(run_pictures(model, names, pictures), run_pictures(quantised, names, pictures), strict=True):
        snr.add(exact, got)
    return snr.decibel
