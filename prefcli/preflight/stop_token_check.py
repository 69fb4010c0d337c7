"""Checks that a model learns to stop: its stop tokens are trained, and its padding is not.

If the padding token is also the end token, a collator that masks by token instead of by position
hides every end from the loss, and the model never learns to stop; transformers' own collator for
language modelling does this. trl's collators mask by position.
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

from prefcli.checkpoints.run_record import lineage
from prefcli.data import Split
from prefcli.data.special_tokens import SpecialTokens
from prefcli.data.tokenization import Ids, sides_of, tokenize
from prefcli.errors import Problem, RecipeError
from prefcli.methods import Method
from prefcli.model import load_tokenizer
from prefcli.model.chat_template import chat_template_warnings
from prefcli.model.stop_tokens import StopTokens, load_stop_tokens, stop_token_warnings
from prefcli.recipe.schema import Recipe

_IGNORED = -100
_ROWS = 3

Row = Mapping[str, Any]


def tokenizer_warnings(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    conversational: bool,
    ends: StopTokens | None = None,
) -> list[Problem]:
    """Compare tokenizer, chat template and generation config; the differences are warnings.

    ends: as `RunDatasets` has them; by default they are looked up.
    """
    model = recipe.model
    before = stage = None
    if conversational and model.chat_template is not None:
        before = load_tokenizer(model.model_copy(update={"chat_template": None}))
        last = lineage(recipe)[-1]["stage"]
        stage = None if last in ("start", "adapter") else last
    ends = ends or load_stop_tokens(model, tokenizer, adapter=recipe.trains_adapter)
    return [
        *stop_token_warnings(ends, tokenizer),
        *chat_template_warnings(tokenizer, before, conversational=conversational, stage=stage),
    ]


def check_eos_trained(method: Method, tokenizer: PreTrainedTokenizerBase, split: Split) -> None:
    """Raise RecipeError if the collator hides the end of the first rows from the loss."""
    special = SpecialTokens.of(tokenizer, method, chat=split.conversational)
    rows = split.for_trl().select(range(min(_ROWS, len(split.rows))))
    framed = [special.around(tokenize(row, tokenizer)) for row in rows]
    if not ends_are_trained(method, tokenizer, framed):
        raise RecipeError(
            Problem(
                f"{tokenizer.pad_token!r} is both the padding and the end token, and trl hides it "
                "from the loss: the model would not learn to stop",
                path="model.name_or_path",
                hint="set another pad_token in its tokenizer_config.json",
                code="TRN022",
            )
        )


def ends_are_trained(
    method: Method, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
) -> bool:
    """Collate one batch as the method's trainer does, and look for each row's end in the labels.

    rows: two or three rows from `tokenize`, of different length, so that some are padded.
    """
    _, trainer = method.trl_classes()
    labels = _LABELS[trainer.__name__](rows, tokenizer.pad_token_id, trainer)
    sides = list(sides_of(rows[0]))
    return ends_in([row["prompt_ids"] + sides_of(row)[s] for s in sides for row in rows], labels)


def ends_in(sequences: Sequence[Ids], labels: torch.Tensor) -> bool:
    """Return whether each sequence's last token is a label, and no padding is.

    labels: (sequences, longest), padded on the right.
    """
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
    """Mask the prompt and the padding, as DPO's and KTO's losses do."""
    return batch["input_ids"].masked_fill(batch["completion_mask"] == 0, _IGNORED)


def _demonstrations(rows: Sequence[Row], pad: int, trainer: Any) -> torch.Tensor:
    # Packed rows have no padding.
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
    concatenated = trainer.concatenated_inputs(batch, padding_value=pad)
    labels: torch.Tensor = concatenated["concatenated_labels"]
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
