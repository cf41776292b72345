"""Figures that say how much of the float model is left: they must not be flattered by constants."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import ARRAYS, build, net, pictures

from edgeyolo.agreement import Agreement
from edgeyolo.postprocess import Detections
from edgeyolo.quant.calibrate import observe, run_pictures
from edgeyolo.quant.compare import HeadSnr, compare_layers, head_snr
from edgeyolo.quant.config import QuantConfig
from edgeyolo.quant.insert_qdq import insert_qdq
from edgeyolo.quant.plan import make_plan

PICTURES = pictures(4, 3, 16, 16)
RNG = np.random.default_rng(0)
DECIBEL_TOLERANCE = 0.01
"""dB: sums of squares of one picture are float32."""


def heads(count: int = 3, offset: float = 0.0) -> list[dict[str, np.ndarray]]:
    """Heads of several pictures whose channels have very different means."""
    means = offset * np.arange(1, 5).reshape(1, 4, 1, 1)
    return [{"head": (RNG.normal(0, 1, (1, 4, 8, 8)) + means).astype(np.float32)} for _ in range(count)]


def measured(exact: list[dict[str, np.ndarray]], got: list[dict[str, np.ndarray]]) -> float:
    snr = HeadSnr()
    for a, b in zip(exact, got, strict=True):
        snr.add(a, b)
    return snr.decibel


@pytest.mark.parametrize("noise", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_the_heads_snr_is_the_variance_around_channel_means_over_the_noise(noise, offset):
    exact = heads(offset=offset)
    got = [{"head": a["head"] + RNG.normal(0, noise, a["head"].shape).astype(np.float32)} for a in exact]
    every = np.concatenate([a["head"] for a in exact]).astype(np.float64)
    signal = np.square(every - every.mean(axis=(0, 2, 3), keepdims=True)).sum()
    error = np.square(every - np.concatenate([b["head"] for b in got])).sum()
    assert measured(exact, got) == pytest.approx(10 * np.log10(signal / error), abs=DECIBEL_TOLERANCE)


def test_a_head_that_only_kept_its_constants_scores_nothing():
    exact = heads(offset=10.0)
    constants = [
        {"head": np.broadcast_to(a["head"].mean(axis=(0, 2, 3), keepdims=True), a["head"].shape)} for a in exact
    ]
    a, b = (np.concatenate([h["head"].ravel() for h in part]) for part in (exact, constants))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99  # what plain cosine says
    assert measured(exact, constants) < 0.2


def test_a_large_head_counts_for_more_than_a_small_one():
    exact = [{"large": 10 * a["head"], "small": a["head"]} for a in heads()]
    wrong_small = [{"large": a["large"], "small": 0 * a["small"]} for a in exact]
    wrong_large = [{"large": 0 * a["large"], "small": a["small"]} for a in exact]
    assert measured(exact, wrong_small) > 15 > measured(exact, wrong_large)


def test_the_table_has_every_layers_figures():
    model = net()
    plan = make_plan(model, observe(model, PICTURES)[0], QuantConfig(bits=5, act_bits=5))
    quantised = insert_qdq(model, plan)
    rows = {row.name: row for row in compare_layers(model, quantised, plan.free_acts(), PICTURES)}
    assert list(rows) == [n for n, s in plan.sites.items() if s.same_as is None and n != "images"]
    for name, row in rows.items():
        exact, got = (
            np.concatenate([run[name] for run in run_pictures(m, [name], PICTURES)]).astype(np.float64)
            for m in (model, quantised)
        )
        quant = plan.acts[name]
        low, high = quant.dequantise(np.array([quant.qtype.lo, quant.qtype.hi]))
        error = np.square(exact - got).sum()
        centred = np.square(exact - exact.mean(axis=(0, 2, 3), keepdims=True)).sum()
        assert (row.qtype, row.frac, row.scale) == (str(quant.qtype), int(quant.frac), float(quant.scale))
        assert row.sqnr_db == pytest.approx(10 * np.log10(np.square(exact).sum() / error), abs=DECIBEL_TOLERANCE)
        assert row.snr_db == pytest.approx(10 * np.log10(centred / error), abs=DECIBEL_TOLERANCE)
        assert row.cosine == pytest.approx((exact * got).sum() / np.sqrt((exact**2).sum() * (got**2).sum()), abs=1e-5)
        assert row.clipped == pytest.approx(np.mean((exact < low) | (exact > high)))
        assert row.saturated == pytest.approx(np.mean((got <= low) | (got >= high)))
    assert any(row.clipped > 0 for row in rows.values())
    assert set(rows["head1"].to_json()) == {
        *("name", "qtype", "scale", "frac", "sqnr_db", "snr_db", "cosine", "clipped", "saturated")
    }


def test_more_bits_are_better_and_the_float_model_is_perfect():
    model = net()
    histograms, _ = observe(model, PICTURES)
    snrs = [
        head_snr(model, insert_qdq(model, make_plan(model, histograms, QuantConfig(bits=bits))), PICTURES)
        for bits in (2, 4, 6, 8)
    ]
    assert snrs == sorted(snrs) and snrs[-1] - snrs[1] > 10
    assert head_snr(model, model, PICTURES) > 200


def test_a_dead_head_is_no_number_out_of_range():
    text = "(float[1,3,16,16] images) => (float[1,8,16,16] head) { head = Conv(images, w) }"
    model = build(text, {**ARRAYS, "w": np.zeros((8, 3, 1, 1), np.float32)})
    assert np.isfinite(head_snr(model, model, PICTURES))


def detections(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Detections(table[:, :4].astype(np.float32), table[:, 4].astype(np.float32), table[:, 5].astype(np.int64))


A, B, C = (0, 0, 10, 10, 0.9, 1), (20, 20, 30, 30, 0.8, 1), (0, 0, 10, 10, 0.7, 2)


@pytest.mark.parametrize(
    ("reference", "got", "counts", "f1"),
    [
        ((A, B), (A, B), (2, 0, 0), 1.0),
        ((A, B), (A,), (1, 1, 0), 2 / 3),
        ((A,), (A, B), (1, 0, 1), 2 / 3),
        ((A,), (C,), (0, 1, 1), 0.0),  # another class
        ((A,), ((0, 0, 10, 5.1, 0.9, 1),), (1, 0, 0), 1.0),
        ((A,), ((0, 0, 10, 4.9, 0.9, 1),), (0, 1, 1), 0.0),  # IoU .49
        ((A,), (A, A), (1, 0, 1), 2 / 3),  # one box is matched once
        ((), (A,), (0, 0, 1), 0.0),
        ((A,), (), (0, 1, 0), 0.0),
        ((), (), (0, 0, 0), 1.0),
    ],
)
def test_agreement_matches_boxes_of_one_class_once(reference, got, counts, f1):
    agreement = Agreement()
    agreement.add(detections(*reference), detections(*got))
    assert (agreement.matched, agreement.missed, agreement.invented) == counts
    assert agreement.f1 == pytest.approx(f1)
    assert agreement.judged == bool(sum(counts))


def test_agreement_adds_up_over_pictures():
    agreement = Agreement()
    agreement.add(detections(A, B), detections(A))
    agreement.add(detections(A), detections(A, C))
    assert (agreement.matched, agreement.missed, agreement.invented) == (2, 1, 1)
    assert agreement.f1 == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
