"""Columns and keys of messages that have a value and that a row's format does not read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefcli.formats.base import Raw
from prefcli.formats.chat import EXTRA_KEYS
from prefcli.formats.training_marks import MARK_KEYS, is_mark

_TEXT_ONLY = "remove such rows, since prefcli trains on text only"
_MARK = "remove what is not to be trained on, or the mark"
_TURN_MARK = "write 0 or 1, since a turn is trained on or not"
_AS_TURNS = "set chat: true of the source, which reads it with texts as turns"
_SYSTEM = "write it into the system turn that the chat has"
_TOOLS = "write them into the system turn, since this trainer does not pass them to the template"
_INPUT = "write it into the prompt, or name the columns instruction and input, which are joined"

COLUMNS: Mapping[str, str] = {
    "system": _SYSTEM,
    **dict.fromkeys(("system_prompt", "system_message"), "name the column system"),
    **dict.fromkeys(("instruction", "input"), _INPUT),
    "context": "write it into the prompt",
    "history": "write it as turns of the messages",
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), _TEXT_ONLY),
    "tools": _TOOLS,
    "functions": "name the column tools",
    "chat_template_kwargs": _AS_TURNS,
    **dict.fromkeys(("weight", "weights", "sample_weight", "train", "loss"), _MARK),
    **dict.fromkeys(("reasoning_content", "thinking", "reasoning"), "write it into the answer"),
    "margin": "remove it, since no method of prefcli has a margin per row",
}
"""Columns that change training in other tools, and what to do about them."""

TEXT_COLUMNS: Mapping[str, str] = dict.fromkeys(("system", "history", "tools"), _AS_TURNS)
"""What to do about them next to texts, if that differs."""

MESSAGE_KEYS: Mapping[str, str] = {
    **dict.fromkeys(("audio", "audios", "video", "videos"), _TEXT_ONLY),
    **dict.fromkeys(MARK_KEYS, _TURN_MARK),
    **dict.fromkeys(("context", "documents"), "write it into the content"),
}
"""The same for the keys of messages."""

_MARKS = {"weight", "weights", "sample_weight", "train", "training", "loss"}
_READ_KEYS = frozenset({"role", "content", "from", "value", *EXTRA_KEYS})
_OTHER_LISTS = ("tools", "chat_template_kwargs")
_OF_MESSAGE = "{} of a message"
_CURES = {**COLUMNS, **{_OF_MESSAGE.format(key): text for key, text in MESSAGE_KEYS.items()}}


def unread(row: Raw, reads: frozenset[str]) -> dict[str, Any]:
    """Return the values that are not read, by column or as `KEY of a message`.

    reads: the columns that are read.
    """
    values: dict[str, Any] = {}
    for name, value in row.items():
        if name not in reads:
            if _is_filled(name, value):
                values[name] = value
        elif isinstance(value, list) and name not in _OTHER_LISTS:
            for message in value:
                if isinstance(message, Mapping) and not _READ_KEYS.issuperset(message):
                    values |= _unread_keys(message)
        elif isinstance(value, Mapping) and name not in _OTHER_LISTS:
            values |= _unread_keys(value)
    return values


def cure(name: str, *, chat: bool) -> str | None:
    """Return what to do about a name of `unread`; None if it does not change training anywhere."""
    return _CURES.get(name) if chat else TEXT_COLUMNS.get(name, _CURES.get(name))


def _unread_keys(message: Mapping[str, Any]) -> dict[str, Any]:
    return {
        _OF_MESSAGE.format(key): value
        for key, value in message.items()
        if key not in _READ_KEYS
        and not (key in MARK_KEYS and is_mark(value))
        and _is_filled(key, value)
    }


def _is_filled(name: str, value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if value is None or (isinstance(value, list | dict) and not value):
        return False
    return not (name in _MARKS and value == 1)
