"""The policy of a run: loaded, compared with the one the run started with, and fit to be tuned."""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import PreTrainedModel, Trainer

from prefcli.checkpoints.run_record import RunRecord
from prefcli.console import detail, say, say_brief, warn
from prefcli.errors import GateError, Problem
from prefcli.evaluation.check_sft import SftReport, measure_sft
from prefcli.methods import Method
from prefcli.model import Device, check_targets, load_policy, to_device
from prefcli.model.loading import weights_digest
from prefcli.model.parts import freeze_towers
from prefcli.model.precision import rounded_on
from prefcli.preflight.context import Prepared
from prefcli.recipe.compatibility import SHARDED, Strategy
from prefcli.recipe.defaults import default_learning_rate
from prefcli.recipe.distributed_env import strategy_here
from prefcli.recipe.schema import Recipe
from prefcli.trl_integration.trl_args import learning_rate


def start_policy(
    recipe: Recipe, prepared: Prepared, record: RunRecord, *, resumed: bool
) -> PreTrainedModel | PeftModel:
    """Load the weights to train, and record their fingerprint for a resume to compare.

    Raises GateError if they have changed since the run started.
    """
    dtype = prepared.device.dtype(recipe.model, frozen=recipe.trains_adapter)
    policy = load_policy(recipe.model, dtype, recipe.seed)
    if recipe.trains_adapter or prepared.method.needs_reference:
        _check_start_weights(policy, record, resumed=resumed)
    if recipe.lora is not None:
        targets = check_targets(recipe.lora, policy)
        detail(f"lora: rank {recipe.lora.rank} on {len(targets)} layers")
    elif isinstance(policy, PeftModel):
        config = policy.peft_config["default"]
        dropout = (
            f", dropout {config.lora_dropout:g}; initial margins will not be exactly 0"
            if config.lora_dropout
            else ""
        )
        say(f"lora: continuing the existing adapter, rank {config.r}{dropout}")
    else:
        freeze_towers(policy)
    return policy


def _check_start_weights(policy: torch.nn.Module, record: RunRecord, *, resumed: bool) -> None:
    """Compare the starting weights: an adapter on other weights would be another policy."""
    current = weights_digest(policy)
    if resumed and record.start_weights not in (None, current):
        raise GateError(
            Problem(
                "the weights that this run started from have changed",
                path="model.name_or_path",
                hint="restore them, or start a new run in another output_dir",
                code="TRN024",
            )
        )
    record.start_weights = current


def check_policy(
    recipe: Recipe, prepared: Prepared, policy: PreTrainedModel | PeftModel, record: RunRecord
) -> None:
    """Run check-sft if the method asks for it, and record its report. Raises GateError."""
    if not prepared.method.needs_sft or recipe.check_sft.on_fail == "skip":
        return
    split = prepared.datasets.eval or prepared.datasets.train
    cast = prepared.device.autocast_to(recipe.model)
    if strategy_here() in SHARDED and cast is not None:
        # It may not fit on a device in float32, and the engine rounds it in each pass, too.
        with rounded_on(policy, prepared.device.kind, cast):
            report = measure_sft(policy, prepared.tokenizer, split, recipe)
    else:
        report = measure_sft(to_device(policy, prepared.device), prepared.tokenizer, split, recipe)
    record.check_sft = report.as_dict()
    say_brief([report.brief_line()], report.lines())
    if report.passed:
        return
    if recipe.check_sft.on_fail == "warn":
        warn("check-sft failed; training starts anyway, since check_sft.on_fail is warn")
        return
    raise GateError(_sft_problem(report))


def placed(
    policy: PreTrainedModel | PeftModel, device: Device, strategy: Strategy
) -> PreTrainedModel | PeftModel:
    """Move the policy to its device, so that the packed forward is tested where it will run.

    transformers moves it too, but only after that test, and not under DeepSpeed. A policy that an
    engine shards goes to the CPU: the engine moves it layer by layer where it can, so that no
    device holds all of it together with the reference.
    """
    sharded = strategy in SHARDED
    moved: PreTrainedModel | PeftModel = policy.to("cpu") if sharded else to_device(policy, device)
    if sharded and device.kind == "cuda":
        torch.cuda.empty_cache()
    return moved


def _sft_problem(report: SftReport) -> Problem:
    return Problem(
        f"perplexity {report.perplexity:.1f} is above {report.max_perplexity:g}",
        path="check_sft.max_perplexity",
        hint="run `prefcli sft` on this kind of text first; or train anyway with "
        "check_sft.on_fail=warn",
        code="TRN003",
    )


def announce(recipe: Recipe, method: Method, trainer: Trainer) -> None:
    """Print what the trainer is about to do."""
    if method.needs_reference:
        detail(f"reference: {_describe_reference(recipe)}")
    rate = learning_rate(recipe, method)
    is_default = rate == default_learning_rate(recipe, method)
    default = f" ({method.name}'s default)" if is_default else ""
    say(f"learning rate: {rate:g}{default}, {recipe.training.lr_scheduler_type}")
    context = trainer.context
    say_brief(context.packed_forward.brief_lines(), context.packed_forward.lines())
    detail(*context.token_budget.lines(), *context.checkpointing.lines())


def _describe_reference(recipe: Recipe) -> str:
    if recipe.reference.name_or_path is not None:
        return recipe.reference.name_or_path
    how = "a frozen copy"
    if recipe.model.adapter == "continue":
        how = "with a frozen copy of its adapter"
    elif recipe.lora is not None:
        how = "with the new adapter off"
    return "the starting policy, " + ("precomputed" if recipe.reference.precompute else how)
