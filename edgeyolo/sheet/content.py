"""What a sheet shows, independent of how it is drawn: two sides, their pictures, and which of them are chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeyolo.agreement import Agreement, match
from edgeyolo.evaluate import Score
from edgeyolo.images import Pixels
from edgeyolo.postprocess import Detections
from edgeyolo.sheet.layers import Layer

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Side:
    """One model's results.

    Args:
        name: as the user gave it.
        kind: what executes it, in a few words.
        found: the detections that count, one entry for each picture of the sheet.
        score: its figures, if the pictures are labelled.
        layers: the noise of every layer, if the model is a bundle.
    """

    name: str
    kind: str
    found: Sequence[Detections]
    score: Score | None = None
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True, eq=False)
class Subject:
    """A picture: ``load`` gives (H, W, 3) uint8 RGB, ``truth`` its labels as detections, None where there are none."""

    name: str
    load: Callable[[], Pixels]
    truth: Detections | None = None


@dataclass(frozen=True, eq=False)
class Sheet:
    """Everything on a sheet.

    Args:
        title: the headline.
        data: where the pictures come from.
        settings: what the figures rest on, one sentence each.
        names: class names, by index.
        pictures: all of them; at most ``limit`` are shown.
        model: the model in question.
        against: the model it is compared with.
    """

    title: str
    data: str
    settings: tuple[str, ...]
    names: Sequence[str]
    pictures: Sequence[Subject]
    model: Side
    against: Side | None = None
    limit: int = 24

    @property
    def sides(self) -> tuple[Side, ...]:
        """The models from left to right: the one compared with comes first."""
        return (self.model,) if self.against is None else (self.against, self.model)

    @property
    def labelled(self) -> bool:
        """Whether the pictures have labels."""
        return any(picture.truth is not None for picture in self.pictures)

    def role(self, side: Side) -> str:
        """``reference`` or ``model``."""
        return "model" if side is self.model else "reference"

    def agreement(self) -> Agreement | None:
        """Whether the two models see the same objects; None where there is one model."""
        if self.against is None:
            return None
        total = Agreement()
        for expected, got in zip(self.against.found, self.model.found, strict=True):
            total.add(expected, got)
        return total

    def compared(self, i: int) -> Agreement | None:
        """Picture ``i``: the model against the other model, or else against the labels."""
        expected = self.pictures[i].truth if self.against is None else self.against.found[i]
        return None if expected is None else counted(expected, self.model.found[i])


def counted(reference: Detections, got: Detections) -> Agreement:
    """One picture's agreement."""
    counts = Agreement()
    counts.add(reference, got)
    return counts


def choose(sheet: Sheet) -> tuple[list[int], int]:
    """Positions of the pictures to show, and how many of them stand there for their disagreement.

    Up to half of the places go to the pictures with the most boxes that only one side has, the worst first; the rest
    is spread evenly over the other pictures, so that the sheet does not show failures only.
    """
    total, places = len(sheet.pictures), min(sheet.limit, len(sheet.pictures))
    compared = [sheet.compared(i) for i in range(total)]
    differing = {i: c.missed + c.invented for i, c in enumerate(compared) if c is not None and c.missed + c.invented}
    worst = sorted(differing, key=lambda i: -differing[i])[: (places + 1) // 2]
    rest = [i for i in range(total) if i not in set(worst)]
    free = min(places - len(worst), len(rest))
    return worst + [rest[k * len(rest) // free] for k in range(free)], len(worst)


def choice_text(sheet: Sheet) -> str:
    """How the pictures were chosen, in words."""
    chosen, worst = choose(sheet)
    shown, total = len(chosen), len(sheet.pictures)
    if not worst:
        return f"{shown} of {total} pictures, evenly spread." if shown < total else f"{total} pictures."
    between = "the model and the labels" if sheet.against is None else "the two models"
    rest = f", then {shown - worst} evenly spread over the others" if shown > worst else ""
    return f"{shown} of {total} pictures: first the {worst} with the largest disagreement between {between}{rest}."


def partners(sheet: Sheet, i: int) -> tuple[dict[str, Mask], Mask | None]:
    """For picture ``i`` which boxes of each side, by its role, and of the labels have a partner.

    The two models are each other's counterparts; labels, and a model that is alone, are compared with one another.
    """
    truth, got = sheet.pictures[i].truth, sheet.model.found[i]
    labels, known = (None, None) if truth is None else match(truth, got)
    if sheet.against is not None:
        seen, known = match(sheet.against.found[i], got)
        return {"reference": seen, "model": known}, labels
    return {} if known is None else {"model": known}, labels
