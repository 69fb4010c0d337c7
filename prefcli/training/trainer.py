"""trl's trainer for a recipe: the same one in a run and in every test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from prefcli.data import Split
from prefcli.data.cache_keys import trl_map_key
from prefcli.data.run_datasets import RunDatasets
from prefcli.data.trl_map_cache import CachedMapDataset, serialized
from prefcli.errors import DataError, Problem, RecipeError
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
from prefcli.packed_forward.cpo_orpo_mixin import OUTPUTS, CpoOrpoMixin
from prefcli.packed_forward.install import FastForward
from prefcli.recipe.distributed_env import strategy_here
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Lora, SftMix
from prefcli.training.callbacks.experiment_trackers import guard_trackers
from prefcli.training.mixins.metrics_mixin import MetricsMixin
from prefcli.training.mixins.nonfinite import NonfiniteMixin
from prefcli.training.mixins.preemption_mixin import PreemptionMixin
from prefcli.training.mixins.reference_cache import ReferenceCacheMixin, digest
from prefcli.training.mixins.sft_mix import Demonstrations, SftMixMixin
from prefcli.training.mixins.token_weighted_sft import TokenWeightedSftMixin
from prefcli.trl_integration.trl_args import assert_args_applied, build, trl_options


def make_trainer(
    recipe: Recipe,
    method: Method,
    machine: Device,
    policy: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: RunDatasets,
    *,
    eval_on_start: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[Trainer, dict[str, Any]]:
    """The trainer, and the effective configuration, proven to hold the recipe's values.

    method: settled by the data (`Inputs.settle`).
    """
    options = trl_options(recipe, method, machine)
    config_class, trl_class = method.trl_classes()
    # Before the configuration of a launcher's sharding is in force.
    more = _reference(recipe, machine) if method.needs_reference else {}
    trainer_class = trainer_class_of(trl_class, recipe, method, mixed=inputs.sft_mix is not None)
    if issubclass(trainer_class, ReferenceCacheMixin) and is_main_process():
        trainer_class.reference_digest = digest(more.get("ref_model", policy))
    speed = FastForward(
        recipe.performance,
        strategy_here(),
        recipe.data.max_length,
        packs=method.packs,
        autocast=machine.autocast_to(recipe.model),
    )
    checkpointing = _checkpointing(recipe, method, machine, policy, inputs, more, speed)
    options["gradient_checkpointing"] = checkpointing.on
    config = build(
        options,
        config_class,
        eval_on_start=eval_on_start and inputs.eval is not None,
    )
    if recipe.lora is not None:
        more["peft_config"] = lora_config(recipe.lora, recipe.model.revision)
    if recipe.trains_adapter and not method.keeps_dropout:
        disable_base_dropout(policy)
    in_float32 = recipe.model.quantization is not None and recipe.model.dtype != "bfloat16"
    before = (
        {n: p.detach().clone() for n, p in policy.named_parameters() if p.requires_grad}
        if in_float32 and recipe.model.adapter == "continue"
        else {}
    )
    key = trl_map_key(recipe, method, tokenizer)
    with speed.patched_trainers(), _dividing_prompts(inputs), serialized(trl_class, key):
        trainer = trainer_class(
            model=policy,
            args=config,
            train_dataset=CachedMapDataset.of(inputs.train.for_trl(), key),
            eval_dataset=CachedMapDataset.of(inputs.eval.for_trl(), key) if inputs.eval else None,
            processing_class=tokenizer,
            callbacks=[*callbacks, *_stopping(recipe, method)],
            **more,
        )
    trainer.rows_of = inputs.train
    trainer.speed = speed
    if isinstance(trainer, CpoOrpoMixin):
        speed.prepare(trainer.scored, outputs=OUTPUTS)
    trainer.checkpointing = checkpointing
    trainer.reference_within = (
        method.needs_reference
        and recipe.trains_adapter
        and reference_model(recipe.reference, recipe.model) is None
    )
    if _precomputes(recipe, method):
        trainer.ref_model = None  # trl keeps it, though nothing reads it any more
    if recipe.model.adapter == "continue":
        freeze_reference_adapter(trainer.model)
    if recipe.model.adapter == "stack":
        # A checkpoint lies on the adapter below it; model/ will be the sum of both.
        below = absolute_name(recipe.model.name_or_path)
        trainer.model.peft_config["default"].base_model_name_or_path = below
    if in_float32:
        train_in_float32(trainer.model, before)
    if inputs.sft_mix is not None and recipe.sft_mix is not None:
        mix_into(trainer, recipe.sft_mix, inputs.sft_mix, recipe, method)
    guard_trackers(trainer, recipe)
    # Watch does the printing.
    trainer.remove_callback(PrinterCallback)
    # trl writes a card about "None" beside the checkpoints.
    trainer.create_model_card = lambda *args, **kwargs: None
    effective = assert_args_applied(options, trainer.args)
    if recipe.trains_adapter:
        effective["lora"] = _prove_lora(recipe.lora, trainer.model)
    if not getattr(trainer.args, "packing", False):
        _prove_rows(inputs.train, trainer.train_dataset)
    return trainer, effective


def _stopping(recipe: Recipe, method: Method) -> list[TrainerCallback]:
    options = recipe.training.early_stopping
    if options is None:
        return []
    if options.metric not in method.eval_metrics:
        raise RecipeError(
            Problem(
                f"{options.metric} is not measured by an evaluation of {method.name}",
                path="training.early_stopping.metric",
                hint=f"one of {', '.join(method.eval_metrics)}",
            )
        )
    return [EarlyStoppingCallback(options.patience, options.threshold)]


def trainer_class_of(
    trl_class: type[Any], recipe: Recipe, method: Method, *, mixed: bool
) -> type[Any]:
    """trl's trainer with what we put around its steps and its loss."""
    layers: list[type[Any]] = [PreemptionMixin]
    if mixed:
        layers.append(SftMixMixin)
    layers += [AtomicCheckpointsMixin, NonfiniteMixin, MetricsMixin]
    if method.has_sft_term:
        layers.append(TokenWeightedSftMixin)
    if _precomputes(recipe, method):
        layers.append(ReferenceCacheMixin)
    if hasattr(trl_class, "concatenated_forward"):
        layers.append(CpoOrpoMixin)
    return type(trl_class.__name__, (*layers, trl_class), {})


