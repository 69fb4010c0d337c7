"""Models that are scored without training, and the reference that they are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefcli.errors import RecipeError
from prefcli.evaluation.arguments import model_argument, named_by
from prefcli.evaluation.generate import model_of_run
from prefcli.evaluation.logprobs import Row, Score, ScoreRows, scoring
from prefcli.model import (
    detect_device,
    load_policy,
    load_tokenizer,
    reference_model,
    resolve_model,
    to_device,
)
from prefcli.model.base_model import is_adapter, with_merged_adapter
from prefcli.model.loading import absolute_name, check_weights_exist, context_length, loading
from prefcli.model.reward_model import gives_rewards, load_reward_model, rewards
from prefcli.packed_forward.install import FastForward
from prefcli.recipe import Recipe
from prefcli.recipe.context_length import context_problem
from prefcli.recipe.sections import Model, Performance, RewardModel

ARGUMENT = "MODEL"
"""Place of a model in messages that the command line names."""


@dataclass(frozen=True)
class ScoredModel:
    """A model on its device. Its rows are scored by the packed forward if that supports it."""

    name: str
    model: PreTrainedModel | PeftModel
    holds_reference: bool
    """It is the reference with an adapter."""
    autocast: bool
    score_rows: ScoreRows

    def score(
        self, rows: Sequence[Row], done: Callable[[int], None] | None = None
    ) -> list[Score | None]:
        """Return the log-probability of each row. Raises RecipeError if one is not finite.

        done: is called with the number of rows of each batch after it.
        """
        scores = self.score_rows(rows, done=done)
        for score in scores:
            if score is not None and not abs(score.logp) < float("inf"):
                raise not_finite(self.name, "log-probabilities")
        return scores

    def without_adapter(self) -> AbstractContextManager[Any]:
        """Turn the adapter off until the block ends: the model is the reference."""
        assert self.holds_reference
        context: AbstractContextManager[Any] = self.model.disable_adapter()
        return context


@dataclass(frozen=True)
class ModelChoice:
    """A model to score: its name for people, and how it is loaded."""

    name: str
    options: Model
    where: str
    """Its section in messages."""
    is_reference: bool
    """It is the reference itself."""
    is_adapter_on_reference: bool
    is_reward_model: bool = False


class ScoredModels:
    """The models of a recipe that are scored, without and with a reference."""

    def __init__(self, recipe: Recipe, *, with_reference: bool = True) -> None:
        self._recipe = recipe
        self.with_reference = with_reference
        self._start = with_merged_adapter(recipe.model)
        self.reference = reference_model(recipe.reference, recipe.model) or self._start

    def choose(self, name: str) -> ModelChoice:
        """Find the model behind a hub id, a folder or a run. Raises RecipeError."""
        name = model_argument(model_of_run(name), ARGUMENT).name_or_path
        options, where = self._start, "model"
        if absolute_name(name) != absolute_name(self._start.name_or_path):
            own = {"revision": None, "tokenizer": None, "tokenizer_revision": None}
            fixed = {"name_or_path": name, "adapter": None, "init": "pretrained"}
            options, where = self._recipe.model.model_copy(update=own | fixed), ARGUMENT
        with named_by(ARGUMENT):
            if gives_rewards(options, where):
                section = RewardModel.of(options.model_copy(update={"quantization": None}))
                options = with_merged_adapter(section)
                return ModelChoice(name, options, where, False, False, is_reward_model=True)
            on_reference = (
                self.with_reference and where == ARGUMENT and _is_on(self.reference, options, where)
            )
        if on_reference:
            options = options.model_copy(update={"adapter": "continue"})
        elif where == ARGUMENT:
            # The recipe quantizes the base that it trains, not a finished model.
            options = with_merged_adapter(options).model_copy(update={"quantization": None})
            if options.adapter is None:
                # A folder that is not there, or has no weights, is found before the rows are read.
                with named_by(ARGUMENT), loading(options, "config", where):
                    check_weights_exist(options, where)
        is_reference = self.with_reference and options == self.reference
        return ModelChoice(name, options, where, is_reference, on_reference)

    def tokenizer(self, choice: ModelChoice) -> PreTrainedTokenizerBase:
        """Load the tokenizer of the recipe, or without a reference that of a model."""
        if self.with_reference:
            return load_tokenizer(self._start)
        with named_by(ARGUMENT):
            return load_tokenizer(choice.options, where=choice.where)

    def own_tokenizer(
        self, choice: ModelChoice, shared: PreTrainedTokenizerBase
    ) -> PreTrainedTokenizerBase:
        """Return a model's own tokenizer if its tokens differ from those of `shared`."""
        if choice.where != ARGUMENT or _lacks_tokenizer(choice.options):
            return shared
        with named_by(ARGUMENT):
            own = load_tokenizer(choice.options, where=choice.where)
        return shared if own.get_vocab() == shared.get_vocab() else own

    @contextmanager
    def opened(self, choice: ModelChoice) -> Iterator[ScoredModel]:
        """Load a model until the block ends. Raises RecipeError."""
        recipe, device = self._recipe, detect_device()
        dtype = device.dtype(choice.options, frozen=choice.is_adapter_on_reference)
        autocast = device.autocast(choice.options)
        length = recipe.data.max_length
        speed = FastForward(
            recipe.performance,
            "single",
            length,
            autocast=torch.bfloat16 if autocast else None,
        )
        with named_by(ARGUMENT):
            model = load_policy(choice.options, dtype, recipe.seed, where=choice.where)
        model = to_device(model, device)
        with scoring(model, max_length=length, autocast=autocast, speed=speed) as score_rows:
            yield ScoredModel(
                choice.name, model, choice.is_adapter_on_reference, autocast, score_rows
            )

    @contextmanager
    def opened_reward_model(
        self, choice: ModelChoice, tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[Callable[[Sequence[Row]], list[float]]]:
        """Load a reward model until the block ends; yields a function that scores rows.

        Raises RecipeError.
        """
        device = detect_device()
        dtype = device.dtype(choice.options, frozen=True)
        with named_by(ARGUMENT):
            model = load_reward_model(
                choice.options, dtype, choice.where, pad_token_id=tokenizer.pad_token_id
            )
        with scoring_rewards(to_device(model, device), self._recipe, choice.name) as score:
            yield score

    def reference_choice(self) -> ModelChoice:
        """Return the reference as a model to score."""
        where = "model" if self.reference == self._start else "reference"
        return ModelChoice(self.reference.name_or_path, self.reference, where, True, False)


@contextmanager
def scoring_rewards(
    model: PreTrainedModel, recipe: Recipe, name: str
) -> Iterator[Callable[[Sequence[Row]], list[float]]]:
    """Yield a function that returns the reward of each row, cut at the recipe's max_length.

    It uses the packed forward if that supports the model. Raises RecipeError for a max_length
    beyond the model's context, for NaN and for infinity. name: of the reward model.
    """
    length = recipe.data.max_length
    context = context_length(model.config)
    if context and (problem := context_problem(length, context, f"reward model {name}")):
        raise RecipeError(problem)
    # on is about the policy
    options = recipe.performance if recipe.performance.shared_prefix == "off" else Performance()
    speed = FastForward(options, "single", length)

    def score(rows: Sequence[Row]) -> list[float]:
        values = rewards(model, [(prompt + response)[:length] for prompt, response in rows])
        if not all(map(math.isfinite, values)):
            raise not_finite(name, "rewards")
        return values

    with speed.installed(model):
        yield score


def not_finite(name: str, what: str) -> RecipeError:
    """Return the error of a model whose numbers are not finite."""
    return RecipeError(
        f"the {what} of {name} are not finite",
        code="TRN002",
        hint="check its weights, or load it in a wider dtype",
    )


def _is_on(reference: Model, options: Model, where: str) -> bool:
    """Check whether the model is an adapter whose base is the reference."""
    if not is_adapter(options.name_or_path, options.revision):
        return False
    merged = options.model_copy(update={"adapter": "merge", "quantization": None})
    base = resolve_model(merged, where=where).base
    return (
        base.adapter is reference.adapter is None
        and reference.init == "pretrained"
        and absolute_name(base.name_or_path) == absolute_name(reference.name_or_path)
        and base.revision == reference.revision
    )


def _lacks_tokenizer(options: Model) -> bool:
    """Check for a folder without a tokenizer, as a checkpoint may be."""
    folder = Path(options.name_or_path).expanduser()
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    return folder.is_dir() and not any((folder / name).exists() for name in names)
