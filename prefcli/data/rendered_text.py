"""The text of messages compared with the text that the chat template makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefcli.formats.chat import REASONING_KEYS, Message

_WORD = "prefcli{}word"
"""A text that no template and no other message contains."""
_TOOL = {"name": _WORD.format("tool"), "description": "", "parameters": {}}

Signature = tuple[Any, ...]


@dataclass
class Rendering:
    """Says what a chat template does not write."""

    tokenizer: PreTrainedTokenizerBase
    _by_signature: dict[Signature, tuple[str, ...]] = field(default_factory=dict)

    def missing(self, chat: Sequence[Message], text: str, options: Mapping[str, Any]) -> set[str]:
        """Return whose text, reasoning or calls are not in the rendered text of a chat.

        options: what the template is called with for this row.
        """
        turns = [(m["role"], bool(m["content"]), *(sorted(m) if len(m) > 2 else ())) for m in chat]
        signature = (*turns, bool(options.get("tools")), *sorted(options))
        if signature not in self._by_signature:
            self._by_signature[signature] = tuple(self._probe(chat, options))
        return {*self._by_signature[signature], *_not_in(chat, text)}

    def _probe(self, chat: Sequence[Message], options: Mapping[str, Any]) -> Iterator[str]:
        """Render a chat of the same form with words that can be found again."""
        words: dict[str, str] = {}
        probe = []
        for at, message in enumerate(chat):
            turn = {**message}
            for key in ("content", *REASONING_KEYS):
                if message.get(key):
                    turn[key] = _WORD.format(f"{at}{key}")
                    words[turn[key]] = _name(key, message)
            probe.append(turn)
        called = dict(options)
        if called.get("tools"):
            called["tools"] = [{"type": "function", "function": _TOOL}]
            words[_TOOL["name"]] = "tools"  # type: ignore[index]
        try:
            text = str(self.tokenizer.apply_chat_template(probe, tokenize=False, **called))
        # A template is a program, and may require a form of the content.
        except Exception:
            return
        yield from dict.fromkeys(name for word, name in words.items() if word not in text)
        source = str(self.tokenizer.chat_template)
        unread = (key for key in options if key != "tools" and key not in source)
        yield from (f"{key} of chat_template_kwargs" for key in unread)


def _not_in(chat: Sequence[Message], text: str) -> Iterator[str]:
    for message in chat:
        content = message["content"]
        if content and not _occurs(content, text):
            yield _name("content", message)
        if len(message) > 2:
            for key in REASONING_KEYS:
                if key in message and not _occurs(message[key], text):
                    yield _name(key, message)
            for call in message.get("tool_calls", ()):
                if not _occurs(str(call.get("function", call).get("name", "")), text):
                    yield _name("tool_calls", message)


def _name(key: str, message: Message) -> str:
    return f"{'text' if key == 'content' else key} of {message['role']}"


def _occurs(part: str, text: str) -> bool:
    """Check for the part as it is, or as a JSON string, in which templates write tool results."""
    stripped = part.strip()
    return stripped in text or any(
        json.dumps(stripped, ensure_ascii=ascii_only)[1:-1] in text for ascii_only in (False, True)
    )
