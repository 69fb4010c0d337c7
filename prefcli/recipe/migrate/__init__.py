"""Migration of other tools' configs and training commands to recipes.

`keys.py` has the table of their keys, and `tools.py` how each tool is recognised.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefcli.errors import Problem, RecipeError
from prefcli.recipe import secrets
from prefcli.recipe.load import load_text
from prefcli.recipe.migrate.config_files import Config, read_yaml, tool_of_file
from prefcli.recipe.migrate.draft import TRL_TOOLS, Draft, Dropped, Renamed
from prefcli.recipe.migrate.file_method import find_method, possible_methods
from prefcli.recipe.migrate.rules import Drop, apply_rules
from prefcli.recipe.migrate.tools import TOOLS, by_trl_names
from prefcli.recipe.migrate.training_command import is_script, read_command, read_script
from prefcli.recipe.overrides import key_path, override
from prefcli.recipe.source_map import Key, Places, dotted, leaves
from prefcli.recipe.yaml_writer import recipe_text

__all__ = ["TOOLS", "Migration", "migrate", "tool_of_file"]


@dataclass(frozen=True)
class Migration:
    """The result of a migration. `text` is the recipe, or None if there are problems.

    partial: the recipe without what could not be translated, which is in its comments.
    """

    tool: str | None = None
    method: str | None = None
    text: str | None = None
    renamed: list[Renamed] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    partial: str | None = None

    def lines(self) -> list[str]:
        """List the problems, or the renamed and dropped keys and the notes, for people."""
        title = f"read as {self.tool}'s" + (f", for {self.method}" if self.method else "")
        if self.problems:
            return [title, *(f"error: {problem}" for problem in self.problems)]
        renamed = [f"{r.place}: {r.key} -> {r.path}: {_short(r.value)}" for r in self.renamed]
        dropped = [f"{d.place}: {d.key} dropped: {d.reason}" for d in self.dropped]
        changes = sorted(renamed + dropped, key=_position)
        return [title, *changes, *(f"note: {n}" for n in self.notes)]

    def as_dict(self) -> dict[str, Any]:
        """Return the migration as plain data, for --json."""
        return {
            "tool": self.tool,
            "method": self.method,
            "recipe": self.text,
            "partial": self.partial,
            "renamed": [vars(entry) for entry in self.renamed],
            "dropped": [vars(entry) for entry in self.dropped],
            "notes": self.notes,
            "problems": [problem.as_dict() for problem in self.problems],
        }


def migrate(
    source: str | Sequence[str],
    method: str | None = None,
    devices: int | None = None,
    overrides: Sequence[str] = (),
) -> Migration:
    """Convert a config to a recipe, or collect all problems of the config.

    source: a file, or the words of a training command.
    overrides: settings of the recipe as KEY=VALUE, which replace those of the config.

    Raises RecipeError for a file that can't be read or belongs to no tool.
    """
    if not isinstance(source, str):
        config = read_command([*source])
    else:
        config = read_script(source) if is_script(source) else read_yaml(source)
    tool, places = config.tool, config.places
    data, paths, collisions = by_trl_names(tool, config.entries, places)
    problems = [*config.problems, *collisions, *_mask_tokens(data, paths, config)]
    method_or_problem = find_method(tool, data, places, paths, method or config.method)
    if isinstance(method_or_problem, Problem):
        is_unclear = method_or_problem.code == "RCP152"
        drafts = [
            _draft(config, data, paths, name, devices, overrides).problems
            for name in (possible_methods(tool, data) if is_unclear else ())
        ]
        # Any of the methods would have these problems.
        common = [p for p in drafts[0] if all(p in d for d in drafts)] if drafts else []
        problems = _in_file_order([*problems, method_or_problem, *common])
        return Migration(tool.name, problems=problems)
    draft = _draft(config, data, paths, method_or_problem, devices, overrides)
    draft.problems += problems
    values = _nested(draft)
    draft.problems += override(values, overrides, Places(places.source))
    text = recipe_text(_sections(values))
    name = Path(places.source).name
    draft.problems += _schema_problems(_header(draft, name) + text, draft)
    draft.problems = _in_file_order(draft.problems)
    complete = None if draft.problems else _header(draft, name) + text
    return Migration(
        tool.name,
        draft.method,
        complete,
        draft.renamed,
        draft.dropped,
        draft.notes,
        draft.problems,
        _header(draft, name) + text if draft.problems else None,
    )


def _draft(
    config: Config,
    data: dict[str, Any],
    paths: dict[str, Key],
    method: str,
    devices: int | None,
    overrides: Sequence[str],
) -> Draft:
    """Apply the tool's rules to its settings."""
    tool = config.tool
    given = [dotted(path) for o in overrides if (path := key_path(o.partition("=")[0].strip()))]
    draft = Draft(
        tool.name,
        data,
        config.places,
        method,
        devices or config.devices,
        tool.defaults(method, data),
        paths,
        {trl: name for name, trl in reversed(tool.trl_names.items())},
        tuple(given),
        notes=[*config.notes],
    )
    for path, value in leaves({dotted(paths[key]): value for key, value in data.items()}):
        if isinstance(value, str) and "${" in value:
            message = "prefcli reads ${...} as an interpolation"
            place = config.places.value(path)
            hint = "write the value itself"
            draft.problems.append(Problem(message, place, dotted(path), hint, code="RCP166"))
    for key in tool.required(method, data):
        if data.get(key) is None:
            draft.refuse(
                key,
                f"is missing, and {tool.name} has no default for {method}",
                code="RCP161",
                hint=f"write {draft.name(key)}",
                path=next(iter(tool.table[key].paths), None),
            )
    if "max_length" in data and data["max_length"] is None and tool.name in TRL_TOOLS:
        draft.note("max_length null does not truncate in trl; data.max_length is 1024 by default")
    apply_rules(draft, tool.table)
    if draft.assumed:
        listed = ", ".join(f"{key} {value}" for key, value in draft.assumed.items())
        draft.note(f"{tool.name}'s defaults for keys that are not in the file: {listed}")
    return draft


