"""Log-probabilities of completions: batches by length, and no logits where nothing is scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from prefcli.model.inference import eval_mode
from prefcli.packed_forward.install import FastForward

# A batch holds so many padded tokens, and at most so many logits: small enough for a CPU's caches
# and for the memory left beside a model on a GPU.
_TOKENS = {"cpu": 1024, "cuda": 16384}
_LOGITS = 2**27
_ROWS = 64
"""Of a packed batch: each is compared with each other one."""

Row = tuple[list[int], list[int]]
"""Token ids of a prompt and its completion."""


@dataclass(frozen=True)
class Score:
    """A completion under a model: `logp` is summed over its `tokens`, in nats."""

    logp: float
    tokens: int

    @property
    def per_token(self) -> float:
        return self.logp / self.tokens


@torch.no_grad()
def score(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[Row],
    *,
    max_length: int,
    autocast: bool = False,
    tokens_per_batch: int | None = None,
    speed: FastForward | None = None,
) -> list[Score | None]:
    """log p(completion | prompt) of each (prompt ids, completion ids), cut at `max_length`.

    The first token of a row without a prompt has no context and is not scored. None where nothing
    is left to score. Results are in the order of the rows. autocast: compute in bfloat16.
    speed: by its forward, where that is safe; rows of one prompt share it.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    results: list[Score | None] = [None] * len(rows)
    with eval_mode(model), speed.installed(base) if speed is not None else nullcontext():
        fast = speed is not None and speed.reason is None
        how = _score_packed if fast else _score_batch
        laid = packed if fast else batches
        for batch in laid(base, rows, max_length, tokens_per_batch):
            scores = how(base, [rows[i] for i in batch], max_length, autocast)
            for i, result in zip(batch, scores, strict=True):
                results[i] = result
    return results


def batches(
    model: PreTrainedModel,
    rows: Sequence[Row],
    max_length: int,
    tokens_per_batch: int | None = None,
) -> list[list[int]]:
    """Indices of the rows of which something is scored, in batches that fit beside the model."""
    if tokens_per_batch is None:
        vocabulary = model.config.get_text_config().vocab_size
        tokens_per_batch = min(_tokens(model), _LOGITS // vocabulary)
    order = [i for i, (p, c) in enumerate(rows) if _scored(p, c, max_length)]
    # Similar prompts side by side keep the scored span of a batch narrow.
    order.sort(key=lambda i: (min(len(rows[i][0]) + len(rows[i][1]), max_length), len(rows[i][0])))
    found: list[list[int]] = []
    batch: list[int] = []
    for i in order:
        length = min(sum(map(len, rows[i])), max_length)
        if batch and length * (len(batch) + 1) > tokens_per_batch:
            found.append(batch)
            batch = []
        batch.append(i)
    return [*found, batch] if batch else found


def packed(
    model: PreTrainedModel,
    rows: Sequence[Row],
    max_length: int,
    tokens_per_batch: int | None = None,
) -> list[list[int]]:
    """The same where rows of one prompt share it and nothing is padded: side by side."""
    limit = _tokens(model) if tokens_per_batch is None else tokens_per_batch
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        if _scored(*row, max_length):
            alike.setdefault(tuple(row[0]), []).append(i)
    found: list[list[int]] = [[]]
    left = limit
    for shared, members in alike.items():
        prompt = len(shared)
        costs = [min(prompt + len(rows[i][1]), max_length) - prompt for i in members]
        if found[-1] and prompt + sum(costs) > left:
            found.append([])
            left = limit
        left -= prompt
        for i, cost in zip(members, costs, strict=True):
            if len(found[-1]) == _ROWS or (found[-1] and cost > left):
                found.append([])
                left = limit - prompt
            found[-1].append(i)
            left -= cost
    return [batch for batch in found if batch]


def _tokens(model: PreTrainedModel) -> int:
    return _TOKENS.get(model.device.type, 1024)


def _scored(prompt: list[int], completion: list[int], max_length: int) -> bool:
    return min(len(prompt) + len(completion), max_length) > max(len(prompt), 1)


def _score_batch(
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
    return [Score(each, count) for each, count in zip(sums, scored.sum(1).tolist(), strict=True)]


def padded(rows: Sequence[Row], max_length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rows, length) each, on the CPU: token ids, which of them are there, which are scored."""
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
    """(logits (tokens, vocabulary), the tokens that came, tokens of each row): of all completions,
    one after the other. Every row must have something to score."""
    ids, mask, scored = padded(rows, max_length)
    counts = scored.sum(1).tolist()
    ids, mask, scored = ids.to(model.device), mask.to(model.device), scored.to(model.device)
    # The logits at position t predict token t + 1.
    before = torch.zeros_like(scored)
    before[:, :-1] = scored[:, 1:]
    # As in training: autocast is what lets flash attention take float32 weights.
    with (
        _head_only_at(model, before),
        torch.autocast(model.device.type, torch.bfloat16, enabled=autocast),
    ):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits, ids[scored], counts


@contextmanager
def _head_only_at(model: PreTrainedModel, positions: torch.Tensor) -> Iterator[None]:
    """Project only the hidden states at `positions` (rows, length) onto the vocabulary.

    The model's own head and whatever it does to logits (scaling, soft caps) stay in use; the logits
    come out as (positions, vocabulary).
    """
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda module, args: (args[0][positions], *args[1:]))
    try:
        yield
    finally:
        handle.remove()
