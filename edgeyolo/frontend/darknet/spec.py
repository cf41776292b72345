"""The layers of a Darknet network as frozen records: geometry, shapes and sizes, before any weight exists."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

Shape = tuple[int, int, int]
"""(channels, height, width) of one picture."""
Pair = tuple[int, int]
"""(vertical, horizontal)."""


@dataclass(frozen=True)
class Conv:
    """A convolution with bias or batch norm; a [connected] layer is one whose kernel covers its whole input."""

    filters: int
    groups: int
    kernel: Pair
    stride: Pair
    padding: int
    dilation: int
    batch_normalize: bool
    activation: str


@dataclass(frozen=True)
class Pool:
    """A maximum or a mean over a window. pads: top, left, bottom, right; a mean counts real pixels only."""

    size: int
    stride: Pair
    pads: tuple[int, int, int, int]
    average: bool


@dataclass(frozen=True)
class GlobalAverage:
    """The mean over the whole picture."""


@dataclass(frozen=True)
class Route:
    """Group ``group_id`` of ``groups`` of every source, concatenated."""

    groups: int
    group_id: int


@dataclass(frozen=True)
class Shortcut:
    """The first source plus all others, weighted if ``weights`` (1 or C per source) is not 0.

    normalization: none, relu or softmax. sampled: where width and height differ, add every n-th pixel (pjreddie)
    instead of the flat memory (AlexeyAB).
    """

    weights: int
    normalization: str
    activation: str
    sampled: bool


@dataclass(frozen=True)
class Upsample:
    """Nearest neighbour by an integer factor, then times ``scale``."""

    stride: int
    scale: float


@dataclass(frozen=True)
class Reorg:
    """Space to depth over the memory seen as ``grid`` (C, H, W), or back; [reorg] and [reorg3d] differ in the grid."""

    stride: int
    reverse: bool
    grid: Shape


@dataclass(frozen=True)
class ScaleChannels:
    """The second source times the first, which has one value per channel (or per pixel if ``per_pixel``)."""

    per_pixel: bool
    activation: str


@dataclass(frozen=True)
class Sam:
    """Both sources multiplied, then the activation."""

    activation: str


@dataclass(frozen=True)
class Softmax:
    """Softmax of x / temperature over each of ``groups`` equal parts of the flat memory."""

    groups: int
    temperature: float


@dataclass(frozen=True)
class BatchNorm:
    """A batch norm on its own."""


@dataclass(frozen=True)
class Activation:
    """An activation on its own."""

    activation: str


@dataclass(frozen=True)
class Identity:
    """Passes its input on: dropout, cost, empty."""


@dataclass(frozen=True)
class DetectionHead:
    """[yolo], [Gaussian_yolo], [region]: its input is a raw output of the network."""


@dataclass(frozen=True)
class Input:
    """The picture, layer -1."""


Spec = (
    Conv
    | Pool
    | GlobalAverage
    | Route
    | Shortcut
    | Upsample
    | Reorg
    | ScaleChannels
    | Sam
    | Softmax
    | BatchNorm
    | Activation
    | Identity
    | DetectionHead
    | Input
)


@dataclass(frozen=True)
class Layer:
    """One layer in place.

    Args:
        index: Darknet's layer number; -1 is the picture.
        kind: the section's name.
        sources: the layers it reads, in the order that ``spec`` expects.
        inputs: the shapes of ``sources``.
        output: the shape it writes.
        pixel: picture pixels per output pixel, (vertical, horizontal), by strides alone.
        weights, biases: parameters with batch norm folded.
        macs: multiply-accumulates per picture.
    """

    index: int
    kind: str
    spec: Spec
    sources: tuple[int, ...]
    inputs: tuple[Shape, ...]
    output: Shape
    pixel: tuple[Fraction, Fraction]
    weights: int = 0
    biases: int = 0
    macs: int = 0

    @property
    def input(self) -> Shape:
        """Shape of the first source."""
        return self.inputs[0]

    @property
    def name(self) -> str:
        """For messages: ``layer 17 [convolutional]``."""
        return f"layer {self.index} [{self.kind}]"


def elements(shape: Shape) -> int:
    """Number of values of one picture."""
    return shape[0] * shape[1] * shape[2]
