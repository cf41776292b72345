"""Which layers lose the accuracy, and which options give it back.

1. Every layer's weights and results are quantised alone in the float network: what they do to the heads is their noise.
2. The noisiest are given back their float values in the quantised network, alone: what the heads gain.
3. The noisiest k are given back together; bisection finds the smallest k that reaches the goal.
4. The options that promise most are quantised and measured as an export would.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from edgeyolo.errors import InputError
from edgeyolo.profile import TargetProfile
from edgeyolo.quant.calibrate import Pixels
from edgeyolo.quant.compare import compare_layers, head_snr
from edgeyolo.quant.config import QuantConfig
from edgeyolo.quant.mixture import Layer, Mixture
from edgeyolo.quant.quantise import QuantResult, quantise
from edgeyolo.quant.reasons import reason
from edgeyolo.quant.suggest import MAX_NAMES, Candidate, LayerNoise, candidates

T = TypeVar("T")
RANK_PICTURES = 8
"""Every layer runs on all of them several times; a head has thousands of values on each."""
GOAL_DB = 6.0
"""Given back, the guilty layers halve the noise's amplitude: three quarters of its power are theirs."""
FEW = 1 / 4
"""Layers stand out if no more than this share of all layers, and ``MAX_NAMES``, make so much of the noise."""
HEALTHY_DB = 25.0
"""From this head SNR on few detections change, so no layer is guilty of anything."""
GAIN_DB = 0.5
"""What gains less is not worth a suggestion: other calibration pictures move the SNR as much."""
GAIN_AP = 0.005
"""The same where AP is judged: on a few dozen pictures one box more or less moves it as much."""

Track = Callable[[Sequence[T], str], Iterable[T]]
"""Wraps an iteration with a title, for a progress bar."""
Judge = Callable[[list[ir.Model]], list[dict[str, float | None]]]
"""Scores of networks, the float one first: ``F1``, ``AP``, ``AP50``; None where there is nothing to score."""


@dataclass(frozen=True)
class LayerLoss:
    """What one layer costs.

    Args:
        name, kind: as in ``mixture.Layer``.
        weight_bits: None where it has no weights.
        act_bits: of its result.
        weight_share, act_share: of the noise that all layers make alone.
        alone_db: the heads' SNR where this layer alone is quantised.
        gain_weights_db, gain_acts_db, gain_db: what the quantised network's heads gain where the layer's weights, its
            result, or both are given back; None below the first few layers.
        snr_db: of the layer's result in the quantised network, channel means removed.
        reason: what about its values is hard to quantise.
    """

    name: str
    kind: str
    weight_bits: int | None
    act_bits: int
    weight_share: float
    act_share: float
    alone_db: float
    gain_weights_db: float | None
    gain_acts_db: float | None
    gain_db: float | None
    snr_db: float
    reason: str

    @property
    def share(self) -> float:
        """Of the noise, by weights and result."""
        return self.weight_share + self.act_share


@dataclass(frozen=True)
class Bisection:
    """The fewest noisiest layers that reach the goal when given back: ``steps`` are (layers, value), as tried."""

    measure: str
    start: float
    goal: float
    count: int
    steps: tuple[tuple[int, float], ...]


