"""Token ids of canonical rows, exactly as trl's trainers make them (tested against them)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefcli.methods import Method

Ids = list[int]

SIDES = ("chosen", "rejected", "completion")
"""The columns that may hold a completion."""


def tokenize(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """`prompt_ids` and the ids of each completion; whole texts have an empty prompt.

    Returns the keys of the row's kind: chosen_ids and rejected_ids, or completion_ids. `seam` is
    the number of prompt tokens that came out differently beside the completion; they count as
    completion, as trl counts them.
    """
    return tokenize_batch({name: [value] for name, value in row.items()}, tokenizer)[0]


def tokenize_batch(
    rows: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """`tokenise` for many rows at once, given by column."""
    for whole in ("messages", "text"):
        if whole in rows:
            ids = _ids([_with_eos(value, tokenizer) for value in rows[whole]], tokenizer)
            return [{"prompt_ids": [], "completion_ids": each, "seam": 0} for each in ids]
    prompts = rows["prompt"]
    sides = ("chosen", "rejected") if "chosen" in rows else ("completion",)
    wholes = {
        side: _ids(
            [
                prompt + _with_eos(completion, tokenizer)
                for prompt, completion in zip(prompts, rows[side], strict=True)
            ],
            tokenizer,
        )
        for side in sides
    }
    return [
        _divide(prompt, dict(zip(sides, ids, strict=True)))
        for prompt, *ids in zip(
            _ids(prompts, tokenizer, add_generation_prompt=True), *wholes.values(), strict=True
        )
    ]


def sides_of(ids: Mapping[str, Any]) -> dict[str, Ids]:
    """The completions of a tokenised row, by column."""
    return {side: ids[f"{side}_ids"] for side in SIDES if f"{side}_ids" in ids}


def prompt_alone(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The prompt as a model is asked it, with nothing after it; whole texts have none."""
    return (
        _ids([row["prompt"]], tokenizer, add_generation_prompt=True)[0] if "prompt" in row else []
    )


def assistant_masks(
    rows: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]] | None:
    """Which tokens of each row the chat template marks as the assistant's; None for texts.

    rows: by column; each mask is over prompt and completion.
    """
    if "messages" in rows:
        chats = rows["messages"]
    elif "prompt" in rows and isinstance(rows["prompt"][0], list):
        chats = [p + c for p, c in zip(rows["prompt"], rows["completion"], strict=True)]
    else:
        return None
    masks: list[list[int]] = tokenizer.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )["assistant_masks"]
    return masks


def is_chat(row: Mapping[str, Any]) -> bool:
    """Does the row hold messages?"""
    return "messages" in row or not isinstance(row.get("prompt", ""), str)


@dataclass(frozen=True)
class SpecialTokens:
    """The marks at both ends of a row: who puts them there, tokenizer, chat template or trl."""

    bos: int | None
    eos: int
    prepended: bool
    """The tokenizer itself puts its BOS before text. Rendered messages get none from it."""
    by_trl: bool
    chat: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, method: Method, *, chat: bool) -> SpecialTokens:
        bos = tokenizer.bos_token_id
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        prepended = bos is not None and tokenizer("a")["input_ids"][:1] == [bos] != bare[:1]
        return cls(bos, tokenizer.eos_token_id, prepended, method.trainer.adds_special_tokens, chat)

    def around(self, ids: dict[str, Any]) -> dict[str, Any]:
        """A tokenised row with what trl's trainer puts around it.

        Where the prompt merges with one side alone, trl's ORPO and CPO count the prompt's last
        token as prompt beside the other side; here it is completion beside both.
        """
        if not self.by_trl:
            return ids
        prompt, sides = ids["prompt_ids"], sides_of(ids)
        if self.bos is not None:
            # These trainers tokenise without special tokens, and look for a BOS in the text.
            if self.prepended and not self.chat and prompt[:2] == [self.bos, self.bos]:
                prompt = prompt[1:]
            if prompt[:1] != [self.bos]:
                prompt = [self.bos, *prompt]
        framed = {
            f"{side}_ids": tokens if tokens[-1:] == [self.eos] else [*tokens, self.eos]
            for side, tokens in sides.items()
        }
        return {**ids, "prompt_ids": prompt, **framed}


def _divide(prompt: Ids, wholes: dict[str, Ids]) -> dict[str, Any]:
    shared = min(_common_prefix(prompt, ids) for ids in wholes.values())
    return {
        "prompt_ids": prompt[:shared],
        **{f"{side}_ids": ids[shared:] for side, ids in wholes.items()},
        "seam": len(prompt) - shared,
    }


def _ids(values: list[Any], tokenizer: PreTrainedTokenizerBase, **chat: Any) -> list[Ids]:
    """`chat`: options of the chat template, for values that are messages."""
    ids: list[Ids]
    if isinstance(values[0], str):
        ids = tokenizer(text=values)["input_ids"]
        return ids
    rendered = tokenizer.apply_chat_template(values, tokenize=True, return_dict=True, **chat)
    ids = rendered["input_ids"]
    return ids


def _with_eos(value: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Texts get an end token; messages have theirs from the chat template, or have none."""
    eos = tokenizer.eos_token
    return value if isinstance(value, list) or value.endswith(eos) else value + eos


def _common_prefix(a: Ids, b: Ids) -> int:
    if a == b[: len(a)]:
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(b))
