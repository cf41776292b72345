"""Non-maximum suppression: the definition, in numpy, and the same compiled from C for those with many boxes.

    rank boxes by score; a box stays unless a better one of its class that stayed overlaps it by more than iou

Both are exact: what stays is what the plain quadratic algorithm keeps. Both compute in IEEE doubles, operation by
operation in the same order, so that numpy and ``targets/engine/nms.c`` agree to the last bit. Sources: Darknet's
``diounms_sort`` (AlexeyAB); Zheng et al., Distance-IoU Loss, AAAI 2020.
"""

from __future__ import annotations

import ctypes
import math
import os
import shlex
import shutil
import subprocess
import tempfile
from importlib.resources import as_file, files
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeyolo.detector import NMS_KINDS
from edgeyolo.errors import InputError

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]
Doubles = npt.NDArray[np.float64]
Pairs = tuple[Ints, Ints]

IOU, MAX_DET = 0.45, 300
"""Default thresholds: overlap, boxes a picture."""

GREEDY_BETA = 0.6
"""Darknet's greedynms has this DIoU exponent built in; ``beta_nms`` is read by diounms only."""

FIRST = 1024
"""Boxes that are ranked first, enough for most pictures; every further share is twice as large."""

BLOCK_PAIRS = 16384
"""Pairs of one class among the boxes that are taken at a time: more is wasted work where most boxes fall."""

PIECE = 4096
"""Pairs whose overlap is computed at a time, so that the arrays stay in the cache."""

LOG_TERMS, EXP_TERMS, LOWEST_LOG = 10, 13, -1000.0
"""Of ``power``; as in ``targets/engine/nms.c``."""

FLAGS = ("-O3", "-std=c99", "-ffp-contract=off", "-shared", "-fPIC")
COMPILE_SECONDS = 120


class Suppress(Protocol):
    """What ``nms`` and ``compile_nms()`` have in common; see ``nms``."""

    def __call__(
        self,
        boxes: Floats,
        scores: Floats,
        classes: Ints,
        iou: float = IOU,
        kind: str = "default",
        beta: float = GREEDY_BETA,
        max_det: int = MAX_DET,
        *,
        agnostic: bool = False,
    ) -> Ints:
        """Return the indices of the boxes that stay, best first."""


def nms(
    boxes: Floats,
    scores: Floats,
    classes: Ints,
    iou: float = IOU,
    kind: str = "default",
    beta: float = GREEDY_BETA,
    max_det: int = MAX_DET,
    *,
    agnostic: bool = False,
) -> Ints:
    """Greedy non-maximum suppression, class by class: the indices of the boxes that stay, best first.

    A box falls when its overlap with a better box of its class that stayed exceeds ``iou``. The overlap is IoU for
    ``default``, IoU - (d / c)**0.6 for ``greedynms`` and IoU - (d / c)**beta for ``diounms``, where d is the squared
    distance of the centres and c that of the enclosing box's corners; so these two do as Darknet does only on
    coordinates relative to the picture. ``power`` says how the power is rounded.

    The result is that of the plain quadratic algorithm, to the last bit. The best boxes are ranked first, and the rest
    only if fewer than ``max_det`` of them stay; a block of boxes is compared with those of its classes that stayed,
    then with itself.

    Args:
        boxes: (n, 4) corners. An empty, inverted, infinite or NaN box overlaps nothing, so it stays.
        scores: (n,). Equal scores rank by class, then by index; NaN ranks as minus infinity.
        classes: (n,) class indices.
        iou: threshold in [0, 1].
        kind: one of ``NMS_KINDS``.
        beta: exponent of ``diounms``; nothing falls where it is not above 0.
        max_det: boxes that may stay, over all classes.
        agnostic: boxes of other classes count too.

    Raises:
        InputError: arrays that do not belong together, an unknown ``kind``, or a threshold out of range.
    """
    _check(boxes, scores, classes, iou, kind, beta, max_det)
    exponent = {"default": None, "greedynms": GREEDY_BETA, "diounms": beta}[kind]
    groups = np.zeros_like(classes) if agnostic else classes
    worse = -np.fmax(np.asarray(scores, np.float64), np.finfo(np.float64).min)
    kept: Ints = np.zeros(0, np.int64)
    rest: Ints = np.arange(len(worse))
    share = FIRST
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        while len(rest) and len(kept) < max_det:
            ranked, rest = _best(rest, worse, classes, share)
            share *= 2
            size = _block_size(groups[ranked])
            for start in range(0, len(ranked), size):
                kept = _extend(kept, ranked[start : start + size], boxes, groups, iou, exponent)
                if len(kept) >= max_det:
                    break
    return kept[:max_det]