def _mask_tokens(data: dict[str, Any], paths: dict[str, Key], config: Config) -> list[Problem]:
    """Hide access tokens in `data`; report those whose key is not dropped anyway."""
    problems = []
    for key in list(data):
        value = {dotted(paths[key]): data[key]}
        reported = secrets.mask(value, config.places)
        data[key] = next(iter(value.values()))
        if not isinstance(config.tool.table.get(key), Drop):
            problems += reported
    return problems


def _nested(draft: Draft) -> dict[str, Any]:
    """Return the recipe as nested sections."""
    values: dict[str, Any] = {draft.method: {}}
    for path, value in draft.values.items():
        *sections, key = path.split(".")
        section = values
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    return values


def _sections(values: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe by dotted paths of two parts, as recipe_text() takes it."""
    return {
        f"{name}.{key}" if key else name: inner
        for name, value in values.items()
        for key, inner in (value.items() if isinstance(value, dict) and value else [("", value)])
    }


def _schema_problems(text: str, draft: Draft) -> list[Problem]:
    """Return what the schema reports about the new recipe, at the keys it was made from."""
    try:
        load_text(text, draft.places.source)
    except RecipeError as error:
        reported = {re.split(r"[.\[]", problem.path or "")[0] for problem in draft.problems}
        return list(_at_origins(error.problems, reported, draft))
    return []


def _at_origins(
    problems: tuple[Problem, ...], reported: set[str], draft: Draft
) -> Iterator[Problem]:
    for problem in problems:
        origin = _origin(problem.path or "", draft)
        # A missing key or a conflict may only follow from a problem that is reported already.
        if origin is None and not reported:
            missing = problem.message == "is missing"
            yield replace(
                problem,
                message="no key of the file becomes it" if missing else problem.message,
                place=f"{draft.places.source}:1:1",
                hint=f"pass {problem.path}=VALUE" if missing else problem.hint,
                code="RCP167" if missing else problem.code,
            )
        elif origin is not None and re.split(r"[.\[]", dotted(origin))[0] not in reported:
            yield replace(
                problem,
                message=f"becomes {problem.path}: {problem.message}",
                place=draft.places.value(origin),
                path=dotted(origin),
            )


def _origin(path: str, draft: Draft) -> Key | None:
    """Return the key behind a dotted path of the recipe, or behind its nearest section."""
    while path:
        if path in draft.origins:
            return draft.origins[path]
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return None


def _header(draft: Draft, name: str) -> str:
    lines = [f"# Migrated from {draft.tool}'s {name}, for prefcli {draft.method}."]
    if draft.problems:
        lines.append("# Not complete; these settings are missing:")
    for text in (*map(str, draft.problems), *draft.notes):
        lines += textwrap.wrap(
            " ".join(text.split()),
            96,
            initial_indent="# - ",
            subsequent_indent="#   ",
            break_on_hyphens=False,
        )
    return "\n".join(lines) + "\n"


def _in_file_order(problems: list[Problem]) -> list[Problem]:
    ordered = sorted(problems, key=lambda problem: _position(str(problem)))
    return [secrets.hide(problem) for problem in ordered]


def _position(line: str) -> tuple[int, int]:
    match = re.search(r":(\d+):(\d+)(?::|$)", line)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _short(value: Any) -> str:
    return textwrap.shorten(str(value), 60, placeholder=" ...")
