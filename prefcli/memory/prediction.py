"""The GPU memory that a run will need at its peak, what it is for, and how to need less."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from prefcli.memory.fake_step import Architectures, StepPeaks, fake_run
from prefcli.memory.hardware import Hardware
from prefcli.memory.profiler import KINDS
from prefcli.memory.sharding import Sizes, sharded
from prefcli.methods import Method
from prefcli.recipe.schema import Recipe
from prefcli.text import format_bytes

_CONTEXT = 2**30
"""The driver's context and the libraries' workspaces, which torch does not count."""
_GAPS = 0.08
"""Of torch's share: what its allocator can't fill."""


@dataclass(frozen=True)
class Memory:
    """The peak of one device."""

    parts: Mapping[str, int]
    """Bytes; they add up to `allocated`."""
    phase: str
    length: int
    batch: int

    @property
    def allocated(self) -> int:
        """Bytes, as torch.cuda.max_memory_allocated would tell them."""
        return sum(self.parts.values())

    @property
    def needed(self) -> int:
        """Bytes that the device must have."""
        return int(self.allocated * (1 + _GAPS) + _CONTEXT)

    def fits(self, target: Hardware) -> bool:
        return target.gpu_memory is None or self.needed <= target.gpu_memory

    def lines(self, target: Hardware) -> list[str]:
        parts = " + ".join(
            f"{name} {format_bytes(size)}" for name, size in self.parts.items() if size
        )
        lines = [
            f"memory: {format_bytes(self.allocated)} at the peak, in {self.phase}, on {target}: "
            f"{self.batch} rows of {self.length} tokens at once",
            f"memory: {parts}",
        ]
        verdict = ""
        if target.gpu_memory is not None:
            spare = target.gpu_memory - self.needed
            verdict = (
                f": {format_bytes(spare)} to spare"
                if spare >= 0
                else f": {format_bytes(-spare)} too much"
            )
        lines.append(
            f"memory: {format_bytes(self.needed)} needed, with the driver's share and the "
            f"allocator's gaps{verdict}"
        )
        return lines

    def as_dict(self, target: Hardware) -> dict[str, Any]:
        return {
            "allocated": self.allocated,
            "needed": self.needed,
            "fits": self.fits(target) if target.gpu_memory is not None else None,
            "parts": dict(self.parts),
            "phase": self.phase,
            "rows": self.batch,
            "tokens": self.length,
            "devices": target.devices,
            "strategy": target.strategy,
            "gpu_memory": target.gpu_memory,
        }


def predict(
    recipe: Recipe,
    method: Method,
    known: Architectures,
    sizes: Sizes,
    target: Hardware,
    *,
    length: int,
    run_of: Callable[..., StepPeaks] = fake_run,
) -> Memory:
    """Rehearse a step of the run without memory. method: settled. length: of the longest row."""
    spread = target.strategy not in ("single", "ddp")
    # What a single one of the processes accumulates is its share of the global batch.
    share = recipe.training.global_batch_size // target.devices
    alone = {"training": recipe.training.model_copy(update={"global_batch_size": share})}
    rehearsed = recipe.model_copy(update=alone)
    if spread:
        bfloat16 = recipe.model.model_copy(update={"dtype": "bfloat16"})
        rehearsed = rehearsed.model_copy(update={"model": bfloat16})
    run = run_of(rehearsed, method, known, target.device, length=length)
    if spread:
        if not method.needs_reference or recipe.reference.precompute:
            sizes = replace(sizes, reference=0)
        parts, phase = sharded(
            sizes,
            run,
            target,
            adapter=recipe.trains_adapter,
            accumulates=share > recipe.training.per_device_train_batch_size,
        )
    else:
        parts, phase = _whole(run)
        if target.strategy == "ddp":
            whole = recipe.model.dtype == "bfloat16" and not recipe.trains_adapter
            parts["buckets"] = (2 if whole else 4) * sizes.trainable
    return Memory(parts, phase, length, recipe.training.per_device_train_batch_size)


def _whole(run: StepPeaks) -> tuple[dict[str, int], str]:
    if run.highest is run.passes:
        return {name: run.passes.parts[name] for name in KINDS}, "the backward pass"
    parts = {name: run.update.parts[name] for name in KINDS[:4]}
    return parts | {"temporary": run.update.total - sum(parts.values())}, "the optimizer's step"
