"""A tiny Darknet detector with pictures that it sees something in: the smallest thing that goes the whole way."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

SIZE = 64
CLASSES = 2
HEAD_FILTERS = 2 * (5 + CLASSES)
PICTURES = 6

# (filters, size, stride, activation, groups, batch norm); words are sections without weights.
Conv = tuple[int, int, int, str, int, bool]
LAYERS: tuple[Conv | str, ...] = (
    (8, 3, 2, "leaky", 1, True),  # 0: 32x32
    (8, 3, 1, "leaky", 8, True),  # 1: depthwise
    (12, 1, 1, "linear", 1, True),
    (12, 3, 1, "leaky", 1, True),
    "[shortcut]\nfrom=-2\nactivation=linear\n",  # 4
    "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n",  # 5: 6 channels
    (6, 3, 2, "relu", 1, True),  # 6: 16x16
    "[maxpool]\nsize=2\nstride=1\n",  # 7: pads right and bottom
    "[maxpool]\nsize=2\nstride=2\n",  # 8: 8x8
    (8, 3, 1, "leaky", 1, True),  # 9
    (HEAD_FILTERS, 1, 1, "linear", 1, False),
    "yolo 2,3",
    "[route]\nlayers=9\n",  # 12
    (6, 1, 1, "leaky", 1, True),
    "[upsample]\nstride=2\n",
    "[route]\nlayers=-1,7\n",  # 15: 12 channels, 16x16
    (HEAD_FILTERS, 1, 1, "linear", 1, False),
    "yolo 0,1",
)
# What each convolution reads.
CHANNELS = (3, 8, 8, 12, 6, 6, 8, 8, 12)


@dataclass(frozen=True)
class Tiny:
    """Paths of a cfg, its weights, class names and a folder of ``PICTURES`` JPEGs."""

    cfg: Path
    weights: Path
    names: Path
    pictures: Path

    def model(self) -> tuple[object, ...]:
        """The arguments that name the model on the command line."""
        return self.cfg, "--weights", self.weights

    def fpga(self, output: Path, *more: object) -> tuple[object, ...]:
        """An export for fpga, as the command line has it."""
        return "export", *self.model(), "--calib", self.pictures, "--target", "fpga", "-o", output, *more


def cfg_text() -> str:
    """The cfg."""
    parts = [f"[net]\nwidth={SIZE}\nheight={SIZE}\nchannels=3\n"]
    for layer in LAYERS:
        if isinstance(layer, tuple):
            filters, size, stride, activation, groups, norm = layer
            parts.append(
                f"[convolutional]\nbatch_normalize={int(norm)}\nfilters={filters}\nsize={size}\nstride={stride}\n"
                f"pad=1\ngroups={groups}\nactivation={activation}\n"
            )
        elif layer.startswith("yolo"):
            parts.append(
                f"[yolo]\nmask={layer.split()[1]}\nanchors=6,9, 10,8, 16,24, 30,20\nclasses={CLASSES}\nnum=4\n"
                "scale_x_y=1.05\nnms_kind=greedynms\nbeta_nms=0.6\n"
            )
        else:
            parts.append(layer)
    return "".join(parts)


def weights_bytes() -> bytes:
    """Random weights in Darknet's order, scaled so that signals keep their size and some cells see an object."""
    rng = np.random.default_rng(5)
    parts = [struct.pack("<3iQ", 0, 2, 5, 32013312)]
    convs = [layer for layer in LAYERS if isinstance(layer, tuple)]
    for (filters, size, _, _, groups, norm), channels in zip(convs, CHANNELS, strict=True):
        bias = rng.normal(0, 0.3, filters)
        taps = channels // groups * size * size
        weight = rng.normal(0, (2 / taps) ** 0.5, (filters, taps))
        if groups == 1:
            weight -= weight.mean(axis=1, keepdims=True)  # what is the same everywhere carries nothing
        if norm:
            extra = [rng.uniform(0.8, 1.2, filters), rng.normal(0, 0.2, filters), rng.uniform(0.5, 1.5, filters)]
        else:
            extra = []
            weight *= 3
            bias.reshape(2, -1)[:, 4] = -4  # objectness
        parts += [a.astype("<f4").tobytes() for a in (bias, *extra, weight)]
    return b"".join(parts)


def write_pictures(folder: Path, count: int = PICTURES) -> None:
    """Smooth random JPEGs of several sizes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    for index in range(count):
        blobs = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        blobs.resize((80 + 16 * index, 72), Image.Resampling.BICUBIC).save(folder / f"picture-{index}.jpg", quality=95)


def make_tiny(folder: Path) -> Tiny:
    """Write the model and its pictures into ``folder``."""
    tiny = Tiny(folder / "tiny.cfg", folder / "tiny.weights", folder / "tiny.names", folder / "pictures")
    tiny.cfg.write_text(cfg_text(), "utf-8")
    tiny.weights.write_bytes(weights_bytes())
    tiny.names.write_text("bolt\nnut\n", "utf-8")
    write_pictures(tiny.pictures)
    return tiny


def edgeyolo(*arguments: object) -> Result:
    """Run the command line in this process."""
    from edgeyolo.cli import main

    return CliRunner().invoke(main, [str(a) for a in arguments])


def succeed(*arguments: object) -> Result:
    """Run the command line; it must succeed."""
    result = edgeyolo(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result


def refusal(*arguments: object) -> str:
    """The message of a command line that must end with exit code 2, print nothing on stdout and show no traceback."""
    result = edgeyolo(*arguments)
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert isinstance(result.exception, SystemExit) and "Traceback" not in result.output
    assert result.stdout == ""
    return result.stderr


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` with its content."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny model; nobody changes it."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def good_bundle(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny model with two golden pictures and every format; nobody changes it."""
    bundle = tmp_path_factory.mktemp("bundle") / "tiny"
    succeed(*tiny.fpga(bundle, "--golden", 2, "--format", "bin,mem,coe,h", "--names", tiny.names))
    return bundle
