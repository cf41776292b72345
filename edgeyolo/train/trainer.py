"""The training loop, on one device or many.

Lightning Fabric launches processes, places tensors, chooses the precision and reduces gradients, and leaves the loop to
us; docs/decisions/0007 says why not Accelerate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeyolo.detector import Detector
from edgeyolo.errors import EdgeYoloError, InputError
from edgeyolo.frontend.darknet.network import Network
from edgeyolo.frontend.darknet.weights import write_weights
from edgeyolo.progress import Log
from edgeyolo.train.checkpoint import Checkpoint, collect, restore, save, save_tensors
from edgeyolo.train.ema import Average
from edgeyolo.train.loss import Loss, detection_loss
from edgeyolo.train.metrics import COLUMNS, Events, Row, write_csv
from edgeyolo.train.pictures import EpochBatches, Pictures, make_loader
from edgeyolo.train.recipe import Recipe

CHECKPOINT, BEST, LAST = "checkpoint.safetensors", "best", "last"
PRIOR_LOGIT, CLASS_LOGIT = -5.0, -2.0
"""Objectness .7 % and every class 12 % before the first step."""

Validate = Callable[[Network], dict[str, float | None]]


@dataclass(frozen=True)
class Hardware:
    """Where to train.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices, nodes: processes a machine, machines.
        precision: ``auto``, ``32-true`` or ``bf16-mixed``.
        workers: processes that make batches.
    """

    device: str = "auto"
    devices: int = 1
    nodes: int = 1
    precision: str = "auto"
    workers: int = 0

    def fabric(self) -> Any:
        """Launch the processes: each runs the same command from its start to here. Raises InputError."""
        from lightning_fabric import Fabric
        from lightning_fabric.utilities.exceptions import MisconfigurationException

        precision = self.precision
        if precision == "auto":
            capable = self.device in ("auto", "cuda") and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
            precision = "bf16-mixed" if capable else "32-true"
        try:
            fabric = Fabric(accelerator=self.device, devices=self.devices, num_nodes=self.nodes,
                            strategy="ddp" if self.devices * self.nodes > 1 else "auto", precision=precision)  # type: ignore[arg-type] # fmt: skip
            fabric.launch()
        except (RuntimeError, ValueError, MisconfigurationException) as error:
            got = f"{self.device}, {self.devices} a machine: {(str(error) or repr(error)).splitlines()[0]}"
            raise InputError("this device cannot be used", got=got, hint="--device cpu") from error
        return fabric


@dataclass(frozen=True, eq=False)
class Job:
    """What to train, on what, and where it is written. ``facts`` are kept in the checkpoint for ``--resume``."""

    network: Network
    detector: Detector
    pictures: Pictures
    recipe: Recipe
    folder: Path
    facts: dict[str, Any]
    validate: Validate | None = None
    val_every: int = 1


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; only convolution weights decay."""
    decayed = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.99))


def freeze_unused(network: Network) -> None:
    """Layers that no head depends on have weights in the file, but get no gradient."""
    for layer in network.plan:
        key = str(layer.index)
        if layer.index not in network.last_uses and key in network.layers:
            network.layers[key].requires_grad_(False)


@torch.no_grad()
def set_prior(network: Network, detector: Detector) -> None:
    """Let new heads expect what most cells hold, no object; else that is all that they learn at first.

    A head is new if its bias is nothing but zeros: so it begins, and so no training leaves it. The others may have come
    from a weights file, or the file may have ended before them.
    """
    units = dict(network.layers.items())
    for index, head in zip(network.outputs, detector.heads, strict=True):
        bias = getattr(getattr(units.get(str(index)), "conv", None), "bias", None)
        if bias is not None and not bias.any():
            bias.view(len(head.anchors), -1)[:, 4] = PRIOR_LOGIT
            bias.view(len(head.anchors), -1)[:, 5:] = CLASS_LOGIT


