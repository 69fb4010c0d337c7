"""axolotl: its keys, and what becomes of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefcli.recipe.migrate import axolotl_rules as parts
from prefcli.recipe.migrate import training_arguments
from prefcli.recipe.migrate.axolotl_data import translate_data
from prefcli.recipe.migrate.base import REMOTE_CODE, Drop, MultiKeyRule, Refuse, Table, To
from prefcli.recipe.migrate.shared_rules import (
    batch,
    evaluation,
    saving,
    warm_up,
)
from prefcli.recipe.migrate.source_tool import Tool
from prefcli.recipe.migrate.trl import quantization


def _trains(data: Mapping[str, Any]) -> set[str]:
    rl, losses = data.get("rl"), data.get("dpo_loss_type")
    if not rl:
        return {"sft"}
    return {"ipo"} if rl == "dpo" and losses == ["ipo"] else {str(rl)} & {*_PREFERENCES}


_PREFERENCES = ("dpo", "ipo", "kto", "orpo", "simpo")


def _defaults(method: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    own: dict[str, Any] = {
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1.0,
        "sequence_len": 512,
        "lr_scheduler": "cosine",
        "warmup_ratio": 0.03,
    }
    if method != "sft" and data.get("orpo_alpha") is None:
        own["rl_beta"] = 0.1
    if method == "sft":
        own["train_on_inputs"] = False
    if method == "kto":
        own |= {"kto_desirable_weight": 1.0, "kto_undesirable_weight": 1.0}
    if method == "simpo":
        own["cpo_alpha"] = 1.0
    return own | ({"lora_dropout": 0.0} if data.get("adapter") else {})


_SPEED = "it changes memory or speed, not what is trained"
_LOOK = "the file beside the weights says it"
_CACHE = "prefcli keeps converted rows in datasets' cache"

TABLE: Table = {
    # The data first: evaluation has a meaning only with data.eval.
    "datasets": (data := MultiKeyRule(translate_data, "data.train", "data.eval")),
    "test_datasets": data,
    "val_set_size": data,
    "train_on_inputs": data,
    **{
        key: training_arguments.TABLE[key]
        for key in (
            *("output_dir", "seed", "max_steps", "learning_rate", "weight_decay", "adam_beta1"),
            *("adam_beta2", "adam_epsilon", "max_grad_norm", "logging_steps", "save_total_limit"),
            *("bf16", "fp16", "tf32", "hub_model_id", "hub_strategy", "hub_revision"),
            *("resume_from_checkpoint", "gradient_checkpointing_kwargs", "remove_unused_columns"),
            *("save_only_model", "save_safetensors", "ddp_timeout", "ddp_find_unused_parameters"),
            *("deepspeed", "fsdp", "fsdp_config", "local_rank", "torch_compile"),
            *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
            *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
            *("group_by_length", "auto_find_batch_size", "optim_args", "neftune_noise_alpha"),
            *("dataloader_drop_last", "accelerator_config", "torch_empty_cache_steps"),
        )
    },
    "rl": (loss := MultiKeyRule(parts.loss, "dpo.loss_type", "dpo.loss_weights")),
    "dpo_loss_type": loss,
    "rpo_alpha": loss,
    # model
    "base_model": To("model.name_or_path"),
    "revision_of_model": To("model.revision"),
    "model_type": Drop(_LOOK),
    "tokenizer_type": Drop(_LOOK),
    "is_llama_derived_model": Drop(_LOOK),
    "is_mistral_derived_model": Drop(_LOOK),
    "is_qwen_derived_model": Drop(_LOOK),
    "is_falcon_derived_model": Drop(_LOOK),
    "tokenizer_config": Refuse("prefcli takes the tokenizer beside the weights"),
    "trust_remote_code": Refuse(*REMOTE_CODE),
    "attn_implementation": (
        attention := MultiKeyRule(parts.attention, "model.attn_implementation")
    ),
    "flash_attention": attention,
    "sdp_attention": attention,
    "eager_attention": attention,
    "flex_attention": attention,
    "chat_template": (template := MultiKeyRule(parts.template, "model.chat_template")),
    "chat_template_jinja": template,
    "load_in_4bit": (bits := MultiKeyRule(quantization, "model.quantization")),
    "load_in_8bit": bits,
    "special_tokens": MultiKeyRule(parts.special_tokens),
    "tokens": Refuse("prefcli adds no tokens"),
    "eot_tokens": Refuse("prefcli trains with the tokenizer as it is"),
    "default_system_message": Refuse("prefcli adds no system message", "put it into the data"),
    # lora
    "adapter": (lora := MultiKeyRule(parts.lora, "lora.target_modules", *parts.LORA.values())),
    "lora_target_linear": lora,
    "lora_target_modules": lora,
    **dict.fromkeys(parts.LORA, lora),
    "lora_model_dir": Refuse(
        "prefcli takes an adapter for the model itself",
        "write it as base_model here, and model.adapter: continue, stack or merge there",
    ),
    "lora_modules_to_save": Refuse("prefcli trains adapters only, no whole layers beside them"),
    "lora_target_parameters": Refuse("prefcli adapts layers, not single parameters"),
    "lora_fan_in_fan_out": Refuse("prefcli has no such layers"),
    "loraplus_lr_ratio": Refuse("prefcli has one learning rate"),
    "relora": Refuse("prefcli has no ReLoRA"),
    # data
    "sequence_len": To("data.max_length"),
    "excess_length_strategy": Drop("prefcli cuts the end of what is too long, and counts it"),
    "dataset_processes": To("data.num_proc"),
    "dataset_num_proc": To("data.num_proc"),
    "dataset_prepared_path": Drop(_CACHE),
    "dataset_exact_deduplication": Refuse("prefcli drops no repeated rows"),
    "shuffle_merged_datasets": Refuse("prefcli draws rows in random order", harmless=(True,)),
    "pretraining_dataset": Refuse("prefcli trains on demonstrations and preferences"),
    "streaming": Refuse("prefcli reads data from files, whole"),
    "sample_packing": MultiKeyRule(parts.packing, "sft.packing"),
    "eval_sample_packing": Drop("evaluation rows are packed as training rows are"),
    "pad_to_sequence_len": Drop(_SPEED),
    # methods
    "rl_beta": To("dpo.beta", "ipo.beta", "kto.beta", "orpo.lambda", "simpo.beta"),
    "dpo_beta": To("dpo.beta", "ipo.beta"),
    "orpo_alpha": To("orpo.lambda"),
    "simpo_gamma": To("simpo.gamma"),
    "cpo_alpha": To("simpo.cpo_alpha"),
    "kto_desirable_weight": To("kto.desirable_weight"),
    "kto_undesirable_weight": To("kto.undesirable_weight"),
    "dpo_loss_weights": To("dpo.loss_weights"),
    "dpo_label_smoothing": To("dpo.label_smoothing"),
    "dpo_use_weighting": Refuse("prefcli does not weigh pairs by the policy (WPO)"),
    "dpo_norm_loss": Refuse("write dpo_loss_type: [sigmoid_norm], if that is meant"),
    "dpo_padding_free": Drop(_SPEED),
    "dpo_use_liger_kernel": Drop(_SPEED),
    "dpo_use_logits_to_keep": Drop(_SPEED),
    "precompute_ref_log_probs": To("reference.precompute"),
    # training
    "num_epochs": To("training.num_train_epochs"),
    "micro_batch_size": (rows := batch("micro_batch_size", "gradient_accumulation_steps")),
    "gradient_accumulation_steps": rows,
    "batch_size": Refuse(
        "it has another meaning with each number of devices",
        "write gradient_accumulation_steps instead",
    ),
    "optimizer": To("training.optim", read=training_arguments.optimizer),
    "lr_scheduler": (
        schedule := MultiKeyRule(
            parts.schedule, "training.lr_scheduler_type", "training.min_lr_ratio"
        )
    ),
    "cosine_min_lr_ratio": schedule,
    "cosine_constant_lr_ratio": Refuse("prefcli's cosine does not end in a constant"),
    "warmup_ratio": (warm := warm_up("lr_scheduler")),
    "warmup_steps": warm,
    "gradient_checkpointing": To("training.gradient_checkpointing", read=parts.checkpointing),
    "eval_strategy": (evals := evaluation("eval_batch_size", "eval_strategy")),
    "eval_steps": evals,
    "eval_batch_size": evals,
    "save_strategy": (saves := saving()),
    "save_steps": saves,
    "evals_per_epoch": (epochs := MultiKeyRule(parts.epochs)),
    "saves_per_epoch": epochs,
    "early_stopping_patience": Refuse("prefcli keeps the last weights and stops at the last step"),
    "loss_watchdog_threshold": Drop("prefcli stops by itself when a loss is not finite"),
    "loss_watchdog_patience": Drop("prefcli stops by itself when a loss is not finite"),
    "save_first_step": Drop("prefcli --dry-run tries the output folder"),
    # reporting
    "wandb_project": (
        reports := MultiKeyRule(parts.trackers, "logging.report_to", "logging.run_name")
    ),
    "use_wandb": reports,
    "mlflow_experiment_name": reports,
    "use_mlflow": reports,
    "wandb_name": reports,
    "wandb_run_id": reports,
    "wandb_entity": Drop("the environment says it: WANDB_ENTITY"),
    "wandb_watch": Drop("the environment says it: WANDB_WATCH"),
    "wandb_log_model": Drop("the environment says it: WANDB_LOG_MODEL"),
    "wandb_mode": Drop("the environment says it: WANDB_MODE"),
    "use_swanlab": Refuse("prefcli does not report to SwanLab"),
    "use_comet": Refuse("prefcli does not report to Comet"),
    "use_tensorboard": Refuse("write logging.report_to: [tensorboard] in the recipe, not here"),
    # speed
    "activation_offloading": Drop(_SPEED),
    "low_cpu_mem_usage": Drop(_SPEED),
    "flash_attn_cross_entropy": Drop(_SPEED),
    "flash_attn_rms_norm": Drop(_SPEED),
    "flash_attn_fuse_mlp": Drop(_SPEED),
    "lora_mlp_kernel": Drop(_SPEED),
    "lora_qkv_kernel": Drop(_SPEED),
    "lora_o_kernel": Drop(_SPEED),
    "liger_rope": Drop(_SPEED),
    "liger_rms_norm": Drop(_SPEED),
    "liger_glu_activation": Drop(_SPEED),
    "liger_layer_norm": Drop(_SPEED),
    "liger_fused_linear_cross_entropy": Drop(_SPEED),
    "plugins": Refuse("prefcli loads no plugins"),
    "strict": Drop("prefcli is always strict"),
    "debug": Drop("prefcli METHOD --dry-run shows the plan"),
    "fsdp_version": Drop("how a run is spread over devices is the launcher's"),
}

AXOLOTL = Tool("axolotl", frozenset({"base_model"}), TABLE, _defaults, _trains, named_by="rl")
