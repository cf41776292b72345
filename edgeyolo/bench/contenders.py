"""From what the user names to contenders: every model in every backend that suits it, with every number of threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from edgeyolo.bench.backends import KINDS, check_backend
from edgeyolo.bench.contender import Contender
from edgeyolo.bench.frames import Setting
from edgeyolo.bench.record import SCENARIOS
from edgeyolo.bundle import read_target
from edgeyolo.errors import InputError
from edgeyolo.output import MANIFEST

SUITABLE = {
    "fpga": ("engine", "ort", "openvino"),
    "tensorrt": ("ort", "tensorrt", "openvino"),
    ".onnx": ("ort", "openvino", "ncnn", "opencv"),
    ".cfg": ("torch", "torch-compile"),
    ".tflite": ("litert",),
}
"""Kind of model -> backends, the one that is taken where none is named first."""


@dataclass(frozen=True)
class Variants:
    """What every model is measured with; every combination is a contender.

    Args:
        backends: names; none: the first that suits each model.
        threads, batches: numbers from 1 on; a backend that has one thread, or takes one picture, runs with 1 only.
        settings: thresholds.
        scenarios: of ``scenarios.SCENARIOS``; none: frames one after the other, asked for by nobody else.
    """

    backends: Sequence[str] = ()
    threads: Sequence[int] = (1,)
    batches: Sequence[int] = (1,)
    settings: Sequence[Setting] = (Setting(),)
    scenarios: Sequence[str] = ()

    def check(self) -> None:
        """Raises InputError: an unknown backend or scenario, a number out of range, or batches in a scenario."""
        wrong = [s.conf for s in self.settings if not 0 <= s.conf <= 1]
        if wrong or not self.settings:
            raise InputError("not a score threshold", where="--conf", got=wrong, allowed="0 to 1")
        if any(not 0 <= s.iou <= 1 for s in self.settings):
            raise InputError("not an overlap", where="--iou", got=self.settings[0].iou, allowed="0 to 1")
        for option, words, known in (("--backend", self.backends, KINDS), ("--scenario", self.scenarios, SCENARIOS)):
            unknown = [word for word in words if word not in known]
            if unknown:
                what = f"unknown {option.strip('-')}"
                raise InputError(what, where=option, got=", ".join(unknown), allowed=", ".join(known))
        for option, numbers in (("--threads", self.threads), ("--batch", self.batches)):
            if any(number < 1 for number in numbers) or not numbers:
                raise InputError(f"not a number for {option}", where=option, got=list(numbers), allowed="1, 2, ...")
        if self.scenarios and list(self.batches) != [1]:
            raise InputError(
                "a scenario says how many frames come at a time", where="--batch", got=list(self.batches),
                hint="measure batches and scenarios apart",
            )  # fmt: skip


def find_contenders(models: Sequence[Path], variants: Variants, weights: Path | None = None) -> list[Contender]:
    """All combinations that make sense; the first is the reference.

    Args:
        models: files or bundles; of a bundle for mobile every graph is one.
        variants: what to measure each of them with.
        weights: of the ``.cfg`` among them.

    Raises InputError: as ``Variants.check``; a backend that suits none of the models, or a model of no known kind.
    """
    variants.check()
    found: list[Contender] = []
    for model in [graph for path in models for graph in _graphs(path)]:
        suitable = SUITABLE[_kind(model)]
        for backend in [b for b in variants.backends if b in suitable] or ([] if variants.backends else suitable[:1]):
            found += _variants(model, backend, variants, weights if model.suffix == ".cfg" else None)
    idle = [name for name in variants.backends if name not in {c.backend for c in found}]
    if idle:
        takes = "; ".join(f"{name}: {KINDS[name].takes}" for name in idle)
        raise InputError("no model suits this backend", where="--backend", got=", ".join(idle), allowed=takes)
    return found


def check_installed(contenders: Sequence[Contender]) -> None:
    """Raise InputError, with the line that installs it, for the first backend that is missing."""
    for name in dict.fromkeys(contender.backend for contender in contenders):
        check_backend(name)


def _variants(model: Path, backend: str, variants: Variants, weights: Path | None) -> Iterator[Contender]:
    """One model in one backend; its label says what more than one of was asked for."""
    kind = KINDS[backend]
    name = f"{full_name(model).removesuffix(model.suffix) if model.is_file() else model.name} {backend}"
    threads, batches = variants.threads if kind.threads else [1], variants.batches if kind.batches else [1]
    scenarios: Sequence[str | None] = list(variants.scenarios) or [None]
    for count, batch, setting, scenario in product(threads, batches, variants.settings, scenarios):
        label = f"{name} x{count}"
        label += f" batch {batch}" * (list(variants.batches) != [1])
        label += f" conf {setting.conf:g}" * (len(variants.settings) > 1)
        label += f" {scenario}" * (scenario is not None)
        yield Contender(label, model, backend, count, weights, batch, setting, scenario)


def _graphs(model: Path) -> list[Path]:
    """The graphs of a bundle for mobile, float32 first; anything else is one contender's."""
    if not model.is_dir() or read_target(model) != "mobile":
        return [model]
    found = [model / f"{name}.onnx" for name in ("fp32", "fp16", "int8")]
    missing = [path.name for path in found if not path.is_file()]
    if missing:
        raise InputError(
            "a graph of the bundle is missing", where=model, got=", ".join(missing), hint="export it again"
        )
    return found


def full_name(model: Path) -> str:
    """The name of a file or folder, of a graph in a bundle that of the bundle too."""
    return f"{model.parent.name}/{model.name}" if (model.parent / MANIFEST).is_file() else model.name


def _kind(model: Path) -> str:
    """A key of ``SUITABLE``."""
    kind = read_target(model) if model.is_dir() else model.suffix.lower()
    if not model.exists() or kind not in SUITABLE:
        allowed = "a bundle, .onnx, .cfg (with --weights) or .tflite"
        raise InputError(
            "no such model" if not model.exists() else "unknown kind of model", where=model, allowed=allowed,
            hint=f"name its files: {model}/*.onnx" if model.is_dir() else None,
        )  # fmt: skip
    return kind
