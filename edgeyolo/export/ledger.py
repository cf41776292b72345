"""The accuracy ledger: what every stage of an export does to AP, detections and heads, one row a stage.

Each stage runs once over the pictures. Its detections at the setting's threshold give AP, those of them above
``agreement.CONF`` F1: suppression takes the best first, so what is below a threshold never touches what is above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from edgeyolo import agreement, postprocess
from edgeyolo.agreement import Agreement
from edgeyolo.bootstrap import CONFIDENCE, Ratio, ratios, ratios_json
from edgeyolo.detector import Detector
from edgeyolo.errors import AccuracyError
from edgeyolo.evaluate import Setting, score_coco
from edgeyolo.export.labels import LabelledSet, finds_boxes
from edgeyolo.export.ledger_stages import Heads, Stage
from edgeyolo.export.pictures import PictureSet
from edgeyolo.postprocess import Detections
from edgeyolo.progress import Log
from edgeyolo.quant.compare import HeadSnr

HEADS_BYTES = 1 << 28
"""The source's heads are kept up to 256 MiB: 500 pictures of 320x320, 80 classes. Beyond, the SNR is of a sample."""
EXACT_DB = 200.0
"""Above it two float32 arrays are the same: one rounding of every value leaves about 150 dB."""
LOST = 0.5
"""Below this agreement, or this share of the AP, an export warns: half of what a user sees has changed."""
JUDGED_AP = 0.01
"""Below this AP a source finds next to nothing, and shares of it say nothing."""
LOST_SNR_DB = 6.0
"""Where there are no detections to compare: noise half as large as the heads' signal."""


@dataclass(frozen=True)
class LedgerRow:
    """One stage.

    Args:
        stage: its name.
        ap50, ap: COCO's at IoU .5 and .5 to .95; None without labels.
        f1: agreement with the source's detections; None where neither finds any, or what the heads mean is unknown.
        snr_db: of the heads against the source's, channel means removed; None where they are the same.
        nbytes: what the stage ships: an ONNX file; packed weights and 32 bit biases; or the weight images.
        macs: multiply-accumulates, see costs.py.
        kept: of a candidate: whether the export goes on with it. Else None.
    """

    stage: str
    ap50: float | None
    ap: float | None
    f1: float | None
    snr_db: float | None
    nbytes: int
    macs: int
    kept: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-able; the figures are rounded already."""
        return {"bytes" if key == "nbytes" else key: value for key, value in asdict(self).items()}


@dataclass(frozen=True, eq=False)
class Ledger:
    """All rows, source first and integer program last, and what they rest on.

    Args:
        data: name of the labelled set; None: calibration pictures, without labels.
        pictures, boxes: how many were compared, and how many objects are labelled.
        snr_pictures: how many of them the SNR is of.
        setting: thresholds and choices of the post-processing.
        problems: label problems by kind.
        agreement: of the integer program's detections with the source's.
        snr_db: of the integer program's heads, not rounded.
        ratios: the integer program's AP50 and AP as shares of the source's; empty without labels.
    """

    rows: tuple[LedgerRow, ...]
    data: str | None
    pictures: int
    boxes: int
    snr_pictures: int
    setting: Setting
    problems: dict[str, int]
    agreement: Agreement
    snr_db: float
    ratios: dict[str, Ratio] = field(default_factory=dict)

    @property
    def ap(self) -> tuple[float, float] | None:
        """AP (50-95) of the source and of the integer program; None without labels."""
        first, last = self.rows[0].ap, self.rows[-1].ap
        return None if first is None or last is None else (first, last)

    @property
    def lost(self) -> bool:
        """Whether the integer program no longer sees what the source sees."""
        if self.ap is not None and self.ap[0] >= JUDGED_AP and self.ap[1] < LOST * self.ap[0]:
            return True
        return self.agreement.f1 < LOST if self.agreement.judged else self.snr_db < LOST_SNR_DB

    @property
    def drop(self) -> float:
        """What is lost: of AP with labels, of the agreement without."""
        return round(1 - self.agreement.f1 if self.ap is None else self.ap[0] - self.ap[1], 4)

    @property
    def ap_text(self) -> str:
        """AP before and after in figures; empty without labels."""
        if self.ap is None:
            return ""
        first, last = self.rows[0].ap50 or 0.0, self.rows[-1].ap50 or 0.0
        return f"AP {self.ap[0]:.4f} -> {self.ap[1]:.4f}, AP50 {first:.4f} -> {last:.4f} on {self.data}"

    @property
    def ratio_text(self) -> str:
        """How much of the source's AP is left, and how sure that is; empty without labels."""
        if not self.ratios:
            return ""
        shares = ", ".join(f"{name} {ratio}" for name, ratio in self.ratios.items())
        return f"{shares} of the source's [{CONFIDENCE:.0%} interval over {self.pictures} pictures]"

    @property
    def agreement_text(self) -> str:
        """The agreement in words and figures."""
        counts = self.agreement
        if not counts.judged:
            return f"no detections to compare on {self.pictures} pictures"
        found = f"{counts.matched} matched, {counts.missed} missed, {counts.invented} invented"
        return f"F1 {counts.f1:.3f} on {self.pictures} pictures ({found})"

    @property
    def text(self) -> str:
        """The integer program against the source, in one line."""
        return "; ".join(text for text in (self.ap_text, self.agreement_text) if text)

    def to_json(self) -> dict[str, Any]:
        """The ledger as manifest and --json have it."""
        counts = self.agreement
        return {
            "stages": [row.to_json() for row in self.rows],
            "data": {
                "name": self.data, "pictures": self.pictures, "boxes": self.boxes, "snr_pictures": self.snr_pictures,
                "setting": asdict(self.setting), "label_problems": self.problems,
            },
            "ratio": ratios_json(self.ratios),
            "head_snr_db": round(self.snr_db, 3),
            "agreement": {
                **asdict(counts), "f1": round(counts.f1, 6) if counts.judged else None, "pictures": self.pictures,
            },
        }  # fmt: skip


