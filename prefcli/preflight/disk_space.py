"""What a run writes, against what its disk has left."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from prefcli.console import amount, warn
from prefcli.errors import Problem, RecipeError
from prefcli.memory.optimizer_state_size import on_disk
from prefcli.model import count_parameters
from prefcli.recipe.schema import Recipe
from prefcli.trl_integration.trl_args import Plan


@dataclass(frozen=True)
class Disk:
    checkpoint: int
    """Bytes of one."""
    kept: int
    """Checkpoints there at once: the limit, and the new one before the oldest is deleted."""
    model: int
    """Bytes of model/."""
    free: int

    @property
    def needed(self) -> int:
        return self.checkpoint * self.kept + self.model

    def lines(self) -> list[str]:
        return [
            f"disk: {amount(self.needed)} at most, {amount(self.free)} free here: {self.kept} "
            f"checkpoints of {amount(self.checkpoint)}, model/ of {amount(self.model)}"
        ]

    def as_dict(self) -> dict[str, int]:
        return {
            "checkpoint": self.checkpoint,
            "checkpoints_kept": self.kept,
            "model": self.model,
            "needed": self.needed,
            "free": self.free,
        }


def disk(recipe: Recipe, trained: int, plan: Plan) -> Disk:
    """Of a run from its beginning; what it has written already counts as free.

    trained: parameters.
    """
    weights = 2 if recipe.model.dtype == "bfloat16" and not recipe.trains_adapter else 4
    limit = recipe.training.save_total_limit
    kept = plan.checkpoints if limit is None else min(plan.checkpoints, limit + 1)
    folder = Path(recipe.output_dir).absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    return Disk(
        checkpoint=weights * trained + on_disk(recipe.training.optim, trained),
        kept=kept,
        model=weights * trained,
        free=shutil.disk_usage(there).free + _ours(folder),
    )


def _ours(folder: Path) -> int:
    """Bytes of the checkpoints that are there, which give way to newer ones."""
    files = (file for each in folder.glob("checkpoint-*") for file in each.rglob("*"))
    return sum(file.stat().st_size for file in files if file.is_file())


def check_disk(found: Disk, *, elsewhere: bool) -> list[str]:
    """Raises RecipeError where a run would fill the disk; a warning where it runs `elsewhere`."""
    if found.needed <= found.free:
        return []
    problem = Problem(
        f"a run writes {amount(found.needed)}, and the disk here has {amount(found.free)} left",
        path="output_dir",
        hint="name a folder on another disk, or keep fewer checkpoints: training.save_total_limit",
    )
    if elsewhere:
        return [f"{problem.message}, which matters if it is the disk of the run, too"]
    raise RecipeError(problem)


def warn_if_disk_short(recipe: Recipe, model: torch.nn.Module, plan: Plan) -> None:
    """Before a run's first step. It may end well, if others make room, and so it begins."""
    _, trained = count_parameters(model)
    found = disk(recipe, trained, plan)
    if found.needed > found.free:
        warn(
            f"output_dir: this run writes up to {amount(found.needed)}, and its disk has "
            f"{amount(found.free)} left; keep fewer checkpoints (training.save_total_limit), or "
            "free some"
        )