def _precomputes(recipe: Recipe, method: Method) -> bool:
    return recipe.reference.precompute and method.needs_reference


def _reference(recipe: Recipe, machine: Device) -> dict[str, Any]:
    """The frozen model beside the policy, where the policy's own weights can't serve.

    Under an adapter it is the policy with that adapter off, or with a frozen copy of the one that
    is trained on; precomputed, it is the policy itself before the first step.
    """
    named = reference_model(recipe.reference, recipe.model)
    # FSDP shards the policy too late to be its own reference, and trl would load its base.
    fsdp = parse_flag_from_env("ACCELERATE_USE_FSDP")
    if named is None and (recipe.trains_adapter or (recipe.reference.precompute and not fsdp)):
        return {}
    options = named or recipe.model
    dtype = machine.dtype(options, frozen=recipe.trains_adapter)
    where = "reference" if named else "model"
    model = load_policy(options, dtype, recipe.seed, where=where)
    return {"ref_model": to_device(model, machine)}


def _checkpointing(
    recipe: Recipe,
    method: Method,
    machine: Device,
    policy: Any,
    inputs: RunDatasets,
    more: Any,
    speed: FastForward,
) -> Choice:
    auto = recipe.training.gradient_checkpointing == "auto"
    packed = inputs.packed(recipe, method) if auto and speed.is_usable(policy) else None
    beside = more.get("ref_model") if not _precomputes(recipe, method) else None
    return choose(
        recipe,
        method,
        machine,
        strategy_here(),
        Policy(policy.config, getattr(policy, "peft_config", {}).get("default")),
        length=recipe.data.max_length if method.packs else inputs.longest,
        reference=count_parameters(beside)[0] if beside is not None else 0,
        memory=memory_here(machine),
        packed=packed,
    )


def mix_into(trainer: Any, options: SftMix, split: Split, recipe: Recipe, method: Method) -> None:
    stream = Demonstrations(split, trainer.processing_class, recipe.data.max_length, recipe.seed)
    trainer.mix(stream, options.fraction, options.weight)


@contextmanager
def _dividing_prompts(inputs: RunDatasets) -> Iterator[None]:
    """trl's ORPO gives up on a row whose prompt is not a prefix of prompt and answer in tokens."""
    try:
        yield
    except ValueError as error:
        if "input ids" not in str(error) and "prompt_input_ids" not in str(error):
            raise
        raise DataError(
            "in some row the tokens of the prompt merge with those of the answer",
            place=inputs.train.rows[0]["_file"],
            hint="let prompts end where a word ends, or the chat template render the prompt alone "
            "as it does beside the answer",
        ) from None


def _prove_lora(options: Lora | None, model: Any) -> dict[str, Any]:
    """The adapter is the recipe's, or the one there was, down to the dropout layers."""
    config = model.peft_config["default"]
    ours = lora_config(options) if options is not None else config
    effective = {}
    for name in ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"):
        effective[name] = getattr(config, name)
        assert effective[name] == getattr(ours, name), f"lora: {name} did not arrive"
    dropouts = {
        getattr(layer.lora_dropout["default"], "p", 0.0)
        for layer in model.modules()
        if hasattr(layer, "lora_dropout")
    }
    assert dropouts == {ours.lora_dropout}, f"lora: dropout is {dropouts}"
    targets = config.target_modules  # a regular expression, in adapters of some tools
    effective["target_modules"] = targets if isinstance(targets, str) else sorted(targets)
    return effective


def _prove_rows(split: Split, prepared: Any) -> None:
    """trl drops rows without a word; those it would drop were dropped, and counted, before."""
    assert len(prepared) == len(split.rows), (
        f"trl kept {len(prepared)} of the {len(split.rows)} rows it was given"
    )
