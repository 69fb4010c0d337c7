"""Log-probabilities of held-out rows under one model after the other, and under the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from prefcli.console import warn
from prefcli.data import tokenize
from prefcli.data.row_sampling import spread_indices
from prefcli.data.tokenization import SIDES
from prefcli.errors import RecipeError
from prefcli.evaluation.bootstrap import Floats
from prefcli.evaluation.held_out_rows import HeldOutRows
from prefcli.evaluation.logprobs import Row, Score
from prefcli.evaluation.next_token_kl import next_token_kl
from prefcli.evaluation.scored_models import ModelChoice, ScoredModel, ScoredModels
from prefcli.progress_bar import progress

KL_ROWS = 128
"""Chosen responses over which the KL to the reference is taken: it needs all logits of both."""


@dataclass(frozen=True)
class SideScores:
    """Log-probabilities of one response per row, in nats; NaN where it has no scored tokens."""

    logps: Floats
    tokens: Floats
    reference: Floats | None
    rewards: Floats | None = None
    """Of a reward model, which has no log-probabilities."""


@dataclass(frozen=True)
class ModelScores:
    """The log-probabilities that a model gives the rows."""

    name: str
    sides: Mapping[str, SideScores]
    kl_nats: Floats
    """Summed over the tokens of each row; 0 for rows without."""
    kl_tokens: Floats

    @property
    def valid(self) -> Any:
        """A mask of the rows whose responses all have scored tokens."""
        values = (
            side.logps if side.rewards is None else side.rewards for side in self.sides.values()
        )
        return np.logical_and.reduce([~np.isnan(some) for some in values])

    @property
    def is_of_reward_model(self) -> bool:
        return any(side.rewards is not None for side in self.sides.values())


@dataclass
class RowScoring:
    """Scores the rows with one model after the other."""

    models: ScoredModels
    rows: HeldOutRows
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    _reference_scores: list[Score | None] | None = None

    def all(self, choices: Sequence[ModelChoice]) -> list[ModelScores]:
        """Score the rows with each model. The reference stays loaded if one needs it."""
        tokenizers = [self.models.own_tokenizer(choice, self.tokenizer) for choice in choices]
        pairs = list(zip(choices, tokenizers, strict=True))
        compared = [
            choice
            for choice, tokenizer in pairs
            if self._is_compared(tokenizer) and not choice.is_reward_model
        ]
        alone = [c for c in choices if not c.is_reward_model and c not in compared]
        if alone and any(choice.is_reward_model for choice in choices):
            raise RecipeError(
                f"{alone[0].name} is measured without the reference, and has no metric in common "
                "with a reward model",
                code="RCP025",
                place="MODEL",
                hint="evaluate it in another call, or with the reference",
            )
        with self._reference_for(compared) as reference:
            return [self._one(choice, tokenizer, reference) for choice, tokenizer in pairs]

    def kl(self, choices: Sequence[ModelChoice]) -> list[float | None]:
        """Return the mean KL of each model to the reference; None for other tokens."""
        _, rows = self._token_rows(self.tokenizer)
        means: list[float | None] = []
        with self._reference_for(choices) as reference:
            for choice in choices:
                own = self.models.own_tokenizer(choice, self.tokenizer)
                if not self._is_compared(own):
                    means.append(None)
                    continue
                with self.models.opened(choice) as scored:
                    by_row = self._kl(scored, reference, rows)
                tokens = sum(count for _, count in by_row)
                means.append(sum(nats for nats, _ in by_row) / tokens if tokens else None)
        return means

    def _is_compared(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        return self.models.with_reference and tokenizer is self.tokenizer

    def _reference_for(
        self, choices: Sequence[ModelChoice]
    ) -> AbstractContextManager[ScoredModel | None]:
        """Load the reference until the block ends, unless each model holds it."""
        if all(choice.is_adapter_on_reference for choice in choices):
            return nullcontext()
        return self.models.opened(self.models.reference_choice())

    def _one(
        self,
        choice: ModelChoice,
        tokenizer: PreTrainedTokenizerBase,
        reference: ScoredModel | None,
    ) -> ModelScores:
        if choice.is_reward_model:
            return self._rewards(choice, tokenizer)
        compares = self._is_compared(tokenizer)
        if self.models.with_reference and not compares:
            warn(
                f"{choice.name} has other tokens than the reference, so that it is compared "
                "without it"
            )
        sides, rows = self._token_rows(tokenizer)
        if choice.is_reference and reference is not None and compares:
            own = self._reference(reference, rows, nullcontext)
            zeros = [(0.0, len(rows[i][1])) for i in self._kl_rows()]
            return self._scores(choice, sides, own, own, zeros)
        with self.models.opened(choice) as scored:
            own = _scored(scored, choice.name, rows)
            if not compares:
                return self._scores(choice, sides, own, None, kl=[])
            turned_off = scored.without_adapter if scored.holds_reference else nullcontext
            base = scored if scored.holds_reference else reference
            assert base is not None
            ratio_to = self._reference(base, rows, turned_off)
            kl = self._kl(scored, reference, rows)
        return self._scores(choice, sides, own, ratio_to, kl)

    def _rewards(self, choice: ModelChoice, tokenizer: PreTrainedTokenizerBase) -> ModelScores:
        """Score the rows with a reward model."""
        sides, rows = self._token_rows(tokenizer)
        with self.models.opened_reward_model(choice, tokenizer) as score:
            values = np.array(score(rows), np.float64).reshape(len(sides), -1)
        counts = np.array([len(response) for _, response in rows]).reshape(len(sides), -1)
        none = np.zeros(values.shape[1])
        return ModelScores(
            choice.name,
            {
                side: SideScores(np.full(len(none), np.nan), tokens, None, rewards)
                for side, tokens, rewards in zip(
                    sides, counts.astype(np.float64), values, strict=True
                )
            },
            none,
            none,
        )

    def _kl(
        self, scored: ScoredModel, reference: ScoredModel | None, rows: Sequence[Row]
    ) -> list[tuple[float, int]]:
        """Return (nats, tokens) of the rows of `_kl_rows`."""

        @contextmanager
        def reference_module() -> Iterator[torch.nn.Module]:
            if scored.holds_reference:
                with scored.without_adapter():
                    yield scored.model
            else:
                assert reference is not None
                yield reference.model

        return next_token_kl(
            scored.model,
            reference_module,
            [rows[i] for i in self._kl_rows()],
            self.max_length,
            autocast=scored.autocast,
        )

    def _reference(
        self,
        base: ScoredModel,
        rows: list[Row],
        context: Callable[[], AbstractContextManager[Any]],
    ) -> list[Score | None]:
        """Score the rows with the reference, once for all models."""
        if self._reference_scores is None:
            name = self.models.reference.name_or_path
            with context():
                self._reference_scores = _scored(base, f"the reference {name}", rows)
        return self._reference_scores

    def _token_rows(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[Row]]:
        """Return the sides, and the rows of all sides: first all rows of the first side."""
        ids = [tokenize(row, tokenizer) for row in self.rows.split.for_trl()]
        sides = [side for side in SIDES if f"{side}_ids" in ids[0]]
        return sides, [(row["prompt_ids"], row[f"{side}_ids"]) for side in sides for row in ids]

    def _kl_rows(self) -> list[int]:
        """Return the chosen or desirable rows whose KL is measured."""
        desirable = np.flatnonzero(self.rows.labels)
        return [int(desirable[i]) for i in spread_indices(len(desirable), KL_ROWS)]

    def _scores(
        self,
        choice: ModelChoice,
        sides: Sequence[str],
        own: Sequence[Score | None],
        reference: Sequence[Score | None] | None,
        kl: Sequence[tuple[float, int]],
    ) -> ModelScores:
        """Collect what a model gives. kl: of the rows of `_kl_rows`, or none."""
        count = len(own) // len(sides)
        parts = [slice(at * count, (at + 1) * count) for at in range(len(sides))]
        nats = np.zeros((count, 2))
        for i, values in zip(self._kl_rows(), kl, strict=False):
            nats[i] = values
        return ModelScores(
            choice.name,
            {
                side: SideScores(
                    _logps(own[part]),
                    np.array([s.tokens if s else 0 for s in own[part]], np.float64),
                    None if reference is None else _logps(reference[part]),
                )
                for side, part in zip(sides, parts, strict=True)
            },
            nats[:, 0],
            nats[:, 1],
        )


def _scored(scored: ScoredModel, name: str, rows: Sequence[Row]) -> list[Score | None]:
    """Score the rows, and show how many are done."""
    with progress(f"eval: {name}", len(rows), "responses") as count:
        return scored.score(rows, count)


def _logps(scores: Sequence[Score | None]) -> Floats:
    return np.array([np.nan if s is None else s.logp for s in scores], np.float64)
