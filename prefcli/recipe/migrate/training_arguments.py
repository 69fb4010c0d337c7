"""transformers' TrainingArguments, which trl's and LLaMA-Factory's configurations extend."""

from __future__ import annotations

from typing import Any

from prefcli.recipe.migrate.base import Draft, Drop, MultiKeyRule, Refuse, Table, To, gone, is_on
from prefcli.recipe.migrate.shared_rules import (
    batch,
    evaluation,
    put_min_lr,
    saving,
    trackers,
    warm_up,
)

STRATEGIES = ("eval_strategy", "evaluation_strategy")

DEFAULTS = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "linear",
}
"""Where prefcli's own differ, or where a translation needs the number."""

_OPTIMIZERS = {
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_bnb_8bit": "paged_adamw_8bit",
    "adamw_hf": "adamw_torch",
}
"""transformers' other names of the same optimizers."""


def optimizer(name: object) -> object:
    return _OPTIMIZERS.get(name, name) if isinstance(name, str) else name


def _schedule(draft: Draft) -> None:
    kind, given = draft.value("lr_scheduler_type"), draft.given("lr_scheduler_kwargs")
    options = dict(given) if isinstance(given, dict) else {}
    if kind != "cosine_with_min_lr":
        draft.put("training.lr_scheduler_type", kind, "lr_scheduler_type")
    elif (found := _least(options, draft.value("learning_rate"))) is not None:
        name, ratio = found
        del options[name]
        put_min_lr(draft, ratio, "lr_scheduler_kwargs", name, scheduler="lr_scheduler_type")
    else:
        draft.refuse("lr_scheduler_type", "lr_scheduler_kwargs has no min_lr_rate or min_lr")
    for name in options:
        draft.refuse("lr_scheduler_kwargs", "prefcli's schedules have no such setting", None, name)
    if not given:
        draft.drop("lr_scheduler_kwargs", "it is not set")


def _least(options: dict[str, Any], peak: Any) -> tuple[str, Any] | None:
    """The name of the setting that says where a cosine ends, and the share of the peak."""
    if "min_lr_rate" in options:
        return "min_lr_rate", options["min_lr_rate"]
    least = options.get("min_lr")
    if isinstance(least, float | int) and isinstance(peak, float | int) and peak:
        return "min_lr", least / peak
    return None


def _steps(draft: Draft) -> None:
    if (steps := draft.given("max_steps")) is not None and steps != -1:
        draft.put("training.max_steps", steps, "max_steps")
    else:
        draft.drop("max_steps", "it sets no limit")


def _precision(draft: Draft) -> None:
    half, brain = draft.given("fp16"), draft.given("bf16")
    for key in ("bf16", "fp16"):
        if draft.given(key) is not None:
            draft.drop(key, _PRECISION)
    if is_on(half) or (brain is not None and not is_on(brain)):
        asked = "float16" if is_on(half) else "float32"
        draft.remark(
            f"the file asks for {asked}; without model.dtype prefcli takes bfloat16 autocast where "
            f"the GPU has it, so write model.dtype: {asked} to insist"
        )


_PRECISION = "the precision follows the machine: bfloat16 autocast where the GPU has it"
_HUB = "to publish the finished model, add push_to_hub: {repo_id: OWNER/NAME} to the recipe"
_LAUNCHER = "how a run is spread over devices is the launcher's: torchrun, accelerate launch"
_LOGS = "prefcli logs every training.logging_steps, to metrics.jsonl"
_SPEED = "it changes memory or speed, not what is trained"
_FOLDER = "prefcli resumes a run by itself and never overwrites another"

