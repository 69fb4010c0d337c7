"""What trl's collators make of completions: is the end of each trained, and the padding not?

Where the padding token is the end token, a collator that masks by token, not by place, hides every
end from the loss, and the model never learns to stop (as transformers' own language-modeling
collator does). trl's mask by place; this holds a new version of trl to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from trl.experimental.utils import DPODataCollatorWithPadding
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from prefcli.data import Split
from prefcli.data.special_tokens import SpecialTokens
from prefcli.data.tokenization import Ids, sides_of, tokenize
from prefcli.errors import Problem, RecipeError
from prefcli.methods import Method

_IGNORED = -100
_FEW = 3

Row = Mapping[str, Any]


def check_eos_trained(method: Method, tokenizer: PreTrainedTokenizerBase, split: Split) -> None:
    """`ends_are_trained` for the first rows of a split. Raises RecipeError."""
    frame = SpecialTokens.of(tokenizer, method, chat=split.conversational)
    rows = split.for_trl().select(range(min(_FEW, len(split.rows))))
    if not ends_are_trained(
        method, tokenizer, [frame.around(tokenize(r, tokenizer)) for r in rows]
    ):
        raise RecipeError(
            Problem(
                f"{tokenizer.pad_token!r} is both the padding and the end token, and trl hides it "
                "from the loss: the model would not learn to stop",
                path="model.name_or_path",
                hint="set another pad_token in its tokenizer_config.json",
            )
        )


def ends_are_trained(
    method: Method, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
) -> bool:
    """One batch through the collator of the method's trainer, with its own columns.

    rows: two or three as `tokenise` makes them, of different length, so that some are padded.
    """
    _, trainer = method.trl_classes()
    labels = _LABELS[trainer.__name__](rows, tokenizer.pad_token_id, trainer)
    sides = list(sides_of(rows[0]))
    return ends_in([row["prompt_ids"] + sides_of(row)[s] for s in sides for row in rows], labels)


def ends_in(sequences: Sequence[Ids], labels: torch.Tensor) -> bool:
    """labels: (sequences, longest), padded on the right."""
    return all(
        int(row[len(ids) - 1]) == ids[-1] and bool((row[len(ids) :] == _IGNORED).all())
        for ids, row in zip(sequences, labels, strict=True)
    )


def _pairs(rows: Sequence[Row], pad: int, trainer: Any) -> torch.Tensor:
    return _unmasked(DataCollatorForPreference(pad_token_id=pad)([dict(row) for row in rows]))


def _labelled(rows: Sequence[Row], pad: int, trainer: Any) -> torch.Tensor:
    examples = [{**row, "label": True} for row in rows]
    return _unmasked(DataCollatorForUnpairedPreference(pad_token_id=pad)(examples))


def _unmasked(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The labels, as DPO's and KTO's losses make them of a batch."""
    return batch["input_ids"].masked_fill(batch["completion_mask"] == 0, _IGNORED)


def _demonstrations(rows: Sequence[Row], pad: int, trainer: Any) -> torch.Tensor:
    # Packed rows have no padding to be taken for an end.
    examples = [_sequence(row["prompt_ids"], row["completion_ids"]) for row in rows]
    labels: torch.Tensor = DataCollatorForLanguageModeling(pad_token_id=pad)(examples)["labels"]
    return labels


def _framed_pairs(rows: Sequence[Row], pad: int, trainer: Any) -> torch.Tensor:
    examples = [
        {
            f"{side}_{key}": value
            for side, ids in sides_of(row).items()
            for key, value in _sequence(row["prompt_ids"], ids).items()
        }
        for row in rows
    ]
    batch = DPODataCollatorWithPadding(pad_token_id=pad)(examples)
    # Both sides in one tensor, padded once more to the longer.
    both = trainer.concatenated_inputs(batch, padding_value=pad)
    labels: torch.Tensor = both["concatenated_labels"]
    return labels


def _sequence(prompt: Ids, completion: Ids) -> dict[str, Ids]:
    ids = prompt + completion
    labels = [_IGNORED] * len(prompt) + completion
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


_LABELS: Mapping[str, Callable[[Sequence[Row], int, Any], torch.Tensor]] = {
    "DPOTrainer": _pairs,
    "KTOTrainer": _labelled,
    "SFTTrainer": _demonstrations,
    "ORPOTrainer": _framed_pairs,
    "CPOTrainer": _framed_pairs,
}
