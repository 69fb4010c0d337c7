"""What a user can put right, and the exit codes a script can branch on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """The contract with job files; printed by `prefcli --help`."""

    DONE = 0
    BUG = 1
    RECIPE = 2
    GATE = 3
    DATA = 4
    DIVERGED = 5
    PUSH_FAILED = 6
    REQUEUE = 75

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.BUG: "a bug of ours (traceback)",
    ExitCode.RECIPE: "the recipe or the command line is wrong",
    ExitCode.GATE: "a gate said no (check-sft, the reference at step 0, or --gpu-memory)",
    ExitCode.DATA: "the data is wrong, or more of it doubtful than data.checks allows",
    ExitCode.DIVERGED: "training diverged (a non-finite number, or a health rule's stop)",
    ExitCode.PUSH_FAILED: "saved, but the push to the hub failed",
    ExitCode.REQUEUE: "pre-empted; the same command goes on from the last checkpoint: requeue me",
}


@dataclass(frozen=True)
class Problem:
    """One thing to put right.

    place: file:line:col, a data row, or the override on the command line.
    path: dotted path in the recipe, if there is one.
    """

    message: str
    place: str | None = None
    path: str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        start = f"{self.place}: " if self.place else ""
        path = f"{self.path}: " if self.path else ""
        hint = f"\n    -> {self.hint}" if self.hint else ""
        return f"{start}{path}{self.message}{hint}"

    def as_dict(self) -> dict[str, str | None]:
        return {
            "place": self.place,
            "path": self.path,
            "message": self.message,
            "hint": self.hint,
        }


class PrefcliError(Exception):
    """Something the user can put right. Only `cli.py` prints it and exits with its code."""

    exit_code = ExitCode.BUG

    def __init__(
        self,
        problems: str | Problem | Sequence[Problem],
        *,
        place: str | None = None,
        hint: str | None = None,
    ) -> None:
        if isinstance(problems, str):
            problems = [Problem(problems, place=place, hint=hint)]
        elif isinstance(problems, Problem):
            problems = [problems]
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class RecipeError(PrefcliError):
    """The recipe, the command line, or what they name (a folder, a file) is wrong."""

    exit_code = ExitCode.RECIPE


class UnreachableError(RecipeError):
    """Something is on the hub, which can't be asked, and not in the cache: right or wrong, nobody
    can tell here."""


class GateError(PrefcliError):
    """A check that guards the run said no."""

    exit_code = ExitCode.GATE


class DataError(PrefcliError):
    """A row of the data is not what the method needs."""

    exit_code = ExitCode.DATA


class DivergedError(PrefcliError):
    """A number is no longer finite, or a health rule stopped the run."""

    exit_code = ExitCode.DIVERGED


class PushError(PrefcliError):
    """The model is saved, and the hub did not take it."""

    exit_code = ExitCode.PUSH_FAILED


class PreemptedError(PrefcliError):
    """Asked to make room by a signal: what can be saved is, and the same command goes on."""

    exit_code = ExitCode.REQUEUE
