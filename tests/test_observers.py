"""Histograms in constant memory, and what each way to choose an exponent means on distributions made for it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeyolo.qtype import QType, TensorQuant
from edgeyolo.quant.config import METHODS
from edgeyolo.quant.observers import BINS, FRAC_LIMIT, Histogram, choose_frac

I8, I4, U8 = QType(8), QType(4), QType(8, signed=False)
RNG = np.random.default_rng(0)
GAUSS = RNG.standard_normal(20_000)
OUTLIERS = np.concatenate([GAUSS, [60.0, -55.0]])


def chosen(values: np.ndarray, qtype: QType, method: str) -> int:
    flat = np.asarray(values, np.float64)
    return choose_frac(flat, np.ones_like(flat), qtype, method)


def squared_error(values: np.ndarray, qtype: QType, frac: int) -> float:
    quant = TensorQuant.pow2(qtype, frac)
    return float(np.square(values - quant.dequantise(quant.quantise(values)).astype(np.float64)).sum())


def filled(*batches: np.ndarray) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.update(np.asarray(batch, np.float32))
    return histogram


def test_growth_keeps_every_count_in_its_place():
    batches = [RNG.normal(0, scale, (3, 50, 7)) for scale in (1e-3, 1.0, 0.1, 300.0, 2.0)]
    histogram = filled(*batches)
    values, counts = histogram.samples()
    everything = np.sort(np.concatenate([b.ravel() for b in batches]).astype(np.float32))
    assert counts.sum() == everything.size
    width = 2 * histogram.reach / BINS
    assert np.abs(np.repeat(values, counts.astype(int)) - everything).max() <= width
    assert (histogram.low, histogram.high) == (everything[0], everything[-1])


def test_memory_is_constant():
    histogram = filled(GAUSS)
    size = histogram.counts.nbytes
    for exponent in range(-20, 21, 5):
        histogram.update(np.ldexp(GAUSS, exponent).astype(np.float32))
    assert histogram.counts.nbytes == size == BINS * 8
    assert histogram.counts.sum() == 10 * GAUSS.size


def test_values_at_the_very_end_of_the_reach_are_counted():
    values, counts = filled([2.0, -2.0, 2.0]).samples()
    assert counts.sum() == 3
    assert values.min() == pytest.approx(-2.0, abs=1e-3) and values.max() == pytest.approx(2.0, abs=1e-3)


def test_only_zeros_are_legal():
    values, counts = filled(np.zeros((2, 3))).samples()
    assert counts.sum() == 6
    for method in METHODS:
        assert abs(choose_frac(values, counts, I8, method)) <= FRAC_LIMIT


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("qtype", [I4, I8, U8, QType(16)])
def test_every_method_is_finite_on_hard_inputs(method, qtype):
    for values in ([0.0], [1e-38], [-1e-38, 0.0], [3e38], [-5.0], [1e-20, 1e20], [7.0] * 5):
        assert abs(chosen(np.array(values), qtype, method)) <= FRAC_LIMIT


@given(
    st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=20),
    st.integers(2, 16),
    st.booleans(),
)
def test_minmax_clips_nothing_and_is_the_finest_that_does(values, bits, signed):
    qtype, real = QType(bits, signed), np.abs(values) if not signed else np.array(values)
    frac = chosen(real, qtype, "minmax")

    def fits(f: int) -> bool:
        scaled = np.ldexp(real, f)
        return bool(scaled.min() >= qtype.lo and scaled.max() <= qtype.hi)

    if abs(frac) < FRAC_LIMIT and real.any():
        assert fits(frac) and not fits(frac + 1)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_minmax_of_a_histogram_clips_no_more_than_its_resolution(bits):
    half_bin = 4.0 / BINS  # the reach is 4
    for largest in (3.2, 3.98, 3.99996, 4.0):
        real = np.array([0.1, -2.5, 3.0, largest], np.float32)
        histogram = filled(real[:3], real[3:])
        quant = TensorQuant.pow2(QType(bits), choose_frac(*histogram.samples(), QType(bits), "minmax"))
        assert np.abs(quant.fake(real) - real).max() <= float(quant.scale) / 2 + half_bin


@pytest.mark.parametrize(
    ("largest", "frac"), [(1.0, 7), (1.4, 7), (1.5, 6), (2.0, 6), (-2.9, 5), (0.1, 10), (100.0, 0), (1000.0, -3)]
)
def test_nearest_takes_the_power_of_two_nearest_to_the_largest_magnitude(largest, frac):
    assert chosen(np.array([largest, largest / 3, -largest / 2]), I8, "nearest") == frac
    assert chosen(np.array([largest, largest / 3]), I4, "nearest") == frac - 4


def test_percentile_ignores_one_value_in_a_hundred_thousand_and_minmax_does_not():
    values, counts = np.array([-1.0, 0.5, 1.0, 500.0]), np.array([400_000.0, 300_000.0, 300_000.0, 10.0])
    assert choose_frac(values, counts, I8, "percentile") == choose_frac(values[:3], counts[:3], I8, "minmax") == 6
    assert choose_frac(values, counts, I8, "minmax") == -2


def test_percentile_keeps_what_is_not_rare():
    values, counts = np.array([1.0, 50.0]), np.array([1000.0, 10.0])
    assert choose_frac(values, counts, I8, "percentile") == choose_frac(values, counts, I8, "minmax")


@pytest.mark.parametrize("qtype", [QType(2), I4, I8, U8])
@pytest.mark.parametrize(
    "values",
    [GAUSS, OUTLIERS, RNG.laplace(0, 1, 5000), RNG.uniform(-3, 3, 5000), np.maximum(GAUSS, 0), np.abs(GAUSS) ** 3],
    ids=["gauss", "outliers", "laplace", "uniform", "relu", "heavy"],
)
def test_mse_has_the_least_squared_error_of_all_exponents(values, qtype):
    best = chosen(values, qtype, "mse")
    errors = {frac: squared_error(values, qtype, frac) for frac in range(best - 12, best + 13)}
    assert errors[best] == min(errors.values())
    for method in METHODS:
        assert errors[best] <= squared_error(values, qtype, chosen(values, qtype, method))


def test_mse_clips_outliers_where_minmax_would_waste_the_grid():
    assert chosen(OUTLIERS, I4, "mse") > chosen(OUTLIERS, I4, "minmax")


def test_kl_gives_rare_outliers_up_but_keeps_the_bulk():
    histogram = filled(OUTLIERS)
    frac = choose_frac(*histogram.samples(), I8, "kl")
    assert frac > choose_frac(*histogram.samples(), I8, "minmax")
    assert np.mean(np.abs(OUTLIERS) > np.ldexp(127.0, -frac)) < 1e-3


def test_kl_keeps_the_whole_of_a_distribution_without_tails():
    histogram = filled(RNG.uniform(-1, 1, 100_000))
    assert choose_frac(*histogram.samples(), I8, "kl") == choose_frac(*histogram.samples(), I8, "minmax")


@pytest.mark.parametrize("method", METHODS)
def test_counts_weigh_like_repetitions(method):
    values, counts = np.array([-1.0, 0.2, 0.7, 6.0]), np.array([50.0, 400.0, 300.0, 1.0])
    assert choose_frac(values, counts, I4, method) == chosen(np.repeat(values, counts.astype(int)), I4, method)


@pytest.mark.parametrize("method", METHODS)
def test_doubling_the_values_takes_one_fraction_bit(method):
    assert chosen(GAUSS * 2, I8, method) == chosen(GAUSS, I8, method) - 1


@pytest.mark.parametrize("method", METHODS)
def test_an_unsigned_type_has_one_more_bit_for_what_is_never_negative(method):
    values = np.abs(RNG.uniform(0.1, 0.9, 5000))
    assert chosen(values, U8, method) == chosen(values, I8, method) + 1
