"""The result of a dry-run: every problem that its checks found, and the verdict."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from prefcli.console import say, warn
from prefcli.errors import ExitCode, PrefcliError, Problem, UnreachableError
from prefcli.preflight.checks import Check, Report
from prefcli.preflight.context import PreflightContext

T = TypeVar("T")


@dataclass
class DryRunResult:
    """The problems, warnings and facts of a dry-run; its first error chooses the exit code."""

    problems: list[Problem] = field(default_factory=list)
    unchecked: list[Problem] = field(default_factory=list)
    """What could not be checked without a network, and which part is missing."""
    warnings: list[str] = field(default_factory=list)
    failure: PrefcliError | None = None
    """The first error."""
    facts: dict[str, Any] = field(default_factory=dict)
    needs_gpu: bool = False
    """The recipe asks for a GPU, and this machine has none."""

    def run_checks(self, context: PreflightContext, checks: Sequence[Check]) -> None:
        """Run the checks and print their reports; skip those that need a failed one."""
        passed: set[str] = set()
        for check in checks:
            if not passed.issuperset(check.needs):
                continue
            report = self.try_check(functools.partial(_report_of, check, context))
            context.failed = bool(self.problems)
            if report is not None:
                passed.add(check.name)
                say(*report.lines)
                self.add_warnings(report.warnings)

    def try_check(self, check: Callable[[], T]) -> T | None:
        """Run a check and keep its problems, so that later checks still run."""
        try:
            return check()
        except UnreachableError as error:
            self.unchecked += [p for p in error.problems if p not in self.unchecked]
        except PrefcliError as error:
            self.fail(error)
        return None

    def fail(self, error: PrefcliError) -> None:
        """Keep the problems of an error."""
        self.problems += [p for p in error.problems if p not in self.problems]
        self.failure = self.failure or error

    def add_warnings(self, messages: Iterable[str]) -> None:
        """Print and keep warnings."""
        for message in messages:
            self.warnings.append(message)
            warn(message)

    def locate(self, place: Callable[[Problem], Problem]) -> None:
        """Add to each problem the place that its dotted path has in the recipe."""
        self.problems = [place(problem) for problem in self.problems]
        self.unchecked = [place(problem) for problem in self.unchecked]

    def verdict(self, command: str) -> list[str]:
        """List what is wrong or unknown, and end with the verdict in one line."""
        lines = [f"not checked: {problem}" for problem in self.unchecked]
        lines += [f"error: {problem}" for problem in self.problems]
        if self.problems:
            count = len(self.problems)
            return [*lines, f"will not run: {count} problem{'s'[: count != 1]} above"]
        if self.unchecked:
            return [*lines, "inconclusive: no errors, but some checks could not run (see above)"]
        where = " on a GPU" if self.needs_gpu else ""
        return [*lines, f"will run{where}: {command}"]

    @property
    def will_run(self) -> bool | None:
        """The verdict; None if nothing is wrong but some checks could not run."""
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


def _report_of(check: Check, context: PreflightContext) -> Report:
    return check.run(context) or Report()
