"""Exact KL(policy || reference) of the next token on a few held-out chosen responses, which costs
little compared with an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from trl.trainer.utils import use_adapter

from prefcli.data.row_sampling import spread_indices
from prefcli.evaluation.logprobs import Row
from prefcli.evaluation.next_token_kl import next_token_kl
from prefcli.model.inference import eval_mode

_MAX_ROWS = 32


def reference_kl(trainer: Any) -> float | None:
    """Return the mean over tokens, in nats; None if no reference is in memory."""
    if not (trainer.context.reference_is_policy or getattr(trainer, "ref_model", None)):
        return None
    rows = _chosen_rows(trainer)
    if not rows:
        return None
    with eval_mode(trainer.model):
        by_row = next_token_kl(
            trainer.model,
            lambda: reference_of(trainer),
            rows,
            trainer.args.max_length,
            autocast=trainer.args.bf16,
        )
    tokens = sum(count for _, count in by_row)
    return sum(nats for nats, _ in by_row) / tokens if tokens else None


def _chosen_rows(trainer: Any) -> list[Row]:
    """Take chosen or desirable rows at even distances from the eval dataset."""
    dataset = trainer.eval_dataset
    side = "chosen_ids" if "chosen_ids" in dataset.column_names else "completion_ids"
    if side not in dataset.column_names:
        return []
    desired = (
        [i for i, label in enumerate(dataset["label"]) if label]
        if "label" in dataset.column_names
        else range(len(dataset))
    )
    rows = (dataset[desired[i]] for i in spread_indices(len(desired), _MAX_ROWS))
    return [(row["prompt_ids"], row[side]) for row in rows]


@contextmanager
def reference_of(trainer: Any) -> Iterator[torch.nn.Module]:
    """Yield the reference: a separate model, or the policy with another adapter or none."""
    if not trainer.context.reference_is_policy:
        yield trainer.ref_model
        return
    policy = trainer.model
    name = "ref" if "ref" in policy.peft_config else None
    with use_adapter(policy, adapter_name=name):
        yield policy
