"""Completions of prompts, each with its own random numbers, written as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from prefcli.data.digests import row_key
from prefcli.errors import RecipeError
from prefcli.evaluation.generate import completion_text, generate_ids
from prefcli.evaluation.on_policy.prompts import PromptRow
from prefcli.evaluation.partial_file import PartialFile
from prefcli.progress_bar import progress
from prefcli.recipe.sections import Pairs

Number = tuple[int, int]
"""Index of a prompt, and which of its completions."""


class Sample(NamedTuple):
    """A sampled completion."""

    text: str
    tokens: int
    """With the end token."""
    ended: bool
    """It ends with a stop token, and not at max_new_tokens."""


Samples = dict[Number, Sample]


def read_samples(partial: PartialFile) -> Samples:
    """Return the completions that an earlier start has sampled."""
    return {
        (prompt, number): Sample(text, tokens, ended)
        for batch in partial.values()
        for prompt, number, text, tokens, ended in batch
    }


@dataclass(frozen=True)
class Sampler:
    """A policy that answers prompts."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stop_ids: frozenset[int]
    options: Pairs
    seed: int

    def sample(self, prompts: Sequence[PromptRow], samples: Samples, partial: PartialFile) -> None:
        """Add the completions that are missing to `samples` and to the file.

        A completion depends on its prompt, its number and the seed. The batches are those of an
        uninterrupted start: with others, sums are rounded differently. Raises RecipeError.
        """
        options = self.options
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
        numbers = [(i, number) for i in order for number in range(options.samples_per_prompt)]
        with progress("sample", len(numbers), "completions", done=len(samples)) as count:
            for start in range(0, len(numbers), options.batch_size):
                batch = numbers[start : start + options.batch_size]
                missing = [number for number in batch if number not in samples]
                if missing:
                    answers = self._batch(prompts, batch)
                    partial.add([(*number, *answers[number]) for number in missing])
                    samples |= {number: answers[number] for number in missing}
                    count(len(missing))

    def _batch(self, prompts: Sequence[PromptRow], batch: Sequence[Number]) -> Samples:
        options, given = self.options, [prompts[i].ids for i, _ in batch]
        seeds = [row_key([self.seed, prompts[i].key, number]) for i, number in batch]
        draw = DrawPerRow(seeds, options.max_new_tokens, options.temperature, options.top_p)
        try:
            rows = generate_ids(
                self.model,
                given,
                self.tokenizer.pad_token_id,
                options.max_new_tokens,
                self.stop_ids,
                processors=[draw],
                do_sample=False,  # the last processor has chosen
                num_beams=1,
                repetition_penalty=1.0,  # samples of the policy itself
            )
        except torch.OutOfMemoryError:
            raise RecipeError(
                f"the GPU ran out of memory while sampling {len(batch)} completions at once",
                code="TRN004",
                place="pairs.batch_size",
                hint="lower pairs.batch_size; the same command continues after the completions "
                "that are sampled",
            ) from None
        return {
            number: Sample(completion_text(self.tokenizer, prompt, ids), len(ids), ended)
            for number, prompt, (ids, ended) in zip(batch, given, rows, strict=True)
        }


class DrawPerRow(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
    """Samples the next token of each row from its probabilities, by the row's own numbers.

    The token is the only one with a finite score, so that greedy decoding takes it. torch's own
    sampler has one sequence of numbers for a batch: a row would depend on the other rows.
    """

    def __init__(
        self, seeds: Sequence[int], max_new_tokens: int, temperature: float, top_p: float
    ) -> None:
        rows = (torch.Generator().manual_seed(seed) for seed in seeds)
        # On the CPU, so that the numbers are those of every device.
        self._draws = torch.stack(
            [torch.rand(max_new_tokens, generator=row, dtype=torch.float64) for row in rows]
        )
        self._temperature, self._top_p = temperature, top_p
        self._step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        draws = self._draws[:, self._step, None].to(scores.device)
        self._step += 1
        # Sums in float64, so that their order does not decide between two tokens.
        probabilities = (scores.double() / self._temperature).softmax(-1)
        tokens: torch.Tensor | None = None
        if self._top_p < 1:
            probabilities, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
            before = probabilities.cumsum(-1) - probabilities
            probabilities = probabilities.where(before < self._top_p, 0.0)
        sums = probabilities.cumsum(-1)
        chosen = torch.searchsorted(sums, draws * sums[:, -1:], right=True)
        chosen = chosen.clamp(max=scores.shape[-1] - 1)
        if tokens is not None:
            chosen = tokens.gather(-1, chosen)
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen, 0.0)


def settings_of(options: Pairs, seed: int) -> dict[str, Any]:
    """Return the settings that completions depend on, besides model and prompts."""
    keys = ("samples_per_prompt", "temperature", "top_p", "max_new_tokens")
    return {**{f"pairs.{key}": getattr(options, key) for key in keys}, "pairs.seed": seed}
