"""The trainer of a recipe: trl's, with prefcli's mixins."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from accelerate.utils import parse_flag_from_env
from peft import PeftModel
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
)

from prefcli.checkpoints.atomic_checkpoints import AtomicCheckpointsMixin
from prefcli.console import is_main_process
from prefcli.data.cache_keys import trl_map_key
from prefcli.data.run_datasets import RunDatasets
from prefcli.data.trl_map_cache import rows_for_trl, serialized
from prefcli.errors import DataError
from prefcli.evaluation.judges import Judge
from prefcli.memory.activations import Policy
from prefcli.memory.gradient_checkpointing import Choice, choose, memory_here
from prefcli.methods import Method
from prefcli.model import Device, count_parameters, load_policy, lora_config, to_device
from prefcli.model.base_model import reference_model
from prefcli.model.loading import absolute_name
from prefcli.model.lora import (
    disable_base_dropout,
    freeze_reference_adapter,
    train_in_float32,
)
from prefcli.model.peft_wrapper import base_of
from prefcli.model.precision import keep_adapter_inputs, round_parameters, round_projections
from prefcli.packed_forward.install import FastForward
from prefcli.recipe.compatibility import SHARDED
from prefcli.recipe.distributed_env import strategy_here, world_size
from prefcli.recipe.schema import Recipe
from prefcli.training.callbacks.experiment_trackers import guard_trackers
from prefcli.training.mixins.concatenated_forward import ConcatenatedForwardMixin
from prefcli.training.mixins.context import ContextMixin, TrainerContext
from prefcli.training.mixins.distributed import DistributedMixin, shard_reference
from prefcli.training.mixins.metrics_mixin import MetricsMixin
from prefcli.training.mixins.nonfinite import NonfiniteMixin
from prefcli.training.mixins.packed_collation import PackedCollationMixin
from prefcli.training.mixins.preemption_mixin import PreemptionMixin
from prefcli.training.mixins.reference_cache import ReferenceCacheMixin, full_weights_digest
from prefcli.training.mixins.rollouts import RolloutsMixin
from prefcli.training.mixins.sft_mix import Demonstrations, SftMixMixin, SftMixture
from prefcli.training.mixins.token_batches_mixin import TokenBatchesMixin
from prefcli.training.mixins.token_weighted_sft import TokenWeightedSftMixin
from prefcli.training.token_batches import TokenBudget, choose_token_budget
from prefcli.trl_integration.trl_args import assert_args_applied, build, trl_options
from prefcli.trl_integration.trl_compat import model_hashes_skipped, references_sharded_by

_UNDER_AUTOCAST = ("single", "ddp")
"""Strategies under which every forward pass is under autocast; the others cast weights."""


def make_trainer(
    recipe: Recipe,
    method: Method,
    device: Device,
    policy: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    datasets: RunDatasets,
    *,
    eval_on_start: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    recipe_overrides_checkpoint: bool = False,
    judge: Judge | None = None,
) -> tuple[Trainer, dict[str, Any]]:
    """Build the trainer; return it with its effective configuration, checked against the recipe.

    method: resolved from the data (`RunDatasets.resolve_from_data`). judge: scores the completions
    of a method that samples them.
    """
    options = trl_options(recipe, method, device)
    config_class, trl_class = method.trl_classes()
    # Before the configuration of a launcher's sharding is in force.
    arguments = load_reference(recipe, device) if method.needs_reference else {}
    reference = arguments.get("ref_model", policy)
    base = base_of(policy)
    if method.head == "reward":
        # trl sets it in its constructor; the packed forward is tried before that.
        base.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    packed_forward = FastForward(
        recipe.performance,
        strategy_here(),
        recipe.data.max_length,
        packs=method.packs,
        autocast=device.autocast_to(recipe.model),
    )
    packed = functools.cache(lambda: not method.needs_judge and packed_forward.is_usable(policy))
    budget = choose_token_budget(
        recipe,
        method,
        datasets,
        world=world_size(),
        accumulation=options["gradient_accumulation_steps"],
        packed=packed,
        kind=device.kind,
        strategy=strategy_here(),
    )
    if budget.tokens is not None:
        options["gradient_accumulation_steps"] = 1  # TokenBatchesMixin accumulates
    checkpointing = _gradient_checkpointing(
        recipe, method, device, policy, datasets, arguments, budget, packed
    )
    options["gradient_checkpointing"] = checkpointing.on
    config = build(
        options,
        config_class,
        eval_on_start=eval_on_start and datasets.eval is not None,
        # Batches are in pinned memory, so that their copies to a GPU need no wait.
        accelerator_config={"non_blocking": device.kind == "cuda"},
    )
    if recipe.lora is not None:
        arguments["peft_config"] = lora_config(recipe.lora, policy, recipe.model.revision)
    if not method.keeps_dropout:
        disable_base_dropout(policy)
    in_float32 = recipe.trains_adapter_in_float32
    before = (
        {n: p.detach().clone() for n, p in policy.named_parameters() if p.requires_grad}
        if in_float32 and recipe.model.adapter == "continue"
        else {}
    )
    hashed = _precomputes_reference(recipe, method) and is_main_process()
    context = TrainerContext(
        method,
        train=datasets.train,
        held_out=datasets.eval,
        judge=judge,
        stop_ids=datasets.stop_tokens.ids,
        packed_forward=packed_forward,
        token_budget=budget,
        checkpointing=checkpointing,
        reference_is_policy=method.needs_reference
        and recipe.trains_adapter
        and reference_model(recipe.reference, recipe.model) is None,
        reference_digest=full_weights_digest(reference) if hashed else "",
        defers_reads=device.kind == "cuda" and not method.trainer.reads_metrics,
        recipe_overrides_checkpoint=recipe_overrides_checkpoint,
        sft_mix=_sft_mixture(recipe, datasets, tokenizer),
    )
    key = trl_map_key(recipe, method, tokenizer)
    evaluated = datasets.eval
    with (
        packed_forward.patched_trainers(),
        references_sharded_by(shard_reference),
        model_hashes_skipped(),
        _merged_tokens_reported(datasets),
        serialized(trl_class, key) if method.trainer.prepares_rows else nullcontext(),
    ):
        if method.head == "reward":
            packed_forward.prepare(base)  # trl's RewardTrainer does not prepare its model
        trainer = trainer_class_of(recipe, context)(
            context=context,
            model=policy,
            args=config,
            train_dataset=rows_for_trl(datasets.train, method, tokenizer, key),
            eval_dataset=rows_for_trl(evaluated, method, tokenizer, key) if evaluated else None,
            processing_class=tokenizer,
            callbacks=[*callbacks, *_early_stopping(recipe)],
            **arguments,
        )
    if recipe.model.adapter == "continue":
        freeze_reference_adapter(trainer.model)
    if recipe.model.adapter == "stack":
        # Checkpoints need the adapter below the trained one; model/ is the sum of both.
        below = absolute_name(recipe.model.name_or_path)
        trainer.model.peft_config["default"].base_model_name_or_path = below
    if in_float32:
        train_in_float32(trainer.model, before)
    if device.autocast_to(recipe.model) is not None and strategy_here() in _UNDER_AUTOCAST:
        keep_adapter_inputs(trainer.model)
    guard_trackers(trainer, recipe)
    trainer.remove_callback(PrinterCallback)  # MonitorCallback prints
    effective = assert_args_applied(options, trainer.args)
    if budget.tokens is not None:
        del effective["gradient_accumulation_steps"]
        effective["tokens_per_batch"] = budget.tokens
    if recipe.trains_adapter:
        effective["lora"] = _effective_lora(trainer.model)
    return trainer, effective


def _early_stopping(recipe: Recipe) -> list[TrainerCallback]:
    options = recipe.training.early_stopping
    return [EarlyStoppingCallback(options.patience, options.threshold)] if options else []


def trainer_class_of(recipe: Recipe, context: TrainerContext) -> type[Any]:
    """Return the method's trl trainer with the mixins that this run needs."""
    method = context.method
    _, trl_class = method.trl_classes()
    # The order matters; each class runs around those that follow it.
    # 1. The context is set before any constructor reads it.
    # 2. A step becomes micro-batches, which all classes below see one at a time.
    # 3. Preemption interrupts evaluations and checkpoints of all others; completions are sampled
    #    and judged before a step.
    # 4. The mixed-in demonstrations are added to a loss that has been checked and measured.
    # 5. Checkpoints are placed after the classes below have written theirs.
    # 6. A non-finite loss stops the run before its metrics are summed up for the log.
    # 7. Metrics see the weighted SFT term and the results of the packed forward.
    bases: list[type[Any]] = [ContextMixin]
    if context.token_budget is not None and context.token_budget.tokens is not None:
        bases.append(TokenBatchesMixin)
    bases.append(RolloutsMixin if method.needs_judge else PreemptionMixin)
    if context.sft_mix is not None:
        bases.append(SftMixMixin)
    bases += [AtomicCheckpointsMixin, NonfiniteMixin, MetricsMixin, DistributedMixin]
    if method.has_sft_term:
        bases.append(TokenWeightedSftMixin)
    if _precomputes_reference(recipe, method):
        bases.append(ReferenceCacheMixin)
    if method.trainer.concatenates_forward:
        bases.append(ConcatenatedForwardMixin)
    bases.append(PackedCollationMixin)
    return type(trl_class.__name__, (*bases, trl_class), {})


