"""What YAML allows and a recipe does not, and PyYAML's complaints in the user's words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import yaml

from prefcli.errors import Problem, RecipeError

MAX_DEPTH = 40
SPACE = "write `key: value`, with a space after the colon"


def refuse_events(events: Iterable[yaml.Event], source: str) -> None:
    """Depth, aliases, tags and second documents: refused before recursive code sees the text."""
    depth = documents = 0
    for event in events:
        place = mark(event.start_mark, source)
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise RecipeError(
                    "a second document starts here (---)",
                    place=place,
                    hint="a recipe is one document; give each its own file",
                )
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise RecipeError(
                    f"nested deeper than {MAX_DEPTH} levels",
                    place=place,
                    hint="is a bracket too much, or never closed?",
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if label := getattr(event, "anchor", None):
            what = f"alias *{label}" if isinstance(event, yaml.AliasEvent) else f"anchor &{label}"
            raise RecipeError(
                f"YAML {what}",
                place=place,
                hint="write ${section.key} to use a value twice; quote text that begins so",
            )
        tag = getattr(event, "tag", None)
        if tag and tag != "!":
            raise RecipeError(
                f"YAML tag {tag.replace('tag:yaml.org,2002:', '!!')}",
                place=place,
                hint="a recipe holds plain values; remove the tag, or quote the text",
            )


class _Mistake(NamedTuple):
    told: str
    """What PyYAML says, as a pattern."""
    meaning: str
    cure: str
    at_start: bool = False
    """The mistake is where PyYAML began to read, not where it gave up."""


_QUOTE = "put the text in quotes"
_MISTAKES = (
    _Mistake(r"'\\t'", "a tab, which YAML does not allow as indentation", "indent with spaces"),
    _Mistake(r"flow mapping.*<stream end>", "this { is never closed", "add the }", True),
    _Mistake(r"flow sequence.*<stream end>", "this [ is never closed", "add the ]", True),
    _Mistake(r"quoted scalar.*end of", "this quote is never closed", "add the closing one", True),
    _Mistake(
        r"flow .*'\{'",
        "a { in the middle of a value",
        'inside { } and [ ] an interpolation needs quotes: {key: "${...}"}',
    ),
    _Mistake(
        r"flow .*got ':'|mapping values are not allowed",
        "a second colon, or a key where none can stand",
        "quote the value, or check the indentation of this line and the one above",
    ),
    _Mistake(r"flow node.*<stream end>", "a bracket is never closed", "close it"),
    _Mistake(r"flow .*expected ','", "no comma or closing bracket where one is due", "add it"),
    _Mistake(r"the node content", "a value is missing", "write it before this, or remove this"),
    _Mistake(r"not find expected ':'", "this line is not `key: value`", SPACE, True),
    _Mistake(
        r"block mapping.*<scalar>",
        "text behind the closing quote",
        "quote the whole value; inside single quotes a single quote is written twice",
    ),
    _Mistake(
        r"<block end>",
        "this does not belong to the section above it",
        "keys of one section start in the same column, each as `key: value`",
    ),
    _Mistake(r"sequence entries", "a list entry behind a key", "start the `- ` on a new line"),
    _Mistake(r"cannot start any token", "a value can't start with this character", _QUOTE),
    _Mistake(r"scanning an alias", "* starts a YAML alias", _QUOTE, True),
    _Mistake(r"scanning an anchor", "& starts a YAML anchor", _QUOTE, True),
    _Mistake(r"parsing a tag", "! starts a YAML tag", _QUOTE, True),
    _Mistake(r"unknown escape", "this is no escape in double quotes", "use single quotes"),
)


def syntax_problem(error: yaml.MarkedYAMLError, source: str) -> Problem:
    told = " ".join(filter(None, (error.context, error.problem)))
    at = error.problem_mark or error.context_mark
    for mistake in _MISTAKES:
        if re.search(mistake.told, told, re.DOTALL):
            at = (mistake.at_start and error.context_mark) or at
            place = mark(at, source) if at else source
            return Problem(f"YAML: {mistake.meaning}", place=place, hint=mistake.cure)
    return Problem(f"YAML: {told}", place=mark(at, source) if at else source)


def mark(at: Any, source: str) -> str:
    """PyYAML's mark as file:line:col."""
    return f"{source}:{at.line + 1}:{at.column + 1}"