@dataclass(frozen=True, eq=False)
class Outcome:
    """A quantisation, measured: ``scores`` are the judge's."""

    candidate: Candidate
    head_snr_db: float
    scores: dict[str, float | None]

    @property
    def merit(self) -> float:
        """AP where it was judged, else the heads' SNR."""
        ap = self.scores.get("AP")
        return self.head_snr_db if ap is None else ap


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The result of ``diagnose``.

    Args:
        layers: all, the noisiest first.
        bisection: how many of them it takes.
        outcomes: the request as it is, then with the suggested options.
        float_scores: the judge's on the float network.
        pictures, rank_pictures: how many calibrated and measured the outcomes, and ranked the layers.
    """

    layers: tuple[LayerLoss, ...]
    bisection: Bisection
    outcomes: tuple[Outcome, ...]
    float_scores: dict[str, float | None]
    pictures: int
    rank_pictures: int

    @property
    def now(self) -> Outcome:
        """The request as it is."""
        return self.outcomes[0]

    @property
    def guilty(self) -> tuple[LayerLoss, ...]:
        """The layers that stand out; none in a healthy network, or where many layers share the noise."""
        return self.layers[: _stand_out(self.bisection, len(self.layers), self.now.head_snr_db)]

    @property
    def helpful(self) -> tuple[Outcome, ...]:
        """The suggestions that gain something, in AP where it was judged, the best first."""
        least = GAIN_DB if self.now.scores.get("AP") is None else GAIN_AP
        found = [o for o in self.outcomes[1:] if not o.candidate.yardstick and self.gain(o) >= least]
        return tuple(sorted(found, key=lambda o: -o.merit))

    @property
    def best(self) -> Outcome | None:
        """The suggestion that gains most."""
        return self.helpful[0] if self.helpful else None

    @property
    def thriftiest(self) -> Outcome | None:
        """The suggestion that gains most a byte of weights."""
        return max(self.helpful, key=lambda o: self.gain(o) / max(self.added(o), 1), default=None)

    @property
    def recommended(self) -> Outcome | None:
        """The smallest suggestion that gains at least half of what the best one gains."""
        enough = [o for o in self.helpful if self.gain(o) >= self.gain(self.helpful[0]) / 2]
        return min(enough, key=lambda o: (o.candidate.weight_bytes, -o.merit), default=None)

    def gain(self, outcome: Outcome) -> float:
        """AP over the request as it is where it was judged, else head SNR in dB."""
        return outcome.merit - self.now.merit

    def gain_db(self, outcome: Outcome) -> float:
        """Head SNR over the request as it is, in dB."""
        return outcome.head_snr_db - self.now.head_snr_db

    def added(self, outcome: Outcome) -> int:
        """Bytes of weights over the request as it is."""
        return outcome.candidate.weight_bytes - self.now.candidate.weight_bytes

    def to_json(self) -> dict[str, Any]:
        """JSON-able, rounded to what the figures are worth."""
        return {
            "layers": [{k: _rounded(v) for k, v in asdict(layer).items()} for layer in self.layers],
            "guilty": [layer.name for layer in self.guilty],
            "bisection": {k: _rounded(v) for k, v in asdict(self.bisection).items()},
            "float": self.float_scores,
            "suggestions": [
                {
                    "options": list(o.candidate.options), "head_snr_db": round(o.head_snr_db, 3), **o.scores,
                    "weight_bytes": o.candidate.weight_bytes, "yardstick": o.candidate.yardstick,
                }
                for o in self.outcomes
            ],
            "recommended": _options(self.recommended),
            "best": _options(self.best),
            "best_per_byte": _options(self.thriftiest),
            "pictures": self.pictures,
            "rank_pictures": self.rank_pictures,
        }  # fmt: skip


def diagnose(
    model: ir.Model, pictures: Collection[Pixels], config: QuantConfig, *,
    profile: TargetProfile | None = None, judge: Judge | None = None, max_drop: float | None = None, top: int = 10,
    track: Track[Any] = lambda items, _: items,
) -> Diagnosis:  # fmt: skip
    """Find the layers that lose the accuracy of a quantisation.

    Args:
        model: as ``quantise`` takes it: the fixed form.
        pictures: network pixels that calibrate every quantisation and measure its heads; ``RANK_PICTURES`` of them,
            evenly spread, rank the layers.
        config: the quantisation in question. All are measured without reconstruction: it refits every layer to what
            the others lost, so that no noise would be a layer's own.
        profile: the board, which limits the suggestions.
        judge: scores the suggestions, besides their heads' SNR.
        max_drop: with a judge of AP, the layers given back must bring it this close to float; else the goal is
            ``GOAL_DB``.
        top: of how many layers the gains are measured.
        track: wraps the long iterations.

    Raises InputError as ``quantise`` does.
    """
    if top < 1:
        raise InputError("the number of layers to show must be positive", where="--top", got=top)
    config = replace(config, reconstruct=False)
    quant = quantise(model, pictures, config, lambda items, title: track(list(items), title))
    mixture = Mixture(quant.reference, quant.plan, _spread(pictures, RANK_PICTURES))
    noises = _noises(mixture, track)
    losses = _losses(mixture, noises, quant, top, track)
    bisection = _bisect(mixture, noises, model, judge, max_drop)
    snr = head_snr(model, quant.model, pictures)
    now, *more = candidates(noises, config, profile, _stand_out(bisection, len(noises), snr))
    tried = [(now, quant.model, snr)]
    for candidate in track(more, "measuring suggestions"):
        quantised = quantise(model, pictures, candidate.config).model
        tried.append((candidate, quantised, head_snr(model, quantised, pictures)))
    scores = judge([model, *(network for _, network, _ in tried)]) if judge else [{}] * (len(tried) + 1)
    outcomes = [Outcome(c, db, score) for (c, _, db), score in zip(tried, scores[1:], strict=True)]
    return Diagnosis(losses, bisection, tuple(outcomes), scores[0], len(pictures), len(mixture.pictures))


def _spread(pictures: Collection[Pixels], count: int) -> list[Pixels]:
    chosen = set(np.linspace(0, len(pictures) - 1, min(count, len(pictures))).astype(int).tolist())
    return [pixels for i, pixels in enumerate(pictures) if i in chosen]


def _noises(mixture: Mixture, track: Track[Any]) -> list[LayerNoise]:
    """Every layer's own noise, the noisiest first."""

    def noise(weights: list[str], acts: list[str]) -> float:
        return float(10 ** (-mixture.snr(mixture.model(weights, acts), optimise=True) / 10))

    found = [
        LayerNoise(layer, noise([layer.name], []) if layer.conv else 0.0, noise([], [layer.site]))
        for layer in track(mixture.layers, "quantising one layer at a time")
    ]
    return sorted(found, key=lambda n: -n.total)


