"""YAML features that a recipe must not use, and PyYAML's errors as problems."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import yaml

from prefcli.errors import Problem, RecipeError

MAX_DEPTH = 40
SPACE = "write `key: value`, with a space after the colon"


class EventCheck:
    """Refuses depth, aliases, tags and second documents while PyYAML parses the text.

    Recursive code then never sees a text that is nested too deeply.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._depth = self._documents = 0

    def __call__(self, event: yaml.Event) -> None:
        """Raise RecipeError for an event that a recipe must not have."""
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise self._error(
                    event,
                    "a second document starts here (---)",
                    "a recipe is one document; write each recipe to its own file",
                )
        elif isinstance(event, yaml.CollectionStartEvent):
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise self._error(
                    event,
                    f"nested deeper than {MAX_DEPTH} levels",
                    "check for an extra bracket, or one that is never closed",
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            self._depth -= 1
        if label := getattr(event, "anchor", None):
            kind = f"alias *{label}" if isinstance(event, yaml.AliasEvent) else f"anchor &{label}"
            raise self._error(
                event,
                f"YAML {kind}",
                "write ${section.key} to use a value twice, or quote text that starts with & or *",
            )
        tag = getattr(event, "tag", None)
        if tag and tag != "!":
            raise self._error(
                event,
                f"YAML tag {tag.replace('tag:yaml.org,2002:', '!!')}",
                "a recipe has plain values; remove the tag, or quote the text",
            )

    def _error(self, event: yaml.Event, message: str, hint: str) -> RecipeError:
        place = mark(event.start_mark, self._source)
        return RecipeError(message, place=place, hint=hint, code="RCP010")


class _Mistake(NamedTuple):
    pattern: str
    """A pattern of PyYAML's message."""
    meaning: str
    cure: str
    at_start: bool = False
    """The mistake is where PyYAML started to read, not where it stopped."""


_QUOTE = "put the text in quotes"
_MISTAKES = (
    _Mistake(r"'\\t'", "a tab, which YAML does not allow for indentation", "indent with spaces"),
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
        "a second colon, or a key that is not allowed here",
        "quote the value, or check the indentation of this line and the one above",
    ),
    _Mistake(r"flow node.*<stream end>", "a bracket is never closed", "close it"),
    _Mistake(r"flow .*expected ','", "a comma or a closing bracket is missing", "add it"),
    _Mistake(
        r"the node content", "a value is missing", "write it before this character, or remove this"
    ),
    _Mistake(r"not find expected ':'", "this line is not `key: value`", SPACE, True),
    _Mistake(
        r"block mapping.*<scalar>",
        "text after the closing quote",
        "quote the whole value; inside single quotes, write a single quote twice",
    ),
    _Mistake(
        r"<block end>",
        "this line does not belong to the section above it",
        "start the keys of a section in the same column, each as `key: value`",
    ),
    _Mistake(r"sequence entries", "a list entry after a key", "start the `- ` on a new line"),
    _Mistake(r"cannot start any token", "a value can't start with this character", _QUOTE),
    _Mistake(r"scanning an alias", "* starts a YAML alias", _QUOTE, True),
    _Mistake(r"scanning an anchor", "& starts a YAML anchor", _QUOTE, True),
    _Mistake(r"parsing a tag", "! starts a YAML tag", _QUOTE, True),
    _Mistake(r"unknown escape", "this escape is not valid in double quotes", "use single quotes"),
)


def syntax_problem(error: yaml.MarkedYAMLError, source: str) -> Problem:
    """PyYAML's error as a problem with its cure."""
    message = " ".join(filter(None, (error.context, error.problem)))
    at = error.problem_mark or error.context_mark
    if bracket := _never_closed(error):
        closing = "}" if bracket == "{" else "]"
        return Problem(
            f"YAML: this {bracket} is never closed",
            place=mark(error.context_mark, source),
            hint=f"add the {closing}",
            code="RCP009",
        )
    for mistake in _MISTAKES:
        if re.search(mistake.pattern, message, re.DOTALL):
            at = (mistake.at_start and error.context_mark) or at
            place = mark(at, source) if at else source
            return Problem(
                f"YAML: {mistake.meaning}", place=place, hint=mistake.cure, code="RCP009"
            )
    return Problem(f"YAML: {message}", place=mark(at, source) if at else source, code="RCP009")


def _never_closed(error: yaml.MarkedYAMLError) -> str | None:
    """The bracket that lacks its partner, if PyYAML stopped in a later line."""
    start, stop = error.context_mark, error.problem_mark
    text = getattr(start, "buffer", None)
    if start is None or stop is None or text is None or start.line == stop.line:
        return None
    rest = re.sub(r"(?m)(^|\s)#.*$", "", text[start.pointer :])
    pair = {"{": "}", "[": "]"}
    closing = pair.get(rest[:1])
    return rest[0] if closing and rest.count(rest[0]) > rest.count(closing) else None


def mark(at: Any, source: str) -> str:
    """The place of PyYAML's mark: file:line:col."""
    return f"{source}:{at.line + 1}:{at.column + 1}"
