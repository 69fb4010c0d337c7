"""Names that other tools, older libraries or earlier versions of prefcli use for its settings."""

from __future__ import annotations

from fnmatch import fnmatchcase

RENAMED: dict[str, str] = {
    "anchor": "expected",
    "data.checks.seams": "prompt_boundary",
    "data.checks.template_seams": "template_boundary",
    "health.*.on": "level",
    "health.displacement.fall": "warn_nats",
    "health.flat": "no_learning",
    "health.gradient.times": "spike_factor",
    "health.margin.nats_a_token": "nats_per_token",
    "health.overfitting.far": "max_ratio",
    "launch.machines": "nodes",
    "push": "push_to_hub",
}
"""Dotted paths of earlier versions (`*` is any one key): the key's new name."""

ALIASES: dict[str, str] = {
    # model
    "base_model": "model.name_or_path",
    "base_model_id": "model.name_or_path",
    "model_name": "model.name_or_path",
    "model_name_or_path": "model.name_or_path",
    "pretrained_model_name_or_path": "model.name_or_path",
    "model_revision": "model.revision",
    "torch_dtype": "model.dtype",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "attn_impl": "model.attn_implementation",
    "flash_attn": "model.attn_implementation",
    "flash_attention": "model.attn_implementation",
    "use_flash_attention_2": "model.attn_implementation",
    "chat_template_path": "model.chat_template",
    "template": "model.chat_template",
    "tokenizer_name": "model.tokenizer",
    "tokenizer_name_or_path": "model.tokenizer",
    "tokenizer_config": "model.tokenizer",
    # lora
    "r": "lora.rank",
    "lora_r": "lora.rank",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target": "lora.target_modules",
    "lora_target_modules": "lora.target_modules",
    "lora_modules_to_save": "lora.modules_to_save",
    "additional_target": "lora.modules_to_save",
    "use_peft": "lora",
    "peft": "lora",
    "adapter": "lora",
    "finetuning_type": "lora",
    # reference
    "ref_model": "reference.name_or_path",
    "ref_model_name_or_path": "reference.name_or_path",
    "model_ref": "reference.name_or_path",
    "precompute_ref_log_probs": "reference.precompute",
    # data
    "dataset": "data.train",
    "datasets": "data.train",
    "dataset_name": "data.train",
    "dataset_mixer": "data.train",
    "dataset_mixture": "data.train",
    "dataset_id": "data.train",
    "train_dataset": "data.train",
    "dataset_config": "data.train.name",
    "dataset_train_split": "data.train.split",
    "dataset_splits": "data.train.split",
    "dataset_test_split": "data.eval.split",
    "test_datasets": "data.eval",
    "eval_dataset": "data.eval",
    "validation": "data.eval",
    "weight": "data.train.fraction",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "sequence_len": "data.max_length",
    "max_prompt_length": "data.max_length",
    "dataset_num_proc": "data.num_proc",
    "preprocessing_num_workers": "data.num_proc",
    # methods
    "tau": "ipo.beta",
    "dpo_beta": "dpo.beta",
    "pref_beta": "dpo.beta",
    "rl_beta": "dpo.beta",
    "pref_loss": "dpo.loss_type",
    "dpo_label_smoothing": "dpo.label_smoothing",
    "kto_desirable_weight": "kto.desirable_weight",
    "kto_undesirable_weight": "kto.undesirable_weight",
    "orpo_alpha": "orpo.lambda",
    "simpo_gamma": "simpo.gamma",
    # training
    "epochs": "training.num_train_epochs",
    "num_epochs": "training.num_train_epochs",
    "lr": "training.learning_rate",
    "lr_scheduler": "training.lr_scheduler_type",
    "scheduler": "training.lr_scheduler_type",
    "min_lr_rate": "training.min_lr_ratio",
    "cosine_min_lr_ratio": "training.min_lr_ratio",
    "warmup": "training.warmup_ratio",
    "num_warmup_steps": "training.warmup_steps",
    "train_batch_size": "training.global_batch_size",
    "batch_size": "training.global_batch_size",
    "micro_batch_size": "training.per_device_train_batch_size",
    "eval_batch_size": "training.per_device_eval_batch_size",
    "gradient_accumulation_steps": "training.global_batch_size",
    "optimizer": "training.optim",
    "gradient_clipping": "training.max_grad_norm",
    "activation_checkpointing": "training.gradient_checkpointing",
    "eval_strategy": "training.eval_steps",
    "evaluation_strategy": "training.eval_steps",
    "save_strategy": "training.save_steps",
    "wandb_project": "logging.report_to",
    "wandb_run_id": "logging.run_name",
    "load_best_model_at_end": "training.early_stopping",
    "early_stopping_patience": "training.early_stopping.patience",
    "early_stopping_threshold": "training.early_stopping.threshold",
    "metric_for_best_model": "training.early_stopping.metric",
    # push_to_hub
    "hub_model_id": "push_to_hub.repo_id",
    "hub_private_repo": "push_to_hub.private",
    "hub_revision": "push_to_hub.revision",
    # top level
    "output": "output_dir",
    "out_dir": "output_dir",
    "save_dir": "output_dir",
    "random_seed": "seed",
}
"""Another tool's name, in lower case: prefcli's dotted path."""

UNSUPPORTED: dict[str, str] = {
    "<<": "YAML merge keys are not supported; repeat the keys, or write ${section.key}",
    "overwrite_output_dir": "a run never overwrites another; remove it or write a new output_dir",
    "max_prompt_length": "trl 1.x has no prompt limit; data.max_length bounds prompt + completion",
    "gradient_accumulation_steps": (
        "gradient accumulation is computed; write training.global_batch_size = "
        "per-device size x devices x accumulation"
    ),
    "do_eval": "evaluation runs whenever data.eval is given; remove it",
    "use_peft": "a `lora:` section enables LoRA; without one all weights are trained",
    "bf16": "the precision follows the device; write model.dtype: bfloat16 to force it",
    "fp16": "the precision follows the device; write model.dtype: float16 to force it",
    "load_in_4bit": "write model.quantization: 4bit, and a lora section",
    "load_in_8bit": "write model.quantization: 8bit, and a lora section",
    "gamma_beta_ratio": "write simpo.gamma: the ratio times simpo.beta",
    "lr_scheduler_kwargs": "write training.min_lr_ratio for the floor of cosine_with_min_lr",
    "sync_ref_model": "the reference is never updated; remove it",
    "rpo_alpha": "write dpo.loss_type: [sigmoid, sft] and dpo.loss_weights: [1.0, RPO_ALPHA]",
}
"""Another tool's name without an equivalent key: what to write instead."""


def renamed(path: str) -> str | None:
    """The new dotted path of a key that an earlier version of prefcli had."""
    for old, new in RENAMED.items():
        if fnmatchcase(path, old) and path.count(".") == old.count("."):
            section = path.rpartition(".")[0]
            return f"{section}.{new}" if section else new
    return None
