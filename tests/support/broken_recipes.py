"""A recipe with a mistake, and what the user must be told about it."""

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
    """at: line:col in the recipe, or the override's text. said: phrases of message and hint."""

    id: str
    text: str
    at: str
    path: str | None
    said: str
    overrides: tuple[str, ...] = field(default=())

    def check(self, folder: Path) -> None:
        problems = mistakes(folder, self.text, *self.overrides)
        assert [p.path for p in problems] == [self.path], problems
        (problem,) = problems
        if self.overrides:
            assert problem.place == f"override {self.at!r}"
        else:
            assert problem.place == f"{folder / 'recipe.yaml'}:{self.at}"
        for phrase in self.said.split(" | "):
            assert phrase in str(problem)


def added(id: str, text: str, at: str, path: str | None, said: str) -> Case:
    """GOOD with more lines: the first is line 6."""
    return Case(id, f"{GOOD}{text}\n", at, path, said)


def swapped(id: str, old: str, new: str, at: str, path: str | None, said: str) -> Case:
    """GOOD with one piece replaced."""
    assert old in GOOD
    return Case(id, GOOD.replace(old, new), at, path, said)


def given(id: str, override: str, path: str | None, said: str, text: str = GOOD) -> Case:
    """GOOD with a wrong override; the place is the override."""
    return Case(id, text, override, path, said, (override,))


def table(*cases: Case):
    assert len({case.id for case in cases}) == len(cases)
    return pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in cases])


def write(folder: Path, text: str | bytes) -> str:
    file = folder / "recipe.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return str(file)


def mistakes(folder: Path, text: str | bytes, *overrides: str):
    """The problems of a recipe that must be refused; each has a place, in the file's order."""
    with pytest.raises(RecipeError) as caught:
        load(write(folder, text), overrides)
    assert caught.value.exit_code == ExitCode.RECIPE == 2
    problems = caught.value.problems
    assert all(p.place and p.message for p in problems)
    lines = [tuple(map(int, m.groups())) for p in problems if (m := _line(p.place))]
    assert lines == sorted(lines)
    return problems


def _line(place):
    return re.search(r":(\d+):(\d+)$", place)
