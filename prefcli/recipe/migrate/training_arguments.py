"""transformers' TrainingArguments, which the configs of trl and LLaMA-Factory extend."""

from __future__ import annotations

from typing import Any

from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.rules import (
    Drop,
    MultiKeyRule,
    Refuse,
    Rename,
    RuleTable,
    is_on,
)
from prefcli.recipe.migrate.shared_rules import (
    HUB_KEYS,
    SAME_TRAINING,
    batch_size,
    early_stopping,
    evaluation,
    push_to_hub,
    put_min_lr,
    saving,
    trackers,
    warmup,
)

STRATEGY_KEYS = ("eval_strategy", "evaluation_strategy")

DEFAULTS = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "linear",
}
"""transformers' defaults that differ from prefcli's, or that a rule needs."""

_OPTIMIZERS = {
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_bnb_8bit": "paged_adamw_8bit",
    "adamw_hf": "adamw_torch",
}
"""transformers' other names of the same optimizers."""


def optimizer(name: object) -> object:
    """Return the name that prefcli uses for an optimizer."""
    return _OPTIMIZERS.get(name, name) if isinstance(name, str) else name


def _schedule(draft: Draft) -> None:
    kind, given = draft.value("lr_scheduler_type"), draft.given("lr_scheduler_kwargs")
    options = dict(given) if isinstance(given, dict) else {}
    if kind != "cosine_with_min_lr":
        draft.put("training.lr_scheduler_type", kind, "lr_scheduler_type")
    elif (minimum := _min_lr_ratio(options, draft.value("learning_rate"))) is not None:
        name, ratio = minimum
        del options[name]
        put_min_lr(draft, ratio, "lr_scheduler_kwargs", name, scheduler="lr_scheduler_type")
    else:
        draft.refuse(
            "lr_scheduler_type",
            "lr_scheduler_kwargs has no min_lr_rate or min_lr",
            code="RCP161",
            hint="write lr_scheduler_kwargs: {min_lr_rate: 0.1}",
        )
    for name in options:
        draft.refuse(
            "lr_scheduler_kwargs",
            "prefcli's schedules have no such setting",
            name,
            code="RCP156",
            hint="remove it if the run does not need it",
        )
    if not given:
        draft.drop("lr_scheduler_kwargs", "it is not set")


def _min_lr_ratio(options: dict[str, Any], peak: Any) -> tuple[str, Any] | None:
    """Return the option that sets where a cosine ends, and its ratio to the learning rate."""
    if "min_lr_rate" in options:
        return "min_lr_rate", options["min_lr_rate"]
    minimum = options.get("min_lr")
    if isinstance(minimum, float | int) and isinstance(peak, float | int) and peak:
        return "min_lr", minimum / peak
    return None


def _max_steps(draft: Draft) -> None:
    if (steps := draft.given("max_steps")) is not None and steps != -1:
        draft.put("training.max_steps", steps, "max_steps")
    else:
        draft.drop("max_steps", "it sets no limit")


def _precision(draft: Draft) -> None:
    fp16, bf16 = draft.given("fp16"), draft.given("bf16")
    for key in ("bf16", "fp16"):
        if draft.given(key) is not None:
            draft.drop(key, _PRECISION)
    if is_on(fp16) or (bf16 is not None and not is_on(bf16)):
        dtype = "float16" if is_on(fp16) else "float32"
        draft.note(
            f"the file asks for {dtype}; without model.dtype prefcli uses bfloat16 autocast on a "
            f"GPU that supports it, so write model.dtype: {dtype} to force it"
        )


_PRECISION = "the precision follows the device: bfloat16 autocast on a GPU that supports it"
_LAUNCHER = "the launch section, torchrun or accelerate sets up distributed training"
_LOGGING = "prefcli logs to metrics.jsonl every training.logging_steps"
_OUTPUT_DIR = "prefcli resumes its own runs and never overwrites another"

