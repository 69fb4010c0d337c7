"""Token ids of canonical rows, exactly as trl's trainers make them (tested against them)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

Ids = list[int]

SIDES = ("chosen", "rejected", "completion")
"""The columns that may hold a completion."""


def tokenize(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return `prompt_ids` (empty for texts and conversations) and the ids of each completion.

    The other keys depend on the row's kind: chosen_ids and rejected_ids, or completion_ids.
    `merged_tokens` is the number of tokens at the end of the prompt that are different once the
    completion follows; they count as completion, as in trl.
    """
    return tokenize_batch({name: [value] for name, value in row.items()}, tokenizer)[0]


def tokenize_batch(
    rows: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """Tokenize rows that are given by column; see `tokenize`."""
    for column in ("messages", "text"):
        if column in rows:
            batch = _ids([_with_eos(value, tokenizer) for value in rows[column]], tokenizer)
            return [{"prompt_ids": [], "completion_ids": ids, "merged_tokens": 0} for ids in batch]
    prompts = rows["prompt"]
    sides = ("chosen", "rejected") if "chosen" in rows else ("completion",)
    sequences = {
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
            _ids(prompts, tokenizer, add_generation_prompt=True), *sequences.values(), strict=True
        )
    ]


def sides_of(ids: Mapping[str, Any]) -> dict[str, Ids]:
    """Return the completions of a tokenized row, by column."""
    return {side: ids[f"{side}_ids"] for side in SIDES if f"{side}_ids" in ids}


def prompt_alone(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Ids:
    """Tokenize the prompt as for generation; empty for texts and conversations."""
    return (
        _ids([row["prompt"]], tokenizer, add_generation_prompt=True)[0] if "prompt" in row else []
    )


def assistant_masks(
    rows: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]] | None:
    """Return masks over prompt and completion of the assistant's tokens; None for texts.

    The chat template marks these tokens. rows: by column.
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
    """Check whether the row holds messages."""
    return "messages" in row or not isinstance(row.get("prompt", ""), str)


def _divide(prompt: Ids, sequences: dict[str, Ids]) -> dict[str, Any]:
    shared = min(_common_prefix(prompt, ids) for ids in sequences.values())
    return {
        "prompt_ids": prompt[:shared],
        **{f"{side}_ids": ids[shared:] for side, ids in sequences.items()},
        "merged_tokens": len(prompt) - shared,
    }


def _ids(values: list[Any], tokenizer: PreTrainedTokenizerBase, **chat: Any) -> list[Ids]:
    """Tokenize texts or conversations. `chat`: options of the chat template."""
    ids: list[Ids]
    if isinstance(values[0], str):
        ids = tokenizer(text=values)["input_ids"]
        return ids
    rendered = tokenizer.apply_chat_template(values, tokenize=True, return_dict=True, **chat)
    ids = rendered["input_ids"]
    return ids


def _with_eos(value: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Append the EOS token to a text; the end of messages is up to the chat template."""
    eos = tokenizer.eos_token
    return value if isinstance(value, list) or value.endswith(eos) else value + eos


def _common_prefix(a: Ids, b: Ids) -> int:
    if a == b[: len(a)]:
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(b))
