"""training.gradient_checkpointing: auto, which recomputes activations only if memory is short."""

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
    """None if the recipe decides."""

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
    None if unknown."""
    setting = recipe.training.gradient_checkpointing
    if setting != "auto":
        return Choice(setting)
    if strategy not in ("single", "ddp"):
        return Choice(True, f"as always under {strategy}")
    if memory is None:
        return Choice(True, "as the memory of the device is unknown")
    try:
        needed = estimate_activation_memory(
            recipe, method, machine, policy, length=length, reference=reference, packed=packed
        )
    # A model may use operations without a fake version; the recipe is not at fault.
    except Exception as error:
        why = first_line(error)
        return Choice(True, f"as its savings cannot be estimated ({why})")
    limit = _SHARE[machine.kind] * memory
    prediction = f"{format_bytes(needed)} of {format_bytes(memory)} predicted without it"
    if needed <= limit:
        return Choice(False, prediction)
    return Choice(True, f"{prediction}; auto uses at most {format_bytes(limit)}")


def memory_here(machine: Device) -> int:
    """Return the bytes that this process holds or can allocate."""
    on_gpu = machine.kind == "cuda"
    held = torch.cuda.memory_allocated() if on_gpu else psutil.Process().memory_info().rss
    return held + free_memory_here(machine.kind)


def free_memory_here(kind: str) -> int:
    """Return the bytes that this process can allocate; on a CPU its share of what is available.

    kind: of the device.
    """
    if kind == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(psutil.virtual_memory().available) // processes
