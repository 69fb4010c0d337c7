"""The memory of one device that holds a shard of a model.

Activations are measured in a simulated step. Weights, gradients and states are divided by the
number of devices. What is gathered temporarily follows the settings of accelerate and trl.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prefcli.memory.fake_step import StepPeaks
from prefcli.memory.hardware import Hardware

_LIVE = 1e9
"""stage3_max_live_parameters of DeepSpeed: parameters that are kept gathered at once."""
_BUCKET = 5e8
"""Its reduce_bucket_size, in gradients."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters."""

    policy: int
    """Including its adapter, if it has one."""
    trainable: int
    reference: int
    layer: int
    """Parameters of the largest repeated block."""
    root: int
    """Parameters outside the blocks: embeddings and head."""


def blocks(model: torch.nn.Module) -> tuple[int, int]:
    """Return the parameters of the largest block, and those outside all blocks."""
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m)]
    sizes = [[_count(block) for block in blocks_of] for blocks_of in lists]
    inside = max(sizes, key=sum, default=[0])
    return max(inside), _count(model) - sum(inside)


def sharded(
    sizes: Sizes, run: StepPeaks, target: Hardware, *, adapter: bool, half: bool = False
) -> tuple[dict[str, int], str]:
    """Return the parts of a device's peak, and its phase.

    run: simulated with bfloat16 weights, which both engines compute with.
    adapter: whether the policy's own weights are frozen, and therefore kept in bfloat16 only.
    half: whether passes are in 16 bits; FSDP2 then keeps the reference in these.
    """
    n, trained = target.devices, sizes.trainable
    frozen = sizes.policy - trained
    states = run.passes.parts["optimizer"] / n
    if not adapter and run.states_follow_weights:
        states *= 2  # they are in float32
    if target.strategy in ("fsdp1", "fsdp2"):
        in_half = half and target.strategy == "fsdp2"
        parts = {
            "weights": (4 * trained + 2 * frozen) / n,
            "reference": (2 if adapter or in_half else 4) * sizes.reference / n,
            "gradients": 4 * trained / n,
            "optimizer": states,
            # The embeddings stay whole between the passes; a layer is fetched while one is used.
            "gathered": 2 * (sizes.root + 2 * sizes.layer),
        }
        # FSDP2 sums in float32 (training/mixins/distributed.py).
        summed = 4 if target.strategy == "fsdp2" else 2
        if not adapter:
            # Gradients in bfloat16 of two layers and the embeddings, and of one to be summed up.
            parts["gathered"] += 2 * (sizes.root + 2 * sizes.layer) + summed * sizes.layer
        if target.strategy == "fsdp1":
            # trl wraps the reference as one, so that its pass gathers all of it.
            parts["gathered"] = max(parts["gathered"], 2 * sizes.reference)
    else:
        share = n if target.strategy == "zero3" else 1
        live = min(sizes.policy, _LIVE) if target.strategy == "zero3" else 0
        parts = {
            # bfloat16 for the passes, and float32 for the optimizer.
            "weights": 2 * sizes.policy / share + 4 * trained / n,
            "reference": 2 * sizes.reference / share,
            "gradients": 2 * trained / n,
            "optimizer": states,
            "gathered": 2 * live + 2 * min(trained, _BUCKET),
        }
    phase, most = "the backward pass", run.passes.passing
    if run.generation.passing.total() > most.total() + parts["gradients"]:
        phase, most, parts["gradients"] = "generation", run.generation.passing, 0
    passing = {name: float(most[name]) for name in ("activations", "logits")}
    update = run.update.parts["activations"] / n * (1 if adapter else 2)
    if parts["gathered"] + sum(passing.values()) >= update:
        parts |= passing
    else:
        phase = "the optimizer's step"
        parts |= {"gathered": 0, "temporary": update}
    return {name: int(size) for name, size in parts.items()}, phase


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