def check_drop(ledger: Ledger, max_drop: float | None, output: object) -> None:
    """Raise AccuracyError if more AP (of a labelled set) or agreement (without one) is lost than ``max_drop``.

    Nothing to lose is no passed test: a source that finds next to nothing raises too. None allows any loss.
    """
    if max_drop is None:
        return
    hint = "edgeyolo diagnose names the guilty layers; then --keep, more --bits or --granularity per-channel"
    where = f"{output} (written all the same)"
    if ledger.ap is not None:
        if ledger.ap[0] < JUDGED_AP:
            what = "the float model itself finds next to nothing in the labelled pictures"
            hint = "check --names, --imgsz and the labels with edgeyolo eval"
        elif ledger.drop > max_drop:
            what = "the quantised model lost more AP than allowed"
        else:
            return
        allowed, got = (
            f"a loss of AP of at most {max_drop:g} (--max-drop)",
            f"a loss of {ledger.drop:g}: {ledger.ap_text}",
        )
        raise AccuracyError(what, where=where, got=got, allowed=allowed, hint=hint)
    if not ledger.agreement.judged or ledger.drop > max_drop:
        raise AccuracyError(
            "the quantised model lost more agreement with the float model than allowed",
            where=where,
            got=ledger.agreement_text,
            allowed=f"F1 of at least {1 - max_drop:g} (--max-drop {max_drop:g} without --data)",
            hint=hint,
        )


