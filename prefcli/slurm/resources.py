"""What a command needs of a cluster, by the recipe's launch section."""

from __future__ import annotations

from dataclasses import dataclass

from prefcli.errors import Problem, RecipeError
from prefcli.recipe import Recipe

CHECK_SFT = "check-sft"
"""The one command of a job that is no method. It measures in a single process, whatever launch
says."""


@dataclass(frozen=True)
class Resources:
    """nodes, and the GPUs on each of them."""

    nodes: int
    gpus: int


def need(recipe: Recipe, command: str, gpus: int | None) -> Resources:
    """gpus: what --gpus says; 0 is a run on CPUs. RecipeError where it contradicts the recipe."""
    launch = recipe.launch
    if launch is None or command == CHECK_SFT:
        if gpus is not None and gpus > 1:
            raise _alone(command, gpus)
        return Resources(1, 1 if gpus is None else gpus)
    if gpus == 0:
        if launch.strategy != "ddp":
            raise _wrong("launch.strategy", f"{launch.strategy} needs GPUs, and --gpus is 0")
        if launch.processes is None:
            raise _wrong(
                "launch.processes",
                "left out, it is one for each GPU, and --gpus is 0",
                "write launch.processes",
            )
        return Resources(launch.nodes, 0)
    if launch.processes is None and gpus is None:
        raise _wrong(
            "launch.processes",
            "left out, it is one for each GPU of the machine, which is not known here",
            "--gpus N says how many the job asks for on each node",
        )
    if None not in (gpus, launch.processes) and gpus != launch.processes:
        raise _wrong(
            "launch.processes",
            f"{launch.processes} processes on each machine, and --gpus is {gpus}",
            "each process takes one GPU: leave --gpus out, or make them the same",
        )
    return Resources(launch.nodes, gpus or launch.processes or 1)


def _alone(command: str, gpus: int) -> RecipeError:
    if command == CHECK_SFT:
        why = "measures in one process, which uses one GPU"
        return RecipeError(f"--gpus {gpus}: check-sft {why}", hint="leave --gpus out")
    return RecipeError(
        f"--gpus {gpus}: without a launch section {command} is one process, which uses one GPU",
        hint=f"add to the recipe or the command line: launch.processes={gpus}",
    )


def _wrong(path: str, message: str, hint: str | None = None) -> RecipeError:
    return RecipeError(Problem(message, path=path, hint=hint))
