"""Accuracy of a model on a labelled data set: COCO's average precision, or Darknet's ``map``.

The conventions differ by points, so every result carries its own name, thresholds and choices. COCO: Lin et al., 2014,
by faster-coco-eval. Darknet: ``validate_detector_map`` (AlexeyAB) with its default, the area under the curve.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeyolo import postprocess
from edgeyolo.datasets import Dataset, Problem, Sample
from edgeyolo.datasets.sample import load_again
from edgeyolo.detector import NMS_KINDS, Detector, Preprocess
from edgeyolo.errors import InputError
from edgeyolo.images import Pixels, to_input
from edgeyolo.postprocess import Detections, Floats
from edgeyolo.progress import Log
from edgeyolo.runners import Runner

CONVENTIONS = {
    "coco": "COCO: 101 recall points, mean over the classes that occur, sizes by the area of the box",
    "darknet": "Darknet's map: area under the curve at IoU > 0.5, mean over all classes of the model",
}
NMS_CHOICES = ("model", *NMS_KINDS)
SAMPLINGS = ("corners", "centres")
AREAS = ("AP", "APs", "APm", "APl")
"""COCO's ranges of areas in the library's order: all, below 32 x 32 pixels, up to 96 x 96, above."""
DARKNET_IOU = 0.5
RECALLS = np.linspace(0, 1, 101)
"""Where precision-recall curves are read off."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Every choice that moves the figures.

    Args:
        conf, iou, max_det: as in ``postprocess.detect``.
        nms: ``model`` (the network's own kind) or one of ``NMS_KINDS``.
        sampling: how pictures are resized: ``corners`` as ``detect`` and Darknet do, or ``centres`` (pixel centres at
            half integers) as OpenCV and most trainers outside Darknet do.
        clip: cut boxes off at the picture's border, as ``detect`` does.
        convention: one of ``CONVENTIONS``.
    """

    conf: float = 0.001
    iou: float = 0.45
    max_det: int = 100
    nms: str = "model"
    sampling: str = "corners"
    clip: bool = True
    convention: str = "coco"


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """One class that occurs in the data set: ``ap`` is None where the convention has none.

    ``precision`` (101,) is the best precision at IoU .5 at each of ``RECALLS`` or beyond it, 0 where it is not reached.
    """

    name: str
    boxes: int
    ap: float | None
    ap50: float
    precision: Floats = dataclasses.field(compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Score:
    """The result of ``evaluate``.

    ``values`` has AP, AP50, AP75, APs, APm and APl, None where there is nothing to score; ``nms_kind`` is the kind
    that ran; ``pictures`` and ``boxes`` count what was scored.
    """

    setting: Setting
    nms_kind: str
    values: dict[str, float | None]
    per_class: tuple[ClassScore, ...]
    pictures: int
    boxes: int
    problems: tuple[Problem, ...]

    @property
    def precision(self) -> Floats:
        """(101,) mean over the classes that occur of their precision at IoU .5, at each of ``RECALLS``."""
        mean: Floats = np.mean([c.precision for c in self.per_class], axis=0)
        return mean


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """What a model finds in a data set, before it is scored.

    Args:
        detector: the model's facts, with the suppression that ran.
        names: one for each of the model's classes.
        samples: the pictures that decode, their labels as positions in ``names``.
        found: the detections in each.
        problems: the data set's, and the pictures that do not decode.
    """

    detector: Detector
    names: tuple[str, ...]
    samples: tuple[Sample, ...]
    found: tuple[Detections, ...]
    problems: tuple[Problem, ...]


def evaluate(runner: Runner, detector: Detector, dataset: Dataset, setting: Setting, log: Log) -> Score:
    """Run a model on every picture of a data set and score what it finds.

    Args:
        runner: a loaded model.
        detector: its facts, with the class names if they are known.
        dataset: labelled pictures. One that does not decode is left out and becomes a problem in the result.
        setting: thresholds and choices.
        log: receives the progress bar.

    Raises:
        InputError: the classes disagree, nothing is labelled, no picture decodes, or an option is out of range.
        UnsupportedError: the model finds no boxes.
    """
    return score_findings(find(runner, detector, dataset, setting, log), setting)


def find(runner: Runner, detector: Detector, dataset: Dataset, setting: Setting, log: Log) -> Findings:
    """The first half of ``evaluate``: run the model on every picture."""
    if setting.convention == "coco":
        need_metric()
    index = match_classes(detector, dataset.names)
    if setting.nms != "model":
        detector = dataclasses.replace(detector, nms_kind=setting.nms)
    samples, found, problems = [], [], list(dataset.problems)
    for number, sample in enumerate(log.track(dataset.samples, "evaluating", len(dataset.samples))):
        try:
            pixels = sample.load()
        except InputError as error:
            problems.append(Problem(sample.name, "picture does not decode", "left out", str(error.got)[:60]))
            continue
        runner.set_inputs(_network_pixels(pixels, detector.preprocess, setting.sampling))
        runner.infer()
        # A generated scene holds its pixels: memory must not grow with the number of pictures.
        again = partial(load_again, dataset.samples, number)
        samples.append(dataclasses.replace(sample, classes=index[sample.classes], load=again))
        found.append(_detect(runner.outputs(), detector, sample.size, setting))
    names = tuple(_label(detector, dataset.names, index, c) for c in range(detector.classes))
    return Findings(detector, names, tuple(samples), tuple(found), tuple(problems))


def score_findings(findings: Findings, setting: Setting) -> Score:
    """The second half of ``evaluate``. Raises InputError if nothing is labelled or no picture decodes."""
    samples, found = findings.samples, findings.found
    boxes = sum(len(sample.boxes) for sample in samples)
    if not boxes:
        got = f"{len(samples)} readable pictures, no boxes"
        raise InputError("there is nothing to score: no picture shows a labelled object", got=got)
    score = score_coco if setting.convention == "coco" else score_darknet
    values, per_class = score(samples, found, findings.names, setting.max_det)
    kind = findings.detector.nms_kind
    return Score(setting, kind, values, per_class, len(samples), boxes, findings.problems)


def spread(dataset: Dataset, limit: int) -> Dataset:
    """At most ``limit`` pictures of a data set, evenly spread over it; its problems stay those of the whole set."""
    positions = tuple(spread_positions(len(dataset.samples), limit))
    return dataclasses.replace(dataset, samples=_Picked(dataset.samples, positions))


def spread_positions(count: int, limit: int) -> list[int]:
    """At most ``limit`` of ``count`` positions, evenly spread."""
    kept = min(count, limit)
    return [i * count // kept for i in range(kept)]


@dataclasses.dataclass(frozen=True, eq=False)
class _Picked(Sequence[Sample]):
    """Some samples of a sequence; none is made before it is asked for."""

    samples: Sequence[Sample]
    positions: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.samples[i] for i in self.positions[index]]
        return self.samples[self.positions[index]]


def match_classes(detector: Detector, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """For every class of the data set the model's: by name where both have names, else by index.

    Numbers in order (``0``, ``1``, ...) are what sets without names have. Such a set may know fewer classes than the
    model, and one with names too if the model's are known.

    Raises InputError, listing both, if a class of the set has no counterpart.
    """
    numbered = [str(i) for i in range(max(len(names), detector.classes))]
    unnamed = list(names) == numbered[: len(names)]
    if detector.names and list(detector.names) != numbered[: len(detector.names)] and not unnamed:
        if list(names) == list(detector.names):
            return np.arange(len(names))  # also where a name occurs twice
        missing = [name for name in names if name not in detector.names]
        if not missing:
            return np.array([detector.names.index(name) for name in names], np.int64)
        what = f"the data set has {len(missing)} classes that the model does not have: {', '.join(missing[:5])}"
    elif len(names) == detector.classes or (unnamed and len(names) < detector.classes):
        return np.arange(len(names))
    else:
        what = "the data set and the model have different numbers of classes"
    model = f"{detector.classes}: {', '.join(detector.names) or 'names unknown'}"
    hint = "give the model's class names, one a line, with --names"
    raise InputError(what, got=f"data set {len(names)}: {', '.join(names)}", allowed=f"model {model}", hint=hint)


def _label(detector: Detector, names: Sequence[str], index: npt.NDArray[np.int64], c: int) -> str:
    """The name of the model's class ``c``, from whoever has one."""
    if c < len(detector.names):
        return detector.names[c]
    return names[int(np.flatnonzero(index == c)[0])] if c in index else str(c)


def _detect(heads: Sequence[Floats], detector: Detector, size: tuple[int, int], setting: Setting) -> Detections:
    """``postprocess.detect``, or the same without its last step."""
    options = (setting.conf, setting.iou, setting.max_det)
    if setting.clip:
        return postprocess.detect(heads, detector, size, *options)
    boxes, scores, classes = postprocess.decode(heads, detector, setting.conf)
    boxes = postprocess.scale_boxes(boxes, detector.preprocess, size)
    shares, kind = boxes / np.array([*size, *size]), detector.nms_kind
    keep = postprocess.nms(shares, scores, classes, setting.iou, kind, detector.beta_nms, setting.max_det)
    return Detections(boxes[keep].astype(np.float32), scores[keep].astype(np.float32), classes[keep])


def _network_pixels(image: Pixels, preprocess: Preprocess, sampling: str) -> Pixels:
    """Resize as ``sampling`` says."""
    if sampling == "centres":
        place = postprocess.placement(preprocess, (image.shape[1], image.shape[0]))
        image = sample_centres(image, place.width, place.height)  # to_input leaves a picture of this size as it is
    return to_input(image, preprocess)


def sample_centres(image: Pixels, width: int, height: int) -> Pixels:
    """Resize (H, W, C) bilinearly, with the centres of pixels at half integers, from the four nearest pixels."""

    def blend(pixels: Floats, target: int, axis: int) -> Floats:
        source = pixels.shape[axis]
        position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = position.astype(np.intp)
        shape = [-1 if i == axis else 1 for i in range(3)]
        weight = (position - low).astype(np.float32).reshape(shape)
        a, b = (np.take(pixels, i, axis) for i in (low, np.minimum(low + 1, source - 1)))
        mixed: Floats = a + (b - a) * weight
        return mixed

    return np.rint(blend(blend(image.astype(np.float32), height, 0), width, 1)).astype(np.uint8)


def need_metric() -> None:
    """Raise InputError, before any work, if the library that computes COCO's AP is missing."""
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise InputError("COCO's AP needs faster-coco-eval", hint="pip install 'edgeyolo[eval]'")


def score_coco(
    samples: Sequence[Sample], found: Sequence[Detections], names: Sequence[str], max_det: int = 100
) -> tuple[dict[str, float | None], tuple[ClassScore, ...]]:
    """COCO's average precision over all pictures, and per class; the classes of both are positions in ``names``."""
    need_metric()
    from faster_coco_eval import COCO, COCOeval_faster

    quiet: dict[str, Any] = {"print_function": lambda *_: None}
    truth = COCO(_coco_truth(samples, len(names)), **quiet)
    metric = COCOeval_faster(truth, truth.loadRes(_coco_results(found)), "bbox", **quiet)
    metric.params.maxDets = [max_det]
    metric.evaluate()
    metric.accumulate()
    precision = metric.eval["precision"][..., 0]  # (IoU .5 to .95, recall, class, area); -1 where there is no object
    values = {name: _mean(precision[..., i]) for i, name in enumerate(AREAS)}
    values["AP50"], values["AP75"] = _mean(precision[0, ..., 0]), _mean(precision[5, ..., 0])
    per_class = tuple(
        ClassScore(
            names[c], count, _mean(precision[:, :, c, 0]), _mean(precision[0, :, c, 0]) or 0.0, precision[0, :, c, 0]
        )
        for c, count in enumerate(_counts(samples, len(names)))
        if count
    )
    return values, per_class


def _mean(precision: Floats) -> float | None:
    """Mean of what is defined."""
    defined = precision[precision >= 0]
    return float(defined.mean()) if defined.size else None


def _counts(samples: Sequence[Sample], classes: int) -> list[int]:
    """How many labelled boxes each class has."""
    return [int(n) for n in np.bincount(np.concatenate([s.classes for s in samples]), minlength=classes)]


def _coco_truth(samples: Sequence[Sample], classes: int) -> dict[str, Any]:
    """The labels as COCO json; identifiers start at 1, because 0 means "unmatched" in COCO's code."""
    annotations: list[dict[str, Any]] = []
    for image, sample in enumerate(samples, 1):
        for (x0, y0, x1, y1), c in zip(sample.boxes.tolist(), sample.classes.tolist(), strict=True):
            box = [x0, y0, x1 - x0, y1 - y0]
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": c, "bbox": box, "iscrowd": 0}
            annotations.append({**entry, "area": box[2] * box[3]})
    pictures = [{"id": i, "width": s.size[0], "height": s.size[1]} for i, s in enumerate(samples, 1)]
    return {
        "images": pictures,
        "annotations": annotations,
        "categories": [{"id": c, "name": str(c)} for c in range(classes)],
    }


def _coco_results(found: Sequence[Detections]) -> npt.NDArray[np.float64]:
    """Detections as rows of picture, x, y, width, height, score, class."""
    rows = [np.zeros((0, 7))]
    for image, d in enumerate(found, 1):
        boxes = d.boxes.astype(np.float64)
        size = boxes[:, 2:] - boxes[:, :2]
        rows.append(np.column_stack([np.full(len(d), image), boxes[:, :2], size, d.scores, d.classes]))
    return np.concatenate(rows)


def score_darknet(
    samples: Sequence[Sample], found: Sequence[Detections], names: Sequence[str], max_det: int = 0
) -> tuple[dict[str, float | None], tuple[ClassScore, ...]]:
    """Darknet's ``map``: a detection claims the object of its class that it overlaps most, if by more than .5.

    The best-scored claim of an object counts, the others are false. The mean is over all classes of the model, those
    without objects included. One slip is not repeated: Darknet leaves out the first step of the curve of the class
    of the very best detection. ``max_det`` has been applied already.
    """
    counts, per_class = _counts(samples, len(names)), []
    for c, count in enumerate(counts):
        if count:
            per_class.append(ClassScore(names[c], count, None, *_darknet_ap(samples, found, c, count)))
    values: dict[str, float | None] = dict.fromkeys((*AREAS, "AP75"))
    return {**values, "AP50": sum(entry.ap50 for entry in per_class) / len(names)}, tuple(per_class)


def _darknet_ap(samples: Sequence[Sample], found: Sequence[Detections], c: int, objects: int) -> tuple[float, Floats]:
    """Area under the curve of one class, and the curve at ``RECALLS``."""
    claims: list[tuple[float, tuple[int, int] | None]] = []
    for image, (sample, d) in enumerate(zip(samples, found, strict=True)):
        truth = sample.boxes[sample.classes == c]
        for box, score in zip(d.boxes[d.classes == c], d.scores[d.classes == c].tolist(), strict=True):
            overlap = _iou(box, truth)
            best = int(overlap.argmax()) if len(overlap) else -1
            claims.append((score, (image, best) if best >= 0 and overlap[best] > DARKNET_IOU else None))
    claims.sort(key=lambda claim: -claim[0])
    first: dict[tuple[int, int] | None, int] = {}
    for rank, (_, claim) in enumerate(claims):
        first.setdefault(claim, rank)
    hits = np.array([claim is not None and first[claim] == rank for rank, (_, claim) in enumerate(claims)], np.bool_)
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(np.cumsum(hits) / objects, RECALLS)
    return float(envelope[hits].sum() / objects), np.append(envelope, 0.0)[reached]


def _iou(box: Floats, boxes: Floats) -> Floats:
    """IoU of one (4,) box with (n, 4)."""
    inner = np.prod(np.maximum(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0), axis=1)
    overlap: Floats = inner / (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + np.prod(box[2:] - box[:2]) - inner)
    return overlap
