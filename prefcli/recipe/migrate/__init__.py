"""Other tools' YAML -> a recipe. A tool more is a file here and its line in TOOLS."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefcli.errors import Problem, RecipeError
from prefcli.recipe import secrets
from prefcli.recipe.load import load_text
from prefcli.recipe.migrate.axolotl import AXOLOTL
from prefcli.recipe.migrate.base import Draft, Drop, Dropped, Renamed, run
from prefcli.recipe.migrate.handbook import HANDBOOK
from prefcli.recipe.migrate.llama_factory import LLAMA_FACTORY
from prefcli.recipe.migrate.source_tool import Tool, method_of
from prefcli.recipe.migrate.trl import TRL
from prefcli.recipe.source_map import Key, Places, dotted, leaves
from prefcli.recipe.yaml_reader import Unwritten, parse, read_text
from prefcli.recipe.yaml_writer import recipe_text

TOOLS: tuple[Tool, ...] = (AXOLOTL, LLAMA_FACTORY, HANDBOOK, TRL)
"""In the order in which a file's keys are compared with their marks."""


@dataclass(frozen=True)
class Migration:
    """text: the recipe, which `load` takes; None where there are problems."""

    tool: str | None = None
    method: str | None = None
    text: str | None = None
    renamed: list[Renamed] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What a person is told of a recipe that could be made."""
        moved = [f"{r.place}: {r.key} -> {r.path}: {_short(r.value)}" for r in self.renamed]
        dropped = [f"{d.place}: {d.key} dropped: {d.reason}" for d in self.dropped]
        remarks = [f"note: {remark}" for remark in self.remarks]
        return [f"{self.tool}, for {self.method}", *sorted(moved + dropped, key=_line), *remarks]

    def as_dict(self) -> dict[str, Any]:
        return {
            "tool": self.tool,
            "method": self.method,
            "recipe": self.text,
            "renamed": [vars(entry) for entry in self.renamed],
            "dropped": [vars(entry) for entry in self.dropped],
            "remarks": self.remarks,
            "problems": [problem.as_dict() for problem in self.problems],
        }


def migrate(path: str, method: str | None = None, devices: int | None = None) -> Migration:
    """Every problem at once, in the migration. RecipeError for a file that is no YAML section."""
    data, places, problems = parse(read_text(path), path)
    problems = [problem for problem in problems if not isinstance(problem, Unwritten)]
    tool = _tool_of(data, path)
    problems += _tokens(data, places, tool)
    found = method_of(tool, data, places, method)
    if isinstance(found, Problem):
        return Migration(tool.name, problems=_tidy([*problems, found]))
    draft = Draft(tool.name, data, places, found, devices, tool.defaults(found, data))
    draft.problems += problems + _interpolations(data, places)
    run(draft, tool.table)
    if draft.assumed:
        listed = ", ".join(f"{key} {value}" for key, value in draft.assumed.items())
        draft.remark(f"not in the file, so {tool.name}'s own defaults: {listed}")
    text = _header(draft, Path(path).name) + recipe_text({found: {}} | draft.values)
    draft.problems += _refused(text, draft)
    return Migration(
        tool.name,
        found,
        None if draft.problems else text,
        draft.renamed,
        draft.dropped,
        draft.remarks,
        _tidy(draft.problems),
    )


def _tool_of(data: dict[str, Any], path: str) -> Tool:
    if "model" in data and "data" in data:
        raise RecipeError(
            "this is a recipe already", place=f"{path}:1:1", hint=f"prefcli validate {path}"
        )
    for tool in TOOLS:
        if tool.marks & data.keys():
            return tool
    names = [tool.name for tool in TOOLS]
    raise RecipeError(
        f"these are the keys of none of {', '.join(names)}",
        place=f"{path}:1:1",
        hint="give the YAML file that one of them trains with",
    )


def _tokens(data: dict[str, Any], places: Places, tool: Tool) -> list[Problem]:
    """Access tokens are taken out of `data`; where the key is dropped anyway, nothing is said."""
    gone = {key for key, translation in tool.table.items() if isinstance(translation, Drop)}
    return [p for p in secrets.mask(data, places) if p.path not in gone]


def _interpolations(data: dict[str, Any], places: Places) -> list[Problem]:
    return [
        Problem(
            "prefcli would read ${...} as an interpolation",
            places.value(at),
            dotted(at),
            "write the value itself",
        )
        for at, value in leaves(data)
        if isinstance(value, str) and "${" in value
    ]


def _refused(text: str, draft: Draft) -> list[Problem]:
    """What the schema says of the new recipe, told of the keys it was made from."""
    try:
        load_text(text, draft.places.source)
    except RecipeError as error:
        told = {re.split(r"[.\[]", problem.path or "")[0] for problem in draft.problems}
        found = [(problem, _origin(problem.path or "", draft)) for problem in error.problems]
        # What is missing or at odds may follow from what is refused already.
        return [
            _of_the_file(problem, origin, draft)
            for problem, origin in found
            if (origin[0] not in told if origin else not told)
        ]
    return []


def _of_the_file(problem: Problem, origin: Key | None, draft: Draft) -> Problem:
    if origin is not None:
        message = f"becomes {problem.path}: {problem.message}"
        place = draft.places.value(origin)
        return Problem(message, place, dotted(origin), problem.hint)
    start = f"{draft.places.source}:1:1"
    if problem.message == "is missing":
        return Problem("nothing in the file becomes it", start, problem.path)
    return Problem(problem.message, start, problem.path, problem.hint)


def _origin(path: str, draft: Draft) -> Key | None:
    """The key behind a dotted path of the recipe, or behind the nearest section around it."""
    while path:
        if path in draft.origins:
            return draft.origins[path]
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return None


def _header(draft: Draft, name: str) -> str:
    lines = [f"# Migrated from {draft.tool}'s {name}, for prefcli {draft.method}."]
    for remark in draft.remarks:
        lines += textwrap.wrap(remark, 96, initial_indent="# - ", subsequent_indent="#   ")
    return "\n".join(lines) + "\n"


def _tidy(problems: list[Problem]) -> list[Problem]:
    """In the file's order, without tokens."""
    return [secrets.hide(p) for p in sorted(problems, key=lambda problem: _line(str(problem)))]


def _line(told: str) -> tuple[int, int]:
    found = re.search(r":(\d+):(\d+)(?::|$)", told)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _short(value: Any) -> str:
    return textwrap.shorten(str(value), 60, placeholder=" ...")
