"""Preference pairs: prompt, chosen, rejected, and the formats in which the prompt is implied."""

from __future__ import annotations

from typing import ClassVar

from prefcli.formats.base import PARTED, TURNS, Format, Raw, Row, RowError, describe, has
from prefcli.formats.chat import (
    Message,
    check_prompt,
    complete,
    is_messages,
    split_last_turn,
    to_messages,
    to_prompt,
)
from prefcli.methods.base import RowKind

_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


class Pairs(Format):
    """A prompt, chosen and rejected, as text or messages; either side may repeat the prompt."""

    name: ClassVar[str] = "pairs"
    kind: ClassVar[RowKind] = "pair"
    reads: ClassVar[tuple[str, ...]] = ("prompt", "chosen", "rejected")

    def claims(self, row: Raw) -> bool:
        return has(row, "prompt", "chosen", "rejected")

    def convert(self, row: Raw) -> Row:
        prompt = to_prompt(row["prompt"])
        if isinstance(prompt, str) and is_messages(row["chosen"]):
            prompt = self._text_prompt_of_chat(prompt, row)
        return {
            "prompt": prompt,
            "chosen": complete(prompt, row["chosen"], "chosen"),
            "rejected": complete(prompt, row["rejected"], "rejected"),
        }

    @staticmethod
    def _text_prompt_of_chat(prompt: str, row: Raw) -> list[Message]:
        """Convert UltraFeedback's format: a text prompt and conversations that repeat it."""
        before, _ = split_last_turn(to_messages(row["chosen"], "chosen"), "chosen")
        if not before:
            return [{"role": "user", "content": prompt}]
        if before[-1]["content"] != prompt and before[0]["content"] != prompt:
            raise RowError(
                f"'prompt' {describe(prompt)} that is not the first or the last user message of "
                "'chosen'",
                "the same prompt in both, or no 'prompt' column",
            )
        return check_prompt(before)


class ShareGptPairs(Format):
    """LLaMA-Factory's format: a conversation, and one answer in chosen and in rejected."""

    name: ClassVar[str] = "sharegpt pairs"
    kind: ClassVar[RowKind] = "pair"
    reads: ClassVar[tuple[str, ...]] = ("conversations", "chosen", "rejected")

    def claims(self, row: Raw) -> bool:
        return has(row, "conversations", "chosen", "rejected")

    def convert(self, row: Raw) -> Row:
        prompt = check_prompt(to_messages(row["conversations"], "conversations"))
        return {
            "prompt": prompt,
            "chosen": complete(prompt, row["chosen"], "chosen"),
            "rejected": complete(prompt, row["rejected"], "rejected"),
        }


class ChatPairs(Format):
    """Two complete conversations that differ in the last assistant turn."""

    name: ClassVar[str] = "conversation pairs"
    kind: ClassVar[RowKind] = "pair"
    reads: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    content: ClassVar[str] = "complete conversations"

    def claims(self, row: Raw) -> bool:
        return (
            has(row, "chosen", "rejected")
            and is_messages(row["chosen"])
            and not has(row, "prompt")
            and not has(row, "conversations")
        )

    def convert(self, row: Raw) -> Row:
        prompt, chosen = split_last_turn(to_messages(row["chosen"], "chosen"), "chosen")
        prompt_of_rejected, rejected = split_last_turn(
            to_messages(row["rejected"], "rejected"), "rejected"
        )
        if prompt != prompt_of_rejected:
            raise RowError(
                "conversations that differ before their last turn",
                "the same messages up to the last assistant turn in both",
                drop=PARTED,
            )
        if not prompt:
            raise RowError(
                "an assistant message without a prompt", "a user message before it", drop=TURNS
            )
        return {"prompt": check_prompt(prompt), "chosen": chosen, "rejected": rejected}


class HhPairs(Format):
    """Anthropic's HH text: turns after Human: and Assistant:, both sides with the same start."""

    name: ClassVar[str] = "Human/Assistant text pairs"
    kind: ClassVar[RowKind] = "pair"
    reads: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    content: ClassVar[str] = "texts with '\\n\\nHuman:' and '\\n\\nAssistant:'"

    def claims(self, row: Raw) -> bool:
        return (
            has(row, "chosen", "rejected")
            and not has(row, "prompt")
            and isinstance(row["chosen"], str)
            and _HUMAN in row["chosen"]
            and _ASSISTANT in row["chosen"]
        )

    def convert(self, row: Raw) -> Row:
        prompt, chosen = self._split(row["chosen"], "chosen")
        prompt_of_rejected, rejected = self._split(row["rejected"], "rejected")
        if prompt != prompt_of_rejected:
            raise RowError(
                "texts that differ before their last 'Assistant:'",
                "the same dialogue up to there in both",
                drop=PARTED,
            )
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    @staticmethod
    def _split(text: object, column: str) -> tuple[str, str]:
        if not isinstance(text, str) or _ASSISTANT not in text:
            raise RowError(f"{describe(text)} in {column!r}", "text with '\\n\\nAssistant:'")
        at = text.rindex(_ASSISTANT) + len(_ASSISTANT)
        return text[:at], text[at:]
