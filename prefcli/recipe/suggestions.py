"""The key that was probably meant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from prefcli.config_base import ConfigBase
from prefcli.recipe.aliases import ALIASES, UNSUPPORTED
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Source
from prefcli.recipe.source_map import Key, dotted
from prefcli.text import did_you_mean

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
    """How to write a key that has no default."""
    name = str(path[-1])
    if isinstance(path[-1], int):
        return f"write {_EXAMPLES['train']}" if is_source(path) else None
    if len(path) > 1 and is_source(path):
        name = "train"  # a source, whatever its key
    return f"write {path[-1]}: {_EXAMPLES[name]}" if name in _EXAMPLES else None


def nearest(path: Key) -> str:
    """Suggest a key for an unknown one: another tool's name, a key of the section, any key."""
    name, here = str(path[-1]), dotted(path)
    alias = name.lower().replace("-", "_")
    if alias in UNSUPPORTED:
        return UNSUPPORTED[alias]
    if key := ALIASES.get(alias):
        return f"prefcli's name is {key}"
    neighbours = keys_of(path[:-1])
    if ":" in name or "=" in name:
        return "write `key: value`, with a space after the colon"
    if "." in name and here in all_paths():
        parent, _, key = here.rpartition(".")
        return f"dots are for the command line; write `{key}:` inside the section `{parent}:`"
    if suggestion := did_you_mean(name.lower(), neighbours, cutoff=0.7):
        return suggestion
    elsewhere = [p for p in all_paths() if p.rpartition(".")[2] == name]
    if elsewhere == [name]:
        return f"{name} belongs at the top level, not in a section"
    if elsewhere:
        return f"it belongs to {' or '.join(elsewhere[:3])}"
    by_name = {p.rpartition(".")[2]: p for p in all_paths()}
    if suggestion := did_you_mean(name.lower(), by_name, cutoff=0.75):
        close = suggestion.removeprefix("did you mean ").removesuffix("?")
        return f"did you mean {by_name[close]}?"
    return f"keys here: {', '.join(neighbours)}" if neighbours else "remove it"


def is_source(path: Key) -> bool:
    """True if the path is for a data source, or a list of them."""
    return _section_at(path) is Source


def _section(annotation: Any) -> type[BaseModel] | None:
    """The ConfigBase class inside an annotation such as `Lora | None` or a list of sources."""
    if isinstance(annotation, type) and issubclass(annotation, ConfigBase):
        return annotation
    for inner in get_args(annotation):
        if (section := _section(inner)) is not None:
            return section
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