def _best(rest: Ints, worse: Doubles, classes: Ints, share: int) -> tuple[Ints, Ints]:
    """Split the boxes ``rest`` into the best, ``share`` of them or a few more, ranked, and the others as they are."""
    others = rest[:0]
    if len(rest) > share * 3 // 2:
        values = worse[rest]
        good = values <= np.partition(values, share)[share]
        rest, others = rest[good], rest[~good]
    return rest[np.lexsort((classes[rest], worse[rest]))], others


def _block_size(groups: Ints) -> int:
    """How many of the boxes of these classes to take at a time."""
    if len(groups) ** 2 / 2 <= BLOCK_PAIRS:
        return len(groups)
    counts = np.unique(groups, return_counts=True)[1]
    pairs = float(counts @ counts) / 2
    return max(1, int(len(groups) * min(1.0, math.sqrt(BLOCK_PAIRS / pairs))))


def _extend(kept: Ints, block: Ints, boxes: Floats, groups: Ints, iou: float, exponent: float | None) -> Ints:
    """Append to ``kept`` what stays of ``block``, which ranks behind it."""
    if len(kept):
        better = kept[np.argsort(groups[kept], kind="stable")]
        first = np.searchsorted(groups[better], groups[block], side="left")
        count = np.searchsorted(groups[better], groups[block], side="right") - first
        _, fallen = _hits(_corners(boxes[better]), _corners(boxes[block]), first, count, iou, exponent)
        block = _without(block, fallen)
    order = np.argsort(groups[block], kind="stable")
    group, run = groups[block[order]], _corners(boxes[block[order]])
    first = np.searchsorted(group, group, side="left")
    fallen = _greedy(*_hits(run, run, first, np.arange(len(order)) - first, iou, exponent), len(order))
    return np.concatenate([kept, _without(block, order[fallen])])


def _without(values: Ints, positions: Ints) -> Ints:
    """Drop the values at these positions, which may repeat."""
    stay = np.ones(len(values), bool)
    stay[positions] = False
    return values[stay]


def _corners(boxes: Floats) -> Doubles:
    """(n, 4) boxes as (5, n): x1, y1, x2, y2 and the area, each contiguous."""
    run = np.empty((5, len(boxes)))
    run[:4] = boxes.T
    run[4] = (run[2] - run[0]) * (run[3] - run[1])
    return run


def _greedy(i: Ints, j: Ints, n: int) -> Ints:
    """Which of n boxes fall if box i of every pair, unless it falls itself, fells box j; i < j, and j ascends."""
    safe = np.ones(n, bool)
    safe[j] = False
    fallen = np.zeros(n, bool)
    fallen[j[safe[i]]] = True
    # What safe boxes fell is settled at once. In most pictures hardly a pair is left for the loop.
    open_pairs = np.flatnonzero(~(safe[i] | fallen[i] | fallen[j]))
    dead: set[int] = set()
    for better, worse in zip(i[open_pairs].tolist(), j[open_pairs].tolist(), strict=True):
        if better not in dead:
            dead.add(worse)
    fallen[list(dead)] = True
    return np.flatnonzero(fallen)


