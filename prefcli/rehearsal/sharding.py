"""What a device holds of a model that is spread over several.

Activations are rehearsed; the shares of weights, gradients and states are divisions; what is
gathered for the moment follows the defaults of the engines, as their documentation gives them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from prefcli.model.weights import empty_model
from prefcli.rehearsal.fake_run import StepPeaks
from prefcli.rehearsal.target import Target

_LIVE = 1e9
"""stage3_max_live_parameters of DeepSpeed: parameters that are kept gathered at once."""
_BUCKET = 5e8
"""Its reduce_bucket_size, in gradients."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters."""

    policy: int
    """With its adapter, if it has one."""
    trainable: int
    reference: int
    layer: int
    """Of the largest repeated block."""
    root: int
    """Of what lies outside the blocks: embeddings and head."""


def blocks(config: PretrainedConfig) -> tuple[int, int]:
    """(parameters of the largest block, parameters outside all blocks)."""
    model = empty_model(config)
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m)]
    sizes = [[_count(block) for block in each] for each in lists]
    inside = max(sizes, key=sum, default=[0])
    return max(inside), _count(model) - sum(inside)


def sharded(
    sizes: Sizes, run: StepPeaks, target: Target, *, adapter: bool
) -> tuple[dict[str, int], str]:
    """Parts of a device's peak, and the phase it comes in.

    run: rehearsed with bfloat16 weights, as both engines compute with such.
    adapter: are the policy's own weights frozen, and so kept in bfloat16 alone?
    """
    n, trained = target.devices, sizes.trainable
    frozen = sizes.policy - trained
    states = run.passes.parts["optimizer"] / n
    if not adapter and run.states_follow_weights:
        states *= 2  # in float32 here
    if target.strategy in ("fsdp1", "fsdp2"):
        parts = {
            "weights": (4 * trained + 2 * frozen) / n,
            "reference": (2 if adapter else 4) * sizes.reference / n,
            "gradients": 4 * trained / n,
            "optimizer": states,
            # The embeddings stay whole between the passes; a layer is fetched while one is used.
            "gathered": 2 * (sizes.root + 2 * sizes.layer),
        }
        if not adapter:
            # Two layers' gradients in bfloat16, and one's in float32 to be summed up.
            parts["gathered"] += (2 * 2 + 4) * sizes.layer
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
    passing = {name: float(run.passes.passing[name]) for name in ("activations", "logits")}
    update = run.update.parts["activations"] / n * (1 if adapter else 2)
    if parts["gathered"] + sum(passing.values()) >= update:
        phase = "the backward pass"
        parts |= passing
    else:
        phase = "the optimizer's step"
        parts |= {"gathered": 0, "temporary": update}
    return {name: int(size) for name, size in parts.items()}, phase


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
