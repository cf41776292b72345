"""Which options give a quantised network its accuracy back: candidates, and what they promise.

What a candidate leaves of the noise is predicted for nothing from the noise that each layer makes alone: one more bit
divides the power of its rounding noise by four. The best promises, by bytes of weights, are worth measuring. So are
wider results of the heads, whatever they promise: a box is an offset within its cell times a size, and steps too coarse
for it cost AP long before the raw heads' noise shows them. They cost no weights.
"""

from __future__ import annotations

import glob
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeyolo.profile import TargetProfile
from edgeyolo.quant.config import ACT_BITS, ROLES, WEIGHT_BITS, QuantConfig, parse_keep
from edgeyolo.quant.mixture import Layer

MAX_NAMES = 12
"""A --keep with more names is no longer something that people read."""
SIZES = (1, 2, 3, 5, 8, MAX_NAMES)
GROUPS = ("first", "head", "depthwise", "first,head", "first,head,depthwise")
MEASURED = 4
"""Candidates of --keep that are worth measuring, besides the one for the guilty layers."""
WORTH = 0.9
"""A promise to remove less than a tenth of the noise is none."""
MINOR = 0.2
"""Weights or activations that make less than this share of the noise are not what hurts."""


@dataclass(frozen=True)
class LayerNoise:
    """A layer with the noise power at the heads, relative to their signal, of its weights and of its result alone."""

    layer: Layer
    weights: float
    acts: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.weights + self.acts


@dataclass(frozen=True)
class Candidate:
    """Options to add to the request.

    Args:
        options: as the command line has them; none for the request as it is.
        config: what they make of the request.
        noise: predicted noise power at the heads; None where nothing can be predicted.
        weight_bytes: of all convolutions, packed.
        yardstick: no suggestion, since it gives up what was asked for: so few bits everywhere.
    """

    options: tuple[str, ...]
    config: QuantConfig
    noise: float | None
    weight_bytes: int
    yardstick: bool = False

    @property
    def text(self) -> str:
        """What a shell takes."""
        return shlex.join(self.options)


def selector(name: str) -> str:
    """What means the layer called ``name``, and hardly another, in ``--keep``."""
    text = "".join("?" if not c.isprintable() or c == "," else c for c in glob.escape(name))
    text = "?" * (len(text) - len(text.lstrip())) + text.lstrip()
    text = text.rstrip() + "?" * (len(text) - len(text.rstrip()))
    return f"[{text[0]}]{text[1:]}" if text in ROLES else text


def candidates(
    noises: Sequence[LayerNoise], config: QuantConfig, profile: TargetProfile | None = None, guilty: int = 0
) -> list[Candidate]:
    """The request as it is, the guilty layers' ``--keep``, the best promises by bytes, wide heads, and other ways out.

    Args:
        noises: every layer, the noisiest first.
        config: the request.
        profile: the board, which limits bits and granularity; None for no limits.
        guilty: how many of the first stand out.
    """
    total = sum(n.total for n in noises)
    now = Candidate((), config, total, _bytes(noises, config))
    top = max(WEIGHT_BITS) if profile is None else min(max(WEIGHT_BITS), max(profile.weight_bits))
    wide = max(ACT_BITS) if profile is None else min(max(ACT_BITS), max(profile.activation_bits))
    convs = [n for n in noises[:guilty] if n.layer.conv]
    accused = _widened(convs, config, top, wide) if 0 < len(convs) <= MAX_NAMES else None
    texts = [*([] if accused is None else [accused]), *_keeps(noises, config, top, wide)]
    kept = [_keep((text,), config, noises) for text in dict.fromkeys(texts)]
    first = [] if accused is None else kept[:1]
    promising = [(c.weight_bytes, c.noise, c) for c in kept if c.noise is not None and c.noise < WORTH * total]
    chosen = [c for c in _front(promising) if c not in first]
    found = [now, *first, *chosen, *_wide_heads([*first, *chosen], config, noises, wide)]
    unique = {c.options: c for c in reversed(found)}  # the first of equals
    return [*reversed(unique.values()), *_others(noises, config, profile, top, wide)]


def _keep(texts: Sequence[str], config: QuantConfig, noises: Sequence[LayerNoise]) -> Candidate:
    after = replace(config, keep=config.keep + tuple(keep for text in texts for keep in parse_keep(text)))
    options = tuple(word for text in texts for word in ("--keep", text))
    return Candidate(options, after, _predicted(noises, config, after), _bytes(noises, after))