def _hits(a: Doubles, b: Doubles, first: Ints, count: Ints, iou: float, exponent: float | None) -> Pairs:
    """Find the pairs (i, j) where box i of ``a`` overlaps box j of ``b`` by more than ``iou``; j ascends.

    Box j is compared with the boxes first[j] to first[j] + count[j] - 1. ``a`` and ``b`` are as from ``_corners``.
    """
    ends = np.cumsum(count)
    total = int(ends[-1]) if len(ends) else 0
    cuts = [0, *np.searchsorted(ends, np.arange(PIECE, total, PIECE)).tolist(), len(count)]
    found_i, found_j = [], []
    for low, high in pairwise(cuts):
        i, j = _piece(a, b[:, low:high], first[low:high], count[low:high], iou, exponent)
        found_i.append(i)
        found_j.append(j + low)
    return np.concatenate(found_i), np.concatenate(found_j)


def _piece(a: Doubles, b: Doubles, first: Ints, count: Ints, iou: float, exponent: float | None) -> Pairs:
    """``_hits`` of few boxes ``b``."""
    if len(first) and (first == first[0]).all() and (count == count[0]).all():
        near = a[:, first[0] : first[0] + count[0]]
        j, i = np.nonzero(_overlap(near[:, None, :], b[:, :, None]) > iou)
        i += first[0]
    else:
        j = np.repeat(np.arange(len(count)), count)
        i = np.arange(len(j)) + np.repeat(first - np.cumsum(count) + count, count)
        hits = np.flatnonzero(_overlap(a.take(i, axis=1), b.take(j, axis=1)) > iou)
        i, j = i[hits], j[hits]
    if exponent is not None and len(i):
        near, box = a[:, i], b[:, j]
        hits = np.flatnonzero(_overlap(near, box) - _penalty(near, box, exponent) > iou)
        i, j = i[hits], j[hits]
    return i, j


def _overlap(a: Doubles, b: Doubles) -> Doubles:
    """IoU of boxes (5, ...) with boxes (5, ...), broadcast. NaN exceeds no threshold."""
    width = np.minimum(a[2], b[2]) - np.maximum(a[0], b[0])
    height = np.minimum(a[3], b[3]) - np.maximum(a[1], b[1])
    common: Doubles = np.maximum(width, 0, out=width)
    common *= np.maximum(height, 0, out=height)
    joint = a[4] + b[4]
    joint -= common
    common /= joint
    return common


def _penalty(a: Doubles, b: Doubles, exponent: float) -> Doubles:
    """What (d / c)**exponent takes off the overlap of pairs that overlap; see ``nms``."""
    x, y = a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]
    width = np.maximum(a[2], b[2]) - np.minimum(a[0], b[0])
    height = np.maximum(a[3], b[3]) - np.minimum(a[1], b[1])
    ratio = (x * x + y * y) / 4 / (width * width + height * height)
    return power(np.fmin(ratio, 1), exponent)


def power(x: Doubles, y: float) -> Doubles:
    """Compute x**y for 0 <= x <= 1: at least 2**-1000 where x > 0 and y > 0, and 1 where y is not above 0.

    The logarithm and the exponential are summed as series in a fixed order. The last bit of a math library's differs
    from machine to machine, and then so does what stays; no penalty above 1 changes that.
    """
    if y <= 0:
        return np.ones_like(x)
    mantissa, exponent = np.frexp(x)
    low = mantissa < math.sqrt(0.5)
    mantissa, whole = np.where(low, 2 * mantissa, mantissa), (exponent - low).astype(np.float64)
    s = (mantissa - 1) / (mantissa + 1)
    z = s * s
    total = np.zeros_like(x)
    for k in range(LOG_TERMS, -1, -1):  # log x = 2 (s + s**3 / 3 + s**5 / 5 + ...)
        total = total * z + 1 / (2 * k + 1)
    log = np.fmax(y * (whole + total * s * (2 / math.log(2))), LOWEST_LOG)
    nearest = np.trunc(log - 0.5)
    t = (log - nearest) * math.log(2)
    total = np.ones_like(x)
    for k in range(EXP_TERMS, 0, -1):  # exp t = 1 + t / 1 (1 + t / 2 (1 + ...))
        total = total * (t / k) + 1
    return np.where(x > 0, np.ldexp(total, nearest.astype(np.int32)), 0)


