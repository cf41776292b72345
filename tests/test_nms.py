"""Suppression in numpy and in C keeps what the plain quadratic algorithm keeps, in the same order."""

from __future__ import annotations

import math
import shutil
import struct
import subprocess
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeyolo import nms as module
from edgeyolo.detector import NMS_KINDS
from edgeyolo.errors import InputError
from edgeyolo.nms import compile_nms, fast_nms, nms, power

ENGINE = Path(__file__).resolve().parents[1] / "targets" / "engine"
DRIVER = Path(__file__).with_name("nms_driver.c")
STRICT = ("-O3", "-std=c99", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror", "-ffp-contract=off")
SANITIZE = ("-O1", "-g", "-std=c99", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
BUILDS = {
    "sanitized": ("cc", SANITIZE, ()),
    "strict gcc": ("gcc", STRICT, ()),
    "strict clang": ("clang", STRICT, ()),
    "aarch64": ("aarch64-linux-gnu-gcc", (*STRICT, "-static"), ("qemu-aarch64-static",)),
    "32-bit ARM": ("arm-linux-gnueabihf-gcc", (*STRICT, "-static"), ("qemu-arm-static",)),
}
POWER_TOLERANCE = 5e-15
"""Relative: a logarithm of up to -20 times the exponent has lost some bits when it becomes a power again."""


class Case(NamedTuple):
    """Arguments of ``nms``."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    iou: float = 0.45
    kind: str = "default"
    beta: float = 0.6
    max_det: int = 300
    agnostic: bool = False

    def run(self, suppress) -> list[int]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return suppress(*self[:-1], agnostic=self.agnostic).tolist()


def overlap(a: list[float], b: list[float], kind: str, beta: float) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    iou = common / union if union > 0 else 0.0
    if kind == "default" or iou == 0:
        return iou
    x, y = a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]
    width, height = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    d, c = (x * x + y * y) / 4, width * width + height * height
    exponent = 0.6 if kind == "greedynms" else beta
    return -math.inf if exponent <= 0 else iou - (d / c) ** exponent


def brute_force(case: Case) -> list[int]:
    """One class after the other, as Darknet's diounms_sort: take the best, drop what overlaps it by more than iou."""
    lowest = -np.finfo(float).max
    boxes, classes = case.boxes.tolist(), case.classes.tolist()
    rank = {
        i: (-(lowest if math.isnan(s) else max(s, lowest)), classes[i], i) for i, s in enumerate(case.scores.tolist())
    }
    kept: list[int] = []
    for group in [set(classes)] if case.agnostic else [{c} for c in set(classes)]:
        alive = sorted((i for i in rank if classes[i] in group), key=rank.__getitem__)
        while alive:
            best, *alive = alive
            kept.append(best)
            a = boxes[best]
            alive = [i for i in alive if not overlap(a, boxes[i], case.kind, case.beta) > case.iou]
    return sorted(kept, key=rank.__getitem__)[: case.max_det]


def random_case(seed: int, count: int, grid: int, classes: int, odd: float, **options: object) -> Case:
    """Coarse grids give many equal boxes, equal scores, empty boxes and overlaps of exactly the threshold.

    ``odd``: the share of coordinates and scores that are undefined, infinite, huge or negative.
    """
    rng = np.random.default_rng(seed)
    corner, size = rng.integers(0, grid, (count, 2)), rng.integers(0, grid, (count, 2))
    boxes = np.concatenate([corner, corner + size], axis=1) / grid
    scores = rng.integers(1, 20, count) / 20
    names = np.array([0, 64, -1, 2**40, 3, -(2**40)])[rng.integers(0, classes, count)]
    special = np.array([np.nan, np.inf, -np.inf, 1e300, -1e300, 0.0, -0.0, -1.0, 1e-170])
    for array in (boxes, scores):
        mask = rng.random(array.shape) < odd
        array[mask] = rng.choice(special, int(mask.sum()))
    return Case(boxes, scores, names, **options)


cases = st.builds(
    random_case,
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 60),
    grid=st.integers(2, 12),
    classes=st.sampled_from([1, 2, 6]),
    odd=st.sampled_from([0, 0, 0.05, 0.5]),
    iou=st.sampled_from([0.0, 0.2, 1 / 3, 0.45, 0.5, 0.9, 1.0]),
    kind=st.sampled_from(NMS_KINDS),
    beta=st.sampled_from([0.8, 0.6, 30.0, 0.01, 0.0, -2.0]),
    max_det=st.sampled_from([1, 5, 1000]),
    agnostic=st.booleans(),
)


def crowd(seed: int, count: int, classes: int, **options: object) -> Case:
    """Boxes of full precision around a tenth as many places."""
    rng = np.random.default_rng(seed)
    places, sizes = rng.random((count // 10, 2)), rng.uniform(0.05, 0.4, (count // 10, 2))
    own = rng.integers(0, count // 10, count)
    centre, half = (
        places[own] + rng.normal(0, 0.02, (count, 2)),
        sizes[own] * np.exp(rng.normal(0, 0.1, (count, 2))) / 2,
    )
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    return Case(boxes, np.round(rng.random(count), 3), rng.integers(0, classes, count), **options)


@pytest.fixture(scope="session")
def compiled():
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    return compile_nms(cc="cc", flags=(*module.FLAGS, "-Wall", "-Wextra", "-Wconversion", "-Werror"))


@pytest.fixture(params=["numpy", "numpy in pieces", "C"])
def suppress(request, monkeypatch):
    """All ways to suppress; the second takes so few boxes at a time that every loop goes round."""
    if request.param == "numpy in pieces":
        monkeypatch.setattr(module, "FIRST", 4)
        monkeypatch.setattr(module, "BLOCK_PAIRS", 10)
        monkeypatch.setattr(module, "PIECE", 7)
    return request.getfixturevalue("compiled") if request.param == "C" else nms


# One setting of the fixture serves all examples.
@given(case=cases)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_stays_is_what_brute_force_keeps(suppress, case: Case) -> None:
    assert case.run(suppress) == brute_force(case)


@pytest.mark.parametrize("kind", NMS_KINDS)
@pytest.mark.parametrize(("classes", "agnostic"), [(1, False), (80, False), (80, True)])
@pytest.mark.parametrize("max_det", [40, 5000])
def test_crowds_fall_alike_in_numpy_and_c(compiled, kind: str, classes: int, agnostic: bool, max_det: int) -> None:
    """More boxes than a share, a block and a piece have. Scores of three digits tie."""
    case = crowd(classes, 4000, classes, iou=0.3, kind=kind, max_det=max_det, agnostic=agnostic)
    kept = case.run(nms)
    assert kept == case.run(compiled)
    assert 30 < len(kept) <= max_det and len(set(kept)) == len(kept)
    few = case._replace(**{name: getattr(case, name)[:400] for name in ("boxes", "scores", "classes")})
    assert few.run(nms) == few.run(compiled) == brute_force(few)


def test_equal_scores_rank_by_class_then_by_index(suppress) -> None:
    boxes = np.array([[0, 0, 1, 1]] * 4 + [[2, 2, 3, 3]] * 2, float)
    case = Case(boxes, np.full(6, 0.5), np.array([7, 2, 7, 2, 2, -5]))
    assert case.run(suppress) == [5, 1, 4, 0]
    assert case._replace(agnostic=True).run(suppress) == [5, 1]


def test_nan_and_minus_infinity_rank_last(suppress) -> None:
    boxes = np.array([[i, 0, i + 1, 1] for i in range(4)], float)
    case = Case(boxes, np.array([np.nan, -1e300, -np.inf, np.inf]), np.zeros(4, int))
    assert case.run(suppress) == [3, 1, 0, 2]


@pytest.mark.parametrize(
    "box",
    [
        [0.5, 0.5, 0.5, 0.9], [0.9, 0.9, 0.1, 0.1], [0.9, 0.1, 0.1, 0.9], [math.nan, 0, 1, 1],
        [-math.inf, 0, math.inf, 1], [-1e200, -1e200, 1e200, 1e200], [0, 0, 1e-170, 1e-170],
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", NMS_KINDS)
def test_boxes_without_a_proper_area_fell_nothing_and_stay(suppress, box: list[float], kind: str) -> None:
    boxes = np.array([box, [0, 0, 1, 1], box], float)
    case = Case(boxes, np.array([0.9, 0.8, 0.7]), np.zeros(3, int), iou=0.0, kind=kind)
    assert case.run(suppress) == [0, 1, 2]


def test_nothing_in_nothing_out(suppress) -> None:
    kept = suppress(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    assert kept.shape == (0,) and kept.dtype == np.int64


def test_arrays_of_other_types_and_strides_are_taken(suppress) -> None:
    """float32, Fortran order and every other row: the doubles that they hold count."""
    case = crowd(3, 400, 3)
    strided = Case(np.asfortranarray(case.boxes.astype(np.float32))[::2], case.scores.astype(np.float32)[::2],
                   case.classes.astype(np.int32)[::2])  # fmt: skip
    assert strided.run(suppress) == brute_force(strided)


def test_greedynms_keeps_what_plain_iou_suppresses(suppress) -> None:
    """Overlap .5 with centres apart: DIoU is lower, so Darknet's greedynms keeps the second box."""
    boxes = np.array([[0, 0, 0.6, 0.3], [0.2, 0, 0.8, 0.3]])
    case = Case(boxes, np.array([0.9, 0.8]), np.zeros(2, int))
    assert len(case.run(suppress)) == 1
    assert len(case._replace(kind="greedynms").run(suppress)) == 2
    assert len(case._replace(kind="diounms", beta=8.0).run(suppress)) == 1


@pytest.mark.parametrize(
    "options",
    [{"kind": "soft"}, {"iou": -0.1}, {"iou": math.nan}, {"max_det": 0}, {"beta": math.inf}, {"beta": math.nan}],
)
def test_bad_options_are_refused(suppress, options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        suppress(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), **options)


@pytest.mark.parametrize("shapes", [((2, 4), (3,), (2,)), ((2, 4), (2,), (1,)), ((2, 5), (2,), (2,))])
def test_arrays_that_do_not_belong_together_are_refused(suppress, shapes) -> None:
    with pytest.raises(InputError, match="not boxes, scores and classes"):
        suppress(*(np.zeros(shape) for shape in shapes))


@given(x=st.floats(0, 1), y=st.floats(0.01, 20))
@settings(max_examples=300, deadline=None)
def test_power_is_the_power(x: float, y: float) -> None:
    got = float(power(np.array([x]), y)[0])
    expected = x**y
    assert got == pytest.approx(expected, rel=POWER_TOLERANCE * max(1, -math.log(expected or 1)), abs=2.0**-999)


def test_power_of_powers_of_two_is_exact() -> None:
    """So are overlaps on a grid that meet the threshold exactly."""
    assert power(np.array([1.0, 2.0**-5, 2.0**-10, 0.0]), 0.6).tolist() == [1, 2.0**-3, 2.0**-6, 0]
    assert (
        power(np.array([0.0, 0.5, 1.0]), 0.0).tolist() == power(np.array([0.0, 0.5, 1.0]), -1.0).tolist() == [1, 1, 1]
    )


def on_the_threshold(count: int) -> list[tuple[Case, int]]:
    """Pairs of boxes whose overlap by DIoU is the threshold, to the last bit, or one bit above it; and what stays."""
    rng, found = np.random.default_rng(0), []
    while len(found) < 2 * count:
        kind, beta = NMS_KINDS[1 + len(found) % 2], float(rng.uniform(0.3, 3))
        boxes = np.concatenate([rng.random((2, 2)), 1 + rng.random((2, 2))], axis=1)
        pair = module._corners(boxes)
        a, b = pair[:, :1], pair[:, 1:]
        value = float((module._overlap(a, b) - module._penalty(a, b, 0.6 if kind == "greedynms" else beta))[0])
        case = Case(boxes, np.array([0.9, 0.8]), np.zeros(2, int), value, kind, beta)
        if value > 0:
            assert value == pytest.approx(overlap(*boxes.tolist(), kind, beta), rel=1e-12)
            found += [(case, 2), (case._replace(iou=math.nextafter(value, 0)), 1)]
    return found


def test_numpy_and_c_agree_on_the_last_bit(compiled) -> None:
    for case, stay in on_the_threshold(500):
        assert len(case.run(nms)) == len(case.run(compiled)) == stay


def test_without_a_compiler_it_is_numpy(monkeypatch) -> None:
    with pytest.raises(InputError, match="no C compiler"):
        compile_nms(cc="a-compiler-nobody-has")
    monkeypatch.setenv("CC", "a-compiler-nobody-has")
    assert fast_nms() is nms


def test_a_compiler_that_fails_is_named(tmp_path) -> None:
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\necho out of luck >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(InputError, match=r"does not compile(.|\n)*out of luck"):
        compile_nms(cc=str(broken))


def pack(case: Case, kind: int | None = None) -> bytes:
    """A case as ``nms_driver.c`` reads it."""
    number = NMS_KINDS.index(case.kind) if kind is None else kind
    head = struct.pack("<ddiiII", case.iou, case.beta, number, case.agnostic, case.max_det, len(case.scores))
    return head + b"".join(
        array.astype(dtype).tobytes()
        for array, dtype in ((case.boxes, "<f8"), (case.scores, "<f8"), (case.classes, "<i8"))
    )


@pytest.mark.parametrize("build", BUILDS)
def test_every_machine_keeps_the_same_boxes(build: str, tmp_path) -> None:
    """Sanitizers, two compilers and two other machines; scratch memory has exactly the size that nms.h says."""
    compiler, flags, emulator = BUILDS[build]
    for tool in (compiler, *emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    target = tmp_path / "driver"
    sources = [str(DRIVER), str(ENGINE / "nms.c")]
    subprocess.run([compiler, *flags, f"-I{ENGINE}", "-o", str(target), *sources], check=True)
    drawn = [
        random_case(seed, 5 + seed, 2 + seed % 9, (1, 2, 6)[seed % 3], (0, 0.05, 0.5)[seed // 3 % 3],
                    kind=NMS_KINDS[seed % 3], iou=(0.0, 0.3, 0.5)[seed % 3], agnostic=seed % 7 == 0)
        for seed in range(60)
    ]  # fmt: skip
    drawn += [crowd(i, 600, 5, kind=kind, iou=0.2, max_det=100) for i, kind in enumerate(NMS_KINDS)]
    drawn += [case for case, _ in on_the_threshold(100)]
    nothing = Case(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    bad = [pack(nothing._replace(**o)) for o in ({"iou": math.nan}, {"iou": 1.1}, {"max_det": 0}, {"beta": math.inf})]
    bad += [pack(nothing, kind=3), pack(nothing, kind=-1)]
    stream = b"".join([*map(pack, [nothing, *drawn]), *bad])
    done = subprocess.run([*emulator, str(target)], input=stream, capture_output=True, check=True)
    size, *lines = [list(map(int, line.split())) for line in done.stdout.decode().splitlines()]
    assert size[0] <= module.STAYED_BYTES
    assert lines[: len(drawn) + 1] == [[0, *case.run(nms)] for case in [nothing, *drawn]]
    assert lines[len(drawn) + 1 :] == [[1]] * len(bad)
