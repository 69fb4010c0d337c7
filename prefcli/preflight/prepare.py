"""Everything of a run that needs no weights: settings against each other, rows, and the plan."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from prefcli.console import say, warn
from prefcli.data.run_datasets import (
    RunDatasets,
    check_model_fit,
    check_reference,
    load_run_datasets,
)
from prefcli.methods import Method
from prefcli.model import (
    Device,
    check_model,
    count_parameters,
    load_base_config,
    load_tokenizer,
    lora_config,
    with_adapter,
)
from prefcli.model.loading import empty_model
from prefcli.preflight.requirements import check_packages
from prefcli.preflight.tokenizer_warnings import tokenizer_warnings
from prefcli.preflight.training_plan import sft_mix_lines
from prefcli.recipe.compatibility import check_combinations
from prefcli.recipe.distributed_env import strategy_here, world_size
from prefcli.recipe.published_ranges import check_unusual
from prefcli.recipe.schema import Recipe
from prefcli.trl_integration.trl_args import Plan, accumulate, plan


@dataclass(frozen=True)
class Prepared:
    """What a run trains with, before any weight is loaded."""

    method: Method
    """With what only the data can tell, as kto's weights."""
    device: Device
    tokenizer: PreTrainedTokenizerBase
    inputs: RunDatasets
    plan: Plan


def prepare(recipe: Recipe, method: Method, device: Device, *, allow_unusual: bool) -> Prepared:
    """Look at all that can stop a run, from cheap to dear, and say what will happen.

    Raises RecipeError and DataError.
    """
    check_packages(recipe)
    accumulate(recipe.training, world_size())
    for warning in check_combinations(recipe, method, strategy_here()):
        warn(warning)
    tokenizer = load_tokenizer(recipe.model)
    check_model(recipe.model, recipe.lora)
    config = load_base_config(recipe.model)
    check_model_fit(recipe, config, tokenizer)
    if method.needs_reference:
        check_reference(recipe, tokenizer)
    empty = empty_model(config, recipe.model)
    total, _ = count_parameters(empty)
    if recipe.lora is not None:
        with_adapter(empty, lora_config(recipe.lora))
    for warning in check_unusual(recipe, method, total, allowed=allow_unusual):
        warn(warning)
    inputs = load_run_datasets(recipe, method, tokenizer)
    method, settled = inputs.resolve_from_data(method)
    for split in inputs.splits:
        say(*split.lines())
    say(*inputs.cache_lines())
    say(*settled)
    remarks = tokenizer_warnings(
        recipe, tokenizer, conversational=inputs.train.conversational, ends=inputs.ends
    )
    for each in (*inputs.warnings, *remarks):
        warn(str(each))
    rows, exact = inputs.sequences(method, recipe.data.max_length)
    steps = plan(recipe.training, rows, exact=exact, has_eval=inputs.eval is not None)
    say(*steps.lines(recipe.training))
    say(*sft_mix_lines(recipe, inputs.sft_mix, steps))
    return Prepared(method, device, tokenizer, inputs, steps)