def _wide_heads(
    chosen: Sequence[Candidate], config: QuantConfig, noises: Sequence[LayerNoise], wide: int
) -> Iterator[Candidate]:
    """``head`` with the widest results: alone, and with the weights of the best promise."""
    best = min(chosen, key=lambda c: c.noise or 0.0, default=None)
    for before in [None] if best is None else [None, best]:
        after = config if before is None else before.config
        bits = [after.layer_bits(n.layer.name, n.layer.roles) for n in noises if "head" in n.layer.roles]
        if any(acts < wide for _, acts in bits):
            text = f"head={max(weights for weights, _ in bits)}/{wide}"
            yield _keep((text,) if before is None else (before.options[1], text), config, noises)


def _bytes(noises: Sequence[LayerNoise], config: QuantConfig) -> int:
    bits = sum(n.layer.weights * config.layer_bits(n.layer.name, n.layer.roles)[0] for n in noises)
    return -(-bits // 8)


def _predicted(noises: Sequence[LayerNoise], before: QuantConfig, after: QuantConfig) -> float:
    """Noise power that is left when the noises were measured under another configuration."""
    left = 0.0
    for n in noises:
        old, new = (config.layer_bits(n.layer.name, n.layer.roles) for config in (before, after))
        if not n.layer.conv:
            old, new = (0, before.act_bits), (0, after.act_bits)
        left += n.weights * 4.0 ** (old[0] - new[0]) + n.acts * 4.0 ** (old[1] - new[1])
    return left


def _widened(chosen: Sequence[LayerNoise], config: QuantConfig, top: int, wide: int) -> str | None:
    """The --keep that gives these layers more bits where they hurt, or None if nothing can be widened."""
    total = sum(n.total for n in chosen)
    now = max((config.layer_bits(n.layer.name, n.layer.roles)[0] for n in chosen), default=top)
    bits = max(now, top) if sum(n.weights for n in chosen) >= MINOR * total else now
    acts = wide > config.act_bits and sum(n.acts for n in chosen) >= MINOR * total
    if bits == now and not acts:
        return None
    return f"{','.join(selector(n.layer.name) for n in chosen)}={bits}" + (f"/{wide}" if acts else "")


def _keeps(noises: Sequence[LayerNoise], config: QuantConfig, top: int, wide: int) -> Iterator[str]:
    """Named groups, the noisiest layers and those that cost the fewest bytes for their noise."""
    convs = [n for n in noises if n.layer.conv]
    for group in GROUPS:
        members = [n for n in convs if set(group.split(",")) & n.layer.roles]
        text = _widened(members, config, top, wide)
        if text is not None:
            yield f"{group}={text.rpartition('=')[2]}"
    by_bytes = sorted(convs, key=lambda n: -n.weights / max(1, n.layer.weights))
    by_acts = sorted(convs, key=lambda n: -n.acts)
    for size in SIZES:
        if size < len(convs):
            for order in (convs, by_bytes, by_acts):
                text = _widened(order[:size], config, top, wide)
                if text is not None:
                    yield text


def _front(kept: Sequence[tuple[int, float, Candidate]]) -> list[Candidate]:
    """Of (bytes, noise, candidate), at most ``MEASURED`` that nothing smaller beats, from the smallest on."""
    front: list[Candidate] = []
    least = float("inf")
    for _, noise, candidate in sorted(kept, key=lambda item: item[:2]):
        if noise < WORTH * least:
            least = noise
            front.append(candidate)
    places = np.linspace(0, len(front) - 1, min(MEASURED, len(front))).astype(int)
    return [front[i] for i in places]


def _others(
    noises: Sequence[LayerNoise], config: QuantConfig, profile: TargetProfile | None, top: int, wide: int
) -> Iterator[Candidate]:
    """What helps besides --keep, and the yardsticks: the most bits everywhere."""
    if config.granularity == "per-tensor" and (profile is None or "per-channel" in profile.granularity):
        after = replace(config, granularity="per-channel")
        yield Candidate(("--granularity", "per-channel"), after, None, _bytes(noises, after))
    if wide > config.act_bits and sum(n.acts for n in noises) >= MINOR * sum(n.total for n in noises):
        after = replace(config, act_bits=wide)
        yield Candidate(("--act-bits", str(wide)), after, None, _bytes(noises, after), yardstick=True)
    if config.bits < top:
        after = replace(config, bits=top)
        yield Candidate(("--bits", str(top)), after, None, _bytes(noises, after), yardstick=True)
