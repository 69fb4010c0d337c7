"""A reward model, or anything else that scores responses as token ids, as a judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from prefcli.evaluation.candidates import Candidates
from prefcli.evaluation.judges.base import Completion, Judge, Scores
from prefcli.evaluation.logprobs import Row
from prefcli.evaluation.scorers import Scorer, reward_model_scorer
from prefcli.recipe import Recipe
from prefcli.recipe.sections import RewardModelJudge

_SECTION = "judge.reward_model"


class ModelJudge(Judge):
    """A scorer of token ids. Rows that are given together are scored in common batches."""

    def __init__(self, scorer: Scorer, settings: Mapping[str, Any], *, chat: bool) -> None:
        """chat: texts are turns of a chat to this model."""
        self._scorer = scorer
        self._chat = chat
        self.description = scorer.description
        self.settings = {**settings, **{f"judge.{k}": v for k, v in scorer.facts.items()}}

    def score(self, rows: Sequence[Completion]) -> Iterator[Scores]:
        """Score all rows."""
        numbers = self._scorer.score([self._token_row(row) for row in rows])
        yield {i: number["reward"] for i, number in enumerate(numbers)}

    def _token_row(self, row: Completion) -> Row:
        prompt: Any = row.prompt
        if self._chat and isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        response: Any = row.text
        if not isinstance(prompt, str):
            response = [{"role": "assistant", "content": row.text}]
        completion = Candidates(prompt, [response], row.template)
        (ids,) = completion.token_rows(self._scorer.tokenizer, row.place)
        return ids


@contextmanager
def reward_model_judge(recipe: Recipe, options: RewardModelJudge) -> Iterator[Judge]:
    """Load a reward model until the block ends. Raises RecipeError."""
    name = options.name_or_path
    with reward_model_scorer(recipe, name, options.revision, where=_SECTION) as scorer:
        settings = {f"{_SECTION}.name_or_path": name}
        yield ModelJudge(scorer, settings, chat=scorer.chat)
