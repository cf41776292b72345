"""Teach a plan's integers what the float net computes, and keep them only where held-out pictures agree.

The student is the integer program with its exact arithmetic (student.py), the teacher the float graph (lessons.py), the
loss the difference of their heads. Exponents, types and activations stay: what changes are weight and bias codes, so
that everything which holds for the plan holds for the result.

Adam moves latent weights by about the learning rate per update, whatever the size of the gradient, and a code changes
when its latent weight has crossed half a code. With more than some thousandths of a code per update, many cross at once
and the net is worse than before; the held-out pictures notice (judge.py), and the best plan they saw is returned, or
the start where nothing beat it.

Source: the self-distillation of Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), of heads instead
of class scores.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch

from edgeyolo.errors import InputError
from edgeyolo.finetune.judge import Judge, Verdict, held_out
from edgeyolo.finetune.lessons import Lessons
from edgeyolo.finetune.settings import FinetuneSettings
from edgeyolo.finetune.student import Student
from edgeyolo.lower.fixed import lower_fixed
from edgeyolo.program import is_float32_exact
from edgeyolo.progress import Log
from edgeyolo.quant.calibrate import Pixels
from edgeyolo.quant.insert_qdq import insert_qdq
from edgeyolo.quant.plan import Plan, constants

BETAS = (0.9, 0.99)
"""Adam's: some hundred updates are too few for the usual memory of a thousand."""


@dataclass(frozen=True, eq=False)
class Check:
    """One judgement: a plan, the updates and seconds it took, the mean loss since the last one, and the verdict."""

    plan: Plan
    step: int
    seconds: float
    loss: float
    verdict: Verdict

    @property
    def head_snr_db(self) -> float:
        """Of the held-out pictures."""
        return self.verdict.head_snr_db


@dataclass(frozen=True, eq=False)
class FinetuneResult:
    """All judgements in order; the first one is of the plan as it came."""

    checks: tuple[Check, ...]

    @property
    def start(self) -> Check:
        """The plan as it came."""
        return self.checks[0]

    @property
    def tried(self) -> Check:
        """The best that training made."""
        return max(self.checks[1:], key=lambda check: check.head_snr_db)

    @property
    def improved(self) -> bool:
        """Whether training beat the start, by more than chance."""
        return self.tried.verdict.beats(self.start.verdict)

    @property
    def plan(self) -> Plan:
        """The better one of both."""
        return self.tried.plan if self.improved else self.start.plan


class _Schedule:
    """How much of the training is over, by updates or by the clock, and the learning rate's factor there."""

    def __init__(self, settings: FinetuneSettings) -> None:
        self._settings, self._begun, self.step = settings, time.perf_counter(), 0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begun

    @property
    def done(self) -> float:
        """0 to 1 and beyond."""
        steps = self._settings.steps
        return self.seconds / (60 * self._settings.minutes) if steps is None else self.step / steps

    def factor(self) -> float:
        """Half a cosine from 1 to 0."""
        return 0.5 * (1 + math.cos(math.pi * min(1.0, self.done)))


def finetune(
    reference: ir.Model, plan: Plan, pictures: Collection[Pixels], settings: FinetuneSettings, log: Log
) -> FinetuneResult:
    """Train the integers of ``plan``.

    Args:
        reference: the float graph that ``plan`` quantises: raw pixels in, dyadic slopes inside.
        plan: where to begin.
        pictures: network pixels (C, H, W) uint8, iterated several times; they need no labels.
        settings: how long and how carefully.
        log: shows a progress bar.

    Raises:
        InputError: there are too few pictures, or no GPU where one is asked for.
        UnsupportedError: the graph has nodes that have no integer form.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no GPU that torch can use", where="--device", got="cuda", allowed="cpu")
    judging = held_out(pictures)
    student = make_student(reference, plan).to(settings.device)
    judge = Judge(reference, [pixels for i, pixels in enumerate(pictures) if i in judging])
    lessons = Lessons(reference, pictures, judging, settings)
    optimiser = torch.optim.Adam(
        [
            {"params": [conv.weight for conv in student.trained()], "lr": settings.weight_lr},
            {"params": [conv.bias for conv in student.trained()], "lr": settings.bias_lr},
        ],
        betas=BETAS,
    )
    checks = [Check(plan, 0, 0.0, math.nan, judge.verdict(plan))]
    schedule = _Schedule(settings)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        for turn in log.track(range(settings.checks), "finetuning", settings.checks):
            losses: list[float] = []
            while schedule.done < (turn + 1) / settings.checks:
                losses.append(_update(student, lessons, optimiser, settings, schedule.factor()))
                schedule.step += 1
            trained = updated(plan, student)
            loss = float(np.mean(losses)) if losses else math.nan
            checks.append(Check(trained, schedule.step, schedule.seconds, loss, judge.verdict(trained)))
    return FinetuneResult(tuple(checks))


def _update(
    student: Student, lessons: Lessons, optimiser: torch.optim.Optimizer, settings: FinetuneSettings, factor: float
) -> float:
    """One step of the optimiser; returns the loss before it."""
    for group, rate in zip(optimiser.param_groups, (settings.weight_lr, settings.bias_lr), strict=True):
        group["lr"] = rate * factor
    images, heads = lessons.batch()
    loss = lessons.loss(student(images), heads)
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    student.clip()
    return loss.item()


def make_student(reference: ir.Model, plan: Plan, names: Collection[str] | None = None) -> Student:
    """The student that computes exactly what ``plan`` computes, and returns the heads, or the values ``names``.

    Raises UnsupportedError if the graph has nodes that have no integer form.
    """
    program = lower_fixed(insert_qdq(reference, plan))
    weights = {str(node.name): real for node in reference.graph if (real := constants(node)[0]) is not None}
    biases = {name: weight.bias for name, weight in plan.weights.items()}
    heads = [str(value.name) for value in reference.graph.outputs]
    return Student(program, weights, biases, heads if names is None else names)


def updated(plan: Plan, student: Student) -> Plan:
    """``plan`` with the student's integers.

    A layer that float32 computed exactly for every picture, and would no longer, keeps its own: no proof may be lost.
    """
    weights = dict(plan.weights)
    for conv in student.trained():
        op, (codes, bias, bias_codes) = conv.op, conv.codes()
        qtype = student.program.tensors[op.input].qtype
        if is_float32_exact(replace(op, weight=codes, bias=bias_codes), qtype) or not is_float32_exact(op, qtype):
            weights[op.name] = replace(weights[op.name], codes=codes, bias=bias)
    return replace(plan, weights=weights)
