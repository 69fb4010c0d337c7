"""The hardware that a run is meant for, which may be another machine's."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from prefcli.errors import Problem, RecipeError
from prefcli.first_failure import launched
from prefcli.model import Device, detect_device
from prefcli.recipe.compatibility import STRATEGIES, Strategy
from prefcli.recipe.distributed_env import strategy_here, world_size
from prefcli.recipe.sections import Launch
from prefcli.text import format_bytes

_UNITS = {"": 2**30, "g": 2**30, "gb": 10**9, "gib": 2**30, "m": 2**20, "mb": 10**6, "mib": 2**20}


@dataclass(frozen=True)
class Hardware:
    """The devices of a run: their number, their kind, and how the model is spread over them."""

    device: Device
    """One of them."""
    devices: int
    strategy: Strategy
    gpu_memory: int | None
    """Bytes of each; None if unknown."""
    named: bool = False
    """Whether the command line names it, so that the run may be on another machine."""
    automatic: bool = False
    """Whether the memory will decide the strategy (automatic.py), which is single or ddp so far."""

    def __str__(self) -> str:
        size = f" of {format_bytes(self.gpu_memory)}" if self.gpu_memory else ""
        if self.devices == 1:
            return f"one GPU{size}"
        spread = "" if self.automatic else f" under {self.strategy}"
        return f"{self.devices} GPUs{size}{spread}"


def this_machine(launch: Launch) -> Hardware:
    """Describe the devices of the run that this process belongs to.

    A launcher has decided the strategy.
    """
    if launched():
        return Hardware(detect_device(), world_size(), strategy_here(), None)
    return machine_of(launch, 1)


def machine_of(launch: Launch, processes: int) -> Hardware:
    """Describe the devices of a run that starts so many processes on machines like this one."""
    count, automatic = processes * launch.nodes, launch.strategy == "auto"
    strategy: Strategy = "ddp" if launch.strategy == "auto" else launch.strategy
    if strategy == "ddp" and count == 1:
        strategy = "single"
    return Hardware(detect_device(), count, strategy, _memory_here(), automatic=automatic)


def _memory_here() -> int | None:
    """Return the bytes of the smallest visible GPU; None without one."""
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return min((torch.cuda.get_device_properties(i).total_memory for i in gpus), default=None)


def target_of(
    devices: int | None = None,
    strategy: str | None = None,
    gpu_memory: str | None = None,
    launch: Launch | None = None,
) -> Hardware:
    """Read the hardware from the command line, the launch section and this machine, in this order.

    Raises RecipeError.
    """
    here = detect_device()
    named = any(option is not None for option in (devices, strategy, gpu_memory))
    launch = launch or Launch()
    automatic = strategy is None and launch.strategy == "auto" and world_size() == 1
    if strategy is not None and strategy not in STRATEGIES:
        raise _option_error("--strategy", strategy, f"write one of {', '.join(STRATEGIES)}")
    if devices is None and world_size() == 1:
        countable = launch.processes is not None or torch.cuda.device_count() > 0
        if strategy not in (None, "single") and not countable:
            raise _option_error("--strategy", strategy, "add the number of GPUs, e.g. --devices 8")
        devices = 1 if strategy == "single" else _launched_devices(launch)
    if strategy is None and (devices != 1 or launch.strategy != "ddp"):
        strategy = None if launch.strategy == "auto" else launch.strategy
    if (devices or 1) > 1 and strategy == "single":
        raise _option_error(
            "--strategy", "single", f"{devices} devices need ddp, fsdp2, zero2 or zero3"
        )
    count = devices or world_size()
    spread = next((s for s in STRATEGIES if s == strategy), strategy_here())
    if strategy is None and count == 1:
        spread = "single"  # whatever launcher this process has
    elif strategy is None and spread == "single":
        spread = "ddp"
    size = _parse_bytes(gpu_memory) if gpu_memory is not None else _memory_here()
    if here.kind == "cpu":
        here = Device("cuda", "a GPU", bfloat16=True)  # memory is simulated for a GPU
    return Hardware(here, count, spread, size, named, automatic)


def _launched_devices(launch: Launch) -> int:
    if launch.strategy == "single":
        return 1
    per_machine = launch.processes or torch.cuda.device_count()
    if not per_machine and launch.strategy == "auto" and launch.nodes == 1:
        return 1
    if not per_machine:
        raise RecipeError(
            Problem(
                "its default is the number of GPUs of the machine that trains, and this machine "
                "has none to count",
                path="launch.processes",
                hint="name the number of GPUs, e.g. --devices 8",
                code="ENV059",
            )
        )
    return per_machine * launch.nodes


def _parse_bytes(text: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _UNITS or not float(match[1]):
        raise _option_error("--gpu-memory", text, "write it as in --gpu-memory 80GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def _option_error(option: str, value: str, hint: str) -> RecipeError:
    return RecipeError(Problem(f"invalid value {value!r} for {option}", hint=hint, code="ENV060"))
