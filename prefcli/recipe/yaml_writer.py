"""Plain data to the text of a recipe, which yaml_reader reads back unchanged."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

from prefcli.recipe.source_map import Key
from prefcli.recipe.suggestions import keys_of
from prefcli.recipe.yaml_reader import RESOLVERS

_WIDTH = 100


class _Flow(dict[str, Any]):
    """A section that is written in braces, on one line if it fits."""


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = RESOLVERS

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    """Write 5e-7 instead of Python's 5e-07."""
    if not math.isfinite(value):
        text = ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    else:
        text = re.sub(r"e([+-])0*(\d)", lambda m: f"e{m[1].strip('+')}{m[2]}", repr(value))
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", value, style="|" if "\n" in value else None
    )


def _flow(dumper: yaml.SafeDumper, value: _Flow) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", value.items(), flow_style=True)


_Dumper.add_representer(float, _float)
_Dumper.add_representer(str, _text)
_Dumper.add_representer(_Flow, _flow)


def recipe_text(values: Mapping[str, Any]) -> str:
    """The recipe with these dotted paths; sections and keys are in the schema's order."""
    nested: dict[str, Any] = {}
    for path, value in values.items():
        section, _, key = path.rpartition(".")
        inside = nested.setdefault(section, {}) if section else nested
        inside[key] = _in_braces(value)
    ordered = {
        key: _sorted(nested[key], (key,)) if isinstance(nested[key], dict) else nested[key]
        for key in _sorted(nested, ())
    }
    return yaml.dump(
        ordered,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=_WIDTH,
    )


def _in_braces(value: Any) -> Any:
    if isinstance(value, list):
        return [_in_braces(entry) for entry in value]
    return _Flow(value) if isinstance(value, dict) else value


def _sorted(section: dict[str, Any], path: Key) -> dict[str, Any]:
    order = keys_of(path)
    known = [key for key in order if key in section]
    return {key: section[key] for key in [*known, *(section.keys() - known)]}
