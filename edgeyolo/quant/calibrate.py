"""Run the float model over calibration pictures and observe what its activations look like, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgeyolo.detector import Detector
from edgeyolo.ort import Arrays, model_bytes, open_session, run
from edgeyolo.passes.graph import read_detector
from edgeyolo.quant.observers import Histogram
from edgeyolo.quant.sites import find_sites

Pixels = npt.NDArray[np.uint8]
"""(C, H, W) network pixels: resized as the model's metadata says, not yet scaled."""
Progress = Callable[[Iterable[Pixels], str], Iterable[Pixels]]


def copy_model(model: ir.Model) -> ir.Model:
    """A deep copy."""
    return ir.from_proto(ir.to_proto(model))


def with_outputs(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """A copy whose outputs are the values called ``names``, in that order."""
    copy = copy_model(model)
    values = {str(v.name): v for node in copy.graph for v in node.outputs}
    copy.graph.outputs[:] = [values[name] for name in names]
    common_passes.RemoveUnusedNodesPass()(copy)
    return copy


def to_float(pixels: Pixels, detector: Detector) -> npt.NDArray[np.float32]:
    """Network pixels (C, H, W) uint8 to the model's input (1, C, H, W) float32."""
    return pixels[None].astype(np.float32) * np.float32(detector.preprocess.scale)


def run_pictures(model: ir.Model, names: list[str], pictures: Iterable[Pixels]) -> Iterator[Arrays]:
    """Yield the values called ``names`` for one picture after the other, without graph optimisations."""
    detector = read_detector(model)
    session = open_session(model_bytes(with_outputs(model, names)), optimise=False)
    for pixels in pictures:
        yield run(session, to_float(pixels, detector))


def peak_values(model: ir.Model, pictures: Iterable[Pixels]) -> dict[str, float]:
    """Largest magnitude of every float value of ``model`` on these pictures, by name."""
    names = [str(v.name) for n in model.graph if n.op_type != "QuantizeLinear" for v in n.outputs]
    peaks = dict.fromkeys(names, 0.0)
    for values in run_pictures(model, names, pictures):
        for name, value in values.items():
            peaks[name] = max(peaks[name], float(np.abs(value).max(initial=0)))
    return peaks


def observe(model: ir.Model, pictures: Iterable[Pixels]) -> tuple[dict[str, Histogram], Arrays]:
    """Histogram of every free site, and the largest magnitude of each channel (C,) of every site."""
    return observe_values(model, [name for name, site in find_sites(model).items() if site.same_as is None], pictures)


def observe_values(
    model: ir.Model, names: Collection[str], pictures: Iterable[Pixels]
) -> tuple[dict[str, Histogram], Arrays]:
    """``observe`` for the values called ``names`` and the input."""
    detector, source = read_detector(model), str(model.graph.inputs[0].name)
    computed = [name for name in names if name != source]
    histograms = {name: Histogram() for name in computed} | {source: Histogram()}
    peaks: Arrays = {}
    session = open_session(model_bytes(with_outputs(model, computed)), optimise=False) if computed else None
    for pixels in pictures:
        feed = to_float(pixels, detector)
        for name, value in ({source: feed} | (run(session, feed) if session else {})).items():
            histograms[name].update(value)
            peak = np.abs(value).max(axis=tuple(i for i in range(value.ndim) if i != 1))
            peaks[name] = np.maximum(peaks[name], peak) if name in peaks else peak
    return histograms, peaks
