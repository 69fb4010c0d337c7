"""training.gradient_checkpointing: auto: recompute in the backward pass only where memory asks."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil
import torch

from prefcli.memory.activations import Policy, estimate_activation_memory
from prefcli.methods import Method
from prefcli.model import Device
from prefcli.recipe.compatibility import Strategy
from prefcli.recipe.schema import Recipe
from prefcli.text import first_line, format_bytes

_SHARE = {"cuda": 0.85, "cpu": 0.5}
"""Of the memory there is, that a step may take: the figure is an estimate, and a run that stops for
want of memory costs more than what recomputing takes. A GPU's allocator leaves few gaps, as its
segments expand."""


@dataclass(frozen=True)
class Choice:
    on: bool
    why: str | None = None
    """None where the recipe has chosen."""

    def lines(self) -> list[str]:
        if self.why is None:
            return []
        return [f"gradient checkpointing: {'on' if self.on else 'off'}, {self.why}"]


def choose(
    recipe: Recipe,
    method: Method,
    machine: Device,
    strategy: Strategy,
    policy: Policy,
    *,
    length: int,
    reference: int,
    memory: int | None,
    packed: int | None = None,
) -> Choice:
    """length, reference, packed: as in `estimate_activation_memory`. memory: bytes of one device;
    None where nobody knows."""
    asked = recipe.training.gradient_checkpointing
    if asked != "auto":
        return Choice(asked)
    if strategy not in ("single", "ddp"):
        return Choice(True, f"as always under {strategy}")
    if memory is None:
        return Choice(True, "as the memory of the device is not known here")
    try:
        needed = estimate_activation_memory(
            recipe, method, machine, policy, length=length, reference=reference, packed=packed
        )
    # A model may do what tensors without memory can't follow; that says nothing about the recipe.
    except Exception as error:
        why = first_line(error)
        return Choice(True, f"as what it would save can't be told beforehand ({why})")
    limit = _SHARE[machine.kind] * memory
    said = f"{format_bytes(needed)} of {format_bytes(memory)} predicted without it"
    if needed <= limit:
        return Choice(False, said)
    return Choice(True, f"{said}, and {format_bytes(limit)} are the most that auto takes")


def memory_here(machine: Device) -> int:
    """Bytes that this process has, or may have."""
    if machine.kind == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    own = psutil.Process().memory_info().rss
    return int(psutil.virtual_memory().available + processes * own) // processes
