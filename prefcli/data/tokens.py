"""Token ids of canonical rows, exactly as trl's trainers make them (tested against them)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

Ids = list[int]


def tokenise(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """`prompt_ids` and the ids of each completion; whole texts have an empty prompt.

    Returns the keys of the row's kind: chosen_ids and rejected_ids, or completion_ids. `seam` is
    the number of prompt tokens that came out differently beside the completion; they count as
    completion, as trl counts them.
    """
    if row.get("messages") is not None:
        return {"prompt_ids": [], "completion_ids": _ids(row["messages"], tokenizer), "seam": 0}
    if row.get("text") is not None:
        text = _with_eos(row["text"], tokenizer)
        return {"prompt_ids": [], "completion_ids": _ids(text, tokenizer), "seam": 0}
    prompt = row["prompt"]
    sides = ("chosen", "rejected") if "chosen" in row else ("completion",)
    chat = {"add_generation_prompt": True} if isinstance(prompt, list) else {}
    prompt_ids = _ids(prompt, tokenizer, **chat)
    whole = {
        side: _ids(
            prompt + row[side]
            if isinstance(prompt, list)
            else prompt + _with_eos(row[side], tokenizer),
            tokenizer,
        )
        for side in sides
    }
    shared = min(_common_prefix(prompt_ids, ids) for ids in whole.values())
    return {
        "prompt_ids": prompt_ids[:shared],
        **{f"{side}_ids": ids[shared:] for side, ids in whole.items()},
        "seam": len(prompt_ids) - shared,
    }


def _ids(value: str | list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, **chat: Any) -> Ids:
    if isinstance(value, str):
        ids: Ids = tokenizer(text=value)["input_ids"]
        return ids
    return tokenizer.apply_chat_template(value, tokenize=True, return_dict=True, **chat)[
        "input_ids"
    ]


def _with_eos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    eos = tokenizer.eos_token
    return text if text.endswith(eos) else text + eos


def _common_prefix(a: Ids, b: Ids) -> int:
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
