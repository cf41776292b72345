"""Darknet in: a cfg and its weights become a torch module with its detector facts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeyolo.detector import Detector
from edgeyolo.errors import EdgeYoloError, InputError
from edgeyolo.frontend.darknet.cfg import Section, read_cfg
from edgeyolo.frontend.darknet.heads import (
    cfg_size,
    check_size,
    find_outputs,
    largest_stride,
    make_detector,
    parse_imgsz,
    read_names,
)
from edgeyolo.frontend.darknet.keys import check
from edgeyolo.frontend.darknet.plan import check_live_values, plan_network
from edgeyolo.frontend.darknet.spec import Conv, Layer, Pair, Pool, Reorg, Route, Shape, Upsample

if TYPE_CHECKING:
    from edgeyolo.frontend.darknet.network import Network

PROGRAMS = ("alexeyab", "pjreddie")


@dataclass(frozen=True)
class LayerInfo:
    """One row of Darknet's layer table.

    Args:
        index: Darknet's layer number.
        kind: the section's name.
        filters: of a convolution or connected layer, else 0.
        size: kernel, stride and dilation, or the layers it reads.
        input, output: (C, H, W).
        params: weights and biases, batch norm folded; ``biases`` of them are biases.
        macs: multiply-accumulates per picture.
    """

    index: int
    kind: str
    filters: int
    size: str
    input: Shape
    output: Shape
    params: int
    biases: int
    macs: int


@dataclass(frozen=True)
class DarknetDescription:
    """What a cfg says without its weights.

    Args:
        detector: None if the network ends in neither a head nor class scores; ``notes`` then says so.
        peak_values: activations alive at one time per picture.
    """

    layers: tuple[LayerInfo, ...]
    detector: Detector | None
    notes: tuple[str, ...]
    peak_values: int


@dataclass(frozen=True, eq=False)
class DarknetModel:
    """A loaded network.

    Args:
        module: in eval mode; forward(x: (N, C, H, W) float32, RGB or grey in [0, 1]) returns one raw tensor per head,
            (N, anchors * entries, grid_h, grid_w), before any sigmoid, or (N, classes) logits of a classifier.
        detector: preprocessing and heads, in the order of the outputs.
        layers: Darknet's layer table.
        notes: what the reader should know: ignored keys, a partial weights file.
    """

    module: Network
    detector: Detector
    layers: tuple[LayerInfo, ...]
    notes: tuple[str, ...]


def describe_darknet(cfg: Path, imgsz: str | None = None) -> DarknetDescription:
    """Shapes and sizes of a cfg, computed without torch and without allocating anything.

    Raises InputError or UnsupportedError as ``load_darknet`` does.
    """
    sections, layers, size, notes = _plan(cfg, imgsz, "alexeyab")
    outputs, _ = find_outputs(layers)
    peak = check_live_values(layers, outputs, str(cfg))
    try:
        detector = make_detector(sections, layers, size, (), region_sigmoid=True)
    except InputError:
        raise
    except EdgeYoloError as error:
        return DarknetDescription(tuple(map(_info, layers)), None, (*notes, error.what), peak)
    return DarknetDescription(tuple(map(_info, layers)), detector, notes, peak)


def load_darknet(
    cfg: Path,
    weights: Path | None = None,
    *,
    imgsz: str | None = None,
    bn_eps: str = "alexeyab",
    names: Path | None = None,
) -> DarknetModel:
    """Read a Darknet network.

    Args:
        cfg: the network's text.
        weights: its weights; None initialises at random, always alike.
        imgsz: ``416`` or ``1024x576`` (width x height) instead of the cfg's size.
        bn_eps: whose batch norm: ``alexeyab`` divides by sqrt(var + 1e-5), ``pjreddie`` by sqrt(var) + 1e-6. The same
            program's rule holds for a shortcut between layers of different height and width (AlexeyAB adds the flat
            memory, pjreddie every n-th pixel) and for [region] without softmax=1 (only pjreddie's is supported).
        names: class names, one a line.

    Raises:
        InputError: unreadable, damaged or contradictory files, a size that is no multiple of the largest stride.
        UnsupportedError: sections, keys or words that cannot be reproduced exactly, all in one error.
    """
    if bn_eps not in PROGRAMS:
        raise InputError("unknown batch norm rule", got=bn_eps, allowed=", ".join(PROGRAMS))
    sections, layers, size, notes = _plan(cfg, imgsz, bn_eps)
    outputs, classifier = find_outputs(layers)
    check_live_values(layers, outputs, str(cfg))
    class_names = read_names(names) if names else ()
    detector = make_detector(sections, layers, size, class_names, region_sigmoid=bn_eps == "pjreddie")

    from edgeyolo.frontend.darknet.network import Network, initialise
    from edgeyolo.frontend.darknet.weights import load_weights

    module = Network(layers, outputs, classifier=classifier, bn_eps=bn_eps)
    if weights is None:
        initialise(module, layers)
        notes = (*notes, "no weights given: all weights are random, from a fixed seed")
    else:
        notes = (*notes, *load_weights(module, weights))
    return DarknetModel(module.eval(), detector, tuple(map(_info, layers)), notes)


def _plan(cfg: Path, imgsz: str | None, program: str) -> tuple[list[Section], tuple[Layer, ...], Pair, tuple[str, ...]]:
    sections = read_cfg(cfg)
    notes = check(sections)
    size, sampled = cfg_size(sections[0]), program == "pjreddie"
    layers = plan_network(sections, size, sampled_shortcut=sampled)
    step = largest_stride(layers)
    if imgsz is not None:
        size = parse_imgsz(imgsz)
        check_size(size, step)  # before planning: at another size the routes of a pyramid do not even fit
        layers = plan_network(sections, size, sampled_shortcut=sampled)
    elif size[0] % step[0] or size[1] % step[1]:
        notes = (*notes, f"the input {size[1]}x{size[0]} is no multiple of the largest stride {step[1]}x{step[0]}")
    return sections, layers, size, notes


def _info(layer: Layer) -> LayerInfo:
    spec = layer.spec
    return LayerInfo(
        layer.index,
        layer.kind,
        spec.filters if isinstance(spec, Conv) else 0,
        _size_text(layer),
        layer.input,
        layer.output,
        layer.weights + layer.biases,
        layer.biases,
        layer.macs,
    )


def _size_text(layer: Layer) -> str:
    spec = layer.spec
    if isinstance(spec, Conv) and layer.kind != "connected":
        grouped = f" g{spec.groups}" if spec.groups > 1 else ""
        dilated = f" ({spec.dilation})" if spec.dilation > 1 else ""
        return f"{spec.kernel[0]}x{spec.kernel[1]}/{_strides(spec.stride)}{dilated}{grouped}"
    if isinstance(spec, Pool):
        return f"{spec.size}x{spec.size}/{_strides(spec.stride)}"
    if isinstance(spec, Upsample):
        return f"{spec.stride}x"
    if isinstance(spec, Reorg):
        return f"/{spec.stride}"
    if isinstance(spec, Route):
        part = f" {spec.group_id}/{spec.groups}" if spec.groups > 1 else ""
        return " ".join(map(str, layer.sources)) + part
    return " ".join(map(str, layer.sources[1:]))


def _strides(stride: Pair) -> str:
    return str(stride[0]) if stride[0] == stride[1] else f"{stride[1]}x{stride[0]}"
