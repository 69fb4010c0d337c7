"""Log-probs of completions: batches by length, and logits only at scored positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from prefcli.model.inference import eval_mode
from prefcli.model.peft_wrapper import base_of
from prefcli.packed_forward.install import FastForward

# Padded tokens and logits per batch: small enough for the caches of a CPU, and for the memory next
# to a model on a GPU.
_TOKENS = {"cpu": 1024, "cuda": 16384}
_LOGITS = 2**27
_ROWS = 64
"""Rows of a packed batch; the forward pass compares them pairwise."""

Row = tuple[list[int], list[int]]
"""Token ids of a prompt and of its completion."""


@dataclass(frozen=True)
class Score:
    """The log-prob of a completion, summed over its tokens, in nats."""

    logp: float
    tokens: int

    @property
    def per_token(self) -> float:
        return self.logp / self.tokens


def score(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[Row],
    *,
    max_length: int,
    autocast: bool = False,
    tokens_per_batch: int | None = None,
    speed: FastForward | None = None,
) -> list[Score | None]:
    """Return log p(completion | prompt) of each row, as the function of `scoring` does."""
    with scoring(
        model,
        max_length=max_length,
        autocast=autocast,
        tokens_per_batch=tokens_per_batch,
        speed=speed,
    ) as score_rows:
        return score_rows(rows)


ScoreRows = Callable[..., list[Score | None]]
"""Scores rows, in their order. `done`, an optional keyword, is called with the number of rows of
each batch after it."""


@contextmanager
def scoring(
    model: PreTrainedModel | PeftModel,
    *,
    max_length: int,
    autocast: bool = False,
    tokens_per_batch: int | None = None,
    speed: FastForward | None = None,
) -> Iterator[ScoreRows]:
    """Prepare a model once, and yield a function that scores rows cut at `max_length`.

    It returns None for a row without scored tokens. The first token of a row without a prompt has
    no context and is not scored.

    autocast: compute in bfloat16 on a GPU. speed: use its packed forward pass if it supports the
    model; rows with the same prompt share it.
    """
    base = base_of(model)
    with eval_mode(model), speed.installed(base) if speed is not None else nullcontext():
        fast = speed is not None and speed.reason is None
        score_batch = _score_packed if fast else _score_padded
        make_batches = packed_batches if fast else padded_batches

        @torch.no_grad()
        def score_rows(
            rows: Sequence[Row], *, done: Callable[[int], None] | None = None
        ) -> list[Score | None]:
            results: list[Score | None] = [None] * len(rows)
            for batch in make_batches(base, rows, max_length, tokens_per_batch):
                scores = score_batch(base, [rows[i] for i in batch], max_length, autocast)
                for i, result in zip(batch, scores, strict=True):
                    results[i] = result
                if done is not None:
                    done(len(batch))
            return results

        yield score_rows


def padded_batches(
    model: PreTrainedModel,
    rows: Sequence[Row],
    max_length: int,
    tokens_per_batch: int | None = None,
) -> list[list[int]]:
    """Batch the indices of rows with scored tokens, so that a batch fits into memory."""
    if tokens_per_batch is None:
        vocabulary = model.config.get_text_config().vocab_size
        tokens_per_batch = min(_batch_tokens(model), _LOGITS // vocabulary)
    order = [i for i, (p, c) in enumerate(rows) if _has_scored_tokens(p, c, max_length)]
    # Similar prompts in one batch keep its scored span narrow.
    order.sort(key=lambda i: (min(len(rows[i][0]) + len(rows[i][1]), max_length), len(rows[i][0])))
    result: list[list[int]] = []
    batch: list[int] = []
    for i in order:
        length = min(sum(map(len, rows[i])), max_length)
        if batch and length * (len(batch) + 1) > tokens_per_batch:
            result.append(batch)
            batch = []
        batch.append(i)
    return [*result, batch] if batch else result


def packed_batches(
    model: PreTrainedModel,
    rows: Sequence[Row],
    max_length: int,
    tokens_per_batch: int | None = None,
) -> list[list[int]]:
    """Batch the rows so that rows with the same prompt are together; nothing is padded."""
    limit = _batch_tokens(model) if tokens_per_batch is None else tokens_per_batch
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        if _has_scored_tokens(*row, max_length):
            by_prompt.setdefault(tuple(row[0]), []).append(i)
    result: list[list[int]] = [[]]
    left = limit
    for prompt_ids, members in by_prompt.items():
        prompt = len(prompt_ids)
        costs = [min(prompt + len(rows[i][1]), max_length) - prompt for i in members]
        if result[-1] and prompt + sum(costs) > left:
            result.append([])
            left = limit
        left -= prompt
        for i, cost in zip(members, costs, strict=True):
            if len(result[-1]) == _ROWS or (result[-1] and cost > left):
                result.append([])
                left = limit - prompt
            result[-1].append(i)
            left -= cost
    return [batch for batch in result if batch]


def _batch_tokens(model: PreTrainedModel) -> int:
    return _TOKENS.get(model.device.type, 1024)


def _has_scored_tokens(prompt: list[int], completion: list[int], max_length: int) -> bool:
    return min(len(prompt) + len(completion), max_length) > max(len(prompt), 1)


def _score_padded(
    model: PreTrainedModel, rows: Sequence[Row], max_length: int, autocast: bool
) -> list[Score]:
    logits, targets, counts = completion_logits(model, rows, max_length, autocast=autocast)
    nll = cross_entropy(logits.float(), targets, reduction="none")
    sums = [part.double().sum().item() for part in torch.split(nll, counts)]
    return [Score(-total, count) for total, count in zip(sums, counts, strict=True)]


def _score_packed(
    model: PreTrainedModel, rows: Sequence[Row], max_length: int, autocast: bool
) -> list[Score]:
    ids, mask, scored = padded(rows, max_length)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.where(scored, -100)}
    batch = {name: values.to(model.device) for name, values in batch.items()}
    with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
        log_probs = model(**batch, fused_lm_head=True).log_probs
    sums = log_probs.double().sum(1).tolist()
    return [Score(logp, count) for logp, count in zip(sums, scored.sum(1).tolist(), strict=True)]


def padded(rows: Sequence[Row], max_length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad rows on the CPU: token ids, attention mask and mask of scored tokens, (rows, length)."""
    sequences = [(p + c)[:max_length] for p, c in rows]
    starts = [max(len(p), 1) for p, _ in rows]
    longest = max(map(len, sequences))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    scored = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        ids[i, : len(sequence)] = torch.tensor(sequence)
        mask[i, : len(sequence)] = 1
        scored[i, start : len(sequence)] = True
    return ids, mask, scored


def completion_logits(
    model: PreTrainedModel, rows: Sequence[Row], max_length: int, *, autocast: bool
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return (logits (tokens, vocabulary), their target ids, scored tokens of each row).

    The completions follow one another. Every row must have scored tokens.
    """
    ids, mask, scored = padded(rows, max_length)
    counts = scored.sum(1).tolist()
    ids, mask, scored = ids.to(model.device), mask.to(model.device), scored.to(model.device)
    # The logits at position t predict token t + 1.
    before = torch.zeros_like(scored)
    before[:, :-1] = scored[:, 1:]
    # As in training: flash attention supports float32 weights only with autocast.
    with (
        _head_only_at(model, before),
        torch.autocast(model.device.type, torch.bfloat16, enabled=autocast),
    ):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits, ids[scored], counts


@contextmanager
def _head_only_at(model: PreTrainedModel, positions: torch.Tensor) -> Iterator[None]:
    """Project only the hidden states at `positions` (rows, length) onto the vocabulary.

    The model's own head, and what it does to logits (scaling, soft caps), stays in use; the logits
    have shape (positions, vocabulary).
    """
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda module, args: (args[0][positions], *args[1:]))
    try:
        yield
    finally:
        handle.remove()
