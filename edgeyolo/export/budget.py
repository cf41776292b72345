"""Mixed precision: measure every layer once, then choose bits by average bits, bytes or the loss that is allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgeyolo.errors import InputError
from edgeyolo.export.pictures import PictureSet
from edgeyolo.profile import TargetProfile
from edgeyolo.progress import Log
from edgeyolo.quant.calibrate import copy_model, observe
from edgeyolo.quant.config import QuantConfig
from edgeyolo.quant.mixed import MAX_AVERAGE, Choice, Sensitivity, choose_bits, frontier, sensitivities
from edgeyolo.quant.plan import make_plan
from edgeyolo.quant.quantise import QuantResult
from edgeyolo.quant.refine.equalise import equalise

SAMPLE = 8
"""Pictures that measure sensitivities; each shows thousands of cells."""


@dataclass(frozen=True)
class Budget:
    """What the weights may cost; at most one of the first three is set.

    Args:
        average: bits a weight on average.
        max_bytes: of packed weights and 32 bit biases.
        max_drop: as few bits on average as lose no more than this, of AP or agreement.
        act_share: share of the activations' elements that may be wider than ``--act-bits``.
    """

    average: float | None = None
    max_bytes: int | None = None
    max_drop: float | None = None
    act_share: float = 0.0

    @classmethod
    def of(cls, avg_bits: str | None, max_bytes: int | None, act_share: float, max_drop: float | None) -> Budget | None:
        """Read the command line's words; None where there is no budget. Raises InputError where they contradict."""
        if avg_bits is not None and max_bytes is not None:
            raise InputError("give one budget", got="--avg-bits and --max-bytes", hint="leave one of them out")
        if not 0 <= act_share <= 1:
            raise InputError("out of range", where="--act-share", got=act_share, allowed="0 to 1")
        if avg_bits is None and max_bytes is None:
            return None if act_share == 0 else cls(act_share=act_share)
        if avg_bits == "auto":
            if max_drop is None:
                hint = "add --max-drop 0.01"
                raise InputError("how much may be lost?", where="--avg-bits auto", hint=hint)
            return cls(max_drop=max_drop, act_share=act_share)
        try:
            average = None if avg_bits is None else float(avg_bits)
        except ValueError:
            average = float("nan")
        if average is not None and not 2 <= average <= 8:
            raise InputError("not a number of bits", where="--avg-bits", got=avg_bits, allowed="2 to 8, or auto")
        return cls(average, max_bytes, act_share=act_share)


Quantise = Callable[[QuantConfig], QuantResult]
Loss = Callable[[QuantResult], float]


def quantise_within(
    model: ir.Model, pictures: PictureSet, config: QuantConfig, budget: Budget, profile: TargetProfile,
    quantise: Quantise, loss: Loss, log: Log,
) -> tuple[QuantResult, QuantConfig]:  # fmt: skip
    """Choose bits per layer and quantise with them; what ``config.keep`` says stays as it is.

    Args:
        model: the fixed form.
        pictures: for calibration; ``SAMPLE`` of them measure.
        config: the request: layers have ``config.bits`` where nothing is chosen.
        budget: what the weights may cost.
        profile: the board's widths are the choice.
        quantise: makes a candidate.
        loss: what a candidate loses, of AP or agreement.
    """
    with log.stage("choose bits") as details:
        layers = _measure(model, pictures, config, profile, budget, log)
        if budget.max_drop is None:
            choice = _choose(layers, config, budget)
            chosen = _with(config, choice)
            details.append(text(choice))
            return quantise(chosen), chosen
        choices = frontier(layers, budget.act_share)
        if not any(layer.weights for layer in layers):
            raise InputError("there are no weights to choose bits for", where="--avg-bits")
        result, chosen = _least(choices, config, quantise, loss, budget.max_drop, log)
        details.append(f"{len(choices)} points of the frontier")
    return result, chosen


