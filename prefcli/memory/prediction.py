"""The GPU memory that a run needs at its peak, and what it is used for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from prefcli.memory.fake_models import Architectures
from prefcli.memory.fake_step import StepPeaks
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
        """Bytes, as torch.cuda.max_memory_allocated reports them."""
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
    architectures: Architectures,
    sizes: Sizes,
    target: Hardware,
    *,
    length: int,
    simulate: Callable[..., StepPeaks],
) -> Memory:
    """Simulate a step of the run and return the memory of one device.

    method: resolved by the rows. length: tokens of the longest row. simulate: `simulate_step` or
    `extrapolate_step`, with the trainer of the run.
    """
    is_sharded = target.strategy not in ("single", "ddp")
    # Each process accumulates its share of the global batch.
    share = recipe.training.global_batch_size // target.devices
    training = recipe.training.model_copy(update={"global_batch_size": share})
    simulated = recipe.model_copy(update={"training": training})
    if is_sharded:
        bfloat16 = recipe.model.model_copy(update={"dtype": "bfloat16"})
        simulated = simulated.model_copy(update={"model": bfloat16})
    peaks = simulate(simulated, method, architectures, target.device, length=length)
    if is_sharded:
        if not method.needs_reference or recipe.reference.precompute:
            sizes = replace(sizes, reference=0)
        parts, phase = sharded(
            sizes,
            peaks,
            target,
            adapter=recipe.trains_adapter,
            accumulates=share > recipe.training.per_device_train_batch_size,
        )
    else:
        parts, phase = _unsharded(peaks)
        if target.strategy == "ddp":
            half = recipe.model.dtype == "bfloat16" and not recipe.trains_adapter
            parts["buckets"] = (2 if half else 4) * sizes.trainable
    return Memory(parts, phase, length, recipe.training.per_device_train_batch_size)


def _unsharded(peaks: StepPeaks) -> tuple[dict[str, int], str]:
    if peaks.highest is peaks.passes:
        return {name: peaks.passes.parts[name] for name in KINDS}, "the backward pass"
    parts = {name: peaks.update.parts[name] for name in KINDS[:4]}
    return parts | {"temporary": peaks.update.total - sum(parts.values())}, "the optimizer's step"
