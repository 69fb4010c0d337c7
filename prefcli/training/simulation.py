"""The simulated step of a run: the trainer of the run, on tensors without content."""

from __future__ import annotations

import functools
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefcli.data import Split
from prefcli.memory.fake_step import extrapolate_step, simulate_step
from prefcli.memory.step_memory import Simulations
from prefcli.methods import Method
from prefcli.recipe.schema import Recipe
from prefcli.training.judge import judge_parameters
from prefcli.training.mixins.context import TrainerContext
from prefcli.training.mixins.sft_mix import Demonstrations, SftMixture
from prefcli.training.token_batches import choose_token_budget
from prefcli.training.trainer import trainer_class_of


def _make_trainer(
    recipe: Recipe,
    method: Method,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Split | None,
    **arguments: Any,
) -> Any:
    """Build the trainer of a run for a simulated step: its class, with its mixins."""
    mixture = None
    if demonstrations is not None and recipe.sft_mix is not None:
        mix = recipe.sft_mix
        stream = Demonstrations(demonstrations, tokenizer, recipe.data.max_length, recipe.seed)
        mixture = SftMixture(stream, mix.fraction, mix.weight)
    context = TrainerContext(method, sft_mix=mixture)
    return trainer_class_of(recipe, context)(context=context, **arguments)


simulate_run_step = functools.partial(simulate_step, make_trainer=_make_trainer)
"""`simulate_step` with the trainer of a run."""
extrapolate_run_step = functools.partial(extrapolate_step, make_trainer=_make_trainer)

SIMULATIONS = Simulations(
    simulate_run_step, extrapolate_run_step, choose_token_budget, judge_parameters
)
