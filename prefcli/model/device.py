"""The device of this process, and the dtypes that a recipe gets on it."""

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
    """cuda or cpu."""
    name: str
    bfloat16: bool
    """The device computes in bfloat16 natively; False for every CPU, since most are slow at it."""

    def autocast(self, model: Model) -> bool:
        """Check whether the forward pass runs in bfloat16 over float32 weights."""
        return self.bfloat16 and model.dtype in ("auto", "bfloat16")

    def half(self, model: Model) -> bool:
        """Check whether training runs in float16 with loss scaling."""
        return self.kind == "cuda" and model.dtype == "float16"

    def autocast_to(self, model: Model) -> torch.dtype | None:
        """Return the dtype of autocast; None without autocast."""
        if self.half(model):
            return torch.float16
        return torch.bfloat16 if self.autocast(model) else None

    def dtype(self, model: Model, *, frozen: bool) -> torch.dtype:
        """Return the dtype of the weights. frozen: they are under an adapter.

        Trained weights are float32 unless the recipe says otherwise, because small updates vanish
        in bfloat16's 8 bits.
        """
        if model.dtype == "bfloat16":
            return torch.bfloat16
        # In merged weights, bfloat16 would round the adapter away.
        merged = model.adapter in ("stack", "merge")
        if model.dtype == "auto" and frozen and not merged and self.autocast(model):
            return torch.bfloat16
        # float16 trains with loss scaling, which needs float32 weights.
        return torch.float32


def peak_memory(device: torch.device) -> int:
    """Return the peak bytes reserved on a GPU, or the resident bytes of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return int(psutil.Process().memory_info().rss)


def to_device(model: torch.nn.Module, device: Device) -> Any:
    """Move the model to the device; quantized weights are already there."""
    return model if getattr(model, "quantization_method", None) else model.to(device.kind)


def detect_device() -> Device:
    """Return the device of this process."""
    if torch.cuda.is_available():
        # From here on, "cuda" means the GPU of this process.
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Device("cuda", torch.cuda.get_device_name(), native)
    return Device("cpu", platform.processor() or platform.machine(), False)


def refuse_many_gpus_without_launcher() -> None:
    """Refuse one process with several GPUs: trl would refuse nn.DataParallel much later."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count > 1 and "LOCAL_RANK" not in os.environ:
        raise RecipeError(
            Problem(
                f"{count} GPUs are visible to a single process",
                hint="run the command prefcli, which starts a process for each GPU, or "
                f"torchrun --nproc-per-node {count} -m prefcli ..., or set CUDA_VISIBLE_DEVICES=0 "
                "to use one GPU",
                code="ENV009",
            )
        )


def visible_gpus() -> list[str]:
    """Return the GPUs of this process as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else list(map(str, range(count)))
    return names[:count]
