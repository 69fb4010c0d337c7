"""Marks of single turns that are not trained on: `weight: 0`, `train: false`, `loss: 0`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from prefcli.formats.base import Row, RowError

MARK_KEYS = ("weight", "train", "training", "loss")
"""Keys of messages that say whether a turn is trained on, in OpenAI's format and axolotl's."""

UNTRAINED = "untrained"
"""The key of a message that is not trained on, until `take_marks` removes it."""

MASKED_TURNS = "masked_turns"
"""Column of a canonical row: the turns of prompt and completion that are not trained on."""

MASKED_NOTE = "turns with weight, train or loss 0 are not trained on"


ALL_MASKED = "all assistant turns are marked as not trained"


class Training(NamedTuple):
    """The turns that a method trains on."""

    assistant_only: bool = False
    trains_prompt: bool = False


def is_untrained(message: Mapping[str, Any]) -> bool:
    """Check a message for a mark that it is not trained on."""
    return any(is_mark(message.get(key)) and not message[key] for key in MARK_KEYS)


def is_mark(value: Any) -> bool:
    """Check for a value that prefcli reads as a mark: 0, 1, false or true."""
    return isinstance(value, int | float) and value in (0, 1)


def take_marks(row: Row, training: Training | None) -> Row:
    """Remove the marks from the messages, and write them to a column if they change training.

    training: None if parts of an answer can't be masked. Raises RowError where a mark can't be
    honoured.
    """
    chats = {name: value for name, value in row.items() if isinstance(value, list)}
    if not any(UNTRAINED in message for chat in chats.values() for message in chat):
        return row
    plain = {
        name: [{k: v for k, v in message.items() if k != UNTRAINED} for message in chat]
        for name, chat in chats.items()
    }
    prompt = chats.get("prompt", [])
    answers = {name: chat for name, chat in chats.items() if name != "prompt"}
    if training is None:
        for name, answer in answers.items():
            if any(UNTRAINED in message for message in answer):
                raise RowError(
                    f"a turn of {name!r} that is marked as not trained",
                    "answers without such marks, since only sft can leave a turn out of the loss",
                )
        return {**row, **plain}
    answer = next(answers[name] for name in ("messages", "completion", "chosen") if name in answers)
    untrained = [at for at, message in enumerate([*prompt, *answer]) if UNTRAINED in message]
    if not training.trains_prompt:
        untrained = [at for at in untrained if at >= len(prompt)]
    others = [at for at in untrained if [*prompt, *answer][at]["role"] != "assistant"]
    if others and not training.assistant_only:
        role = [*prompt, *answer][others[0]]["role"]
        raise RowError(
            f"a {role} turn that is marked as not trained",
            "such marks on assistant turns, or sft.assistant_only_loss: true, which trains on no "
            "other turns",
        )
    masked = [at for at in untrained if at not in others]
    start = 0 if training.trains_prompt else len(prompt)
    turns = range(start, len(prompt) + len(answer))
    if all(at in masked for at in turns if [*prompt, *answer][at]["role"] == "assistant"):
        raise RowError(
            "no assistant turn that is trained on", "a turn without such a mark", drop=ALL_MASKED
        )
    return {**row, **plain, **({MASKED_TURNS: masked} if masked else {})}