def measure(
    stages: Sequence[Stage], detector: Detector, pictures: PictureSet, labels: LabelledSet | None, log: Log
) -> Ledger:
    """Run every stage on the pictures, one after the other.

    Args:
        stages: the source first, the integer program last.
        detector: the source's facts.
        pictures: what to compare on where there are no labels.
        labels: the labelled set, or None.
        log: receives a progress bar per stage.
    """
    if labels is None:
        setting = Setting(conf=postprocess.CONF, max_det=postprocess.MAX_DET)
        # Nobody knows the pictures' own sizes here, and F1 does not depend on them.
        detector = replace(detector, preprocess=replace(detector.preprocess, resize="stretch"))
        sizes = [(detector.preprocess.width, detector.preprocess.height)] * len(pictures)
    else:
        pictures, setting = labels.pictures, Setting()
        sizes = [sample.size for sample in labels.samples]
    comparison = _Comparison(detector, pictures, sizes, setting, labels)
    rows = tuple(comparison.row(stage, log) for stage in stages)
    name, boxes, problems = (None, 0, {}) if labels is None else (labels.name, labels.boxes, labels.problems)
    counts, snr = comparison.agreement, comparison.snr.decibel
    shares = {} if labels is None else ratios(labels.samples, comparison.source_found, comparison.found)
    return Ledger(
        rows, name, len(pictures), boxes, len(comparison.reference_heads), setting, problems, counts, snr, shares
    )  # fmt: skip


class _Comparison:
    """The source's heads and detections, and the figures of the stage that ran last."""

    def __init__(
        self, detector: Detector, pictures: PictureSet, sizes: Sequence[tuple[int, int]], setting: Setting,
        labels: LabelledSet | None,
    ) -> None:  # fmt: skip
        self.detector, self.pictures, self.sizes = detector, pictures, sizes
        self.setting, self.labels = setting, labels
        self.boxes = finds_boxes(detector)
        self.reference_heads: dict[int, Heads] = {}
        self.source_found: list[Detections] = []
        self.found: list[Detections] = []
        self.agreement, self.snr = Agreement(), HeadSnr()

    def row(self, stage: Stage, log: Log) -> LedgerRow:
        """Execute one stage on every picture."""
        execute, found, is_source = stage.open(), list[Detections](), not self.reference_heads
        self.agreement, self.snr = Agreement(), HeadSnr()
        for i, pixels in enumerate(log.track(self.pictures, stage.name, len(self.pictures))):
            heads = execute(pixels)
            if is_source and i % self._stride(heads) == 0:
                self.reference_heads[i] = heads
            if i in self.reference_heads:
                self.snr.add(_named(self.reference_heads[i]), _named(heads))
            if self.boxes:
                found.append(self._detect(heads, self.sizes[i]))
        self.found = found
        if is_source:
            self.source_found = found
        for expected, got in zip(self.source_found, found, strict=True):
            self.agreement.add(_above(expected, agreement.CONF), _above(got, agreement.CONF))
        ap50, ap = self._score(found)
        f1 = round(self.agreement.f1, 4) if self.agreement.judged else None
        snr = self.snr.decibel
        snr_db = None if snr > EXACT_DB else round(snr, 1)
        return LedgerRow(stage.name, ap50, ap, f1, snr_db, stage.nbytes, stage.macs, stage.kept)

    def _stride(self, heads: Heads) -> int:
        """Of how many pictures one is kept."""
        total = len(self.pictures) * sum(head.nbytes for head in heads)
        return max(1, -(-total // HEADS_BYTES))

    def _detect(self, heads: Heads, size: tuple[int, int]) -> Detections:
        s = self.setting
        return postprocess.detect([head[0] for head in heads], self.detector, size, s.conf, s.iou, s.max_det)

    def _score(self, found: Sequence[Detections]) -> tuple[float | None, float | None]:
        """(AP50, AP) to four digits."""
        if self.labels is None:
            return None, None
        names = [self.detector.class_name(c) for c in range(self.detector.classes)]
        values, _ = score_coco(self.labels.samples, found, names, self.setting.max_det)
        return round(values["AP50"] or 0.0, 4), round(values["AP"] or 0.0, 4)


def _named(heads: Heads) -> dict[str, Any]:
    return {str(i): head for i, head in enumerate(heads)}


def _above(found: Detections, conf: float) -> Detections:
    """The detections that score above ``conf``."""
    keep = np.asarray(found.scores) > conf
    return Detections(found.boxes[keep], found.scores[keep], found.classes[keep])
