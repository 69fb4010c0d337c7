"""Exact KL(policy || reference) of the next token at each scored position of some rows.

The sum covers the whole vocabulary at each position, so it has no sampling noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from prefcli.evaluation.logprobs import Row, completion_logits, padded_batches


@torch.no_grad()
def next_token_kl(
    policy: torch.nn.Module,
    reference: Callable[[], AbstractContextManager[torch.nn.Module]],
    rows: Sequence[Row],
    max_length: int,
    *,
    autocast: bool,
) -> list[tuple[float, int]]:
    """Return (nats summed over tokens, tokens) of each row, in the order of the rows.

    reference: a context that yields the reference, which may be the policy without its adapter.
    """
    results = [(0.0, 0)] * len(rows)
    for batch in padded_batches(policy, rows, max_length):
        some = [rows[i] for i in batch]
        logits, _, counts = completion_logits(policy, some, max_length, autocast=autocast)
        policy_logp = logits.float().log_softmax(-1)
        with reference() as model:
            logits, *_ = completion_logits(model, some, max_length, autocast=autocast)
        reference_logp = logits.float().log_softmax(-1)
        nats = (policy_logp.exp() * (policy_logp - reference_logp)).sum(-1, dtype=torch.float64)
        sums = [part.sum().item() for part in torch.split(nats, counts)]
        for i, total, count in zip(batch, sums, counts, strict=True):
            results[i] = total, count
    return results
