"""The key that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel

from prefcli.config_base import ConfigBase
from prefcli.recipe.aliases import FOREIGN, GONE
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Source
from prefcli.recipe.source_map import Key, dotted

_EXAMPLES = {
    "output_dir": "runs/my-run",
    "model": "{name_or_path: HUB_ID_OR_FOLDER}",
    "name_or_path": "HUB_ID_OR_FOLDER",
    "data": "{train: {path: FILE_OR_HUB_ID}}",
    "train": "{path: FILE_OR_HUB_ID}",
    "path": "FILE_OR_HUB_ID",
    "push_to_hub": "{repo_id: OWNER/NAME}",
    "repo_id": "OWNER/NAME",
    "source": "URL_OR_REPOSITORY_AND_FILE",
    "metrics": "{eval_loss: [LOW, HIGH]}",
}


def example(path: Key) -> str | None:
    """A key that has no default, as it could be written."""
    name = str(path[-1])
    if isinstance(path[-1], int):
        return f"write {_EXAMPLES['train']}" if is_source(path) else None
    if len(path) > 1 and is_source(path):
        name = "train"  # a source, whatever its key
    return f"write {path[-1]}: {_EXAMPLES[name]}" if name in _EXAMPLES else None


def closest(text: str, words: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(text.lower(), list(words), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else None


def nearest(path: Key) -> str:
    """For an unknown key: known foreign names, then siblings, then any section."""
    name, here = str(path[-1]), dotted(path)
    foreign = name.lower().replace("-", "_")
    if foreign in GONE:
        return GONE[foreign]
    if ours := FOREIGN.get(foreign):
        return f"prefcli's name is {ours}"
    siblings = keys_of(path[:-1])
    if ":" in name or "=" in name:
        return "write `key: value`, with a space after the colon"
    if "." in name and here in all_paths():
        section, _, key = here.rpartition(".")
        return f"dots are for the command line; write `{key}:` inside the section `{section}:`"
    close = difflib.get_close_matches(name.lower(), siblings, n=1, cutoff=0.7)
    if close:
        return f"did you mean {close[0]}?"
    elsewhere = [p for p in all_paths() if p.rpartition(".")[2] == name]
    if elsewhere == [name]:
        return f"{name} stands at the top level, in no section"
    if elsewhere:
        return f"it belongs to {' or '.join(elsewhere[:3])}"
    everywhere = {p.rpartition(".")[2]: p for p in all_paths()}
    close = difflib.get_close_matches(name.lower(), list(everywhere), n=1, cutoff=0.75)
    if close:
        return f"did you mean {everywhere[close[0]]}?"
    return f"keys here: {', '.join(siblings)}" if siblings else "remove it"


def is_source(path: Key) -> bool:
    """Does a data source, or a list of them, stand at this path?"""
    return _section_at(path) is Source


def _section(annotation: Any) -> type[BaseModel] | None:
    """The Options class inside an annotation such as `Lora | None` or a list of sources."""
    if isinstance(annotation, type) and issubclass(annotation, ConfigBase):
        return annotation
    for inner in get_args(annotation):
        if (found := _section(inner)) is not None:
            return found
    return None


def _section_at(path: Key) -> type[BaseModel] | None:
    model: type[BaseModel] | None = Recipe
    for part in path:
        if isinstance(part, int):
            continue
        fields = {f.alias or n: f for n, f in model.model_fields.items()} if model else {}
        model = _section(fields[part].annotation) if part in fields else None
    return model


def keys_of(path: Key) -> list[str]:
    """The keys of the section at this path, in the schema's order."""
    model = _section_at(path)
    return [f.alias or n for n, f in model.model_fields.items()] if model else []


def all_paths(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every dotted path that a recipe can have."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        yield path
        inner = _section(field.annotation)
        if inner is not None:
            yield from all_paths(inner, f"{path}.")
