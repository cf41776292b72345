"""Write networks of the shapes of YOLOv3 and YOLOv3-tiny, with random weights, as .cfg and .weights.

    python benchmarks/shaped.py yolov3-tiny-shaped FOLDER [--size 416] [--classes 80]

Time and memory depend on the shape and not on what was learned, so these stand in where the trained files may not be
passed on. What they find means nothing: an AP of theirs says nothing about anything. Weights are drawn after He with a
fixed seed; batch norm has the statistics of pictures of noise, so that activations stay near one; the heads' biases are
set so that such pictures have about ``CANDIDATES`` boxes each above .25, and many more above .001. Real pictures differ
more from one another: some have none, some have hundreds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from click import echo
from torch import nn

from edgeyolo.detector import Detector
from edgeyolo.frontend.darknet import load_darknet
from edgeyolo.frontend.darknet.network import Network
from edgeyolo.frontend.darknet.weights import write_weights

SEED = 0
PICTURES = 8
CANDIDATES = 30
CONF = 0.25
CLASS_BIAS = -6.0
"""Most classes of a cell are improbable, as after training."""
BOX_SPREAD, SCORE_SPREAD = 0.3, 2.5
"""Standard deviations of the raw x, y, w, h and of raw objectness and classes, by and large."""
ANCHOR_SIDES = (0.03, 0.05, 0.08, 0.12, 0.18, 0.26, 0.38, 0.55, 0.8)
"""Of the picture's side; square."""


