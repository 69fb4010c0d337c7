"""The machines that a run is meant for, which need not be this one."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from prefcli.console import amount
from prefcli.errors import Problem, RecipeError
from prefcli.model import Device, detect_device
from prefcli.recipe.compatibility import STRATEGIES, Strategy
from prefcli.recipe.distributed_env import strategy_here, world_size
from prefcli.recipe.sections import Launch

_UNITS = {"": 2**30, "g": 2**30, "gb": 10**9, "gib": 2**30, "m": 2**20, "mb": 10**6, "mib": 2**20}


@dataclass(frozen=True)
class Hardware:
    device: Device
    """One of them."""
    devices: int
    strategy: Strategy
    gpu_memory: int | None
    """Bytes of each; None where nobody said."""

    def __str__(self) -> str:
        size = f" of {amount(self.gpu_memory)}" if self.gpu_memory else ""
        if self.devices == 1:
            return f"one GPU{size}"
        return f"{self.devices} GPUs{size} under {self.strategy}"


def target_of(
    devices: int | None = None,
    strategy: str | None = None,
    gpu_memory: str | None = None,
    launch: Launch | None = None,
) -> Hardware:
    """From the command line; what is left out is the launch section's, or else this machine's.

    Raises RecipeError.
    """
    here = detect_device()
    if launch is not None and devices is None:
        devices = _devices(launch)
    if launch is not None and strategy is None and (devices != 1 or launch.strategy != "ddp"):
        strategy = launch.strategy
    if strategy is not None and strategy not in STRATEGIES:
        raise _wrong("--strategy", strategy, f"write one of {', '.join(STRATEGIES)}")
    if devices is None and strategy not in (None, "single") and world_size() == 1:
        raise _wrong("--strategy", str(strategy), "say over how many, as in --devices 8")
    if (devices or 1) > 1 and strategy == "single":
        raise _wrong("--strategy", "single", f"{devices} devices need ddp, fsdp2, zero2 or zero3")
    count = devices or world_size()
    plan = next((s for s in STRATEGIES if s == strategy), strategy_here())
    if strategy is None and count == 1:
        plan = "single"  # whatever launcher this process is under
    elif strategy is None and plan == "single":
        plan = "ddp"
    if here.kind == "cuda" and gpu_memory is None:
        size: int | None = torch.cuda.get_device_properties(0).total_memory
    else:
        size = _bytes(gpu_memory) if gpu_memory is not None else None
    if here.kind == "cpu":
        here = Device("cuda", "a GPU", bfloat16=True)  # what memory is counted for
    return Hardware(here, count, plan, size)


def _devices(launch: Launch) -> int:
    each = launch.processes or torch.cuda.device_count()
    if not each:
        raise RecipeError(
            Problem(
                "left out, it is the number of GPUs of the machine that trains, and this one has "
                "none to count",
                path="launch.processes",
                hint="say over how many, as in --devices 8",
            )
        )
    return each * launch.nodes


def _bytes(text: str) -> int:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in _UNITS or not float(found[1]):
        raise _wrong("--gpu-memory", text, "write it as in --gpu-memory 80GiB")
    return int(float(found[1]) * _UNITS[found[2]])


def _wrong(option: str, value: str, hint: str) -> RecipeError:
    return RecipeError(Problem(f"{option} {value!r} can't be used", hint=hint))