TABLE: RuleTable = {
    "output_dir": Rename("output_dir"),
    "seed": Rename("seed"),
    "num_train_epochs": Rename("training.num_train_epochs"),
    "max_steps": MultiKeyRule(_max_steps, "training.max_steps"),
    "learning_rate": Rename("training.learning_rate"),
    "lr_scheduler_type": (
        schedule := MultiKeyRule(_schedule, "training.lr_scheduler_type", "training.min_lr_ratio")
    ),
    "lr_scheduler_kwargs": schedule,
    "warmup_ratio": (warmup_keys := warmup("lr_scheduler_type")),
    "warmup_steps": warmup_keys,
    "optim": Rename("training.optim", read=optimizer),
    "weight_decay": Rename("training.weight_decay"),
    "adam_beta1": Rename("training.adam_beta1"),
    "adam_beta2": Rename("training.adam_beta2"),
    "adam_epsilon": Rename("training.adam_epsilon"),
    "max_grad_norm": Rename("training.max_grad_norm"),
    "per_device_train_batch_size": (
        rows := batch_size("per_device_train_batch_size", "gradient_accumulation_steps")
    ),
    "gradient_accumulation_steps": rows,
    "gradient_checkpointing": Rename("training.gradient_checkpointing"),
    "activation_checkpointing": Rename("training.gradient_checkpointing"),
    "logging_steps": Rename("training.logging_steps"),
    "eval_strategy": (evals := evaluation("per_device_eval_batch_size", *STRATEGY_KEYS)),
    "evaluation_strategy": evals,
    "eval_steps": evals,
    "per_device_eval_batch_size": evals,
    "load_best_model_at_end": (
        stopping := early_stopping("early_stopping_patience", "early_stopping_steps")
    ),
    "early_stopping_patience": stopping,
    "early_stopping_threshold": stopping,
    "metric_for_best_model": stopping,
    "greater_is_better": stopping,
    "save_strategy": (saves := saving()),
    "save_steps": saves,
    "save_total_limit": Rename("training.save_total_limit"),
    **dict.fromkeys(HUB_KEYS, push_to_hub()),
    "hub_token": Drop("log in with `hf auth login`, or export HF_TOKEN"),
    "report_to": (reports := trackers()),
    "run_name": reports,
    # dropped
    "bf16": (precision := MultiKeyRule(_precision)),
    "fp16": precision,
    "tf32": Drop(_PRECISION),
    "bf16_full_eval": Drop(_PRECISION),
    "do_train": Drop("`prefcli METHOD` trains"),
    "do_eval": Drop("evaluation runs whenever data.eval is given"),
    "overwrite_output_dir": Drop(_OUTPUT_DIR),
    "resume_from_checkpoint": Drop(_OUTPUT_DIR),
    "log_level": Drop(_LOGGING),
    "log_level_replica": Drop(_LOGGING),
    "logging_strategy": Drop(_LOGGING),
    "logging_first_step": Drop(_LOGGING),
    "logging_dir": Drop(_LOGGING),
    "disable_tqdm": Drop(_LOGGING),
    "gradient_checkpointing_kwargs": Drop("prefcli sets them; the gradients are the same"),
    "remove_unused_columns": Drop("prefcli reads the columns that the method needs"),
    "data_seed": Drop("prefcli has one seed for everything"),
    "eval_on_start": Drop("prefcli always evaluates before the first step"),
    "average_tokens_across_devices": Drop("prefcli's losses are means over all devices"),
    "save_only_model": Drop("checkpoints include the optimizer state, so that runs can resume"),
    "save_safetensors": Drop("weights are always saved as safetensors"),
    "ddp_timeout": Drop(_LAUNCHER),
    "ddp_find_unused_parameters": Drop(_LAUNCHER),
    "deepspeed": Drop(_LAUNCHER),
    "fsdp": Drop(_LAUNCHER),
    "fsdp_config": Drop(_LAUNCHER),
    "local_rank": Drop(_LAUNCHER),
    "use_liger_kernel": Drop(SAME_TRAINING),
    "torch_compile": Drop(SAME_TRAINING),
    "dataloader_num_workers": Drop(SAME_TRAINING),
    "dataloader_pin_memory": Drop(SAME_TRAINING),
    "dataloader_prefetch_factor": Drop(SAME_TRAINING),
    "eval_accumulation_steps": Drop(SAME_TRAINING),
    "torch_empty_cache_steps": Drop(SAME_TRAINING),
    # refused
    "neftune_noise_alpha": Refuse("prefcli does not have NEFTune"),
    "label_smoothing_factor": Refuse("prefcli's SFT loss has no label smoothing"),
    "group_by_length": Refuse("prefcli shuffles rows and does not group them by length"),
    "auto_find_batch_size": Refuse("prefcli never changes the batch size"),
    "dataloader_drop_last": Refuse("prefcli also trains on the last, smaller batch"),
    "optim_args": Refuse("prefcli's optimizers have no other settings"),
    "optim_target_modules": Refuse("prefcli does not have optimizers for a part of the modules"),
    "accelerator_config": Refuse("prefcli configures accelerate itself"),
}
