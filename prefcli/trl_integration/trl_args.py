"""Translation of a recipe into trl's training arguments.

Methods translate their own sections. `assert_args_applied` checks that no value is lost on the way
to the trainer.
"""

from __future__ import annotations

import dataclasses
import math
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
from prefcli.text import counted


def repeated_rows(rows: int, micro_batch: int, world: int) -> int:
    """Count the rows that accelerate repeats per epoch so that all processes have equal batches."""
    return -rows % micro_batch if world > 1 else 0


def batch_sizes(training: Training, world: int, smallest: int = 1) -> list[int]:
    """Return the possible rows per device, in ascending order. Raises RecipeError for none."""
    share, rest = divmod(training.global_batch_size, world)
    if rest or share < smallest:
        raise RecipeError(
            Problem(
                f"{training.global_batch_size} rows cannot be divided over "
                + counted(world, "device")
                + (f" of at least {smallest} rows each" if smallest > 1 else ""),
                path="training.global_batch_size",
                hint=f"set a multiple of {world * smallest}",
                code="TRN068",
            )
        )
    return [rows for rows in range(smallest, share + 1) if share % rows == 0]


def accumulate(training: Training, world: int) -> int:
    """Return the micro-batches per optimizer step that give exactly the global batch size."""
    micro = training.train_batch_size * world
    if training.global_batch_size % micro:
        sizes = [
            f"{per_device} (accumulating {training.global_batch_size // (per_device * world)})"
            for per_device in range(1, training.global_batch_size + 1)
            if training.global_batch_size % (per_device * world) == 0
        ]
        raise RecipeError(
            Problem(
                f"{training.global_batch_size} is not a multiple of "
                f"{training.train_batch_size} rows per device on {counted(world, 'device')}",
                path="training.global_batch_size",
                hint=f"set training.per_device_train_batch_size to {', '.join(sizes)}"
                if sizes
                else f"set a multiple of {world}",
                code="TRN068",
            )
        )
    return training.global_batch_size // micro


def learning_rate(recipe: Recipe, method: Method) -> float:
    """Return the learning rate of the recipe, or the method's default."""
    if recipe.training.learning_rate is not None:
        return recipe.training.learning_rate
    return default_learning_rate(recipe, method)


def notes(recipe: Recipe, method: Method) -> list[str]:
    """Return notes for the user about settings that are valid but have a cost."""
    lines = list(method.notes())
    if recipe.model.dtype == "bfloat16" and not recipe.trains_adapter:
        lines.append(
            "model.dtype bfloat16 stores trained weights in bfloat16: updates smaller than about "
            "1/256 of a weight are lost, which is most of them at "
            f"{learning_rate(recipe, method):g}. auto trains float32 weights with bfloat16 autocast"
        )
    training = recipe.training
    several_epochs = training.num_train_epochs > 1 and training.max_steps is None
    if several_epochs and method.precomputes_reference and not recipe.reference.precompute:
        lines.append(
            f"the reference scores its rows in each of {training.num_train_epochs:g} epochs: "
            "reference.precompute: true scores them once, also for other runs on these rows"
            + ("" if recipe.trains_adapter else ", but then reference_kl is not measured")
        )
    return lines


def trl_options(
    recipe: Recipe, method: Method, device: Device, world: int | None = None
) -> dict[str, Any]:
    """Return every option that trl's config is given and must still have when training starts.

    world: number of processes; by default that of this run.
    """
    training = recipe.training
    options: dict[str, Any] = {
        "output_dir": recipe.output_dir,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "max_length": recipe.data.max_length,
        # Several processes would split the rows at other places than device batches.
        "dataset_num_proc": None if method.pairs_neighbours else recipe.data.num_proc,
        "num_train_epochs": training.num_train_epochs,
        "max_steps": training.max_steps or -1,
        "per_device_train_batch_size": training.train_batch_size,
        "per_device_eval_batch_size": training.eval_batch_size,
        "gradient_accumulation_steps": accumulate(training, world or world_size()),
        "learning_rate": learning_rate(recipe, method),
        "lr_scheduler_type": training.lr_scheduler_type,
        "warmup_steps": training.warmup,
        "optim": training.optimizer_on(device.kind),
        "weight_decay": training.weight_decay,
        "adam_beta1": training.adam_beta1,
        "adam_beta2": training.adam_beta2,
        "adam_epsilon": training.adam_epsilon,
        # With 0 transformers would not measure the norm; an infinite limit changes no gradient.
        "max_grad_norm": training.max_grad_norm or math.inf,
        # For auto, make_trainer may turn it off.
        "gradient_checkpointing": training.gradient_checkpointing is not False,
        # transformers takes a number below 1 as a share of the steps, rounded up.
        "logging_steps": 0.005 if training.logging_steps == "auto" else training.logging_steps,
        "logging_first_step": True,
        # The default hides a NaN behind the running mean.
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if training.eval_steps else "no",
        "save_strategy": "steps",
        "save_steps": training.save_steps,
        "save_total_limit": training.save_total_limit,
        "report_to": list(recipe.logging.report_to),
        "bf16": device.autocast(recipe.model),
        "fp16": device.half(recipe.model),
        "use_cpu": device.kind == "cpu",
        "disable_tqdm": True,
        # Other processes wait while one prepares the rows; the default timeout is half an hour
        # (huggingface/trl issue 7223).
        "ddp_timeout": 7200,
        # Every trained weight is used in every pass. Searching for unused ones takes time and warns
        # on each process.
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
            # Keeps the count of evaluations without improvement across a resume.
            "restore_callback_states_from_checkpoint": True,
        }
    if recipe.logging.report_to:
        options["run_name"] = recipe.logging.run_name or Path(recipe.output_dir).absolute().name
    if not method.keeps_dropout and (recipe.trains_adapter or not method.keeps_adapter_dropout):
        # trl would disable all dropout, including lora.dropout. make_trainer disables the base
        # model's.
        options["disable_dropout"] = not method.keeps_adapter_dropout
    if recipe.reference.precompute and method.precomputes_reference:
        options["precompute_ref_log_probs"] = True
    for name in method.trainer.lacks:
        del options[name]
    own = {**method.trainer.options, **method.trl_options()}
    assert not own.keys() & options.keys(), "a method sets an option that trl_args.py sets"
    return {**options, **own}


def build(options: Mapping[str, Any], config_class: type[Any], **others: Any) -> Any:
    """Build trl's config. AssertionError for an option that this version of trl lacks."""
    fields = {field.name for field in dataclasses.fields(config_class)}
    unknown = set(options) - fields
    assert not unknown, f"{config_class.__name__} has no {sorted(unknown)}"
    return config_class(**options, **others)


def assert_args_applied(options: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Return the values that the trainer uses. AssertionError if one differs from the options."""
    effective = {name: _plain(getattr(config, name)) for name in options}
    changed = {
        name: (_plain(value), effective[name])
        for name, value in options.items()
        if _plain(value) != effective[name]
    }
    assert not changed, f"the trainer has other values (recipe, trainer): {changed}"
    return effective


def _plain(value: Any) -> Any:
    value = getattr(value, "value", value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
