"""What this machine offers, and what a recipe that does not insist gets on it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from prefcli.errors import Problem, RecipeError
from prefcli.recipe.sections import Model


@dataclass(frozen=True)
class Device:
    """The device of this process."""

    kind: str
    """cuda, or cpu."""
    name: str
    bfloat16: bool
    """Does the device compute in bfloat16 natively? No CPU is said to, as most are slow at it."""

    def autocast(self, model: Model) -> bool:
        """Run the forward pass in bfloat16 over float32 weights?"""
        return self.bfloat16 and model.dtype in ("auto", "bfloat16")

    def half(self, model: Model) -> bool:
        """Run in float16 with loss scaling?"""
        return self.kind == "cuda" and model.dtype == "float16"

    def autocast_to(self, model: Model) -> torch.dtype | None:
        """What float32 weights are multiplied in; None for float32 itself."""
        if self.half(model):
            return torch.float16
        return torch.bfloat16 if self.autocast(model) else None

    def dtype(self, model: Model, *, frozen: bool) -> torch.dtype:
        """Type of the weights; frozen: those under an adapter.

        Trained weights stay float32 unless the recipe insists, because small updates vanish in
        bfloat16's 8 bits; frozen ones need no such care.
        """
        if model.dtype == "bfloat16":
            return torch.bfloat16
        # Merged with an adapter, they hold sums that bfloat16 would round the adapter out of.
        merged = model.adapter in ("stack", "merge")
        if model.dtype == "auto" and frozen and not merged and self.autocast(model):
            return torch.bfloat16
        # float16 trains with loss scaling, which wants float32 weights.
        return torch.float32


def peak_memory(device: torch.device) -> int:
    """Bytes: of a GPU the most that torch has held there so far, else what the process holds."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return int(psutil.Process().memory_info().rss)


def to_device(model: torch.nn.Module, device: Device) -> Any:
    """The model there; quantised weights are there already."""
    return model if getattr(model, "quantization_method", None) else model.to(device.kind)


def detect_device() -> Device:
    if torch.cuda.is_available():
        # Each process of a launcher has its own; "cuda" means it from here on.
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Device("cuda", torch.cuda.get_device_name(), native)
    return Device("cpu", platform.processor() or platform.machine(), False)


def refuse_many_gpus_without_launcher() -> None:
    """One process over several GPUs would run nn.DataParallel, which trl refuses much later."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count > 1 and "LOCAL_RANK" not in os.environ:
        raise RecipeError(
            Problem(
                f"{count} GPUs are visible to one process",
                hint="write `launch: {strategy: ddp}` in the recipe (or fsdp2, zero2, zero3), or "
                f"torchrun --nproc-per-node {count} -m prefcli ..., or CUDA_VISIBLE_DEVICES=0 for "
                "a single one",
            )
        )