def _precomputes_reference(recipe: Recipe, method: Method) -> bool:
    return recipe.reference.precompute and method.precomputes_reference


def load_reference(recipe: Recipe, device: Device) -> dict[str, Any]:
    """Load a frozen reference model unless the policy's own weights serve as the reference.

    With an adapter the reference is the policy without it, or with a frozen copy of the adapter
    that training continues. A precomputed reference is the policy before the first step.
    """
    named = reference_model(recipe.reference, recipe.model)
    # FSDP shards the policy too late for it to be its own reference, and trl would load its base.
    fsdp = parse_flag_from_env("ACCELERATE_USE_FSDP")
    if named is None and (recipe.trains_adapter or (recipe.reference.precompute and not fsdp)):
        return {}
    options = named or recipe.model
    dtype = device.dtype(options, frozen=recipe.trains_adapter)
    model = load_policy(options, dtype, recipe.seed, where="reference" if named else "model")
    cast = device.autocast_to(recipe.model)
    if cast is not None and strategy_here() in _UNDER_AUTOCAST:
        round_projections(model, cast)
    elif cast is not None and strategy_here() == "fsdp2":
        round_parameters(model, cast)
    # An engine that shards it moves it there itself, layer by layer where it can.
    unsharded = strategy_here() not in SHARDED
    return {"ref_model": to_device(model, device) if unsharded else model}


