"""YAML text to plain data, with the place of every key and value. Nothing is executed."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from prefcli.errors import Problem, RecipeError
from prefcli.recipe.source_map import Key, Places, dotted
from prefcli.recipe.yaml_errors import SPACE, EventCheck, mark, syntax_problem

MAX_BYTES = 100_000
MAX_DIGITS = 40


class MissingValue(Problem):
    """A key without a value: a mistake in a recipe, null in other tools' files."""


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.2's scalars: `no` is text, `5e-7` a number, `1:30` and dates are text."""

    def __init__(self, text: str, source: str) -> None:
        super().__init__(text)
        self._check = EventCheck(source)

    def get_event(self) -> Any:
        event = super().get_event()  # type: ignore[no-untyped-call]
        self._check(event)
        return event


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*)?\.?[0-9]+(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+\.(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first)
    )


if yaml.__with_libyaml__:

    class _FastLoader(yaml.CSafeLoader):
        """Reads the same with libyaml, ten times faster, but with less helpful errors."""

        yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


RESOLVERS = _Loader.yaml_implicit_resolvers
"""How plain scalars are read; the writer quotes text that would be read as something else."""


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits is out of range")
    return int(text.replace("_", ""))


def _float(text: str) -> float:
    text = text.replace("_", "").lower()
    if text.endswith(".inf"):
        return -math.inf if text.startswith("-") else math.inf
    return math.nan if text == ".nan" else float(text)


_CURLY = ("\N{LEFT DOUBLE QUOTATION MARK}", "\N{RIGHT DOUBLE QUOTATION MARK}")

_SCALARS = {
    "tag:yaml.org,2002:bool": lambda text: text.lower() == "true",
    "tag:yaml.org,2002:null": lambda text: None,
    "tag:yaml.org,2002:int": _int,
    "tag:yaml.org,2002:float": _float,
}


