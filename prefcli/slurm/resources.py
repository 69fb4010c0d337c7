"""Nodes, GPUs and time limit of a job."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prefcli.errors import Problem, RecipeError
from prefcli.recipe import Recipe

CHECK_SFT = "check-sft"
"""The only command of a job that is not a method. It always uses a single process."""

_TIME_FORMS = (
    r"(?P<minutes>\d+)",
    r"(?P<minutes>\d+):(?P<seconds>\d+)",
    r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)",
    r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?",
)
_UNIT_SECONDS = {"days": 86_400, "hours": 3_600, "minutes": 60, "seconds": 1}
_UNIT_LABELS = {"days": "d", "hours": "h", "minutes": "min", "seconds": "s"}


@dataclass(frozen=True)
class Resources:
    """Number of nodes, and of GPUs per node."""

    nodes: int
    gpus: int


def find_resources(recipe: Recipe, command: str, gpus: int | None) -> Resources:
    """Return what a command needs. Raises RecipeError if --gpus contradicts the recipe.

    gpus: the option --gpus; 0 runs on CPUs.
    """
    launch = recipe.launch
    if launch.strategy == "single" or command == CHECK_SFT:
        if gpus is not None and gpus > 1:
            raise _too_many_gpus(command, gpus)
        return Resources(1, 1 if gpus is None else gpus)
    if launch.strategy == "auto" and launch.nodes == 1 and launch.processes is None:
        return Resources(1, 1 if gpus is None else gpus)
    if gpus == 0:
        if launch.strategy not in ("auto", "ddp"):
            message = f"strategy {launch.strategy} needs GPUs, and --gpus is 0"
            hint = "write strategy: auto, or remove --gpus 0"
            raise RecipeError(Problem(message, path="launch.strategy", hint=hint, code="ENV022"))
        if launch.processes is None:
            message = "is not set, and its default is one process per GPU, but --gpus is 0"
            raise RecipeError(
                Problem(message, path="launch.processes", hint="set it", code="ENV021")
            )
        return Resources(launch.nodes, 0)
    if launch.processes is None and gpus is None:
        message = "is not set, and its default is the number of GPUs of the node, which is unknown"
        hint = "pass --gpus N, the number of GPUs per node"
        raise RecipeError(Problem(message, path="launch.processes", hint=hint, code="ENV021"))
    if None not in (gpus, launch.processes) and gpus != launch.processes:
        message = f"is {launch.processes} processes per node, and --gpus is {gpus}"
        hint = "remove --gpus, or write the same number: each process uses one GPU"
        raise RecipeError(Problem(message, path="launch.processes", hint=hint, code="ENV020"))
    return Resources(launch.nodes, gpus or launch.processes or 1)


def _too_many_gpus(command: str, gpus: int) -> RecipeError:
    if command == CHECK_SFT:
        return RecipeError(
            f"--gpus {gpus}: check-sft is a single process, which uses one GPU",
            code="ENV020",
            hint="remove --gpus",
        )
    return RecipeError(
        f"--gpus {gpus}: launch.strategy is single, which is one process on one GPU",
        code="ENV020",
        hint="remove one of them",
    )


def parse_time_limit(text: str) -> int:
    """Return the seconds of a time limit in Slurm's forms. Raises RecipeError for other text."""
    matches = (re.fullmatch(form, text, re.A) for form in _TIME_FORMS)
    match = next((match for match in matches if match), None)
    units = match.groupdict("0") if match else {}
    seconds = sum(_UNIT_SECONDS[unit] * int(number) for unit, number in units.items())
    if seconds == 0:
        raise RecipeError(
            f"--time {text}: not a time limit of Slurm",
            code="ENV023",
            hint="write 04:00:00 (four hours), 1-12 (a day and twelve hours) or 90 (minutes)",
        )
    return seconds


def format_duration(seconds: int) -> str:
    """Return a duration with its units, which shows that a limit of 4:00 is 4 min."""
    parts = []
    for unit, size in _UNIT_SECONDS.items():
        count, seconds = divmod(seconds, size)
        parts += [f"{count} {_UNIT_LABELS[unit]}"] if count else []
    return " ".join(parts)