def _measure(
    model: ir.Model, pictures: PictureSet, config: QuantConfig, profile: TargetProfile, budget: Budget, log: Log
) -> list[Sensitivity]:
    """Sensitivities of the network as it will be scaled."""
    sample = list(pictures.spread(SAMPLE))
    scaled = copy_model(model)
    histograms, peaks = observe(scaled, sample)
    if config.equalise and equalise(scaled, peaks, config.granularity == "per-channel"):
        histograms, _ = observe(scaled, sample)
    widths = [bits for bits in profile.weight_bits if _least_bits(config, budget) <= bits <= 8]
    if budget == Budget(act_share=budget.act_share):
        widths = [bits for bits in widths if bits == config.bits]
    if not widths:
        allowed = ", ".join(map(str, profile.weight_bits))
        raise InputError("the board has no such weights", where="--bits", got=config.bits, allowed=allowed)
    plan = make_plan(scaled, histograms, config)
    wide = max(profile.activation_bits)
    named = {keep.weight_bits for keep in config.keep}
    layers = sensitivities(
        scaled, plan, sample, config, sorted({*widths, *named}),
        lambda items, title: log.track(items, title, len(items)), wide,
    )  # fmt: skip
    return [_as_named(layer, config, widths) for layer in layers]


def _least_bits(config: QuantConfig, budget: Budget) -> int:
    """The narrowest weights to choose from.

    A layer gets more only where another gets less, so there is a step below what is asked for on average.
    """
    if budget.max_bytes is not None or budget.max_drop is not None:
        return 2
    average = config.bits if budget.average is None else budget.average
    return config.bits if average >= config.bits + 1 or budget.average is None else max(2, int(average) - 1)


def _as_named(layer: Sensitivity, config: QuantConfig, widths: list[int]) -> Sensitivity:
    """What ``--keep`` names has one width only, and is paid for."""
    name, roles = layer.layer.name, layer.layer.roles
    if any(keep.matches(name, roles) for keep in config.keep):
        widths = [config.layer_bits(name, roles)[0]]
    return replace(layer, weights={bits: noise for bits, noise in layer.weights.items() if bits in widths})


def _choose(layers: list[Sensitivity], config: QuantConfig, budget: Budget) -> Choice:
    average = budget.average
    if average is None and budget.max_bytes is None:
        average = MAX_AVERAGE  # every layer has one width already
    return choose_bits(layers, average=average, max_bytes=budget.max_bytes, act_share=budget.act_share)


def _with(config: QuantConfig, choice: Choice) -> QuantConfig:
    """What was asked for by name stands behind the choice, so it decides."""
    return replace(config, keep=(*choice.keeps, *config.keep))


def _least(
    choices: list[Choice], config: QuantConfig, quantise: Quantise, loss: Loss, max_drop: float, log: Log
) -> tuple[QuantResult, QuantConfig]:
    """Bisect the frontier for the fewest average bits within the loss; the widest where none is."""
    tried: dict[int, tuple[QuantResult, QuantConfig]] = {}

    def fits(index: int) -> bool:
        chosen = _with(config, choices[index])
        tried[index] = quantise(chosen), chosen
        lost = loss(tried[index][0])
        log.say(f"  {text(choices[index])}: loses {lost:.4f} of {max_drop:g} allowed")
        return lost <= max_drop

    low, high = -1, len(choices) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    if high not in tried:
        fits(high)
    return tried[high]


def text(choice: Choice) -> str:
    """One line for people."""
    counts: dict[int, int] = {}
    for bits in choice.weight_bits.values():
        counts[bits] = counts.get(bits, 0) + 1
    layers = ", ".join(f"{count} x {bits}" for bits, count in sorted(counts.items()))
    wide = f", {len(choice.act_bits)} wide activations" if choice.act_bits else ""
    return f"{choice.average_bits:.2f} bits a weight ({layers} bit layers{wide})"
