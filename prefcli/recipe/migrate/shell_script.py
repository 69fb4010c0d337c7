"""The commands of a shell script, with the variables that it sets plainly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from prefcli.errors import RecipeError
from prefcli.recipe.source_map import Mark

ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.S)
_TOKEN = re.compile(
    r"""(?P<space>[ \t]+|\\\n)|(?P<comment>\#[^\n]*)|(?P<end>\n|;|&&|\|\|?|&|\d?>>?&?\d?)"""
    r"""|(?P<word>(?:'[^']*'|"(?:\\.|[^"\\])*"|\\[^\n]|[^\s'"\\;&|>])+)"""
)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_LOOPS = ("for", "while", "until")


class Word(NamedTuple):
    """A word of a command, and its line and column in a script."""

    text: str
    mark: Mark = (1, 1)
    problem: str | None = None
    """Why its value is not known."""


def split_commands(text: str, path: str) -> list[list[Word]]:
    """Split a script into commands. Raises RecipeError for a heredoc."""
    if match := re.search(r"<<-?\s*['\"]?\w", text):
        line = text[: match.start()].count("\n") + 1
        raise RecipeError(
            "a heredoc, which prefcli migrate does not read",
            place=f"{path}:{line}:1",
            hint="copy the training command to its own file",
            code="RCP170",
        )
    variables: dict[str, str | None] = {}
    commands: list[list[Word]] = [[]]
    depth = 0
    for match in _TOKEN.finditer(text):
        command, raw = commands[-1], match["word"]
        if match["end"]:
            commands.append([])
        if not raw:
            continue
        if not command:
            depth += (raw in _LOOPS) - (raw == "done")
        line = text.count("\n", 0, match.start()) + 1
        mark = (line, match.start() - text.rfind("\n", 0, match.start()))
        word = _word(raw, mark, variables, in_loop=depth > 0)
        if raw[0] not in "'\"" and (assignment := ASSIGNMENT.fullmatch(word.text)):
            name, value = assignment.groups()
            if all(w.text in ("export", "local") or ASSIGNMENT.fullmatch(w.text) for w in command):
                is_plain = word.problem is None and variables.get(name, value) == value
                variables[name] = value if is_plain else None
        command.append(word)
    return [command for command in commands if command]


def _word(raw: str, mark: Mark, variables: Mapping[str, str | None], *, in_loop: bool) -> Word:
    """Return a word without its quotes and with its variables resolved."""
    problem = "it is inside a loop" if in_loop else None
    text = ""
    for part in re.findall(r"'[^']*'|\"(?:\\.|[^\"\\])*\"|\\.|[^'\"\\]+", raw, re.S):
        if part[0] in "'\\":
            text += part[1:-1] if part[0] == "'" else part[1:]
            continue
        part = re.sub(r'\\(["$`\\])', r"\1", part[1:-1]) if part[0] == '"' else part
        if re.search(r"\$\(|`|\$\{\w+[^\w}]|\$[@*#?!0-9]", part):
            problem = f"{part} is known only when the script runs"
        for name in (match[1] or match[2] for match in _VARIABLE.finditer(part)):
            if variables.get(name) is None:
                problem = f"the script does not set the variable {name} once, to plain text"
        text += _VARIABLE.sub(lambda m: variables.get(m[1] or m[2]) or m[0], part)
    return Word(text, mark, problem)
