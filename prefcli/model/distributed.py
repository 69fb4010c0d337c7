"""The distributed strategy: what the recipe says, and what launcher and accelerate started."""

from __future__ import annotations

import os
from typing import Any

from prefcli.errors import Problem, RecipeError
from prefcli.recipe.compatibility import Strategy
from prefcli.recipe.distributed_env import strategy_here, world_size
from prefcli.recipe.sections import Launch, need_deepspeed


def check_launch_section(launch: Launch) -> None:
    """Compare the launch section with what the launcher started. Raises RecipeError."""
    started = strategy_here()
    if started in ("zero2", "zero3"):
        need_deepspeed()
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))
    # One process is what both of these are.
    same = launch.strategy == "auto" or (started == "single" and launch.strategy == "ddp")
    settings: list[tuple[str, Any, Any]] = [
        ("strategy", started if same else launch.strategy, started),
        ("processes", launch.processes or processes, processes),
        ("nodes", launch.nodes, nodes),
    ]
    wrong = [setting for setting in settings if setting[1] != setting[2]]
    if wrong:
        raise RecipeError(
            [
                Problem(
                    f"the recipe says {expected}, but the launcher started {actual}",
                    path=f"launch.{name}",
                    hint="run `prefcli` without a launcher, so that it starts what the recipe "
                    "says; or correct or remove the launch section",
                    code="ENV008",
                )
                for name, expected, actual in wrong
            ]
        )


def check_launch_strategy(accelerator: Any) -> None:
    """Check that accelerate did not replace the strategy, as it does with FSDP on a CPU."""
    expected, actual = strategy_here(), strategy_of(accelerator)
    if {expected, actual} <= {"single", "ddp"} or expected == actual:
        return
    raise RecipeError(
        Problem(
            f"the launcher requested {expected}, but accelerate uses {actual} "
            f"({accelerator.distributed_type.value} on {accelerator.device.type})",
            path="launch.strategy",
            hint="make a GPU visible to every process, or use ddp",
            code="ENV008",
        )
    )


def strategy_of(accelerator: Any) -> Strategy:
    """Return the strategy that an Accelerator uses."""
    kind = accelerator.distributed_type.value
    if kind == "DEEPSPEED":
        return "zero3" if accelerator.state.deepspeed_plugin.zero_stage == 3 else "zero2"
    if kind == "FSDP":
        return "fsdp2" if accelerator.is_fsdp2 else "fsdp1"
    return "single" if kind == "NO" else "ddp"
