"""The meaning of each key of a recipe, from its schema: for editors, `explain` and the docs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from prefcli import __version__
from prefcli.recipe.schema import Recipe

_NAMES = {"string": "text", "integer": "whole number", "boolean": "true or false"}
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}
_NOTHING = {"type": "null"}


class RecipeKey(NamedTuple):
    """One key of a recipe."""

    path: str
    """Dotted, e.g. training.learning_rate."""
    type: str
    default: str | None
    """As it is written in YAML; None for a key that is required."""
    description: str
    is_section: bool


def recipe_json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe (draft 2020-12), with a description of every key.

    A section that may be null is only a section here: editors then name a wrong key in it, instead
    of saying that none of two alternatives fits.
    """
    schema = Recipe.model_json_schema(by_alias=True)
    sections = schema["$defs"]
    for section in (schema, *filter(None, (_section(one, sections) for one in sections.values()))):
        section.pop("title", None)
        for name, key in section.get("properties", {}).items():
            section["properties"][name] = _plain_key(key, sections)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:prefcli:recipe:{__version__}",
        "title": "prefcli recipe",
        **schema,
    }


def _plain_key(key: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    choices = [choice for choice in key.get("anyOf", ()) if choice != _NOTHING]
    if len(choices) == 1 and "$ref" in choices[0]:
        key = {name: value for name, value in key.items() if name != "anyOf"} | choices[0]
    key.pop("title", None)
    if "description" not in key:
        target = sections.get(key.get("$ref", "").rpartition("/")[2]) or _section(key, sections)
        key["description"] = (target or {}).get("description", "")
    return key


def _section(key: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any] | None:
    """The section that a key takes, also in a list of sections, or as one of two forms."""
    if "properties" in key:
        return key
    target = sections.get(key.get("$ref", "").rpartition("/")[2], {})
    forms = (*key.get("anyOf", ()), *key.get("oneOf", ()), key.get("items"), target)
    inner = (_section(form, sections) for form in forms if form)
    return next((section for section in inner if section is not None), None)


@cache
def recipe_keys() -> tuple[RecipeKey, ...]:
    """Return all keys in the schema's order; a section is followed by its keys."""
    schema = recipe_json_schema()
    return tuple(_keys(schema, schema["$defs"], ""))


def _keys(section: dict[str, Any], sections: dict[str, Any], prefix: str) -> Iterator[RecipeKey]:
    required = section.get("required", ())
    for name, key in section["properties"].items():
        inner = _section(key, sections)
        empty: Any = {"array": [], "object": {}}.get(key.get("type", ""), {} if inner else None)
        yield RecipeKey(
            prefix + name,
            _type(key, sections),
            None if name in required else _yaml(key.get("default", empty)),
            " ".join(key["description"].split()),
            inner is not None,
        )
        if inner is not None:
            yield from _keys(inner, sections, f"{prefix}{name}.")


def _type(key: dict[str, Any], sections: dict[str, Any]) -> str:
    if choices := key.get("anyOf") or key.get("oneOf"):
        types = dict.fromkeys(_type(choice, sections) for choice in choices)
        return " or ".join(types)
    if "$ref" in key:
        return _type(sections[key["$ref"].rpartition("/")[2]], sections)
    if "properties" in key:
        return "section"
    if "enum" in key:
        return " | ".join(map(str, key["enum"]))
    if "const" in key:
        return str(key["const"])
    if key.get("type") == "array":
        return f"list of {_type(key.get('items', {}), sections)}"
    if key.get("type") == "object":
        return "section of names"
    name = _NAMES.get(key.get("type", ""), key.get("type", "any value"))
    bounds = [text.format(_yaml(key[bound])) for bound, text in _BOUNDS.items() if bound in key]
    return " ".join([name, " and ".join(bounds)]).strip()


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_yaml(inner)}' for name, inner in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)
