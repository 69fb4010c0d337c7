"""The text of messages compared with the text that the chat template makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefcli.formats.chat import REASONING_KEYS


def unrendered(chat: Sequence[Mapping[str, Any]], text: str) -> Iterator[str]:
    """Yield whose text, reasoning or calls are not in the rendered text of a chat."""
    for message in chat:
        content = message["content"]
        if content and not _occurs(content, text):
            yield f"text of {message['role']}"
        if len(message) > 2:
            for key in REASONING_KEYS:
                if key in message and not _occurs(message[key], text):
                    yield f"{key} of {message['role']}"
            for call in message.get("tool_calls", ()):
                name = call.get("function", call).get("name", "")
                if not _occurs(str(name), text):
                    yield f"tool_calls of {message['role']}"


def _occurs(part: str, text: str) -> bool:
    """Check for the part as it is, or as a JSON string, in which templates write tool results."""
    stripped = part.strip()
    return stripped in text or any(
        json.dumps(stripped, ensure_ascii=ascii_only)[1:-1] in text for ascii_only in (False, True)
    )
