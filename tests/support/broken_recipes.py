"""Recipes with one mistake: its code, place and path."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from prefcli.errors import ExitCode, RecipeError
from prefcli.recipe import load

GOOD = """\
output_dir: runs/x
model: {name_or_path: some/model}
dpo: {}
data:
  train: {path: a.jsonl}
"""


@dataclass(frozen=True)
class Case:
    """A recipe with one mistake.

    at: line:col in the recipe, or the override's text.
    report: the error code, and phrases of message and hint, with ` | ` between them.
    """

    id: str
    text: str
    at: str
    path: str | None
    report: str
    overrides: tuple[str, ...] = field(default=())

    def check(self, folder: Path) -> None:
        problems = mistakes(folder, self.text, *self.overrides)
        assert [p.path for p in problems] == [self.path], problems
        (problem,) = problems
        if self.overrides:
            assert problem.place == f"override {self.at!r}"
        else:
            assert problem.place == f"{folder / 'recipe.yaml'}:{self.at}"
        code, *phrases = self.report.split(" | ")
        assert problem.code == code
        for phrase in phrases:
            assert phrase in str(problem)


def added(id: str, text: str, at: str, path: str | None, report: str) -> Case:
    """GOOD with more lines: the first is line 6."""
    return Case(id, f"{GOOD}{text}\n", at, path, report)


def swapped(id: str, old: str, new: str, at: str, path: str | None, report: str) -> Case:
    """GOOD with one part replaced."""
    assert old in GOOD
    return Case(id, GOOD.replace(old, new), at, path, report)


def given(id: str, override: str, path: str | None, report: str, text: str = GOOD) -> Case:
    """GOOD with a wrong override; the place is the override."""
    return Case(id, text, override, path, report, (override,))


def table(*cases: Case):
    assert len({case.id for case in cases}) == len(cases)
    return pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in cases])


def write(folder: Path, text: str | bytes) -> str:
    file = folder / "recipe.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return str(file)


def mistakes(folder: Path, text: str | bytes, *overrides: str):
    """The problems of an invalid recipe; each has a place and a code, in the file's order."""
    with pytest.raises(RecipeError) as caught:
        load(write(folder, text), overrides)
    assert caught.value.exit_code == ExitCode.RECIPE == 2
    problems = caught.value.problems
    assert all(p.place and p.message and p.code for p in problems)
    lines = [tuple(map(int, m.groups())) for p in problems if (m := _line(p.place))]
    assert lines == sorted(lines)
    return problems


def _line(place):
    return re.search(r":(\d+):(\d+)$", place)