class Cfg:
    """The text of a cfg, a section at a time."""

    def __init__(self, size: int, classes: int, anchors: int) -> None:
        sides = [ANCHOR_SIDES[i * len(ANCHOR_SIDES) // anchors] * size for i in range(anchors)]
        self.classes = classes
        self.anchors = ", ".join(f"{side:.0f},{side:.0f}" for side in sides)
        self.count = anchors
        self.layers = -1
        self.sections = [f"[net]\nwidth={size}\nheight={size}\nchannels=3\n"]

    def add(self, kind: str, **keys: object) -> int:
        """Add a section; its layer's number."""
        self.sections.append("\n".join([f"[{kind}]", *(f"{key}={value}" for key, value in keys.items()), ""]))
        self.layers += 1
        return self.layers

    def conv(self, filters: int, size: int, stride: int = 1) -> int:
        """Convolution, batch norm, leaky."""
        return self.add(
            "convolutional", batch_normalize=1, filters=filters, size=size, stride=stride, pad=1, activation="leaky"
        )

    def head(self, *mask: int) -> None:
        """The last convolution of a scale and its [yolo]."""
        filters = len(mask) * (5 + self.classes)
        self.add("convolutional", filters=filters, size=1, stride=1, pad=1, activation="linear")
        words = ",".join(map(str, mask))
        self.add("yolo", mask=words, anchors=self.anchors, classes=self.classes, num=self.count)

    def rise(self, source: int, filters: int, beside: int) -> None:
        """From a layer to twice its height and width, joined with an earlier one."""
        self.add("route", layers=source)
        self.conv(filters, 1)
        self.add("upsample", stride=2)
        self.add("route", layers=f"-1,{beside}")


def tiny(size: int, classes: int) -> str:
    """Seven convolutions with pools between them, two scales."""
    cfg = Cfg(size, classes, 6)
    for filters in (16, 32, 64, 128):
        cfg.conv(filters, 3)
        cfg.add("maxpool", size=2, stride=2)
    beside = cfg.conv(256, 3)
    cfg.add("maxpool", size=2, stride=2)
    cfg.conv(512, 3)
    cfg.add("maxpool", size=2, stride=1)
    cfg.conv(1024, 3)
    neck = cfg.conv(256, 1)
    cfg.conv(512, 3)
    cfg.head(3, 4, 5)
    cfg.rise(neck, 128, beside)
    cfg.conv(256, 3)
    cfg.head(0, 1, 2)
    return "\n".join(cfg.sections)


def full(size: int, classes: int) -> str:
    """53 layers with residuals, three scales."""
    cfg = Cfg(size, classes, 9)
    neck = cfg.conv(32, 3)
    ends = []
    for filters, repeats in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        cfg.conv(filters, 3, 2)
        for _ in range(repeats):
            cfg.conv(filters // 2, 1)
            cfg.conv(filters, 3)
            neck = cfg.add("shortcut", **{"from": -3, "activation": "linear"})
        ends.append(neck)
    for scale, filters in enumerate((512, 256, 128)):
        if scale:
            cfg.rise(neck, filters, ends[4 - scale])
        for _ in range(2):
            cfg.conv(filters, 1)
            cfg.conv(2 * filters, 3)
        neck = cfg.conv(filters, 1)
        cfg.conv(2 * filters, 3)
        cfg.head(*range(6 - 3 * scale, 9 - 3 * scale))
    return "\n".join(cfg.sections)


SHAPES = {"yolov3-tiny-shaped": tiny, "yolov3-shaped": full}


def noise(width: int, height: int) -> npt.NDArray[np.float32]:
    """Pictures (N, 3, H, W) in [0, 1] whose amplitudes fall with frequency, as those of photographs do."""
    rng = np.random.default_rng(SEED)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    fall = 1 / np.maximum(np.hypot(rows, columns), 1 / max(width, height))
    spectrum = np.fft.rfft2(rng.standard_normal((PICTURES, 3, height, width))) * fall
    waves = np.fft.irfft2(spectrum, (height, width))
    grey = waves.mean(axis=1, keepdims=True) + 0.3 * waves  # channels of a photograph are much alike
    contrast = rng.uniform(0.15, 0.3, (PICTURES, 1, 1, 1)) / grey.std(axis=(1, 2, 3), keepdims=True)
    bright = rng.uniform(0.3, 0.6, (PICTURES, 1, 1, 1))
    return np.clip(bright + contrast * grey, 0, 1).astype(np.float32)


@torch.no_grad()
def fill(network: Network, detector: Detector) -> None:
    """Set all weights, statistics and biases; see above."""
    generator = torch.Generator().manual_seed(SEED)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            module.weight -= module.weight.mean(dim=(1, 2, 3), keepdim=True)  # what is the same everywhere says nothing
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of the one batch below
    pixels = torch.from_numpy(noise(detector.preprocess.width, detector.preprocess.height))
    network.train()
    network(pixels)
    network.eval()
    convs = [network.layers[str(index)].conv for index in network.outputs]
    for conv, head in zip(convs, detector.heads, strict=True):
        parts = conv.weight.view(len(head.anchors), 5 + head.classes, -1)
        parts[:, :4] *= BOX_SPREAD
        parts[:, 4:] *= SCORE_SPREAD
        conv.bias.view(len(head.anchors), -1)[:, 5:] = CLASS_BIAS
    heads = [head.numpy() for head in network(pixels)]
    shift = np.sort(
        np.concatenate([shifts(raw, len(head.anchors)) for raw, head in zip(heads, detector.heads, strict=True)])
    )
    for conv, head in zip(convs, detector.heads, strict=True):
        conv.bias.view(len(head.anchors), -1)[:, 4] = float(shift[CANDIDATES * PICTURES])


def shifts(raw: npt.NDArray[Any], anchors: int) -> npt.NDArray[Any]:
    """What each box's objectness lacks for its score to be ``CONF``, of those whose class can reach that.

    Args:
        raw: (N, anchors * (5 + classes), grid_h, grid_w).
        anchors: of this head.
    """
    cells = raw.reshape(len(raw), anchors, raw.shape[1] // anchors, -1)
    likely = 1 / (1 + np.exp(-cells[:, :, 5:]))
    able = likely > CONF
    needed = CONF / likely[able]
    lacks: npt.NDArray[Any] = np.log(needed / (1 - needed)) - np.broadcast_to(cells[:, :, 4:5], able.shape)[able]
    return lacks


def write(name: str, folder: Path, size: int = 416, classes: int = 80) -> tuple[Path, Path]:
    """Make NAME.cfg and NAME.weights in ``folder``.

    Args:
        name: a key of ``SHAPES``.
        folder: made where it is missing.
        size: of the network's input in pixels, a multiple of 32.
        classes: how many.

    Returns:
        The two files. Those that are there are written again, and come out the same on the same machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cfg, weights = folder / f"{name}.cfg", folder / f"{name}.weights"
    cfg.write_text(SHAPES[name](size, classes), "utf-8")
    model = load_darknet(cfg)
    fill(model.module, model.detector)
    write_weights(model.module, weights)
    return cfg, weights


def main() -> None:
    """Write one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--classes", type=int, default=80)
    options = parser.parse_args()
    for path in write(options.name, options.folder, options.size, options.classes):
        echo(path)


if __name__ == "__main__":
    main()
