"""Which prompts of the eval rows are answered while a policy is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefcli.data import Split
from prefcli.data.tokenization import prompt_alone
from prefcli.evaluation.generate import Prompt
from prefcli.formats.chat import Message
from prefcli.recipe.sections import SampleOptions

_SHOWN = 500
"""Characters of a prompt that are kept beside its answers."""


@dataclass(frozen=True)
class SamplePrompt:
    """A prompt, and what the data has for an answer."""

    place: str
    prompt: Prompt
    tokens: int
    chosen: str | None = None
    rejected: str | None = None

    @property
    def shown(self) -> str:
        """The last words of the prompt."""
        text = self.prompt if isinstance(self.prompt, str) else self.prompt[-1]["content"]
        return text if len(text) <= _SHOWN else f"... {text[-_SHOWN:].partition(' ')[2]}"

    def as_dict(self) -> dict[str, str]:
        return {
            "place": self.place,
            "prompt": self.shown,
            **({} if self.chosen is None else {"chosen": self.chosen}),
            **({} if self.rejected is None else {"rejected": self.rejected}),
        }


@dataclass(frozen=True)
class SamplePrompts:
    """Distinct prompts from all over the eval rows."""

    asked: list[SamplePrompt]
    max_new_tokens: int
    """As the recipe has it, or what the longest prompt leaves of the context."""
    notes: list[str]


def choose(
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    options: SampleOptions,
    context: int | None,
) -> SamplePrompts:
    """Short prompts go before those that leave less than max_new_tokens of the context."""
    context = context or 2**31
    seen: set[str] = set()
    found: list[SamplePrompt] = []
    tight: list[SamplePrompt] = []
    full = 0
    for index in _spread(len(split.rows), options.prompts):
        asked = _asked(split, index, tokenizer, seen)
        if asked is None:
            continue
        room = context - asked.tokens
        full += room < 1
        if room >= options.max_new_tokens:
            found.append(asked)
        elif room >= 1:
            tight.append(asked)
        if len(found) == options.prompts:
            break
    tight.sort(key=lambda asked: asked.tokens)
    chosen = found + tight[: options.prompts - len(found)]
    longest = max((asked.tokens for asked in chosen), default=0)
    new = min(options.max_new_tokens, context - longest)
    notes = []
    if full:
        notes.append(f"{full} prompts leave no room for an answer in {context} tokens of context")
    if new < options.max_new_tokens:
        notes.append(
            f"answers end at {new} tokens, not {options.max_new_tokens}: the longest of the "
            f"prompts has {longest}, the context {context}"
        )
    if options.prompts and not chosen:
        notes.append("data.eval has no prompts to answer, so there are none")
    elif len(chosen) < options.prompts:
        notes.append(f"data.eval has {len(chosen)} prompts to answer, not {options.prompts}")
    return SamplePrompts(chosen, new, notes)


def _spread(rows: int, parts: int) -> Iterator[int]:
    """All rows: the first of each part of the data, the second of each, and so on."""
    parts = min(parts, rows)
    for step in range(math.ceil(rows / parts) if parts else 0):
        for part in range(parts):
            index = part * rows // parts + step
            if index < (part + 1) * rows // parts:
                yield index


def _asked(
    split: Split, index: int, tokenizer: PreTrainedTokenizerBase, seen: set[str]
) -> SamplePrompt | None:
    """None for a prompt that was seen, and where there is none."""
    row = split.rows[index]
    prompt, chosen, rejected = _divided(row)
    if not prompt or repr(prompt) in seen:
        return None
    seen.add(repr(prompt))
    ids = prompt_alone({"prompt": prompt}, tokenizer)
    if not ids:
        return None
    return SamplePrompt(split.place(index), prompt, len(ids), _text(chosen), _text(rejected))


def _divided(row: Mapping[str, Any]) -> tuple[Prompt, Any, Any]:
    """(prompt, the liked answer, the other) of a row of any kind."""
    if "chosen" in row:
        return row["prompt"], row["chosen"], row["rejected"]
    if "completion" in row:
        liked = row.get("label", True)
        completion = row["completion"]
        return row["prompt"], completion if liked else None, None if liked else completion
    messages = row.get("messages") or []
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=0)
    return messages[:last], messages[last : last + 1], None


def _text(answer: list[Message] | str | None) -> str | None:
    if isinstance(answer, list):
        return "\n".join(message["content"] for message in answer)
    return answer
