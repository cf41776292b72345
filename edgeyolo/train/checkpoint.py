"""Checkpoints: one safetensors file with all tensors, and the rest as JSON in its header. Nothing is ever unpickled.

Tensors: ``model.*`` and ``average.*`` (state dicts), ``exp_avg.*`` and ``exp_avg_sq.*`` (AdamW's, by parameter).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeyolo.errors import InputError

FORMAT = "edgeyolo-checkpoint-1"
MAX_BYTES = 1 << 33
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state after ``facts["epoch"]`` whole epochs; ``facts`` is JSON, ``tensors`` are on the CPU."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with ``prefix.``, without it."""
        return {name[len(prefix) + 1 :]: t for name, t in self.tensors.items() if name.startswith(f"{prefix}.")}


def save_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
    """Write a safetensors file whole or not at all. Raises InputError if the disk refuses."""
    part = path.with_name(path.name + ".part")
    try:
        try:
            part.unlink(missing_ok=True)  # it may be a link to somewhere else
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, part, facts)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise InputError("the file cannot be written", where=path, got=str(error)) from error


def collect(module: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything of a training that consists of tensors."""
    tensors = {f"model.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for name, parameter in module.named_parameters():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"{moment}.{name}": state[moment] for moment in MOMENTS if moment in state}
    return tensors


def restore(
    checkpoint: Checkpoint, module: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Put a checkpoint's tensors back. Raises InputError if they are not those of this network."""
    try:
        module.load_state_dict(checkpoint.part("model"))
        average.load_state_dict(checkpoint.part("average"))
        moments = {moment: checkpoint.part(moment) for moment in MOMENTS}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and step:
                values = {moment: moments[moment][name].clone().to(parameter.device) for moment in MOMENTS}
                good = all(v.shape == parameter.shape and v.dtype == parameter.dtype for v in values.values())
                if not good or not all(bool(torch.isfinite(v).all()) for v in values.values()):
                    raise ValueError(f"moments of {name}")
                optimizer.state[parameter] = {"step": torch.tensor(float(step)), **values}
    except (RuntimeError, KeyError, ValueError) as error:
        raise InputError(
            "the checkpoint is of another network", got=str(error).splitlines()[0][:200],
            hint="resume with the .cfg that the training began with",
        ) from error  # fmt: skip


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: missing, too large, damaged, or not a checkpoint of this tool.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError("the checkpoint is too large", where=path, got=size, allowed=f"{MAX_BYTES} bytes")
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise InputError("this is no checkpoint of a training", where=path, got=header.get("format"),
                                 allowed=FORMAT)  # fmt: skip
            facts = json.loads(header.get("facts", ""))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise InputError("the checkpoint cannot be read", where=path, got=str(error)[:200]) from error
    if not isinstance(facts, dict):
        raise InputError("the checkpoint cannot be read", where=path, got="its facts are no JSON object")
    return Checkpoint(facts, tensors)


def save(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all; the one before stays until then."""
    save_tensors(path, tensors, {"format": FORMAT, "facts": json.dumps(facts, sort_keys=True)})
