"""What a dry-run found, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from prefcli.console import warn
from prefcli.errors import ExitCode, PrefcliError, Problem, UnreachableError

T = TypeVar("T")


@dataclass
class DryRunResult:
    """`failure` holds the first error, which chooses the exit code; `problems` those of all."""

    problems: list[Problem] = field(default_factory=list)
    unchecked: list[Problem] = field(default_factory=list)
    """What could not be looked at, for want of a network, and what of it is missing."""
    warnings: list[str] = field(default_factory=list)
    failure: PrefcliError | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    needs_gpu: bool = False
    """Something of the recipe is for a GPU, and there is none here."""

    def try_check(self, check: Callable[[], T]) -> T | None:
        """Run a check; a problem is kept, and the checks that do not need it still run."""
        try:
            return check()
        except UnreachableError as error:
            self.unchecked += [p for p in error.problems if p not in self.unchecked]
        except PrefcliError as error:
            self.fail(error)
        return None

    def fail(self, error: PrefcliError) -> None:
        self.problems += [p for p in error.problems if p not in self.problems]
        self.failure = self.failure or error

    def collect_warnings(self, check: Callable[[], Iterable[object]]) -> None:
        """Run a check that gives warnings."""
        for message in map(str, self.try_check(check) or ()):
            self.warnings.append(message)
            warn(message)

    def locate(self, place: Callable[[Problem], Problem]) -> None:
        """Give the problems the places that their dotted paths have in the recipe."""
        self.problems = [place(problem) for problem in self.problems]
        self.unchecked = [place(problem) for problem in self.unchecked]

    def verdict(self, command: str) -> list[str]:
        """What is wrong and what is unknown, and the one line that says it all."""
        lines = [f"not checked: {problem}" for problem in self.unchecked]
        lines += [f"error: {problem}" for problem in self.problems]
        if self.problems:
            count = len(self.problems)
            return [*lines, f"will not run: {count} problem{'s'[: count != 1]} above"]
        if self.unchecked:
            return [*lines, "not proven: nothing is wrong, but see above what is not checked"]
        where = " on a GPU" if self.needs_gpu else ""
        return [*lines, f"will run{where}: {command}"]

    @property
    def will_run(self) -> bool | None:
        """None where nothing is wrong, but not everything could be looked at."""
        if self.problems:
            return False
        return None if self.unchecked else True

    @property
    def exit_code(self) -> ExitCode:
        if self.failure is not None:
            return self.failure.exit_code
        return ExitCode.RECIPE if self.unchecked else ExitCode.DONE

    def as_dict(self) -> dict[str, Any]:
        return {
            "will_run": self.will_run,
            "needs_gpu": self.needs_gpu,
            "exit_code": int(self.exit_code),
            "problems": [problem.as_dict() for problem in self.problems],
            "unchecked": [problem.as_dict() for problem in self.unchecked],
            "warnings": self.warnings,
            **self.facts,
        }
