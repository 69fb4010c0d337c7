"""The eval prompts whose answers are sampled during training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from prefcli.data import Split
from prefcli.data.row_sampling import spread_order
from prefcli.data.tokenization import prompt_alone
from prefcli.evaluation.generate import Prompt
from prefcli.formats.chat import Message
from prefcli.model.loading import context_length
from prefcli.recipe.sections import SampleOptions

_SHOWN = 500
"""Characters of a prompt that are saved with its answers."""


@dataclass(frozen=True)
class SamplePrompt:
    """A prompt, and the answers in the data."""

    place: str
    prompt: Prompt
    tokens: int
    chosen: str | None = None
    rejected: str | None = None

    @property
    def shown(self) -> str:
        """The end of the prompt."""
        text = self.prompt
        if not isinstance(text, str):
            text = text[-1]["content"] if text else ""
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
    """Distinct prompts, spread over the eval rows."""

    prompts: list[SamplePrompt]
    max_new_tokens: int
    """The recipe's value, or the context that the longest prompt leaves."""
    notes: list[str]


def sample_prompts(
    options: SampleOptions,
    split: Split | None,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
) -> SamplePrompts | None:
    """Choose prompts for a model with this config; None if the recipe wants none."""
    if split is None or not options.prompts:
        return None
    context = context_length(config)
    return choose_prompts(split, tokenizer, options, context)


def choose_prompts(
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    options: SampleOptions,
    context: int | None,
) -> SamplePrompts:
    """Choose prompts, preferably those that leave max_new_tokens of the context."""
    context = context or 2**31
    seen: set[str] = set()
    fitting: list[SamplePrompt] = []
    tight: list[SamplePrompt] = []
    full = 0
    for index in spread_order(len(split.rows), options.prompts):
        prompt = _sample_prompt(split, index, tokenizer, seen)
        if prompt is None:
            continue
        room = context - prompt.tokens
        full += room < 1
        if room >= options.max_new_tokens:
            fitting.append(prompt)
        elif room >= 1:
            tight.append(prompt)
        if len(fitting) == options.prompts:
            break
    tight.sort(key=lambda prompt: prompt.tokens)
    chosen = fitting + tight[: options.prompts - len(fitting)]
    longest = max((prompt.tokens for prompt in chosen), default=0)
    new = min(options.max_new_tokens, context - longest)
    notes = []
    if full:
        notes.append(f"{full} prompts fill the context of {context} tokens")
    if new < options.max_new_tokens:
        notes.append(
            f"answers have at most {new} tokens, not {options.max_new_tokens}: the longest prompt "
            f"has {longest}, the context {context}"
        )
    if options.prompts and not chosen:
        notes.append("none, since data.eval has no prompts")
    elif len(chosen) < options.prompts:
        notes.append(f"{len(chosen)} prompts, not {options.prompts}: data.eval has no more")
    return SamplePrompts(chosen, new, notes)


def row_texts(split: Split, index: int) -> dict[str, str]:
    """Return the place of a row, the end of its prompt, and its answers."""
    prompt, chosen, rejected = _prompt_and_answers(split.rows[index])
    return SamplePrompt(split.place(index), prompt, 0, _text(chosen), _text(rejected)).as_dict()


def _sample_prompt(
    split: Split, index: int, tokenizer: PreTrainedTokenizerBase, seen: set[str]
) -> SamplePrompt | None:
    """Return the prompt of a row; None if it was seen before or is empty."""
    row = split.rows[index]
    prompt, chosen, rejected = _prompt_and_answers(row)
    if not prompt or repr(prompt) in seen:
        return None
    seen.add(repr(prompt))
    ids = prompt_alone({"prompt": prompt}, tokenizer)
    if not ids:
        return None
    return SamplePrompt(split.place(index), prompt, len(ids), _text(chosen), _text(rejected))


def _prompt_and_answers(row: Mapping[str, Any]) -> tuple[Prompt, Any, Any]:
    """Return (prompt, desirable answer, undesirable answer) of a row of any kind."""
    if "chosen" in row:
        return row["prompt"], row["chosen"], row["rejected"]
    if "completion" in row:
        desirable = row.get("label", True)
        completion = row["completion"]
        return row["prompt"], completion if desirable else None, None if desirable else completion
    if "prompt" in row:
        return row["prompt"], None, None
    messages = row.get("messages") or []
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=0)
    return messages[:last], messages[last : last + 1], None


def _text(answer: list[Message] | str | None) -> str | None:
    if isinstance(answer, list):
        return "\n".join(message["content"] for message in answer)
    return answer
