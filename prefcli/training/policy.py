"""The policy of a run, loaded, proven to be the one it began with, and fit to be tuned."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, Trainer

from prefcli.console import say, warn
from prefcli.errors import GateError, Problem
from prefcli.evaluation.check_sft import SftReport, measure_sft
from prefcli.methods import Method
from prefcli.model import Device, check_targets, count_parameters, load_policy, to_device
from prefcli.model.loading import weights_digest
from prefcli.preflight.prepare import Prepared
from prefcli.recipe.compatibility import SHARDED, Strategy
from prefcli.recipe.defaults import default_learning_rate
from prefcli.recipe.schema import Recipe
from prefcli.trl_integration.trl_args import learning_rate, notes


def start_policy(
    recipe: Recipe, prepared: Prepared, run: dict[str, Any], *, resumed: bool
) -> PreTrainedModel | PeftModel:
    """The weights to train. Notes in `run` what a resume compares.

    Raises GateError where they have changed since the run began.
    """
    dtype = prepared.device.dtype(recipe.model, frozen=recipe.trains_adapter)
    policy = load_policy(recipe.model, dtype, recipe.seed)
    if recipe.trains_adapter or prepared.method.needs_reference:
        _same_start(policy, run, resumed=resumed)
    if recipe.lora is not None:
        targets = check_targets(recipe.lora, policy)
        say(f"lora: rank {recipe.lora.rank} on {len(targets)} layers")
    elif isinstance(policy, PeftModel):
        own = policy.peft_config["default"]
        say(
            f"lora: the adapter goes on, rank {own.r}, with its own dropout of {own.lora_dropout:g}"
            + (", so the first margins are not quite zero" if own.lora_dropout else "")
        )
    return policy


def _same_start(policy: torch.nn.Module, run: dict[str, Any], *, resumed: bool) -> None:
    """An adapter on other weights than it began on would be another policy, without a word."""
    found = weights_digest(policy)
    if resumed and run.get("start_weights", found) != found:
        raise GateError(
            Problem(
                "the weights that this run started from have changed since then",
                path="model.name_or_path",
                hint="put them back, or start a new run in another output_dir",
            )
        )
    run["start_weights"] = found


def check_policy(
    recipe: Recipe, prepared: Prepared, policy: PreTrainedModel | PeftModel, run: dict[str, Any]
) -> None:
    """check-sft, where the method asks for it; its report goes into `run`. Raises GateError."""
    if not prepared.method.needs_sft or recipe.check_sft.on_fail == "skip":
        return
    split = prepared.inputs.eval or prepared.inputs.train
    report = measure_sft(to_device(policy, prepared.device), prepared.tokenizer, split, recipe)
    run["check_sft"] = report.as_dict()
    say(*report.lines())
    if report.passed:
        return
    if recipe.check_sft.on_fail == "warn":
        warn("going on, because check_sft.on_fail is warn")
        return
    raise GateError(_unfit(report))


def placed(
    policy: PreTrainedModel | PeftModel, device: Device, strategy: Strategy
) -> PreTrainedModel | PeftModel:
    """On the device, so that a trainer is built, and the fast forward tried, where it will run.

    transformers moves it there by itself, but not under DeepSpeed, and after it was tried. What
    an engine shards, that engine places.
    """
    found: PreTrainedModel | PeftModel = policy
    if strategy not in SHARDED:
        found = to_device(policy, device)
    return found


def _unfit(report: SftReport) -> Problem:
    return Problem(
        f"perplexity {report.perplexity:.1f} is above {report.max_perplexity:g}",
        path="check_sft.max_perplexity",
        hint="run `prefcli sft` on this kind of text first; or train anyway with "
        "check_sft.on_fail=warn",
        code="TRN003",
    )


def announce(recipe: Recipe, method: Method, trainer: Trainer) -> None:
    """What is about to be trained, in the figures of the built trainer."""
    total, trainable = count_parameters(trainer.model)
    say(f"model: {total:,} parameters, {trainable:,} trained ({trainable / total:.1%})")
    if method.needs_reference:
        say(f"reference: {_reference_in_words(recipe)}")
    rate = learning_rate(recipe, method)
    is_default = rate == default_learning_rate(recipe, method)
    usual = f" ({method.name}'s default)" if is_default else ""
    say(f"learning rate: {rate:g}{usual}, {recipe.training.lr_scheduler_type}")
    say(*trainer.context.packed_forward.lines())
    say(*trainer.context.checkpointing.lines())
    for note in notes(recipe, method):
        say(f"note: {note}")


def _reference_in_words(recipe: Recipe) -> str:
    if recipe.reference.name_or_path is not None:
        return recipe.reference.name_or_path
    how = "a frozen copy"
    if recipe.model.adapter == "continue":
        how = "with a frozen copy of its adapter"
    elif recipe.lora is not None:
        how = "with the new adapter off"
    return "the starting policy, " + ("precomputed" if recipe.reference.precompute else how)
