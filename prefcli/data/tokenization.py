"""Token ids of canonical rows, exactly as trl's trainers make them (tested against them)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefcli.formats.chat_columns import TEMPLATE_COLUMNS
from prefcli.model.chat_template import time_limit

Ids = list[int]

_IDS_ONLY = {"return_attention_mask": False, "return_token_type_ids": False}
"""Options of a tokenizer that take a fifth of its time off."""

TEMPLATE_SECONDS, _PER_CHAT = 30.0, 0.3
"""Limits of the chat template, which is a program and may never end for some rows."""

SIDES = ("chosen", "rejected", "completion")
"""The columns that may hold a completion."""


def tokenize(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return `prompt_ids` (empty for texts and conversations) and the ids of each completion.

    The other keys depend on the row's kind: chosen_ids and rejected_ids, completion_ids, or none.
    `merged_tokens` is the number of tokens at the end of the prompt that are different once the
    completion follows; they count as completion, as in trl.
    """
    return tokenize_batch({name: [value] for name, value in row.items()}, tokenizer)[0]


def tokenize_batch(
    rows: Mapping[str, list[Any]],
    tokenizer: PreTrainedTokenizerBase,
    texts: dict[str, list[str]] | None = None,
) -> list[dict[str, Any]]:
    """Tokenize rows that are given by column; see `tokenize`.

    texts: receives the rendered text of each chat, by completion.
    """
    template = template_kwargs(rows)
    rendered: list[str] | None = None if texts is None else []
    for column in ("messages", "text"):
        if column in rows:
            values = [_with_eos(value, tokenizer) for value in rows[column]]
            batch = _ids(values, tokenizer, template, rendered)
            if texts is not None and rendered:
                texts[column] = rendered
            return [{"prompt_ids": [], "completion_ids": ids, "merged_tokens": 0} for ids in batch]
    prompts = rows["prompt"]
    sides = [side for side in SIDES if side in rows]
    sequences = {}
    for side in sides:
        rendered = None if texts is None else []
        values = [
            prompt + _with_eos(completion, tokenizer)
            for prompt, completion in zip(prompts, rows[side], strict=True)
        ]
        sequences[side] = _ids(values, tokenizer, template, rendered)
        if texts is not None and rendered:
            texts[side] = rendered
    prompt_ids = _ids(prompts, tokenizer, template, add_generation_prompt=True)
    return [
        _divide(prompt, dict(zip(sides, ids, strict=True)))
        for prompt, *ids in zip(prompt_ids, *sequences.values(), strict=True)
    ]


def sides_of(ids: Mapping[str, Any]) -> dict[str, Ids]:
    """Return the completions of a tokenized row, by column."""
    return {side: ids[f"{side}_ids"] for side in SIDES if f"{side}_ids" in ids}


def prompt_alone(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Ids:
    """Tokenize the prompt as for generation; empty for texts and conversations."""
    if "prompt" not in row:
        return []
    template = template_kwargs({name: [value] for name, value in row.items()})
    return _ids([row["prompt"]], tokenizer, template, add_generation_prompt=True)[0]


def assistant_masks(
    rows: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]] | None:
    """Return masks over prompt and completion of the assistant's tokens; None for texts.

    The chat template marks these tokens. rows: by column.
    """
    chats = chats_of(rows)
    if chats is None:
        return None
    template = template_kwargs(rows)
    batch: Any = _rendered(
        chats,
        tokenizer,
        template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    masks: list[list[int]] = (
        batch["assistant_masks"] if template is None else [row["assistant_masks"] for row in batch]
    )
    return masks


def chats_of(rows: Mapping[str, list[Any]]) -> list[list[Any]] | None:
    """Return the messages of prompt and completion of demonstrations; None for texts."""
    if "messages" in rows:
        return rows["messages"]
    if "prompt" in rows and isinstance(rows["prompt"][0], list):
        return [p + c for p, c in zip(rows["prompt"], rows["completion"], strict=True)]
    return None


def is_chat(row: Mapping[str, Any]) -> bool:
    """Check whether the row holds messages."""
    return "messages" in row or not isinstance(row.get("prompt", ""), str)


def _divide(prompt: Ids, sequences: dict[str, Ids]) -> dict[str, Any]:
    lengths = (_common_prefix(prompt, ids) for ids in sequences.values())
    shared = min(lengths, default=len(prompt))
    return {
        "prompt_ids": prompt[:shared],
        **{f"{side}_ids": ids[shared:] for side, ids in sequences.items()},
        "merged_tokens": len(prompt) - shared,
    }


def template_kwargs(rows: Mapping[str, list[Any]]) -> list[dict[str, Any]] | None:
    """Return what trl passes to the chat template for each row; None if no row has anything."""
    if not any(name in rows for name in TEMPLATE_COLUMNS):
        return None
    count = len(next(iter(rows.values())))
    tools, kwargs = (rows.get(name, [None] * count) for name in TEMPLATE_COLUMNS)
    return [
        {"tools": json.loads(listed) if listed else None, **(options or {})}
        for listed, options in zip(tools, kwargs, strict=True)
    ]


def _ids(
    values: list[Any],
    tokenizer: PreTrainedTokenizerBase,
    template: list[dict[str, Any]] | None = None,
    rendered: list[str] | None = None,
    **chat: Any,
) -> list[Ids]:
    """Tokenize texts or conversations. `chat`: options of the chat template.

    rendered: receives the texts of conversations.
    """
    ids: list[Ids]
    if isinstance(values[0], str):
        ids = tokenizer(text=values, **_IDS_ONLY)["input_ids"]
        return ids
    texts = _rendered(values, tokenizer, template, tokenize=False, **chat)
    if rendered is not None:
        rendered += texts
    # With tokenize=True, apply_chat_template does the same.
    ids = tokenizer(texts, add_special_tokens=False, **_IDS_ONLY)["input_ids"]
    return ids


def _rendered(
    chats: list[Any],
    tokenizer: PreTrainedTokenizerBase,
    template: list[dict[str, Any]] | None,
    **options: Any,
) -> list[Any]:
    """Apply the chat template to conversations, to each with its own options if there are any."""
    with time_limit(TEMPLATE_SECONDS + _PER_CHAT * (len(chats) - 1)):
        if template is None:
            batch: list[Any] = tokenizer.apply_chat_template(chats, **options)
            return batch
        return [
            tokenizer.apply_chat_template(chat, **{**options, **own})
            for chat, own in zip(chats, template, strict=True)
        ]


def _with_eos(value: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Append the EOS token to a text; the end of messages is up to the chat template."""
    eos = tokenizer.eos_token
    return value if isinstance(value, list) or value.endswith(eos) else value + eos


def _common_prefix(a: Ids, b: Ids) -> int:
    if a == b[: len(a)]:
        return len(a)
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(b))
