"""Formats for SFT: conversations, prompt and completion, or plain text."""

from __future__ import annotations

from typing import ClassVar

from prefcli.formats.base import TURNS, Format, Raw, Row, RowError, describe, has
from prefcli.formats.chat import complete, is_messages, split_last_turn, to_messages, to_prompt
from prefcli.methods.base import RowKind


class Messages(Format):
    """A conversation in `messages`."""

    name: ClassVar[str] = "messages"
    kind: ClassVar[RowKind] = "demonstration"
    reads: ClassVar[tuple[str, ...]] = ("messages",)

    def claims(self, row: Raw) -> bool:
        return has(row, *self.reads)

    def convert(self, row: Raw) -> Row:
        (column,) = self.reads
        messages = to_messages(row[column], column)
        if not any(m["role"] == "assistant" for m in messages):
            raise RowError(
                f"{column!r} without an assistant message",
                "at least one assistant message",
                drop=TURNS,
            )
        split_last_turn(messages, column)
        return {"messages": messages}


class Conversations(Messages):
    """A conversation in `conversations`, ShareGPT's name."""

    name: ClassVar[str] = "conversations"
    reads: ClassVar[tuple[str, ...]] = ("conversations",)


class PromptCompletion(Format):
    """A prompt and its completion, as text or messages."""

    name: ClassVar[str] = "prompt and completion"
    kind: ClassVar[RowKind] = "demonstration"
    reads: ClassVar[tuple[str, ...]] = ("prompt", "completion")

    def claims(self, row: Raw) -> bool:
        return has(row, "prompt", "completion")

    def convert(self, row: Raw) -> Row:
        prompt = to_prompt(row["prompt"])
        if isinstance(prompt, str) and is_messages(row["completion"]):
            prompt = [{"role": "user", "content": prompt}]
        return {"prompt": prompt, "completion": complete(prompt, row["completion"], "completion")}


class Text(Format):
    """Plain text; every token is trained on."""

    name: ClassVar[str] = "text"
    kind: ClassVar[RowKind] = "demonstration"
    reads: ClassVar[tuple[str, ...]] = ("text",)

    def claims(self, row: Raw) -> bool:
        return has(row, "text")

    def convert(self, row: Raw) -> Row:
        if not isinstance(row["text"], str):
            raise RowError(f"{describe(row['text'])} in 'text'", "text")
        return {"text": row["text"]}