def read_history(history: object, epochs: int) -> list[Row]:
    """The rows of a checkpoint, which is a file from anywhere. Raises InputError if no training wrote them."""
    rows = history if isinstance(history, list) else [None]
    for number, row in enumerate(rows):
        figures = row.values() if isinstance(row, dict) and set(row) == set(COLUMNS) else [None]
        good = all(v is None or (type(v) in (int, float) and -1e30 < v < 1e30) for v in figures)
        if not good or number >= epochs or not isinstance(row, dict) or row.get("epoch") != number:
            raise InputError("the checkpoint's history is damaged", got=str(row)[:80], allowed=", ".join(COLUMNS))
    return list(rows)


class Trainer:
    """One training: ``run`` goes on from the state it is in, to the end."""

    def __init__(self, job: Job, fabric: Any, workers: int, log: Log, checkpoint: Checkpoint | None = None) -> None:
        self.job, self.fabric, self.log = job, fabric, log
        freeze_unused(job.network)
        job.network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        optimizer = make_optimizer(job.network, job.recipe)
        self.model, self.optimizer = fabric.setup(job.network, optimizer)
        self.average = Average(job.network, job.recipe.ema)
        self.batches = EpochBatches(len(job.pictures), job.recipe, fabric.global_rank, fabric.world_size)
        self.loader = fabric.setup_dataloaders(
            make_loader(job.pictures, job.recipe, self.batches, workers), use_distributed_sampler=False
        )
        self.history: list[Row] = []
        if checkpoint is not None:
            self.history = read_history(checkpoint.facts.get("history"), job.recipe.epochs)
            restore(checkpoint, job.network, self.average.module, optimizer, len(self.history) * len(self.batches))

    def run(self) -> list[Row]:
        """Train the remaining epochs; after each one the folder holds all that ``--resume`` needs.

        Raises:
            InputError: the loss became infinite or NaN; the last checkpoint is from before.
        """
        events = Events(self.job.folder, len(self.history)) if self.fabric.is_global_zero else None
        if not self.history and self.fabric.is_global_zero:
            self._checkpoint()  # so that a training that is killed in its first epoch can be resumed, too
        try:
            for epoch in range(len(self.history), self.job.recipe.epochs):
                start = time.perf_counter()
                row: Row = {"epoch": epoch, **self._epoch(epoch)}
                self._check_finite(epoch)
                error = self._finish(row, start, events) if events is not None else None
                if self.fabric.broadcast(error is not None):  # all stop when the first one cannot go on
                    raise error or InputError("the first process could not finish the epoch", where=row["epoch"] + 1)
        finally:
            if events is not None:
                events.close()
        return self.history

    def _finish(self, row: Row, start: float, events: Events) -> EdgeYoloError | None:
        """Score and write an epoch, in the first process; what prevents it is returned, so that all can be told."""
        try:
            row |= self._scores(row["epoch"])
            row["seconds"] = round(time.perf_counter() - start, 2)
            events.add(row)
            self._keep(row)
        except EdgeYoloError as error:
            return error
        return None

    def _check_finite(self, epoch: int) -> None:
        """Batch norm hides an overflow from the loss, not from its statistics. Raises InputError in all processes."""
        states = (self.job.network.state_dict(), self.average.module.state_dict())
        bad = [name for state in states for name, value in state.items() if not bool(torch.isfinite(value).all())]
        if float(self.fabric.all_reduce(torch.tensor(float(len(bad)), device=self.fabric.device), reduce_op="sum")):
            raise InputError(
                "the network's values overflowed: training stopped, and this epoch is not kept",
                where=f"epoch {epoch + 1}", got=", ".join(bad[:3]) or "in another process",
                hint="train anew with a lower --lr, or with other --weights",
            )  # fmt: skip

    def _epoch(self, epoch: int) -> Row:
        """All steps of an epoch; returns the mean losses of this process."""
        self.batches.epoch = epoch
        steps, recipe = len(self.batches), self.job.recipe
        sums = torch.zeros(3, dtype=torch.float64)
        rate = 0.0
        title = f"epoch {epoch + 1}/{recipe.epochs}"
        for number, (pixels, objects) in enumerate(self.log.track(self.loader, title, steps)):
            step = epoch * steps + number
            rate = recipe.learning_rate(step, steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = self._step(pixels, objects, epoch, number)
            self.average.update(self.job.network, step)
            sums += torch.stack(loss).detach().double().cpu()
        if self.fabric.world_size > 1:
            sums = self.fabric.all_reduce(sums.to(self.fabric.device, torch.float32), reduce_op="mean").cpu().double()
        box, objectness, classification = (float(f"{value:.6g}") for value in (sums / steps).tolist())
        return {
            "step": (epoch + 1) * steps, "lr": float(f"{rate:.6g}"), "loss": float(f"{float(sums.sum()) / steps:.6g}"),
            "loss_box": box, "loss_objectness": objectness, "loss_classification": classification,
        }  # fmt: skip

    def _step(self, pixels: torch.Tensor, objects: Any, epoch: int, number: int) -> Loss:
        """Forward, backward, update. Raises InputError, before the weights change, if the loss is no number."""
        device = self.fabric.device
        preprocess = self.job.detector.preprocess
        x = pixels.to(device).to(torch.float32) * preprocess.scale
        if preprocess.channels == 1:
            x = (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        loss = detection_loss(self.model(x), self.job.detector.heads, objects.to(device), self.job.recipe)
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss.total)
        norm = self.fabric.clip_gradients(
            self.model, self.optimizer, max_norm=self.job.recipe.clip_norm, error_if_nonfinite=False
        )
        # One sum over all processes, so that all of them stop, and none waits for the others for ever.
        total = self.fabric.all_reduce(loss.total.detach() + 0 * norm, reduce_op="sum")
        if not torch.isfinite(total):
            raise InputError(
                "the loss is no number any more: training stopped before the weights were touched",
                where=f"epoch {epoch + 1}, step {number + 1}", got=f"loss {float(total)}",
                hint=f"the last whole epoch is kept in {self.job.folder}; train anew with a lower --lr",
            )  # fmt: skip
        self.optimizer.step()
        return loss

    def _scores(self, epoch: int) -> Row:
        """AP and AP50 of the average, when it is time."""
        due = (epoch + 1) % self.job.val_every == 0 or epoch + 1 == self.job.recipe.epochs
        if self.job.validate is None or not due:
            return {"AP": None, "AP50": None}
        values = self.job.validate(self.average.module)  # type: ignore[arg-type]
        return {key: None if values[key] is None else round(float(values[key] or 0), 6) for key in ("AP", "AP50")}

    def _keep(self, row: Row) -> None:
        """Write weights, metrics and, last of all, the checkpoint that makes the epoch count."""
        earlier = [r["AP"] for r in self.history if r["AP"] is not None]
        self.history.append(row)
        self._write(LAST)
        if row["AP"] is not None and row["AP"] > max(earlier, default=-1.0):
            self._write(BEST)
        write_csv(self.job.folder, self.history)
        self._checkpoint()
        figures = "".join(f"  {key} {row[key]:.3f}" for key in ("AP50", "AP") if row[key] is not None)
        title = f"epoch {len(self.history)}/{self.job.recipe.epochs}"
        self.log.say(f"{title:<14} loss {row['loss']:8.3f}{figures}  lr {row['lr']:.2g}  {row['seconds']:.1f} s")

    def _checkpoint(self) -> None:
        """The state after the last whole epoch."""
        facts = {**self.job.facts, "recipe": self.job.recipe.to_json(), "history": self.history}
        tensors = collect(self.job.network, self.average.module, self.optimizer)
        save(self.job.folder / CHECKPOINT, tensors, facts)

    def _write(self, stem: str) -> None:
        """The averaged weights as Darknet and as safetensors read them."""
        seen = len(self.history) * len(self.batches) * self.batches.batch
        network: Any = self.average.module
        write_weights(network, self.job.folder / f"{stem}.weights", seen)
        save_tensors(self.job.folder / f"{stem}.safetensors", network.state_dict(), {"seen": str(seen)})
