"""Cells before their format is known: messages in JSON strings, and texts that are to be turns."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from prefcli.formats.base import Raw, RowError
from prefcli.formats.chat import from_json, is_messages
from prefcli.formats.prompt_template import write_prompt

JSON_MESSAGES = "messages in JSON text were read as messages"
TEXT_AS_TURNS = "texts were read as turns of a chat (chat: true)"
PROMPT_TEMPLATE = "prompts were written with prompt_template"

_CELLS = ("prompt", "chosen", "rejected", "completion", "messages", "conversations")
_HH_TURNS = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


def prepare(row: Raw, *, chat: bool, prompt_template: str | None = None) -> tuple[Raw, list[str]]:
    """Return the row with messages instead of their JSON text, and notes about what was done.

    chat: a text prompt becomes a user turn, and with it each side an assistant turn.
    prompt_template: instruction and input become a text prompt. Raises RowError for messages as
    Python text, and without an instruction for the template.
    """
    if prompt_template is not None:
        return write_prompt(row, prompt_template), [PROMPT_TEMPLATE]
    changes: dict[str, Any] = {}
    for name in _CELLS:
        value = row.get(name)
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            messages = from_json(value)
            if is_messages(messages):
                changes[name] = messages
            elif _is_python(value):
                raise RowError(f"a Python list of messages as text in {name!r}", "messages in JSON")
    notes = [JSON_MESSAGES] if changes else []
    if chat and (turns := _turns({**row, **changes})):
        changes |= turns
        notes.append(TEXT_AS_TURNS)
    return ({**row, **changes}, notes) if changes else (row, notes)


def _turns(row: Raw) -> dict[str, Any]:
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return {"prompt": [{"role": "user", "content": prompt}]}
    sides = {name: row.get(name) for name in ("chosen", "rejected")}
    if prompt is None and all(isinstance(s, str) and _HH_TURNS.match(s) for s in sides.values()):
        return {name: _hh_messages(str(side)) for name, side in sides.items()}
    return {}


def _hh_messages(text: str) -> list[Mapping[str, str]]:
    _, *parts = _HH_TURNS.split(text)
    return [
        {"role": _HH_ROLES[speaker], "content": words.strip()}
        for speaker, words in zip(parts[::2], parts[1::2], strict=True)
    ]


def _is_python(text: str) -> bool:
    if "'role'" not in text and "'from'" not in text:
        return False
    try:
        return is_messages(ast.literal_eval(text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
