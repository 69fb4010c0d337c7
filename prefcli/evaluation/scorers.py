"""Rewards of responses as token ids: by a policy and its reference, or by a reward model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefcli.errors import RecipeError
from prefcli.evaluation.arguments import model_argument, named_by
from prefcli.evaluation.generate import model_of_run
from prefcli.evaluation.logprobs import Row, Score
from prefcli.evaluation.scored_models import ScoredModel, ScoredModels, scoring_rewards
from prefcli.model import detect_device, load_tokenizer, to_device
from prefcli.model.base_model import with_merged_adapter
from prefcli.model.loading import weights_digest
from prefcli.model.reward_model import load_reward_model, set_padding
from prefcli.recipe import Recipe
from prefcli.recipe.sections import RewardModel

REWARD_MODEL_OPTION = "--reward-model"


@dataclass(frozen=True)
class RewardFormula:
    """How log-probabilities become a reward."""

    beta: float
    with_reference: bool
    per_token: bool

    def __str__(self) -> str:
        ratio = "log(policy / reference)" if self.with_reference else "log(policy)"
        return f"{self.beta:g} x {ratio}" + (" / tokens" if self.per_token else "")

    @property
    def names(self) -> tuple[str, ...]:
        """The numbers of a response."""
        return ("reward", "logp", *["ref_logp"] * self.with_reference, "tokens")

    def numbers(self, own: Score | None, reference: Score | None) -> dict[str, Any]:
        """Return the numbers of a response; null for one that has no scored tokens."""
        if own is None or (self.with_reference and reference is None):
            return {**dict.fromkeys(self.names), "tokens": 0}
        ratio = own.logp - (reference.logp if reference is not None else 0.0)
        reward = self.beta * (ratio / own.tokens if self.per_token else ratio)
        numbers = {"reward": reward, "logp": own.logp}
        if reference is not None:
            numbers["ref_logp"] = reference.logp
        return {**numbers, "tokens": own.tokens}


@dataclass(frozen=True)
class Scorer:
    """Scores responses as token ids."""

    tokenizer: PreTrainedTokenizerBase
    facts: dict[str, Any]
    """Everything that the scores depend on besides the data."""
    description: str
    names: tuple[str, ...]
    """The numbers of a response."""
    score: Callable[[list[Row]], list[dict[str, Any]]]
    """Returns the numbers of each response."""
    chat: bool = False
    """Texts are read as turns of a chat."""


@contextmanager
def policy_scorer(recipe: Recipe, model: str, formula: RewardFormula) -> Iterator[Scorer]:
    """Load a model, and its reference if the formula has one, until the block ends."""
    models = ScoredModels(recipe, with_reference=formula.with_reference)
    choice = models.choose(model)
    if choice.is_reward_model:
        raise RecipeError(
            f"{choice.name} is a reward model, not a policy",
            code="MDL032",
            hint=f"write {REWARD_MODEL_OPTION} {choice.name}",
        )
    tokenizer = models.tokenizer(choice)
    if models.own_tokenizer(choice, tokenizer) is not tokenizer:
        raise RecipeError(
            f"{choice.name} has other tokens than the reference {models.reference.name_or_path}",
            code="MDL041",
            hint="add --no-reference, or name a reference of its family in reference.name_or_path",
        )
    if choice.is_reference:
        raise RecipeError(
            f"{choice.name} is the reference itself: all rewards would be 0",
            code="MDL042",
            hint="name the trained model with --model, or add --no-reference",
        )
    with ExitStack() as stack:
        policy = stack.enter_context(models.opened(choice))
        reference: ScoredModel | None = None
        if choice.is_adapter_on_reference:
            reference = policy
        elif formula.with_reference:
            reference = stack.enter_context(models.opened(models.reference_choice()))
        base = reference

        def reference_scores(rows: list[Row]) -> list[Score | None]:
            if base is None:
                return [None] * len(rows)
            off: AbstractContextManager[Any] = nullcontext()
            if base.holds_reference:
                off = base.without_adapter()
            with off:
                return base.score(rows)

        def score(rows: list[Row]) -> list[dict[str, Any]]:
            return list(map(formula.numbers, policy.score(rows), reference_scores(rows)))

        facts = {
            "formula": str(formula),
            "max_length": recipe.data.max_length,
            "weights": weights_digest(policy.model),
            "reference": None if reference is None else weights_digest(reference.model),
        }
        of = f"reward = {formula}; policy {choice.name}"
        if reference is not None:
            of += f", reference {models.reference.name_or_path}"
        yield Scorer(tokenizer, facts, of, formula.names, score, _is_chat(recipe))


@contextmanager
def reward_model_scorer(
    recipe: Recipe, name: str, revision: str | None = None, *, where: str = REWARD_MODEL_OPTION
) -> Iterator[Scorer]:
    """Load a reward model until the block ends. where: what names it, in messages."""
    named = model_argument(model_of_run(name), where).model_copy(update={"revision": revision})
    device, length = detect_device(), recipe.data.max_length
    with named_by(REWARD_MODEL_OPTION):
        options = with_merged_adapter(RewardModel.of(named))
        dtype = device.dtype(options, frozen=True)
        model = to_device(load_reward_model(options, dtype, where), device)
        tokenizer = load_tokenizer(options, where=where)
    set_padding(model, tokenizer.pad_token_id)
    with scoring_rewards(model, recipe, name) as rewards:

        def score(rows: list[Row]) -> list[dict[str, Any]]:
            fitting = [i for i, (prompt, _) in enumerate(rows) if len(prompt) < length]
            values = rewards([rows[i] for i in fitting])
            numbers: list[dict[str, Any]] = [{"reward": None, "tokens": 0} for _ in rows]
            for i, value in zip(fitting, values, strict=True):
                count = min(len(rows[i][1]), length - len(rows[i][0]))
                numbers[i] = {"reward": value, "tokens": count}
            return numbers

        facts = {"reward_model": weights_digest(model), "max_length": length}
        # A reward model with a chat template has seen nothing but chats.
        chat = tokenizer.chat_template is not None
        yield Scorer(tokenizer, facts, f"reward model {name}", ("reward", "tokens"), score, chat)


def _is_chat(recipe: Recipe) -> bool:
    return all(source.chat for source in recipe.data.train)
