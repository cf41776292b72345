"""The labelled pictures that an export is judged on, checked against the model before any expensive work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from edgeyolo.datasets import Dataset, Sample
from edgeyolo.detector import BOX_KINDS, Detector
from edgeyolo.errors import InputError, UnsupportedError
from edgeyolo.evaluate import match_classes, need_metric
from edgeyolo.export.pictures import Entry, PictureSet, Track, latest, sample_entry


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """Pictures with their labels.

    Args:
        name: the source's, without the folders it stands in: a bundle says nothing of the machine it was made on.
        pictures: those that decode.
        samples: one for each picture; the classes are positions in the model's.
        problems: how often each kind of label problem occurs, as ``edgeyolo eval`` counts them.
    """

    name: str
    pictures: PictureSet
    samples: tuple[Sample, ...]
    problems: dict[str, int]

    @property
    def boxes(self) -> int:
        """How many objects are labelled."""
        return sum(len(sample.boxes) for sample in self.samples)


def finds_boxes(detector: Detector) -> bool:
    """Whether all heads are known to hold boxes."""
    return bool(detector.heads) and all(head.kind in BOX_KINDS for head in detector.heads)


def check_labels(dataset: Dataset, source: str, detector: Detector, track: Track = iter) -> LabelledSet:
    """Match the classes, then decode every picture once.

    Args:
        dataset: from ``load_dataset``.
        source: what it was loaded from.
        detector: the model's facts.
        track: wraps the iteration over the pictures.

    Raises:
        UnsupportedError: the model's heads are not known to hold boxes.
        InputError: the classes disagree, no picture decodes, or none shows a labelled object.
    """
    if not finds_boxes(detector):
        got = ", ".join(sorted({head.kind for head in detector.heads})) or "no heads"
        what = "average precision needs a model that finds boxes"
        raise UnsupportedError(what, got=got, allowed=", ".join(BOX_KINDS), hint="leave --data out")
    need_metric()
    index, sample, labels = (
        match_classes(detector, dataset.names),
        latest(dataset.samples),
        list[tuple[Entry, Sample]](),
    )

    def entries() -> Iterator[Entry]:
        for i in track(range(len(dataset.samples))):
            entry = sample_entry(sample, i)
            labels.append((entry, replace(sample(i), classes=index[sample(i).classes], load=entry.load)))
            yield entry

    pictures = PictureSet.of(entries(), detector.preprocess)
    decoded = set(pictures.entries)
    samples = tuple(label for entry, label in labels if entry in decoded)
    problems = {f"{reason} ({action})": count for (action, reason), count in dataset.counts().items()}
    if pictures.skipped:
        problems["picture does not decode (left out)"] = len(pictures.skipped)
    labelled = LabelledSet(Path(source).absolute().name, pictures, samples, problems)
    if not labelled.boxes:
        got = f"{len(samples)} readable pictures, no boxes"
        raise InputError("there is nothing to score: no picture shows a labelled object", where=source, got=got)
    return labelled
