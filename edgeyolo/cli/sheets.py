"""``--sheet`` and ``--against``: options that ``detect`` and ``eval`` share, and what they make of the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgeyolo.cli.models import Opened, open_model, same_classes
from edgeyolo.errors import InputError

if TYPE_CHECKING:
    from edgeyolo.agreement import Agreement
    from edgeyolo.evaluate import Score
    from edgeyolo.postprocess import Detections
    from edgeyolo.sheet import Side

Command = TypeVar("Command", bound=Callable[..., Any])

MAX_PICTURES = 200
"""On one sheet: more make a file that no browser likes."""


def sheet_options(command: Command) -> Command:
    """Add the options to a command; they arrive under the names that ``SheetRequest.take`` takes out."""
    path = click.Path(path_type=Path)
    options = (
        click.option("--sheet", metavar="FILE", type=path, help="Write pictures with boxes and curves, .html or .png."),
        click.option("--sheet-pictures", default=24, show_default=True, type=click.IntRange(1, MAX_PICTURES),
                     help="Pictures on the sheet: those with the largest disagreement, and an even choice."),
        click.option("--against", metavar="MODEL", type=path, help="A second model to compare MODEL with."),
        click.option("--against-weights", metavar="FILE", type=path, help="Weights of a Darknet .cfg in --against."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True)
class SheetRequest:
    """What the shared options ask for."""

    sheet: Path | None
    sheet_pictures: int
    against: Path | None
    against_weights: Path | None
    force: bool

    @classmethod
    def take(cls, options: dict[str, Any], *, force: bool, curves: bool) -> SheetRequest:
        """Take the options out of ``options`` and refuse what cannot be done, before any work."""
        keys = ("sheet", "sheet_pictures", "against", "against_weights")
        request = cls(**{key: options.pop(key) for key in keys}, force=force)
        if request.against is None and request.against_weights is not None:
            raise InputError("weights of no model", where="--against-weights", hint="name the .cfg with --against")
        if request.sheet is not None:
            from edgeyolo.sheet import check_sheet

            reported = request.against is not None and request.against.is_dir()
            check_sheet(request.sheet, force=force, curves=curves or reported)
        return request

    @property
    def wanted(self) -> bool:
        """Whether results must be kept for a sheet or a comparison."""
        return self.sheet is not None or self.against is not None

    def open_against(self, model: Opened, names: Path | None) -> tuple[Opened, Opened | None]:
        """The second model, if there is one, and the first with the names that either has."""
        if self.against is None:
            return model, None
        return same_classes(model, open_model(self.against, "auto", self.against_weights, names))


def side(opened: Opened, path: Path, found: Sequence[Detections], score: Score | None = None) -> Side:
    """One model's part of a sheet; of a bundle at ``path`` with its report."""
    from edgeyolo.sheet import Side
    from edgeyolo.sheet.layers import read_layers

    return Side(opened.name, opened.kind, found, score, read_layers(path))


def agreement_text(agreement: Agreement, other: str) -> str:
    """One line for people."""
    counts = f"{agreement.matched} matched, {agreement.missed} missed, {agreement.invented} invented"
    value = f"F1 {agreement.f1:.3f}" if agreement.judged else "nothing found by either"
    return f"agreement with {other}: {value} ({counts})"


def agreement_json(agreement: Agreement) -> dict[str, Any]:
    """The same for programs; F1 is null where neither found anything."""
    counts = {"matched": agreement.matched, "missed": agreement.missed, "invented": agreement.invented}
    return {"f1": agreement.f1 if agreement.judged else None, **counts}