def _losses(
    mixture: Mixture, noises: list[LayerNoise], quant: QuantResult, top: int, track: Track[Any]
) -> tuple[LayerLoss, ...]:
    """The table: for the first ``top`` layers also what each gains when it is given back."""
    base = mixture.snr(mixture.model(mixture.all_weights, mixture.all_acts))
    gains = {n.layer: _gains(mixture, n.layer, base) for n in track(noises[:top], "giving back one layer at a time")}
    reports = compare_layers(quant.reference, quant.model, quant.plan.free_acts(), mixture.pictures)
    accumulated = {report.name: report.snr_db for report in reports}
    total = sum(n.total for n in noises) or 1.0
    losses = []
    for n in noises:
        own, result, both = gains.get(n.layer, (None, None, None))
        weight = quant.plan.weights[n.layer.name].quant.qtype.bits if n.layer.conv else None
        act, alone = quant.plan.acts[n.layer.site].qtype.bits, float(-10 * np.log10(max(n.total, 1e-30)))
        snr = accumulated.get(n.layer.site, float("inf"))
        shares = n.weights / total, n.acts / total
        losses.append(
            LayerLoss(
                n.layer.name, n.layer.kind, weight, act, *shares, alone, own, result, both, snr, reason(mixture, n)
            )
        )  # fmt: skip
    return tuple(losses)


def _gains(mixture: Mixture, layer: Layer, base: float) -> tuple[float | None, float, float]:
    """How much the heads gain, in dB, when the layer's weights, its result, and both are given back."""
    weights, acts = mixture.all_weights, mixture.all_acts
    result = mixture.snr(mixture.model(weights, acts - {layer.site})) - base
    if not layer.conv:
        return None, result, result
    own = mixture.snr(mixture.model(weights - {layer.name}, acts)) - base
    return own, result, mixture.snr(mixture.without([layer])) - base


def _bisect(
    mixture: Mixture, noises: list[LayerNoise], model: ir.Model, judge: Judge | None, max_drop: float | None
) -> Bisection:
    """Give the noisiest layers back together."""
    judged = judge if max_drop is not None else None
    steps: dict[int, float] = {}

    def value(count: int) -> float:
        if count not in steps:
            mixed = mixture.without([n.layer for n in noises[:count]])
            steps[count] = mixture.snr(mixed) if judged is None else judged([model, mixed])[1]["AP"] or 0.0
        return steps[count]

    start = value(0)
    goal = start + GOAL_DB if judged is None else (judged([model])[0]["AP"] or 0.0) - (max_drop or 0.0)
    low, high = 0, 0 if start >= goal else len(noises)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if value(middle) >= goal else (middle, high)
    tried = tuple((count, steps[count]) for count in sorted(steps))
    return Bisection("head SNR dB" if judged is None else "AP", start, goal, high, tried)


def _stand_out(bisection: Bisection, layers: int, snr_db: float) -> int:
    """How many layers stand out."""
    few = bisection.count <= max(1, min(int(layers * FEW), MAX_NAMES)) and snr_db < HEALTHY_DB
    return bisection.count if few else 0


def _options(outcome: Outcome | None) -> list[str] | None:
    return None if outcome is None else list(outcome.candidate.options)


def _rounded(value: Any) -> Any:
    """Figures to six digits; what is infinite becomes None, for JSON has no such number."""
    if isinstance(value, float):
        return round(value, 6) if np.isfinite(value) else None
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else value
