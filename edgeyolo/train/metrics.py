"""The curves of a training: a CSV file that is always whole, and TensorBoard's event files."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from edgeyolo.output import write_file

CSV, EVENTS = "metrics.csv", "tensorboard"
COLUMNS = ("epoch", "step", "lr", "loss", "loss_box", "loss_objectness", "loss_classification", "AP", "AP50", "seconds")
"""All but ``seconds`` are the same every time."""

Row = dict[str, Any]


def write_csv(folder: Path, history: list[Row]) -> None:
    """Write all rows anew, so that a resumed training's file has no epoch twice; unknown figures stay empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if row.get(key) is None else row[key] for key in COLUMNS} for row in history)
    write_file(folder / CSV, text.getvalue().encode(), force=True)


class Events:
    """TensorBoard's scalars; ``first`` is the first epoch to come, later ones of an interrupted run are hidden."""

    def __init__(self, folder: Path, first: int) -> None:
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(folder / EVENTS), purge_step=first)

    def add(self, row: Row) -> None:
        """Write one epoch."""
        for key, value in row.items():
            if key not in ("epoch", "step") and value is not None:
                self.writer.add_scalar(key.replace("loss_", "loss/"), value, row["epoch"])
        self.writer.flush()

    def close(self) -> None:
        """End the file."""
        self.writer.close()
