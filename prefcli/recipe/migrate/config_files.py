"""Readers of configs: YAML files, fenced blocks of a README, oumi's sections, records of W&B."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefcli.errors import Problem, RecipeError
from prefcli.methods import METHODS
from prefcli.recipe.migrate.tools import TOOLS, Tool, other_tool
from prefcli.recipe.source_map import Key, Places, dotted
from prefcli.recipe.yaml_reader import MissingValue, parse, read_text


@dataclass(frozen=True)
class Config:
    """A tool's settings with their paths in a file, and what is known from around them."""

    tool: Tool
    entries: dict[Key, Any]
    places: Places
    problems: list[Problem] = field(default_factory=list)
    devices: int | None = None
    method: str | None = None
    notes: list[str] = field(default_factory=list)


def read_yaml(path: str, tool: Tool | None = None) -> Config:
    """Read the YAML file of a tool, or the fenced block of a README that has its keys."""
    text = read_text(path)
    # YAML's own tags before a number become spaces, so that columns stay as they are.
    text = re.sub(r"(?<=[:,\[-] )!!(?:float|int)(?= )", lambda m: " " * len(m[0]), text)
    if Path(path).suffix.lower() in (".md", ".markdown"):
        text = _fenced_block(text, path)
    data, places, problems = parse(text, path)
    problems = [problem for problem in problems if not isinstance(problem, MissingValue)]
    tool = tool or find_tool(data, path)
    config = Config(tool, {(key,): value for key, value in data.items()}, places, problems)
    if tool.name == "oumi":
        return _oumi(config)
    return _wandb(config) if tool.name == "W&B" else config


def find_tool(data: Mapping[str, Any], path: str) -> Tool:
    """Return the tool that a file's keys belong to. Raises RecipeError if there is none."""
    place = f"{path}:1:1"
    model = data.get("model")
    if "data" in data and (
        (isinstance(model, Mapping) and "name_or_path" in model) or METHODS.keys() & data.keys()
    ):
        hint = f"run prefcli validate {path}"
        raise RecipeError("this is already a recipe", place=place, hint=hint, code="RCP151")
    if sentence := other_tool(data):
        raise RecipeError(
            sentence, place=place, hint="start from `prefcli recipes list`", code="RCP173"
        )
    for tool in TOOLS:
        if tool.recognises(data):
            return tool
    names = ", ".join(tool.name for tool in TOOLS)
    raise RecipeError(
        f"the keys belong to none of these tools: {names}",
        place=place,
        hint="pass the YAML file or the shell script that one of them trains with",
        code="RCP150",
    )


def tool_of_file(path: str) -> str | None:
    """Return the name of the tool that a YAML file is a config of, if it is one."""
    try:
        return find_tool(parse(read_text(path), path)[0], path).name
    except RecipeError:
        return None


def _fenced_block(text: str, path: str) -> str:
    """Return the one fenced block that is a tool's config, with blank lines before it."""
    blocks = []
    for match in re.finditer(r"^```([^\n`]*)\n(.*?)^```", text, re.M | re.S):
        block = "\n" * text[: match.start(2)].count("\n") + match[2]
        try:
            data, _, _ = parse(block, path)
            find_tool(data, path)
        except RecipeError:
            continue
        blocks.append(block)
    if len(blocks) != 1:
        lines = [str(len(b) - len(b.lstrip("\n")) + 1) for b in blocks]
        where = f", in lines {', '.join(lines)}" if lines else ""
        raise RecipeError(
            f"{len(blocks)} fenced blocks are configs of a tool{where}; one is expected",
            place=path,
            hint="copy the block to its own file",
            code="RCP169",
        )
    return blocks[0]


_INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")
_OUMI_SECTIONS = ("model", "training", "peft", "trainer_kwargs")


def _oumi(config: Config) -> Config:
    """Take the keys of oumi's sections; the datasets stay a section."""
    entries: dict[Key, Any] = {}

    def add(path: Key, value: Any) -> None:
        if path[-1] in _OUMI_SECTIONS and isinstance(value, Mapping):
            for key, inner in value.items():
                add((*path, key), inner)
        else:
            entries[path] = value

    for path, value in config.entries.items():
        add(path, value)
    plain = {dotted(path): value for path, value in entries.items()}
    for path, value in entries.items():
        name = _INTERPOLATION.fullmatch(value) if isinstance(value, str) else None
        if name and isinstance(plain.get(name[1]), str | int | float):
            entries[path] = plain[name[1]]
    return Config(config.tool, entries, config.places, config.problems)


def _wandb(config: Config) -> Config:
    """Take the training arguments of W&B's config.yaml, which also holds the model's config."""
    entries: dict[Key, Any] = {}
    unread: list[str] = []
    names, places = config.tool.trl_names, Places(config.places.source)
    for marks, source in ((places.keys, config.places.keys), (places.values, config.places.values)):
        marks |= {(*p[:1], *p[2:]) if p[1:2] == ("value",) else p: m for p, m in source.items()}
    for (key, *_), entry in config.entries.items():
        if names.get(str(key), key) in config.tool.table:
            entries[(key,)] = entry.get("value") if isinstance(entry, Mapping) else None
        elif key not in ("_wandb", "wandb_version"):
            unread.append(str(key))
    note = f"keys that are not trl's training arguments are not read: {', '.join(unread)}"
    devices = _gpu_count(config.entries.get(("_wandb",)))
    notes = [note] if unread else []
    if devices:
        notes.append("the number of devices is W&B's gpu_count, of one node")
    return Config(config.tool, entries, places, config.problems, devices, notes=notes)


def _gpu_count(data: Any) -> int | None:
    if not isinstance(data, Mapping):
        return None
    count = data.get("gpu_count")
    inner = (_gpu_count(value) for value in data.values())
    return count if isinstance(count, int) else next(filter(None, inner), None)
