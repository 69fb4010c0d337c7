"""The GPU memory that a run needs at its peak, and what it is used for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from prefcli.memory.fake_models import Architectures
from prefcli.memory.fake_step import StepPeaks
from prefcli.memory.hardware import Hardware
from prefcli.memory.profiler import KINDS
from prefcli.memory.sharding import Sizes, sharded
from prefcli.methods import Method
from prefcli.recipe.compatibility import SHARDED
from prefcli.recipe.schema import Recipe
from prefcli.text import format_bytes

_CONTEXT = 2**30
"""The driver's context and the libraries' workspaces, which torch does not count."""
_GAPS = 0.08
"""Of torch's share: what its allocator can't fill."""


@dataclass(frozen=True)
class BeforeSharding:
    """Bytes of models that are still whole."""

    gpu: int
    """On each GPU."""
    host: int
    """In the memory of a machine: policy and reference of each of its processes."""
    for_check_sft: bool = False
    """Does check-sft alone need the policy on a GPU as a whole?"""

    def line(self) -> str:
        why = ", for check-sft" if self.for_check_sft else ""
        return (
            f"memory: before it is sharded: {format_bytes(self.gpu)} on each GPU{why}, and "
            f"{format_bytes(self.host)} of the machine's memory"
        )


@dataclass(frozen=True)
class Memory:
    """The peak of one device."""

    parts: Mapping[str, int]
    """Bytes; they add up to `allocated`."""
    phase: str
    length: int
    batch: int
    before_sharding: BeforeSharding | None = None

    @property
    def allocated(self) -> int:
        """Bytes, as torch.cuda.max_memory_allocated reports them."""
        return sum(self.parts.values())

    @property
    def needed(self) -> int:
        """Bytes that the device must have."""
        before = self.before_sharding.gpu if self.before_sharding is not None else 0
        return max(int(self.allocated * (1 + _GAPS)), before) + _CONTEXT

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
        if self.before_sharding is not None:
            lines.append(self.before_sharding.line())
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
            "before_sharding": asdict(self.before_sharding) if self.before_sharding else None,
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
    judge: int = 0,
) -> Memory:
    """Simulate a step of the run and return the memory of one device.

    method: resolved by the rows. length: tokens of the longest row. simulate: `simulate_step` or
    `extrapolate_step`, with the trainer of the run. judge: parameters of a judge's models.
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
    before = _before_sharding(recipe, method, sizes, target)
    if is_sharded:
        if not method.needs_reference or recipe.reference.precompute:
            sizes = replace(sizes, reference=0)
        parts, phase = sharded(
            sizes,
            peaks,
            target,
            adapter=recipe.trains_adapter,
            half=target.device.autocast_to(recipe.model) is not None,
        )
    else:
        parts, phase = _unsharded(peaks)
    if judge:
        parts["judge"] = judge * (2 if target.device.bfloat16 else 4)
    return Memory(parts, phase, length, recipe.training.train_batch_size, before)


def _before_sharding(
    recipe: Recipe, method: Method, sizes: Sizes, target: Hardware
) -> BeforeSharding | None:
    """FSDP moves models to the GPUs layer by layer, DeepSpeed whole; both shard the policy after
    the reference. None where nothing is sharded."""
    if target.strategy not in SHARDED:
        return None
    layered = target.strategy != "zero3"
    # Under FSDP the reference is loaded even to be precomputed.
    scored = method.needs_reference and (layered or not recipe.reference.precompute)
    reference = sizes.reference if scored else 0
    itemsize = target.device.dtype(recipe.model, frozen=recipe.trains_adapter).itemsize
    checked = method.needs_sft and recipe.check_sft.on_fail != "skip"
    processes = target.devices // recipe.launch.nodes
    on_host = itemsize * processes * (sizes.policy + reference)
    if not layered:
        return BeforeSharding(itemsize * max(sizes.policy, reference), on_host)
    if not checked:
        return BeforeSharding(itemsize * max(sizes.layer, sizes.root), on_host)
    cast = target.device.autocast_to(recipe.model)
    scored_bytes = itemsize if cast is None else cast.itemsize
    return BeforeSharding(scored_bytes * sizes.policy, on_host, for_check_sft=True)


def _unsharded(peaks: StepPeaks) -> tuple[dict[str, int], str]:
    for peak, phase in ((peaks.passes, "the backward pass"), (peaks.generation, "generation")):
        if peaks.highest is peak:
            return {name: peak.parts[name] for name in KINDS}, phase
    parts = {name: peaks.update.parts[name] for name in KINDS[:4]}
    return parts | {"temporary": peaks.update.total - sum(parts.values())}, "the optimizer's step"
