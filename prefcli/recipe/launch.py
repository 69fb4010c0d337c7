"""launch: the processes that `prefcli METHOD RECIPE` starts, and how they share a model."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from prefcli.config_base import ConfigBase, Count
from prefcli.errors import Problem, RecipeError


class Launch(ConfigBase):
    """Several processes for one run. Left out: this one alone, or those of the launcher it is
    started by."""

    strategy: Literal["ddp", "fsdp2", "zero2", "zero3"] = "ddp"
    """ddp: the whole model on each. fsdp2: torch's sharding. zero2, zero3: DeepSpeed's."""
    processes: Count | None = None
    """On each node; left out: one for each GPU it has."""
    nodes: Count = 1
    """Each runs the same command; a job's scheduler tells them of each other."""


def need_deepspeed(path: str | None = None) -> None:
    """Raises RecipeError where it is not installed. path: of the recipe, where that asks for it."""
    if find_spec("deepspeed") is None:
        raise RecipeError(
            Problem(
                "ZeRO is DeepSpeed's, which is not installed",
                path=path,
                hint="pip install 'prefcli[deepspeed]', or shard with fsdp2, which is torch's own",
            )
        )
