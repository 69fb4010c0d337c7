"""How a model is spread over processes: what was asked for, and what there is."""

from __future__ import annotations

import os
from typing import Any

from prefcli.errors import Problem, RecipeError
from prefcli.recipe.compatibility import Strategy
from prefcli.recipe.distributed_env import strategy_here, world_size
from prefcli.recipe.sections import Launch, need_deepspeed


def check_launch_section(launch: Launch | None) -> None:
    """A launcher that does otherwise than the recipe says. Raises RecipeError."""
    here = strategy_here()
    if here in ("zero2", "zero3"):
        need_deepspeed()
    if launch is None:
        return
    machines = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))
    asked: list[tuple[str, Any, Any]] = [
        ("strategy", launch.strategy, "ddp" if here == "single" else here),
        ("processes", launch.processes or processes, processes),
        ("nodes", launch.nodes, machines),
    ]
    wrong = [(name, wanted, got) for name, wanted, got in asked if wanted != got]
    if wrong:
        raise RecipeError(
            [
                Problem(
                    f"the recipe says {wanted}, and the launcher has started {got}",
                    path=f"launch.{name}",
                    hint="start `prefcli` without a launcher, and it starts what the recipe says; "
                    "or write what the launcher does, or no launch section",
                )
                for name, wanted, got in wrong
            ]
        )


def check_launch_strategy(launch: Launch | None, accelerator: Any) -> None:
    """On a machine without GPUs, say, accelerate takes FSDP for DDP without a word."""
    asked, got = strategy_here(), strategy_of(accelerator)
    if {asked, got} <= {"single", "ddp"} or asked == got:
        return
    raise RecipeError(
        Problem(
            f"{asked} was asked for, and accelerate made it {got} "
            f"({accelerator.distributed_type.value} on {accelerator.device.type})",
            path="launch.strategy" if launch is not None else None,
            hint="sharding needs GPUs that are visible to every process; without them, take ddp",
        )
    )


def strategy_of(accelerator: Any) -> Strategy:
    """Of an Accelerator, whatever it was asked for."""
    kind = accelerator.distributed_type.value
    if kind == "DEEPSPEED":
        return "zero3" if accelerator.state.deepspeed_plugin.zero_stage == 3 else "zero2"
    if kind == "FSDP":
        return "fsdp2" if accelerator.is_fsdp2 else "fsdp1"
    return "single" if kind == "NO" else "ddp"
