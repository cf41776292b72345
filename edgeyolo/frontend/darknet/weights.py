"""Darknet's weights file: a header and float32 values in layer order, little endian.

Header: major, minor, revision (int32), then ``seen``, the pictures trained on: uint64 if major * 10 + minor >= 2, else
uint32. A convolution stores bias, [scale, mean, variance], weights (O, I / groups, H, W); a connected layer bias,
weights (O, I), [scale, mean, variance]; a batch norm bias, scale, mean, variance; a weighted shortcut its weights. The
file may end after any layer. Source: ``load_weights_upto`` in AlexeyAB/darknet src/parser.c.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgeyolo.errors import InputError
from edgeyolo.frontend.darknet.modules import PJREDDIE_EPS
from edgeyolo.frontend.darknet.network import Network, initialise
from edgeyolo.frontend.darknet.spec import BatchNorm, Conv, Layer, Shortcut

Entry = tuple[str, tuple[int, ...]]
"""Name inside the layer's module, and shape."""
FloatArray = npt.NDArray[np.floating[Any]]
_VERSION = (0, 2, 5)
_MAX_HEADER = 20


def layout(layer: Layer) -> tuple[Entry, ...]:
    """What a layer stores in the file, in order; empty for most layers."""
    spec = layer.spec
    if isinstance(spec, Shortcut):
        return (("weight", (len(layer.sources), spec.weights)),) if spec.weights else ()
    if isinstance(spec, BatchNorm):
        return _with_bias(layer.output[0])
    if not isinstance(spec, Conv):
        return ()
    weight = ("conv.weight", (spec.filters, layer.input[0] // spec.groups, *spec.kernel))
    if not spec.batch_normalize:
        return ("conv.bias", (spec.filters,)), weight
    bias, *norm = _with_bias(spec.filters)
    return (bias, weight, *norm) if layer.kind == "connected" else (bias, *norm, weight)


def _with_bias(channels: int) -> tuple[Entry, ...]:
    return tuple((f"bn.{name}", (channels,)) for name in ("bias", "weight", "running_mean", "running_var"))


def layer_bytes(layer: Layer) -> int:
    """Bytes of a layer in the file."""
    return 4 * sum(math.prod(shape) for _, shape in layout(layer))


@torch.no_grad()
def load_weights(network: Network, path: Path) -> tuple[str, ...]:
    """Fill ``network`` from a weights file; return notes, such as where a partial file ends.

    Raises:
        InputError: no such file, too few or too many bytes, values that no training produces.
    """
    state = network.state_dict()
    try:
        if not path.is_file():
            raise InputError("the weights are not a file", where=path, hint="check the path")
        with path.open("rb") as file:
            offset, seen, transposed = _read_header(file.read(_MAX_HEADER), path)
            loaded = _count_layers(network.plan, path, path.stat().st_size - offset)
            file.seek(offset)
            for layer in network.plan[:loaded]:
                for name, shape in layout(layer):
                    values = _checked(np.fromfile(file, "<f4", math.prod(shape)), layer, name, path)
                    if transposed and layer.kind == "connected" and name == "conv.weight":
                        values = values.reshape(-1, shape[0]).T
                    if name == "bn.running_var" and network.bn_eps == "pjreddie":
                        values = values + 2 * PJREDDIE_EPS * np.sqrt(values.astype(np.float64))
                    values = np.ascontiguousarray(values, np.float32).reshape(shape)
                    state[f"layers.{layer.index}.{name}"].copy_(torch.from_numpy(values))
    except (OSError, ValueError) as error:
        raise InputError("the weights cannot be read", where=path, got=str(error)) from error
    rest = network.plan[loaded:]
    initialise(network, rest)
    notes = [f"weights trained on {seen} pictures"]
    if any(layer_bytes(layer) for layer in rest):
        notes.append(
            f"the weights file ends before {rest[0].name}: this layer and all after it start from random values"
        )
    return tuple(notes)


def _read_header(data: bytes, path: Path) -> tuple[int, int, bool]:
    """Bytes of the header, ``seen``, and whether connected layers are stored transposed (files from before 2015)."""
    major, minor = struct.unpack_from("<ii", data) if len(data) >= 12 else (0, 0)
    wide = major * 10 + minor >= 2
    length = 20 if wide else 16
    if len(data) < length:
        raise InputError(
            "the weights file ends inside its header", where=path, got=f"{len(data)} bytes", allowed=length
        )
    (seen,) = struct.unpack_from("<Q" if wide else "<I", data, 12)
    return length, seen, major > 1000 or minor > 1000


def _count_layers(plan: Sequence[Layer], path: Path, available: int) -> int:
    """How many layers the file covers. Raises InputError unless it ends exactly after one that has weights."""
    expected = sum(layer_bytes(layer) for layer in plan)
    position = 0
    last = None
    for layer in plan:
        need = layer_bytes(layer)
        if position == available and need and last is not None:
            return layer.index
        if position + need > available:
            raise InputError(
                f"the weights file ends inside {layer.name}",
                where=path,
                got=f"{available - position} of its {need} bytes; {available} of {expected} in all",
                hint="the file is damaged or belongs to another cfg",
            )
        position += need
        last = layer if need else last
    if available > expected:
        raise InputError(
            f"the weights file goes on after {last.name if last else 'its header'}, the last layer with weights",
            where=path,
            got=f"{available - expected} bytes too many; {available} for {expected}",
            hint="the file is damaged or belongs to another cfg",
        )
    return len(plan)


def _checked(values: FloatArray, layer: Layer, name: str, path: Path) -> FloatArray:
    bad = ~np.isfinite(values)
    if name == "bn.running_var":
        bad |= values < 0
    if bad.any():
        raise InputError(
            f"{layer.name} has values that no training produces",
            where=f"{path}, {name}",
            got=f"{float(values[bad][0])} and {int(bad.sum()) - 1} more",
            hint="the file is damaged or belongs to another cfg",
        )
    return values


def write_weights(network: Network, path: Path, seen: int = 0) -> None:
    """Write a weights file that Darknet and ``load_weights`` read; the file appears whole or not at all.

    Raises:
        InputError: the file cannot be written, or ``seen`` is no 64-bit count.
    """
    if not 0 <= seen < 1 << 64:
        raise InputError("the number of pictures seen is out of range", got=seen, allowed="0 to 2**64 - 1")
    part = path.with_name(path.name + ".part")
    try:
        try:
            part.unlink(missing_ok=True)  # it may be a link to somewhere else
            with part.open("xb") as file:
                file.write(struct.pack("<iiiQ", *_VERSION, seen))
                for values in _values(network):
                    file.write(values.astype("<f4").tobytes())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError("the weights cannot be written", where=path, got=str(error)) from error


def _values(network: Network) -> Iterator[FloatArray]:
    state = network.state_dict()
    for layer in network.plan:
        for name, _ in layout(layer):
            values: FloatArray = state[f"layers.{layer.index}.{name}"].detach().cpu().numpy()
            if name == "bn.running_var" and network.bn_eps == "pjreddie":
                deviation = np.sqrt(values.astype(np.float64) + PJREDDIE_EPS**2) - PJREDDIE_EPS
                values = np.maximum(deviation, 0.0) ** 2
            yield values
