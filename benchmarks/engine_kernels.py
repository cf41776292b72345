"""How fast the C engine convolves on this machine: GMAC/s of single layers, one core.

    python benchmarks/engine_kernels.py [--repeats 15] [--flags "-O3 -std=c99"]

Weights are drawn uniformly from all non-zero codes, which is the slowest case: a trained layer's small weights let more
products be summed in 16 bits, and zeros are skipped. Every figure is the median of the repetitions and includes
padding, rounding and saturation. A second column has normally distributed 8-bit weights as trained layers have them.
"""

from __future__ import annotations

import argparse
import shlex
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from click import echo

from edgeyolo.program import Conv, IntegerProgram, Tensor
from edgeyolo.program_image import encode_program
from edgeyolo.qtype import QType
from edgeyolo.runners.engine import EngineRunner, compile_engine

LAYERS = (
    # name, input (C, H, W), output channels, kernel, stride, groups
    ("dense 3x3", (64, 80, 80), 64, 3, 1, 1),
    ("dense 3x3", (128, 40, 40), 128, 3, 1, 1),
    ("dense 3x3", (256, 13, 13), 256, 3, 1, 1),
    ("dense 3x3 /2", (32, 160, 160), 64, 3, 2, 1),
    ("first 3x3 /2", (3, 320, 320), 8, 3, 2, 1),
    ("1x1", (8, 160, 160), 8, 1, 1, 1),
    ("1x1", (48, 80, 80), 8, 1, 1, 1),
    ("1x1", (16, 40, 40), 96, 1, 1, 1),
    ("1x1", (136, 20, 20), 24, 1, 1, 1),
    ("1x1", (48, 10, 10), 224, 1, 1, 1),
    ("1x1", (96, 10, 10), 255, 1, 1, 1),
    ("1x1", (256, 40, 40), 128, 1, 1, 1),
    ("depthwise 3x3", (8, 160, 160), 8, 3, 1, 8),
    ("depthwise 3x3 /2", (24, 160, 160), 24, 3, 2, 24),
    ("depthwise 3x3", (96, 40, 40), 96, 3, 1, 96),
    ("depthwise 3x3", (136, 20, 20), 136, 3, 1, 136),
    ("depthwise 3x3", (224, 10, 10), 224, 3, 1, 224),
    ("depthwise 5x5", (96, 40, 40), 96, 5, 1, 96),
    ("depthwise 5x5", (96, 10, 10), 96, 5, 1, 96),
)
Layer = tuple[str, tuple[int, int, int], int, int, int, int]


def weights(shape: tuple[int, ...], kind: str) -> tuple[npt.NDArray[np.int8], int]:
    """Weight codes and their number of bits; ``kind`` is u8, u4 (uniform) or n8 (normal, clipped at 4.5 sigma)."""
    rng, bits = np.random.default_rng(0), int(kind[1])
    limit = (1 << (bits - 1)) - 1
    if kind[0] == "n":
        return np.clip(np.rint(rng.standard_normal(shape) * limit / 4.5), -limit, limit).astype(np.int8), bits
    return (rng.integers(1, limit + 1, shape) * rng.choice((-1, 1), shape)).astype(np.int8), bits


def single(layer: Layer, kind: str) -> tuple[IntegerProgram, int]:
    """A program of one leaky convolution with 8-bit activations, and its number of multiplications."""
    _, (channels, height, width), out, kernel, stride, groups = layer
    codes, bits = weights((out, channels // groups, kernel, kernel), kind)
    pad = kernel // 2
    shape = (out, (height + 2 * pad - kernel) // stride + 1, (width + 2 * pad - kernel) // stride + 1)
    source = Tensor("input", (channels, height, width), QType(8), 4, 0)
    target = Tensor("output", shape, QType(8), 4, -(-source.nbytes // 16) * 16)
    shift = np.full(out, 10, np.int8)
    conv = Conv(
        "conv", 0, 1, codes, QType(bits), shift.astype(np.int32), np.zeros(out, np.int32), shift, (stride, stride),
        (pad,) * 4, (1, 1), groups, (13, 7), -128, 127,
    )  # fmt: skip
    program = IntegerProgram((source, target), (conv,), 0, (1,), target.offset + target.nbytes)
    return program, codes.size * shape[1] * shape[2]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--flags", default="-O3 -std=c99", help="compiler flags")
    options = parser.parse_args()
    kinds = ("u8", "n8", "u4")
    echo(f"{'layer':18}{'input':>16}{'out':>5}{'MMAC':>8}  " + "".join(f"{kind + ' GMAC/s':>12}" for kind in kinds))
    with tempfile.TemporaryDirectory() as name:
        engine = compile_engine(Path(name), flags=tuple(shlex.split(options.flags)))
        for layer in LAYERS:
            rates = []
            for kind in kinds:
                program, macs = single(layer, kind)
                rng = np.random.default_rng(1)
                codes = rng.integers(-128, 128, program.tensors[0].shape).astype(np.int8)
                with EngineRunner(encode_program(program), executable=engine) as runner:
                    rates.append(macs / runner.time(codes, options.repeats).median_ns)
            shape = "x".join(map(str, layer[1]))
            echo(f"{layer[0]:18}{shape:>16}{layer[2]:>5}{macs / 1e6:8.2f}  " + "".join(f"{r:12.2f}" for r in rates))


if __name__ == "__main__":
    main()