def read_text(path: str) -> str:
    """The recipe's text. Raises RecipeError for a file that can't be a recipe."""
    hint = "write the path of a YAML recipe; `prefcli recipes list` lists the shipped ones"
    place = path if path.isprintable() and path else repr(path)
    try:
        if path and Path(path).is_dir():
            raise RecipeError(
                "this is a folder, not a recipe file", place=place, hint=hint, code="RCP011"
            )
        # Read one byte more than allowed: a device or a pipe has no size.
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError("no such file", place=place, hint=hint, code="RCP011") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(
            f"can't be read: {reason}", place=place, hint=hint, code="RCP011"
        ) from None
    if len(data) > MAX_BYTES:
        raise RecipeError(
            f"too large for a recipe: more than {MAX_BYTES // 1000} kB",
            place=place,
            hint="name data files inside the recipe, under data.train",
            code="RCP011",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise RecipeError(
            f"not a text file: byte 0x{data[error.start]:02x} is not UTF-8",
            place=f"{place}:{line}:{column}",
            hint="save the recipe as UTF-8 text",
            code="RCP011",
        ) from None


def parse(text: str, source: str) -> tuple[dict[str, Any], Places, list[Problem]]:
    """Return plain data, places, and problems that still allow validation (duplicate keys).

    Raises RecipeError if there is nothing to validate.
    """
    places = Places(source)
    try:
        node = compose(text, source)
    except yaml.MarkedYAMLError as error:
        raise RecipeError(syntax_problem(error, source)) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        column = error.position - text.rfind("\n", 0, error.position)
        raise RecipeError(
            f"not a text file: the character U+{ord(text[error.position]):04X} is not allowed",
            place=f"{source}:{line}:{column}",
            hint="remove the character; a recipe is YAML text",
            code="RCP011",
        ) from None
    if node is None:
        raise RecipeError(
            "the recipe is empty",
            place=f"{source}:1:1",
            hint="run `prefcli recipes copy quickstart .` for recipes to start from",
            code="RCP011",
        )
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise RecipeError(
            f"{kind} instead of `key: value` lines",
            place=mark(node.start_mark, source),
            hint="run `prefcli recipes copy quickstart .` for recipes to start from",
            code="RCP011",
        )
    problems: list[Problem] = []
    return _build(node, (), places, problems), places, problems


def scalar(text: str) -> Any:
    """A value as YAML reads it, or the text itself if it is not YAML. Raises RecipeError."""
    try:
        node = compose(text, "")
    except yaml.MarkedYAMLError as error:
        if text.lstrip().startswith(("[", "{", '"')):
            raise RecipeError(syntax_problem(error, "")) from None
        return text
    except yaml.YAMLError:
        return text
    problems: list[Problem] = []
    value = _build(node, (), Places(""), problems) if node is not None else None
    if problems:
        raise RecipeError(problems)
    return value


def number_or_flag(text: str) -> Any:
    """An environment variable's value as a number or a flag, if it is one."""
    try:
        value = scalar(text)
    except RecipeError:
        return text
    return value if isinstance(value, bool | int | float) else text


def compose(text: str, source: str) -> yaml.Node | None:
    """The YAML nodes of a text without features that a recipe must not use."""
    if yaml.__with_libyaml__:
        try:
            check = EventCheck(source)
            for event in yaml.parse(text, Loader=_FastLoader):
                check(event)
                if isinstance(event, yaml.ScalarEvent) and not (event.value or event.style):
                    # A missing value, whose place libyaml does not know.
                    return compose_in_python(text, source)
            return yaml.compose(text, Loader=_FastLoader)
        except (yaml.YAMLError, RecipeError, UnicodeEncodeError):  # lone surrogates
            pass  # read again, for PyYAML's own errors
    return compose_in_python(text, source)


def compose_in_python(text: str, source: str) -> yaml.Node | None:
    """The same without libyaml."""
    loader = _Loader(text, source)
    try:
        return loader.get_single_node()
    except ValueError:  # from chr()
        raise yaml.scanner.ScannerError(
            None, None, "an escape beyond the last character of Unicode", loader.get_mark()
        ) from None
    finally:
        loader.dispose()


def _build(node: yaml.Node, path: Key, places: Places, problems: list[Problem]) -> Any:
    places.values[path] = (node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_build(n, (*path, i), places, problems) for i, n in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, path, places, problems)
    assert isinstance(node, yaml.MappingNode)
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place = mark(key_node.start_mark, places.source)
        name = key_node.value
        if not isinstance(name, str) or not name or not name.isprintable():
            problems.append(_key_problem(name, place, dotted(path) or None))
            continue
        here = (*path, name)
        if name in result:
            line, _ = places.keys[here]
            problems.append(
                Problem(
                    f"the key is given twice; the first is in line {line}",
                    place=place,
                    path=dotted(here),
                    hint="remove one",
                    code="RCP008",
                )
            )
            continue
        places.keys[here] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
        result[name] = _build(value_node, here, places, problems)
    return result


def _key_problem(name: Any, place: str, path: str | None) -> Problem:
    message, hint = "a key must be a plain word", SPACE
    spaces = [c for c in name if c.isspace() and not c.isascii()] if isinstance(name, str) else []
    if spaces:
        message = f"the key has a space that YAML does not know (U+{ord(spaces[0]):04X})"
        hint = "replace it by an ordinary space; it often comes from a web page"
    return Problem(message, place, path, hint, code="RCP009")


def _scalar(node: yaml.ScalarNode, path: Key, places: Places, problems: list[Problem]) -> Any:
    build = _SCALARS.get(node.tag)
    try:
        if path and node.value == "" and not node.style:
            # Unfinished, or its lines are commented out: `lora:` would silently mean no LoRA.
            raise ValueError("no value")
        if "\0" in node.value:
            raise ValueError("a NUL character in the text")
        if not node.style and node.value[:1] in _CURLY and node.value[-1:] in _CURLY:
            raise ValueError(f"curly quotes are part of the text {node.value}; write straight ones")
        return build(node.value) if build else node.value
    except ValueError as error:
        hint = "write a value ({} for a section of defaults, null for nothing) or remove the key"
        if path and re.search("[:= ]", str(path[-1])):
            hint = SPACE
        place, key = mark(node.start_mark, places.source), dotted(path) or None
        problems.append(
            Problem(str(error), place=place, path=key, code="RCP004")
            if node.value
            else MissingValue(str(error), place=place, path=key, hint=hint, code="RCP007")
        )
        return None