TABLE: Table = {
    "output_dir": To("output_dir"),
    "seed": To("seed"),
    "num_train_epochs": To("training.num_train_epochs"),
    "max_steps": MultiKeyRule(_steps, "training.max_steps"),
    "learning_rate": To("training.learning_rate"),
    "lr_scheduler_type": (
        schedule := MultiKeyRule(_schedule, "training.lr_scheduler_type", "training.min_lr_ratio")
    ),
    "lr_scheduler_kwargs": schedule,
    "warmup_ratio": (warm := warm_up("lr_scheduler_type")),
    "warmup_steps": warm,
    "optim": To("training.optim", read=optimizer),
    "weight_decay": To("training.weight_decay"),
    "adam_beta1": To("training.adam_beta1"),
    "adam_beta2": To("training.adam_beta2"),
    "adam_epsilon": To("training.adam_epsilon"),
    "max_grad_norm": To("training.max_grad_norm"),
    "per_device_train_batch_size": (
        rows := batch("per_device_train_batch_size", "gradient_accumulation_steps")
    ),
    "gradient_accumulation_steps": rows,
    "gradient_checkpointing": To("training.gradient_checkpointing"),
    "activation_checkpointing": To("training.gradient_checkpointing"),
    "logging_steps": To("training.logging_steps"),
    "eval_strategy": (evals := evaluation("per_device_eval_batch_size", *STRATEGIES)),
    "evaluation_strategy": evals,
    "eval_steps": evals,
    "per_device_eval_batch_size": evals,
    "save_strategy": (saves := saving()),
    "save_steps": saves,
    "save_total_limit": To("training.save_total_limit"),
    "report_to": (reports := trackers()),
    "run_name": reports,
    # not needed
    "bf16": (precision := MultiKeyRule(_precision)),
    "fp16": precision,
    "tf32": Drop(_PRECISION),
    "bf16_full_eval": Drop(_PRECISION),
    "do_train": Drop("prefcli METHOD trains"),
    "do_eval": Drop(gone("do_eval")),
    "overwrite_output_dir": Drop(_FOLDER),
    "resume_from_checkpoint": Drop(_FOLDER),
    "push_to_hub": Drop(_HUB),
    "hub_model_id": Drop(_HUB),
    "hub_strategy": Drop(_HUB),
    "hub_private_repo": Drop(_HUB),
    "hub_revision": Drop(_HUB),
    "hub_model_revision": Drop(_HUB),
    "hub_token": Drop(_HUB),
    "log_level": Drop(_LOGS),
    "log_level_replica": Drop(_LOGS),
    "logging_strategy": Drop(_LOGS),
    "logging_first_step": Drop(_LOGS),
    "logging_dir": Drop(_LOGS),
    "disable_tqdm": Drop(_LOGS),
    "gradient_checkpointing_kwargs": Drop("prefcli chooses; the gradients are the same"),
    "remove_unused_columns": Drop("prefcli reads the columns that the method needs"),
    "data_seed": Drop("one seed draws everything"),
    "eval_on_start": Drop("prefcli always evaluates before the first step"),
    "average_tokens_across_devices": Drop("prefcli's losses are means over the whole step"),
    "save_only_model": Drop("checkpoints are to resume from, so they hold the optimizer"),
    "save_safetensors": Drop("weights are always saved so"),
    "ddp_timeout": Drop(_LAUNCHER),
    "ddp_find_unused_parameters": Drop(_LAUNCHER),
    "deepspeed": Drop(_LAUNCHER),
    "fsdp": Drop(_LAUNCHER),
    "fsdp_config": Drop(_LAUNCHER),
    "local_rank": Drop(_LAUNCHER),
    "use_liger_kernel": Drop(_SPEED),
    "torch_compile": Drop(_SPEED),
    "dataloader_num_workers": Drop(_SPEED),
    "dataloader_pin_memory": Drop(_SPEED),
    "dataloader_prefetch_factor": Drop(_SPEED),
    "eval_accumulation_steps": Drop(_SPEED),
    "torch_empty_cache_steps": Drop(_SPEED),
    # no counterpart
    "neftune_noise_alpha": Refuse("prefcli adds no noise to embeddings (NEFTune)"),
    "label_smoothing_factor": Refuse("prefcli's SFT loss has no label smoothing"),
    "load_best_model_at_end": Refuse("prefcli keeps the last weights, not those of the best step"),
    "metric_for_best_model": Drop("prefcli keeps the last weights"),
    "greater_is_better": Drop("prefcli keeps the last weights"),
    "group_by_length": Refuse("prefcli draws rows at random, not by length"),
    "auto_find_batch_size": Refuse("prefcli keeps to the batch that is written"),
    "dataloader_drop_last": Refuse("prefcli trains on the last, smaller batch too"),
    "optim_args": Refuse("prefcli's optimizers have no further settings"),
    "optim_target_modules": Refuse("prefcli has no optimizer that works on some modules"),
    "accelerator_config": Refuse("accelerate's settings are the launcher's"),
}
