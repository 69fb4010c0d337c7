"""The recipe in transformers' and trl's names: the one place where they are spelled.

What a method owns is spelled in `methods/`; this file owns the rest, and proves that every value
arrived in the trainer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefcli.errors import Problem, RecipeError
from prefcli.methods import Method
from prefcli.model import Device
from prefcli.recipe.defaults import default_learning_rate
from prefcli.recipe.distributed_env import world_size
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Training


def repeated_rows(rows: int, micro_batch: int, world: int) -> int:
    """Rows that accelerate trains twice an epoch, so that every process has as many batches."""
    return -rows % micro_batch if world > 1 else 0


def accumulate(training: Training, world: int) -> int:
    """Micro-batches per optimizer step, so that the global batch is exactly what was asked."""
    micro = training.per_device_train_batch_size * world
    if training.global_batch_size % micro:
        sizes = [
            f"{per_device} (accumulating {training.global_batch_size // (per_device * world)})"
            for per_device in range(1, training.global_batch_size + 1)
            if training.global_batch_size % (per_device * world) == 0
        ]
        raise RecipeError(
            Problem(
                f"{training.global_batch_size} can't be reached with "
                f"{training.per_device_train_batch_size} rows a device on {world} devices",
                path="training.global_batch_size",
                hint=f"per-device sizes that reach it: {', '.join(sizes)}"
                if sizes
                else f"take a multiple of {world}",
            )
        )
    return training.global_batch_size // micro


def learning_rate(recipe: Recipe, method: Method) -> float:
    """The recipe's, or the method's usual one."""
    if recipe.training.learning_rate is not None:
        return recipe.training.learning_rate
    return default_learning_rate(recipe, method)


def notes(recipe: Recipe, method: Method) -> list[str]:
    """What a user should know of this recipe before it runs."""
    found = list(method.notes())
    if recipe.model.dtype == "bfloat16" and not recipe.trains_adapter:
        found.append(
            "model.dtype bfloat16 keeps the trained weights themselves in bfloat16: an update "
            "smaller than about 1/256 of a weight is lost, which most are at "
            f"{learning_rate(recipe, method):g}. auto trains float32 weights with bfloat16 autocast"
        )
    training = recipe.training
    again = training.num_train_epochs > 1 and training.max_steps is None
    if again and method.needs_reference and not recipe.reference.precompute:
        found.append(
            f"the reference scores its rows in each of {training.num_train_epochs:g} epochs: "
            "reference.precompute: true scores them once, for other runs of these rows as well"
            + ("" if recipe.trains_adapter else " (but measures no KL to the reference)")
        )
    return found


def trl_options(
    recipe: Recipe, method: Method, machine: Device, world: int | None = None
) -> dict[str, Any]:
    """Every value that trl's config is given and must still have when training starts.

    world: as in `plan`.
    """
    training = recipe.training
    options: dict[str, Any] = {
        "output_dir": recipe.output_dir,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "max_length": recipe.data.max_length,
        # Several processes would cut the rows elsewhere than the device batches do.
        "dataset_num_proc": None if method.pairs_neighbours else recipe.data.num_proc,
        "num_train_epochs": training.num_train_epochs,
        "max_steps": training.max_steps or -1,
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "per_device_eval_batch_size": training.eval_batch_size,
        "gradient_accumulation_steps": accumulate(training, world or world_size()),
        "learning_rate": learning_rate(recipe, method),
        "lr_scheduler_type": training.lr_scheduler_type,
        "warmup_steps": training.warmup,
        "optim": training.optimizer_on(machine.kind),
        "weight_decay": training.weight_decay,
        "adam_beta1": training.adam_beta1,
        "adam_beta2": training.adam_beta2,
        "adam_epsilon": training.adam_epsilon,
        "max_grad_norm": training.max_grad_norm,
        # auto: unless it is known better (checkpointing.py).
        "gradient_checkpointing": training.gradient_checkpointing is not False,
        "logging_steps": training.logging_steps,
        "logging_first_step": True,
        # The default hides a NaN behind the running mean.
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if training.eval_steps else "no",
        "save_strategy": "steps",
        "save_steps": training.save_steps,
        "save_total_limit": training.save_total_limit,
        "report_to": list(recipe.logging.report_to),
        "bf16": machine.autocast(recipe.model),
        "fp16": machine.half(recipe.model),
        "use_cpu": machine.kind == "cpu",
        "disable_tqdm": True,
        # Rows are prepared by one process while the others wait; transformers gives up after half
        # an hour (huggingface/trl issue 7223).
        "ddp_timeout": 7200,
        # Every weight that is trained is in every pass; looking for others costs time, and torch
        # says on each process that there are none.
        "ddp_find_unused_parameters": False,
        "push_to_hub": False,
    }
    if training.eval_steps:
        options["eval_steps"] = training.eval_steps
    if training.min_lr_ratio is not None:
        options["lr_scheduler_kwargs"] = {"min_lr_rate": training.min_lr_ratio}
    if training.early_stopping is not None:
        options |= {
            "load_best_model_at_end": True,
            "metric_for_best_model": training.early_stopping.metric,
            "greater_is_better": training.early_stopping.greater_is_better,
            # Its count of evaluations that were no better outlives a resume.
            "restore_callback_states_from_checkpoint": True,
        }
    if recipe.logging.report_to:
        options["run_name"] = recipe.logging.run_name or Path(recipe.output_dir).absolute().name
    if recipe.trains_adapter and not method.keeps_dropout:
        # trl would switch off every dropout, the adapters' too; the base model's is off already
        # (see trainer.py), so that lora.dropout is the only one left.
        options["disable_dropout"] = False
    if recipe.reference.precompute and method.needs_reference:
        options["precompute_ref_log_probs"] = True
    own = {**method.trainer.options, **method.trl_options()}
    assert not own.keys() & options.keys(), "a method spells what training/arguments.py owns"
    return {**options, **own}


def build(options: Mapping[str, Any], config_class: type[Any], **more: Any) -> Any:
    """trl's config. Unknown names are our bug: trl has changed under us."""
    fields = {field.name for field in dataclasses.fields(config_class)}
    unknown = set(options) - fields
    assert not unknown, f"{config_class.__name__} has no {sorted(unknown)}"
    return config_class(**options, **more)


def assert_args_applied(options: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """What the trainer will really use, name by name. AssertionError where a value got lost."""
    effective = {name: _plain(getattr(config, name)) for name in options}
    lost = {
        name: (_plain(value), effective[name])
        for name, value in options.items()
        if _plain(value) != effective[name]
    }
    assert not lost, f"recipe values that did not arrive in the trainer (ours, trl's): {lost}"
    return effective


def _plain(value: Any) -> Any:
    value = getattr(value, "value", value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
