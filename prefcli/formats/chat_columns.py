"""Columns next to a chat: system, history, tools and chat_template_kwargs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from prefcli.formats.base import Raw, Row, RowError, describe
from prefcli.formats.chat import REASONING_KEYS, Message, from_json, is_messages, to_messages

TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
"""Columns of a canonical row that its chat template is called with, as in trl."""


def template_columns(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a row's columns, or of a batch's, that its chat template is called with."""
    return {name: columns[name] for name in TEMPLATE_COLUMNS if name in columns}


def add_chat_columns(raw: Raw, row: Row, *, tools: bool) -> tuple[Row, frozenset[str]]:
    """Add what these columns hold to a canonical row; return it with the columns that were read.

    tools: the trainer passes tools to the chat template.
    """
    column = "messages" if "messages" in row else "prompt"
    turns = row.get(column)
    if not isinstance(turns, list):
        return row, frozenset()
    values: Row = {}
    read = {"system": _system(raw, turns), "history": _history(raw) if column == "prompt" else []}
    starts_with_system = bool(turns) and turns[0]["role"] == "system"
    if read["system"] or read["history"]:
        first = turns[:1] if starts_with_system else read["system"]
        values[column] = [*first, *read["history"], *turns[starts_with_system:]]
    if tools and (listed := from_json(raw.get("tools"))):
        values["tools"] = _tools_text(listed)
    if kwargs := from_json(raw.get("chat_template_kwargs")):
        if not isinstance(kwargs, Mapping):
            raise RowError(f"{describe(kwargs)} in 'chat_template_kwargs'", "an object")
        values["chat_template_kwargs"] = dict(kwargs)
    columns = {name for name in read if read[name]} | {n for n in TEMPLATE_COLUMNS if n in values}
    return {**row, **values}, frozenset(columns)


def reasoning_key(template: str) -> str | None:
    """Return the key of reasoning that a chat template reads; None unless it reads exactly one."""
    keys = [key for key in REASONING_KEYS if re.search(rf"\b{key}\b", template)]
    return keys[0] if len(keys) == 1 else None


def rename_reasoning(row: Row, key: str) -> tuple[Row, list[str]]:
    """Name the reasoning of messages as the chat template does; return notes if that changed it."""
    changes: Row = {}
    renamed: dict[str, None] = {}
    for column, turns in row.items():
        if not isinstance(turns, list):
            continue
        old = {k for m in turns if len(m) > 2 for k in REASONING_KEYS if k in m and key not in m}
        if old:
            renamed |= dict.fromkeys(sorted(old))
            changes[column] = [
                {key if name in old and key not in m else name: value for name, value in m.items()}
                for m in turns
            ]
    notes = [f"{old} of messages was passed to the chat template as {key}" for old in renamed]
    return ({**row, **changes} if changes else row), notes


def without_null_content(row: Row) -> Row:
    """Write an empty text where the content is null, which some templates write as None."""
    return {
        name: [{**m, "content": m["content"] or ""} for m in value]
        if isinstance(value, list) and any(m["content"] is None for m in value)
        else value
        for name, value in row.items()
    }


def _system(raw: Raw, turns: list[Message]) -> list[Message]:
    """Return the turn of the system column; none if the chat has another one."""
    text = raw.get("system")
    if not isinstance(text, str) or not text.strip():
        return []
    turn = {"role": "system", "content": text}
    return [turn] if not turns or turns[0]["role"] != "system" or turns[0] == turn else []


def _history(raw: Raw) -> list[Message]:
    """Return the turns of a history column: pairs of question and answer, or messages."""
    history = from_json(raw.get("history"))
    if not isinstance(history, list) or not history:
        return []
    if is_messages(history):
        return to_messages(history, "history")
    messages = []
    for exchange in history:
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise RowError(f"{describe(exchange)} in 'history'", "pairs of question and answer")
        for role, text in zip(("user", "assistant"), exchange, strict=True):
            if not isinstance(text, str):
                raise RowError(f"{describe(text)} in 'history'", "pairs of question and answer")
            messages.append({"role": role, "content": text})
    return messages


def _tools_text(tools: Any) -> str:
    """Return the tools as JSON text, which every trainer of trl reads."""
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError(f"{describe(tools)} in 'tools'", "a list of tools, or its JSON text")
    return json.dumps(tools, ensure_ascii=False)
