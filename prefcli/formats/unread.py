"""Columns and keys of messages that have a value and that a row's format does not read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefcli.formats.base import Raw

_INTO_PROMPT = "put its text into the prompt"
_TEXT_ONLY = "remove such rows, since prefcli trains on text only"
_MARK = "remove such messages or rows, or set the mark to 1 if they are to be trained on"
_SYSTEM = "write it as a system turn at the start of the messages, or into the prompt"
_TOOLS = "write the tools into the system turn"
_REASONING = "write it into the answer's text"

COLUMNS: Mapping[str, str] = {
    **dict.fromkeys(("system", "system_prompt", "system_message"), _SYSTEM),
    **dict.fromkeys(("input", "context", "history"), _INTO_PROMPT),
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), _TEXT_ONLY),
    **dict.fromkeys(("tools", "functions"), _TOOLS),
    "chat_template_kwargs": "render the rows beforehand",
    **dict.fromkeys(("weight", "weights", "sample_weight", "train", "loss"), _MARK),
    **dict.fromkeys(("reasoning_content", "thinking", "reasoning"), _REASONING),
    "margin": "remove it, since no method of prefcli has a margin per row",
}
"""Columns that change training in other tools, and what to do about them."""

MESSAGE_KEYS: Mapping[str, str] = {
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), _TEXT_ONLY),
    **dict.fromkeys(("weight", "train", "training", "loss"), _MARK),
    **dict.fromkeys(("reasoning_content", "thinking", "reasoning"), _REASONING),
    "tool_calls": _TOOLS,
    "function_call": _TOOLS,
    "name": "write the name into the message's text",
}
"""The same for the keys of messages."""

_MARKS = {"weight", "weights", "sample_weight", "train", "training", "loss"}
_READ_KEYS = frozenset({"role", "content", "from", "value"})
_OF_MESSAGE = "{} of a message"


def unread(row: Raw, reads: frozenset[str]) -> dict[str, Any]:
    """Return the values that are not read, by column or as `KEY of a message`.

    reads: the columns that the row's format reads.
    """
    values: dict[str, Any] = {}
    for name, value in row.items():
        if name not in reads:
            if _is_filled(name, value):
                values[name] = value
        elif isinstance(value, list):
            for message in value:
                if isinstance(message, Mapping) and not _READ_KEYS.issuperset(message):
                    values |= _unread_keys(message)
        elif isinstance(value, Mapping):
            values |= _unread_keys(value)
    return values


def cure(name: str) -> str | None:
    """Return what to do about a name of `unread`; None if it does not change training anywhere."""
    return _CURES.get(name)


_CURES = {**COLUMNS, **{_OF_MESSAGE.format(key): text for key, text in MESSAGE_KEYS.items()}}


def _unread_keys(message: Mapping[str, Any]) -> dict[str, Any]:
    return {
        _OF_MESSAGE.format(key): value
        for key, value in message.items()
        if key not in _READ_KEYS and _is_filled(key, value)
    }


def _is_filled(name: str, value: Any) -> bool:
    if value is None or (isinstance(value, str | list | dict) and not value):
        return False
    return not (isinstance(value, str) and not value.strip()) and not (
        name in _MARKS and value == 1
    )