def _check(boxes: Floats, scores: Floats, classes: Ints, iou: float, kind: str, beta: float, max_det: int) -> None:
    """Refuse what ``nms`` cannot use."""
    if not len(boxes) == len(scores) == len(classes) or np.shape(boxes)[1:] != (4,):
        shapes = ", ".join(str(np.shape(array)) for array in (boxes, scores, classes))
        raise InputError("not boxes, scores and classes", got=shapes, allowed="(n, 4), (n,), (n,)")
    if not 0 <= iou <= 1:
        raise InputError("iou is out of range", got=iou, allowed="0 to 1")
    if kind not in NMS_KINDS:
        raise InputError("unknown kind of suppression", got=kind, allowed=", ".join(NMS_KINDS))
    if not math.isfinite(beta):
        raise InputError("beta is not a number", got=beta)
    if max_det < 1:
        raise InputError("max_det must be positive", got=max_det)


class _Options(ctypes.Structure):
    """``ey_nms_options``."""

    _fields_ = (
        ("iou", ctypes.c_double),
        ("beta", ctypes.c_double),
        ("kind", ctypes.c_int),
        ("agnostic", ctypes.c_int32),
        ("max_det", ctypes.c_uint32),
    )


STAYED_BYTES = 56
"""Of one ``ey_nms_box``."""


def fast_nms() -> Suppress:
    """Return ``compile_nms()``, or ``nms`` where there is no C compiler."""
    try:
        return compile_nms()
    except InputError:
        return nms


def compile_nms(cc: str | None = None, flags: tuple[str, ...] = FLAGS) -> Suppress:
    """Compile ``targets/engine/nms.c`` for this process; the result does what ``nms`` does, several times as fast.

    That takes a good part of a second, so call it before a series of pictures, not for one.

    Args:
        cc: compiler command, default ``$CC`` or ``cc``.
        flags: compiler flags.

    Raises InputError if there is no compiler or what it makes cannot be loaded.
    """
    command = shlex.split(cc or os.environ.get("CC") or "cc")
    if not command or shutil.which(command[0]) is None:
        raise InputError("there is no C compiler", got=" ".join(command), hint="install gcc or clang, or set CC")
    with (
        as_file(files("edgeyolo.targets.engine")) as sources,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        target = Path(folder, "nms.so")
        call = [*command, *flags, "-o", str(target), str(sources / "nms.c")]
        try:
            subprocess.run(call, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=True, errors="replace")
            function = ctypes.CDLL(str(target)).ey_nms
        except (OSError, subprocess.SubprocessError) as error:
            got = getattr(error, "stderr", None) or str(error)
            raise InputError("the C suppression does not compile", where=command[0], got=got[:2000]) from error
    return _wrap(function)


def _wrap(function: Any) -> Suppress:
    """Give ``ey_nms`` the signature of ``nms``."""
    function.argtypes = [*[ctypes.c_void_p] * 3, ctypes.c_uint32, *[ctypes.c_void_p] * 5]

    def suppress(
        boxes: Floats,
        scores: Floats,
        classes: Ints,
        iou: float = IOU,
        kind: str = "default",
        beta: float = GREEDY_BETA,
        max_det: int = MAX_DET,
        *,
        agnostic: bool = False,
    ) -> Ints:
        """Do as ``nms`` does."""
        _check(boxes, scores, classes, iou, kind, beta, max_det)
        n = len(scores)
        most = min(n, max_det)
        inputs = (
            np.ascontiguousarray(boxes, np.float64),
            np.ascontiguousarray(scores, np.float64),
            np.ascontiguousarray(classes, np.int64),
        )
        options = _Options(iou, beta, NMS_KINDS.index(kind), agnostic, max(most, 1))
        scratch = np.empty(n, np.uint32), np.empty(most * STAYED_BYTES, np.uint8)
        keep, count = np.empty(most, np.uint32), ctypes.c_uint32()
        pointers = [array.ctypes.data for array in (*inputs, *scratch, keep)]
        function(*pointers[:3], n, ctypes.byref(options), *pointers[3:], ctypes.byref(count))
        return keep[: count.value].astype(np.int64)

    return suppress
