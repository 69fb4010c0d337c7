"""axolotl: its keys and their rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefcli.recipe.migrate import axolotl_rules, training_arguments
from prefcli.recipe.migrate.axolotl_data import DATA_KEYS, translate_data
from prefcli.recipe.migrate.rules import Drop, MultiKeyRule, Refuse, Rename, RuleTable
from prefcli.recipe.migrate.shared_rules import (
    SAME_TRAINING,
    batch_size,
    early_stopping,
    evaluation,
    push_to_hub,
    remote_code,
    saving,
    warmup,
)
from prefcli.recipe.migrate.source_tool import SourceTool
from prefcli.recipe.migrate.trl import quantization


def _candidate_methods(data: Mapping[str, Any]) -> set[str]:
    rl, losses = data.get("rl"), data.get("dpo_loss_type")
    if not rl:
        return {"sft"}
    return {"ipo"} if rl == "dpo" and losses == ["ipo"] else {str(rl)} & {*_PREFERENCES}


_PREFERENCES = ("dpo", "ipo", "kto", "orpo", "simpo")


def _defaults(method: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    defaults: dict[str, Any] = {
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1.0,
        "sequence_len": 512,
        "lr_scheduler": "cosine",
        "warmup_ratio": 0.03,
    }
    if method != "sft" and data.get("orpo_alpha") is None:
        defaults["rl_beta"] = 0.1
    if method == "sft":
        defaults["train_on_inputs"] = False
    if method == "kto":
        defaults |= {"kto_desirable_weight": 1.0, "kto_undesirable_weight": 1.0}
    if method == "simpo":
        defaults["cpo_alpha"] = 1.0
    return defaults | ({"lora_dropout": 0.0} if data.get("adapter") else {})


_MODEL_TYPE = "transformers reads it from the model's files"
_CACHE = "datasets caches the converted rows"
_WATCHDOG = "prefcli stops if a loss is not finite"
_TOKENIZER = "prefcli does not change the tokenizer"

TABLE: RuleTable = {
    # The data comes first: the evaluation rules need data.eval.
    **dict.fromkeys(DATA_KEYS, MultiKeyRule(translate_data, "data.train", "data.eval")),
    **{
        key: training_arguments.TABLE[key]
        for key in (
            *("output_dir", "seed", "max_steps", "learning_rate", "weight_decay", "adam_beta1"),
            *("adam_beta2", "adam_epsilon", "max_grad_norm", "logging_steps", "save_total_limit"),
            *("bf16", "fp16", "tf32"),
            *("resume_from_checkpoint", "gradient_checkpointing_kwargs", "remove_unused_columns"),
            *("save_only_model", "save_safetensors", "ddp_timeout", "ddp_find_unused_parameters"),
            *("deepspeed", "fsdp", "fsdp_config", "local_rank", "torch_compile"),
            *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
            *("group_by_length", "auto_find_batch_size", "optim_args", "neftune_noise_alpha"),
            *("dataloader_drop_last", "accelerator_config", "torch_empty_cache_steps"),
        )
    },
    "rl": (loss := MultiKeyRule(axolotl_rules.loss, "dpo.loss_type", "dpo.loss_weights")),
    "dpo_loss_type": loss,
    "rpo_alpha": loss,
    # model
    "base_model": Rename("model.name_or_path"),
    "revision_of_model": Rename("model.revision"),
    "model_type": Drop(_MODEL_TYPE),
    "tokenizer_type": Drop(_MODEL_TYPE),
    "is_llama_derived_model": Drop(_MODEL_TYPE),
    "is_mistral_derived_model": Drop(_MODEL_TYPE),
    "is_qwen_derived_model": Drop(_MODEL_TYPE),
    "is_falcon_derived_model": Drop(_MODEL_TYPE),
    "tokenizer_config": Refuse("prefcli uses the tokenizer in the model's folder or repository"),
    "trust_remote_code": remote_code("base_model", "revision_of_model"),
    "attn_implementation": (
        attention := MultiKeyRule(axolotl_rules.attention, "model.attn_implementation")
    ),
    "flash_attention": attention,
    "sdp_attention": attention,
    "eager_attention": attention,
    "flex_attention": attention,
    "chat_template": (template := MultiKeyRule(axolotl_rules.template, "model.chat_template")),
    "chat_template_jinja": template,
    "load_in_4bit": (bits := MultiKeyRule(quantization, "model.quantization")),
    "load_in_8bit": bits,
    "special_tokens": MultiKeyRule(axolotl_rules.special_tokens),
    "tokens": Refuse("prefcli does not add tokens"),
    "eot_tokens": Refuse(_TOKENIZER),
    "default_system_message": Refuse("prefcli does not add a system message", "add it to the data"),
    # lora
    "adapter": (
        lora := MultiKeyRule(
            axolotl_rules.lora, "lora.target_modules", *axolotl_rules.LORA.values()
        )
    ),
    "lora_target_linear": lora,
    "lora_target_modules": lora,
    **dict.fromkeys(axolotl_rules.LORA, lora),
    "lora_model_dir": Refuse(
        "prefcli takes an adapter as the model",
        "write its folder as base_model, and add model.adapter: continue, stack or merge to the "
        "recipe",
    ),
    "lora_modules_to_save": Refuse("prefcli does not train full layers next to an adapter"),
    "lora_target_parameters": Refuse("prefcli adapts modules, not single parameters"),
    "lora_fan_in_fan_out": Refuse("prefcli does not set it; peft sets it for Conv1D layers"),
    "loraplus_lr_ratio": Refuse("prefcli has one learning rate for all weights"),
    "relora": Refuse("prefcli does not have ReLoRA"),
    # data
    "sequence_len": Rename("data.max_length"),
    "excess_length_strategy": Drop("prefcli truncates long rows at the end and counts them"),
    "dataset_processes": Rename("data.num_proc"),
    "dataset_num_proc": Rename("data.num_proc"),
    "dataset_prepared_path": Drop(_CACHE),
    "dataset_exact_deduplication": Refuse("prefcli does not remove repeated rows"),
    "shuffle_merged_datasets": Refuse("prefcli always shuffles rows", harmless=(True,)),
    "pretraining_dataset": Refuse("prefcli does not pretrain"),
    "streaming": Refuse("prefcli does not stream data"),
    "sample_packing": MultiKeyRule(axolotl_rules.packing, "sft.packing"),
    "eval_sample_packing": Drop("evaluation rows are packed like training rows"),
    "pad_to_sequence_len": Drop(SAME_TRAINING),
    # methods
    "rl_beta": Rename("dpo.beta", "ipo.beta", "kto.beta", "orpo.lambda", "simpo.beta"),
    "dpo_beta": Rename("dpo.beta", "ipo.beta"),
    "orpo_alpha": Rename("orpo.lambda"),
    "simpo_gamma": Rename("simpo.gamma"),
    "cpo_alpha": Rename("simpo.cpo_alpha"),
    "kto_desirable_weight": Rename("kto.desirable_weight"),
    "kto_undesirable_weight": Rename("kto.undesirable_weight"),
    "dpo_loss_weights": Rename("dpo.loss_weights"),
    "dpo_label_smoothing": Rename("dpo.label_smoothing"),
    "dpo_use_weighting": Refuse("prefcli does not weight pairs by the policy (WPO)"),
    "dpo_norm_loss": Refuse("trl 1.16 has no such setting", "write dpo_loss_type: [sigmoid_norm]"),
    "dpo_padding_free": Drop(SAME_TRAINING),
    "dpo_use_liger_kernel": Drop(SAME_TRAINING),
    "dpo_use_logits_to_keep": Drop(SAME_TRAINING),
    "precompute_ref_log_probs": Rename("reference.precompute"),
    # training
    "num_epochs": Rename("training.num_train_epochs"),
    "micro_batch_size": (rows := batch_size("micro_batch_size", "gradient_accumulation_steps")),
    "gradient_accumulation_steps": rows,
    "batch_size": Refuse(
        "its meaning depends on the number of devices",
        "write gradient_accumulation_steps instead",
    ),
    "optimizer": Rename("training.optim", read=training_arguments.optimizer),
    "lr_scheduler": (
        schedule := MultiKeyRule(
            axolotl_rules.schedule, "training.lr_scheduler_type", "training.min_lr_ratio"
        )
    ),
    "cosine_min_lr_ratio": schedule,
    "cosine_constant_lr_ratio": Refuse("prefcli's cosine schedule does not end in a constant"),
    "warmup_ratio": (warmup_keys := warmup("lr_scheduler")),
    "warmup_steps": warmup_keys,
    "gradient_checkpointing": Rename(
        "training.gradient_checkpointing", read=axolotl_rules.gradient_checkpointing
    ),
    "eval_strategy": (
        evals := evaluation("eval_batch_size", "eval_strategy", default_strategy="steps")
    ),
    "eval_steps": evals,
    "eval_batch_size": evals,
    "early_stopping_patience": (stopping := early_stopping("early_stopping_patience")),
    "load_best_model_at_end": stopping,
    "metric_for_best_model": stopping,
    "greater_is_better": stopping,
    "save_strategy": (saves := saving()),
    "save_steps": saves,
    "evals_per_epoch": (epochs := MultiKeyRule(axolotl_rules.per_epoch)),
    "saves_per_epoch": epochs,
    "loss_watchdog_threshold": Drop(_WATCHDOG),
    "loss_watchdog_patience": Drop(_WATCHDOG),
    "save_first_step": Drop("--dry-run checks the output folder"),
    # push_to_hub
    **dict.fromkeys(
        ("hub_model_id", "hub_strategy", "hub_revision"), push_to_hub(implied_by_repository=True)
    ),
    # reporting
    "wandb_project": (
        reports := MultiKeyRule(axolotl_rules.trackers, "logging.report_to", "logging.run_name")
    ),
    "use_wandb": reports,
    "mlflow_experiment_name": reports,
    "use_mlflow": reports,
    "wandb_name": reports,
    "wandb_run_id": reports,
    "wandb_entity": Drop("set WANDB_ENTITY in the environment"),
    "wandb_watch": Drop("set WANDB_WATCH in the environment"),
    "wandb_log_model": Drop("set WANDB_LOG_MODEL in the environment"),
    "wandb_mode": Drop("set WANDB_MODE in the environment"),
    "use_swanlab": Refuse("prefcli does not report to SwanLab"),
    "use_comet": Refuse("prefcli does not report to Comet"),
    "use_tensorboard": Refuse(
        "prefcli migrate does not read it",
        "remove it, and write logging.report_to: [tensorboard] in the recipe",
    ),
    # speed
    "activation_offloading": Drop(SAME_TRAINING),
    "low_cpu_mem_usage": Drop(SAME_TRAINING),
    "flash_attn_cross_entropy": Drop(SAME_TRAINING),
    "flash_attn_rms_norm": Drop(SAME_TRAINING),
    "flash_attn_fuse_mlp": Drop(SAME_TRAINING),
    "lora_mlp_kernel": Drop(SAME_TRAINING),
    "lora_qkv_kernel": Drop(SAME_TRAINING),
    "lora_o_kernel": Drop(SAME_TRAINING),
    "liger_rope": Drop(SAME_TRAINING),
    "liger_rms_norm": Drop(SAME_TRAINING),
    "liger_glu_activation": Drop(SAME_TRAINING),
    "liger_layer_norm": Drop(SAME_TRAINING),
    "liger_fused_linear_cross_entropy": Drop(SAME_TRAINING),
    "plugins": Refuse("prefcli does not load plugins"),
    "strict": Drop("prefcli is always strict"),
    "debug": Drop("run `prefcli METHOD --dry-run`"),
    "fsdp_version": Drop("the launch section, torchrun or accelerate sets up distributed training"),
}

AXOLOTL = SourceTool(
    "axolotl", frozenset({"base_model"}), TABLE, _defaults, _candidate_methods, method_key="rl"
)
