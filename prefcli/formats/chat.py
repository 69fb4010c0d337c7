"""Messages (role and content, or ShareGPT's from and value) and prompts inside conversations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prefcli.formats.base import TURNS, RowError, describe, not_text
from prefcli.formats.training_marks import UNTRAINED, is_untrained

Message = dict[str, Any]
"""role and content, and those of EXTRA_KEYS that have a value."""

_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
EXTRA_KEYS = (*REASONING_KEYS, "tool_calls", "tool_call_id", "name")
"""Keys that chat templates know besides role and content."""
_UNSUPPORTED = ("function_call", "images", "image")


def is_messages(value: Any) -> bool:
    """Check for a list of messages or a single message, in either spelling."""
    if isinstance(value, dict):
        return "role" in value or "from" in value
    return isinstance(value, list) and bool(value) and all(map(is_message, value))


def is_message(value: Any) -> bool:
    """Check for a message in either spelling."""
    return isinstance(value, dict) and ("role" in value or "from" in value)


def to_messages(value: Any, column: str) -> list[Message]:
    """Convert `value` to a list of {role, content}. Raises RowError naming the column."""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise RowError(f"{describe(value)} in {column!r}", "a list of messages")
    return [_message(m, f"{column}[{i}]") for i, m in enumerate(value)]


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(f"{describe(value)} in {where}", "a message with role and content")
    for key in _UNSUPPORTED:
        if value.get(key):
            raise RowError(
                f"{key!r} in {where}",
                "text messages, without images",
            )
    role = value.get("role", value.get("from"))
    if role == "function_call":
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": call}
                for call in _tool_calls(value.get("value", value.get("content")), where)
            ],
        }
    content = value.get("content", value.get("value"))
    extra = _extra(value, where) if len(value) > 2 else {}
    if isinstance(content, list):
        content = _joined_parts(content, where)
    if not isinstance(role, str) or role not in _ROLES:
        raise RowError(
            f"{describe(role)} as role of {where}",
            f"one of {', '.join(_ROLES)}",
            hint="rename the role; answers have the role assistant, questions user",
        )
    if not isinstance(content, str) and not (content is None and "tool_calls" in extra):
        texts = [key for key in ("text", "value", "message") if isinstance(value.get(key), str)]
        raise RowError(
            f"{describe(content)} as content of {where}",
            "text",
            hint=f"rename the key {texts[0]!r} to content" if texts else not_text(content),
        )
    return {"role": _ROLES[role], "content": content, **extra}


def _extra(value: Mapping[str, Any], where: str) -> Message:
    extra = {key: value[key] for key in EXTRA_KEYS if value.get(key)}
    if is_untrained(value):
        extra[UNTRAINED] = True
    if "tool_calls" in extra:
        extra["tool_calls"] = _tool_calls(extra["tool_calls"], where)
    for key in extra.keys() - {"tool_calls", UNTRAINED}:
        if not isinstance(extra[key], str):
            raise RowError(f"{describe(extra[key])} as {key} of {where}", "text")
    return extra


def _tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Return calls whose arguments are objects, which is what chat templates expect."""
    calls = from_json(value)
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowError(f"{describe(value)} as tool_calls of {where}", "a list of calls")
    return [_with_arguments(call) for call in calls]


def _with_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    parsed = {key: from_json(value) if key == "arguments" else value for key, value in call.items()}
    if isinstance(call.get("function"), Mapping):
        parsed["function"] = _with_arguments(call["function"])
    return parsed


def from_json(value: Any) -> Any:
    """Parse a text that holds a JSON object or list; return anything else as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _joined_parts(parts: list[Any], where: str) -> str:
    texts: list[str] = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else None
            raise RowError(
                f"{f'a part of type {kind!r}' if kind else describe(part)} in content of {where}",
                "parts of text",
            )
        texts.append(text)
    return "".join(texts)


def split_last_turn(messages: list[Message], column: str) -> tuple[list[Message], list[Message]]:
    """Return (the messages before the last assistant turn, that turn)."""
    if not messages or messages[-1]["role"] != "assistant":
        last = messages[-1]["role"] if messages else "no message"
        raise RowError(
            f"{column!r} that ends with {last}", "an assistant message at the end", drop=TURNS
        )
    return messages[:-1], messages[-1:]


def after_prompt(messages: list[Message], prompt: list[Message], column: str) -> list[Message]:
    """Return the completion part of `messages`, which may or may not repeat the prompt."""
    rest = messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages
    if not rest:
        raise RowError(f"{column!r} that ends after the prompt", "an assistant message", drop=TURNS)
    if rest[0]["role"] != "assistant":
        raise RowError(
            f"{column!r} that starts with a {rest[0]['role']} message that is not in the prompt",
            "the messages of the prompt followed by the assistant's, or only the assistant's",
            drop=TURNS,
        )
    split_last_turn(rest, column)
    return rest


def check_prompt(prompt: list[Message]) -> list[Message]:
    """Check that the assistant writes the next message, which ORPO's trainer requires."""
    if prompt and prompt[-1]["role"] not in ("user", "tool"):
        last = "an assistant" if prompt[-1]["role"] == "assistant" else "a system"
        raise RowError(
            f"a prompt that ends with {last} message", "a user message at the end", drop=TURNS
        )
    return prompt


def to_prompt(value: Any) -> str | list[Message]:
    """Convert a prompt column: text or messages."""
    if isinstance(value, str):
        return value
    if is_messages(value):
        return check_prompt(to_messages(value, "prompt"))
    if value == []:
        return []
    raise RowError(
        f"{describe(value)} in 'prompt'", "text or a list of messages", hint=not_text(value)
    )


def complete(prompt: str | list[Message], value: Any, column: str) -> str | list[Message]:
    """Convert a completion column to the prompt's type: text for text, messages for messages."""
    if isinstance(prompt, str):
        if isinstance(value, str):
            return value
        raise RowError(
            f"{describe(value)} in {column!r} with a text prompt",
            "text",
            hint="write the prompt as messages too" if is_messages(value) else not_text(value),
        )
    if is_messages(value):
        return after_prompt(to_messages(value, column), prompt, column)
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    raise RowError(
        f"{describe(value)} in {column!r}",
        "an assistant message or its text",
        hint=not_text(value),
    )
