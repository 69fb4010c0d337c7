"""Errors that a user can fix, and the exit codes that a script can branch on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any


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
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]


STOPPED = (ExitCode.REQUEUE, ExitCode.INTERRUPTED)
"""Exit codes of commands that were asked to stop: their messages are not errors."""

_MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.BUG: "a bug in prefcli (traceback)",
    ExitCode.RECIPE: "the recipe or the command line is wrong",
    ExitCode.GATE: "a pre-training check failed (check-sft, the reference at step 0, --gpu-memory)",
    ExitCode.DATA: "invalid data, or more problem rows than data.checks allows",
    ExitCode.DIVERGED: "training diverged (a non-finite number, or a health rule stopped it)",
    ExitCode.PUSH_FAILED: "saved, but the push to the hub failed",
    ExitCode.REQUEUE: "preempted; rerun the same command to resume from the last checkpoint",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C; once training runs, a checkpoint is saved first",
}


@dataclass(frozen=True)
class Problem:
    """One thing that the user can fix.

    code: a key of `prefcli.error_codes.ERROR_CODES`.
    place: file:line:col, a data row, or the override on the command line.
    path: dotted path in the recipe, if there is one.
    """

    message: str
    place: str | None = None
    path: str | None = None
    hint: str | None = None
    code: str = field(kw_only=True)

    def __str__(self) -> str:
        start = f"{self.place}: " if self.place else ""
        path = f"{self.path}: " if self.path else ""
        hint = f"\n    -> {self.hint}" if self.hint else ""
        return f"{start}{path}{self.message} [{self.code}]{hint}"

    def as_dict(self) -> dict[str, str | None]:
        return {
            "code": self.code,
            "place": self.place,
            "path": self.path,
            "message": self.message,
            "hint": self.hint,
        }


class PrefcliError(Exception):
    """An error that the user can fix. `cli.main` prints it and exits with its exit code."""

    exit_code = ExitCode.BUG

    def __init__(
        self,
        problems: str | Problem | Sequence[Problem],
        *,
        code: str | None = None,
        place: str | None = None,
        hint: str | None = None,
    ) -> None:
        if isinstance(problems, str):
            if code is None:
                raise TypeError("an error needs a code")
            problems = [Problem(problems, place=place, hint=hint, code=code)]
        elif isinstance(problems, Problem):
            problems = [problems]
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the problems, so that an error of a worker process arrives whole."""
        return _restore, (type(self), self.problems, vars(self))


def _restore(
    kind: type[PrefcliError], problems: tuple[Problem, ...], attributes: dict[str, Any]
) -> PrefcliError:
    error = kind.__new__(kind)
    PrefcliError.__init__(error, problems)
    vars(error).update(attributes)
    return error


class RecipeError(PrefcliError):
    """The recipe, the command line, or a file or folder that they name is wrong."""

    exit_code = ExitCode.RECIPE


class UnreachableError(RecipeError):
    """A model or dataset is not in the cache and the hub is unreachable: it cannot be checked."""


class GateError(PrefcliError):
    """A check before training failed."""

    exit_code = ExitCode.GATE


class DataError(PrefcliError):
    """A row does not have what the method needs."""

    exit_code = ExitCode.DATA


class DivergedError(PrefcliError):
    """A number is not finite any more, or a health rule stopped the run."""

    exit_code = ExitCode.DIVERGED


class PushError(PrefcliError):
    """The model is saved, but the push to the hub failed."""

    exit_code = ExitCode.PUSH_FAILED


class PreemptedError(PrefcliError):
    """A signal preempted the run after it saved what it could; the same command resumes it."""

    exit_code = ExitCode.REQUEUE


class InterruptedRunError(PreemptedError):
    """The user pressed Ctrl-C, and the run stopped after it saved a checkpoint."""

    exit_code = ExitCode.INTERRUPTED