def _gradient_checkpointing(
    recipe: Recipe,
    method: Method,
    device: Device,
    policy: Any,
    datasets: RunDatasets,
    arguments: dict[str, Any],
    budget: TokenBudget,
    packed: Callable[[], bool],
) -> Choice:
    auto = recipe.training.gradient_checkpointing == "auto"
    reference = arguments.get("ref_model")
    if _precomputes_reference(recipe, method):
        reference = None
    return choose(
        recipe,
        method,
        device,
        strategy_here(),
        Policy(policy.config, getattr(policy, "peft_config", {}).get("default")),
        length=recipe.data.max_length if method.packs else datasets.longest_row,
        reference=count_parameters(reference)[0] if reference is not None else 0,
        memory=memory_here(device),
        packed=datasets.packed(recipe, method, budget.tokens) if auto and packed() else None,
    )


def _sft_mixture(
    recipe: Recipe, datasets: RunDatasets, tokenizer: PreTrainedTokenizerBase
) -> SftMixture | None:
    if recipe.sft_mix is None or datasets.sft_mix is None:
        return None
    stream = Demonstrations(datasets.sft_mix, tokenizer, recipe.data.max_length, recipe.seed)
    return SftMixture(stream, recipe.sft_mix.fraction, recipe.sft_mix.weight)


@contextmanager
def _merged_tokens_reported(datasets: RunDatasets) -> Iterator[None]:
    """Translate the error of trl's ORPO and CPO for a prompt that merges with a response."""
    try:
        yield
    except ValueError as error:
        if "input ids" not in str(error) and "prompt_input_ids" not in str(error):
            raise
        raise DataError(
            "the last token of a prompt merges with the first characters of its response",
            place=datasets.train.rows[0]["_file"],
            hint="end prompts at the end of a word, or use a chat template that renders the prompt "
            "alone as it renders it before a response",
            code="TRN062",
        ) from None


def _effective_lora(model: Any) -> dict[str, Any]:
    """Return the settings of the trained adapter, for run.json."""
    config = model.peft_config["default"]
    names = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")
    targets = config.target_modules  # a regular expression in adapters of some tools
    parameters = {"target_parameters": config.target_parameters} if config.target_parameters else {}
    return {name: getattr(config, name) for name in names} | {
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        **parameters,
    }
