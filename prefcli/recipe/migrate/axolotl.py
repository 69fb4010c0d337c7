"""axolotl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefcli.recipe.migrate import hf
from prefcli.recipe.migrate.axolotl_data import translate_data
from prefcli.recipe.migrate.base import Draft, Drop, Joint, Refuse, Table, To, gone, is_on
from prefcli.recipe.migrate.joints import (
    batch,
    evaluation,
    put_lora,
    put_min_lr,
    saving,
    warm_up,
)
from prefcli.recipe.migrate.tool import Tool
from prefcli.recipe.migrate.trl import quantization

_LORA = {
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "peft_use_rslora": "lora.use_rslora",
    "peft_use_dora": "lora.use_dora",
}


def _trains(data: Mapping[str, Any]) -> set[str]:
    rl, losses = data.get("rl"), data.get("dpo_loss_type")
    if not rl:
        return {"sft"}
    return {"ipo"} if rl == "dpo" and losses == ["ipo"] else {rl} & set(_REINFORCED)


_REINFORCED = ("dpo", "ipo", "kto", "orpo", "simpo")


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


def _lora(draft: Draft) -> None:
    kind = draft.given("adapter")
    linear, modules = draft.given("lora_target_linear"), draft.given("lora_target_modules")
    if kind not in ("lora", "qlora", None):
        draft.settled |= {"lora_target_linear", "lora_target_modules", *_LORA}
        draft.refuse("adapter", f"prefcli has no {kind!r}", "it has lora")
        return
    if kind is None:
        for key in ("adapter", "lora_target_linear", "lora_target_modules", *_LORA):
            draft.drop(key, "adapter is not set, so nothing reads it")
        return
    draft.drop("adapter", "the lora section says it")
    put_lora(draft, _LORA)
    for key in ("lora_r", "lora_alpha"):
        if draft.given(key) is None:
            draft.refuse("adapter", f"{key} is missing")
    if is_on(linear):
        draft.put("lora.target_modules", "all-linear", "lora_target_linear")
        draft.drop("lora_target_modules", "lora_target_linear takes all linear layers")
    elif modules:
        draft.drop("lora_target_linear", "it is off")
        draft.put("lora.target_modules", modules, "lora_target_modules")
    else:
        draft.refuse("adapter", "neither lora_target_linear nor lora_target_modules is given")


def _schedule(draft: Draft) -> None:
    if draft.given("learning_rate") is None:
        draft.refuse("learning_rate", "is missing, and axolotl has no default")
    ratio, kind = draft.given("cosine_min_lr_ratio"), draft.value("lr_scheduler")
    if ratio and kind == "cosine":
        put_min_lr(draft, ratio, "cosine_min_lr_ratio", scheduler="lr_scheduler")
        return
    draft.put("training.lr_scheduler_type", kind, "lr_scheduler")
    draft.drop("cosine_min_lr_ratio", "only a cosine reads it")
    ratio_assumed = draft.given("warmup_ratio") is None and draft.given("warmup_steps") is None
    if ratio_assumed and kind != "constant":
        draft.remark("axolotl's default warm-up is 3 % of the steps, but at most 100 of them")


def _template(draft: Draft) -> None:
    name, jinja = draft.given("chat_template"), draft.given("chat_template_jinja")
    if name in (None, "jinja") and jinja:
        draft.put("model.chat_template", jinja, "chat_template_jinja")
        draft.drop("chat_template", "model.chat_template says it")
    elif name == "tokenizer_default":
        draft.drop("chat_template", "the tokenizer's own is prefcli's default")
        draft.drop("chat_template_jinja", "chat_template does not name it")
    elif name is not None:
        draft.refuse(
            "chat_template",
            f"{name!r} is a template inside axolotl, which prefcli lacks",
            "write tokenizer_default, if that is the same; or jinja, and it in chat_template_jinja",
        )


def _epochs(draft: Draft) -> None:
    """So often an epoch: a number of steps that is not in the file."""
    for key, path in (("evals_per_epoch", "eval_steps"), ("saves_per_epoch", "save_steps")):
        if draft.given(key) is None:
            continue
        reason = f"prefcli counts steps: training.{path}"
        off = key == "evals_per_epoch" and "data.eval" not in draft.values
        draft.drop(key, "there is no evaluation" if off else reason)
        if not off:
            draft.remark(f"{key} {draft.given(key)}: write it in steps, as training.{path}")


def _special_tokens(draft: Draft) -> None:
    given = draft.given("special_tokens")
    for name, token in (given if isinstance(given, dict) else {}).items():
        if name == "pad_token" or token is None:
            reason = "padding is masked by position, whatever the token"
            draft.drop("special_tokens", reason, name)
        else:
            draft.refuse(
                "special_tokens",
                "prefcli trains with the tokenizer as it is",
                "set it in the tokenizer's own files; or take it out, if it is set there already",
                name,
            )


def _packing(draft: Draft) -> None:
    if not is_on(draft.given("sample_packing")):
        draft.drop("sample_packing", "it is off")
    elif draft.method == "sft":
        draft.put("sft.packing", True, "sample_packing")
    else:
        draft.refuse("sample_packing", f"{draft.method} does not pack rows")


def _loss(draft: Draft) -> None:
    if draft.method == "simpo" and draft.given("simpo_gamma") is None:
        draft.refuse("simpo_gamma", "is missing, and axolotl has no default")
    losses, alpha = draft.given("dpo_loss_type"), draft.given("rpo_alpha")
    if losses is not None and draft.method == "dpo":
        single = losses[0] if isinstance(losses, list) and len(losses) == 1 else losses
        draft.put("dpo.loss_type", single, "dpo_loss_type")
    draft.drop("rl", f"the {draft.method} section says it")
    if losses == ["ipo"] and draft.method == "ipo":
        draft.drop("dpo_loss_type", "the ipo section says it")
    if alpha is not None and draft.method == "dpo" and losses is None:
        draft.put("dpo.loss_type", ["sigmoid", "sft"], "rpo_alpha")
        draft.put("dpo.loss_weights", [1.0, alpha], "rpo_alpha")


def _trackers(draft: Draft) -> None:
    names = {"wandb": "wandb_project", "mlflow": "mlflow_experiment_name"}
    found = [name for name, key in names.items() if draft.given(key) or draft.given(f"use_{name}")]
    if found:
        key = names[found[0]]
        draft.put("logging.report_to", found, key if key in draft.data else f"use_{found[0]}")
    name_key = next((k for k in ("wandb_name", "wandb_run_id") if draft.given(k)), None)
    if found and name_key:
        draft.put("logging.run_name", draft.given(name_key), name_key)
    for name, key in names.items():
        if draft.given(key):
            draft.drop(key, "the tracker's own variables name the project, as WANDB_PROJECT does")
        if draft.given(f"use_{name}") is not None:
            draft.drop(f"use_{name}", "logging.report_to says it")
    for key in ("wandb_name", "wandb_run_id"):
        if key not in draft.settled and draft.given(key):
            draft.drop(key, "no tracker reads it")


def _attention(draft: Draft) -> None:
    kinds = {
        "flash_attention": "flash_attention_2",
        "sdp_attention": "sdpa",
        "eager_attention": "eager",
        "flex_attention": "flex_attention",
    }
    if (named := draft.given("attn_implementation")) is not None:
        draft.put("model.attn_implementation", named, "attn_implementation")
    for key, name in kinds.items():
        if is_on(draft.given(key)) and named is None:
            draft.put("model.attn_implementation", name, key)
        else:
            draft.drop(key, "it is off" if named is None else "attn_implementation says it")


def _checkpointing(value: Any) -> Any:
    """offload and the like checkpoint too, and put the rest elsewhere."""
    return True if isinstance(value, str) and is_on(value) else value


_SPEED = "it changes memory or speed, not what is trained"
_LOOK = "the file beside the weights says it"
_CACHE = "prefcli keeps converted rows in datasets' cache"

TABLE: Table = {
    # The data first: evaluation has a meaning only with data.eval.
    "datasets": (data := Joint(translate_data, "data.train", "data.eval")),
    "test_datasets": data,
    "val_set_size": data,
    "train_on_inputs": data,
    **{
        key: hf.TABLE[key]
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
    "rl": (loss := Joint(_loss, "dpo.loss_type", "dpo.loss_weights")),
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
    "trust_remote_code": Refuse(
        gone("trust_remote_code"), "if the model needs no code of its own, take the line out"
    ),
    "attn_implementation": (attention := Joint(_attention, "model.attn_implementation")),
    "flash_attention": attention,
    "sdp_attention": attention,
    "eager_attention": attention,
    "flex_attention": attention,
    "chat_template": (template := Joint(_template, "model.chat_template")),
    "chat_template_jinja": template,
    "load_in_4bit": (bits := Joint(quantization, "model.quantization")),
    "load_in_8bit": bits,
    "special_tokens": Joint(_special_tokens),
    "tokens": Refuse("prefcli adds no tokens"),
    "eot_tokens": Refuse("prefcli trains with the tokenizer as it is"),
    "default_system_message": Refuse("prefcli adds no system message", "put it into the data"),
    # lora
    "adapter": (lora := Joint(_lora, "lora.target_modules", *_LORA.values())),
    "lora_target_linear": lora,
    "lora_target_modules": lora,
    **dict.fromkeys(_LORA, lora),
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
    "sample_packing": Joint(_packing, "sft.packing"),
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
    "optimizer": To("training.optim", read=hf.optimizer),
    "lr_scheduler": (schedule := Joint(_schedule, "training.lr_scheduler_type")),
    "cosine_min_lr_ratio": schedule,
    "cosine_constant_lr_ratio": Refuse("prefcli's cosine does not end in a constant"),
    "warmup_ratio": (warm := warm_up("lr_scheduler")),
    "warmup_steps": warm,
    "gradient_checkpointing": To("training.gradient_checkpointing", read=_checkpointing),
    "eval_strategy": (evals := evaluation("eval_batch_size", "eval_strategy")),
    "eval_steps": evals,
    "eval_batch_size": evals,
    "save_strategy": (saves := saving()),
    "save_steps": saves,
    "evals_per_epoch": (epochs := Joint(_epochs)),
    "saves_per_epoch": epochs,
    "early_stopping_patience": Refuse("prefcli keeps the last weights and stops at the last step"),
    "loss_watchdog_threshold": Drop("prefcli stops by itself when a loss is not finite"),
    "loss_watchdog_patience": Drop("prefcli stops by itself when a loss is not finite"),
    "save_first_step": Drop("prefcli --dry-run tries the output folder"),
    # reporting
    "wandb_project": (reports := Joint(_trackers, "logging.report_to", "logging.run_name")),
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
