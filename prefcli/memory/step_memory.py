"""The memory of a step of any recipe on any hardware, for dry-runs and automatic settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefcli.data.run_datasets import RunDatasets
from prefcli.errors import RecipeError
from prefcli.memory.activations import Policy
from prefcli.memory.advice import Candidate
from prefcli.memory.fake_step import StepPeaks
from prefcli.memory.gradient_checkpointing import Choice, choose
from prefcli.memory.model_info import ModelInfo, describe_model
from prefcli.memory.prediction import Memory, predict
from prefcli.model.base_model import ModelSource
from prefcli.packed_forward.supported_models import reason_against_config
from prefcli.recipe.schema import Recipe
from prefcli.trl_integration.trl_args import accumulate


@dataclass(frozen=True)
class Simulations:
    """A simulated step with the trainer of a run."""

    exact: Callable[..., StepPeaks]
    quick: Callable[..., StepPeaks]
    """Extrapolated from a few layers."""
    token_budget: Callable[..., Any]
    """`choose_token_budget` of the layer above."""
    judge_parameters: Callable[[Recipe], int]
    """Number of parameters of the models that the judge of a recipe loads."""


@dataclass(frozen=True)
class StepMemory:
    """Predicts the memory of candidates: of one recipe, and of changes of it."""

    recipe: Recipe
    start: ModelSource
    info: ModelInfo
    """Of the recipe."""
    datasets: RunDatasets | None
    simulations: Simulations

    def resolved(self, candidate: Candidate) -> tuple[Candidate, Choice]:
        """Return the candidate with the checkpointing and the optimizer that a run would have."""
        recipe, method, target = candidate
        sizes = self.info.sizes
        reference_loaded = method.needs_reference and not recipe.reference.precompute
        checkpointing = choose(
            recipe,
            method,
            target.device,
            target.strategy,
            Policy(self.info.architectures.policy, self.info.architectures.adapter),
            length=self._longest(candidate),
            reference=sizes.reference if reference_loaded else 0,
            memory=target.gpu_memory,
            packed=self._packed(candidate),
        )
        training = recipe.training.model_copy(
            update={
                "gradient_checkpointing": checkpointing.on,
                "optim": recipe.training.optimizer_on(target.device.kind),
            }
        )
        recipe = recipe.model_copy(update={"training": training})
        return candidate._replace(recipe=recipe), checkpointing

    def exact(self, candidate: Candidate) -> Memory:
        """Simulate the step."""
        return self._predict(candidate, self.simulations.exact)

    def quick(self, candidate: Candidate) -> Memory:
        """Simulate the step of a few layers."""
        return self._predict(candidate, self.simulations.quick)

    def _predict(self, candidate: Candidate, simulate: Callable[..., StepPeaks]) -> Memory:
        recipe, method = candidate.recipe, candidate.method
        if self.datasets is None:
            # Without rows, kto assumes as many good as bad responses.
            method, _ = method.for_labels(1, 1)
        info = (
            self.info
            if _model_sections(recipe) == _model_sections(self.recipe)
            else describe_model(recipe, self.start, self.info.architectures.policy)
        )
        return predict(
            recipe,
            method,
            info.architectures,
            info.sizes,
            candidate.target,
            length=min(self._longest(candidate), recipe.data.max_length),
            simulate=simulate,
            judge=self.simulations.judge_parameters(recipe) if method.needs_judge else 0,
        )

    def _longest(self, candidate: Candidate) -> int:
        """Return the tokens of the longest row, or its limit if not all rows are read."""
        datasets = self.datasets
        if datasets is not None and not datasets.is_sample and not candidate.method.packs:
            return datasets.longest_row
        return self.recipe.data.max_length

    def token_budget_lines(self, candidate: Candidate) -> list[str]:
        """Describe how micro-batches are filled, for the log."""
        budget = self._token_budget(candidate)
        return budget.lines() if budget is not None else []

    def _token_budget(self, candidate: Candidate) -> Any:
        """Return how micro-batches are filled; None without rows that can be divided."""
        recipe, method, target = candidate
        if self.datasets is None:
            return None
        try:
            accumulation = accumulate(recipe.training, target.devices)
        except RecipeError:  # another check reports it
            return None
        return self.simulations.token_budget(
            recipe,
            method,
            self.datasets,
            world=target.devices,
            accumulation=accumulation,
            packed=lambda: self._is_packed(candidate),
            kind=target.device.kind,
            strategy=target.strategy,
        )

    def _packed(self, candidate: Candidate) -> int | None:
        """Return the tokens of the largest micro-batch, if rows will be scored without padding."""
        if self.datasets is None or not self._is_packed(candidate):
            return None
        budget = self._token_budget(candidate)
        tokens = budget.tokens if budget is not None else None
        return self.datasets.packed(candidate.recipe, candidate.method, tokens)

    def _is_packed(self, candidate: Candidate) -> bool:
        """Return whether all rows are known and will be scored without padding."""
        recipe, method, target = candidate
        if self.datasets is None or self.datasets.is_sample or method.packs or method.needs_judge:
            return False
        attention = recipe.model.attn_implementation
        reason = reason_against_config(
            self.info.architectures.policy,
            "sdpa" if attention == "auto" else attention,
            target.strategy,
        )
        return reason is None and recipe.performance.shared_prefix != "off"


def _model_sections(recipe: Recipe) -> tuple[object, ...]:
    return recipe.model, recipe.lora, recipe.reference
