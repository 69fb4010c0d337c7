"""The table of all tools' keys: what each becomes, or why it is dropped or refused.

A setting that several tools have is listed once, by trl's name; names.py has the other names, and
reasons.py the keys that become nothing. The rules of the data come first in a tool's table, as
evaluation needs data.eval.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefcli.methods import METHODS
from prefcli.recipe.migrate import (
    axolotl_data,
    llama_factory_data,
    method_settings,
    model_settings,
    oumi_data,
    output_settings,
    training_settings,
    trl_data,
)
from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.names import NOT_IN
from prefcli.recipe.migrate.reasons import reasons
from prefcli.recipe.migrate.rules import Rename, Rule, RuleTable, Together, is_on, switch

_OPTIMIZERS = {
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_bnb_8bit": "paged_adamw_8bit",
    "adamw_hf": "adamw_torch",
}
"""transformers' other names of the same optimizers."""


def _renamed(paths: str) -> dict[str, Rule]:
    """Return the rules of keys that become a path: `section.key`, or `key=section.other`."""
    rules: dict[str, Rule] = {}
    for word in paths.split():
        key, _, path = word.rpartition("=")
        rules[key or path.rpartition(".")[2]] = Rename(path)
    return rules


def _together(
    translate: Callable[[Draft], None], keys: str, otherwise: str = ""
) -> dict[str, Rule]:
    return dict.fromkeys(keys.split(), Together(translate, otherwise))


def _name_in(names: dict[str, str]) -> Callable[[Any], Any]:
    """Return a reader of values that may have other names."""
    return lambda value: names.get(value, value) if isinstance(value, str) else value


def _gradient_checkpointing(value: Any) -> Any:
    """Return true for `offload` and the like, which also store activations elsewhere."""
    return True if isinstance(value, str) and is_on(value) else value


_SETTINGS: dict[str, Rule] = {
    **_renamed("""
        output_dir seed dataset_num_proc=data.num_proc training.num_train_epochs
        training.learning_rate training.weight_decay training.max_grad_norm training.adam_beta1
        training.adam_beta2 training.adam_epsilon training.logging_steps training.save_total_limit
        model.eos_token data.max_length dpo.ld_alpha kto.desirable_weight
        kto.undesirable_weight cpo.alpha sft.assistant_only_loss sft.completion_only_loss
        chat_template_path=model.chat_template precompute_ref_log_probs=reference.precompute
        ref_model_name_or_path=reference.name_or_path
    """),
    "beta": Rename(*(f"{m.name}.{m.strength_key}" for m in METHODS.values() if m.strength_key)),
    "label_smoothing": Rename("dpo.label_smoothing", "cpo.label_smoothing"),
    "cpo_alpha": Rename("simpo.cpo_alpha", "cpo.cpo_alpha"),
    "gradient_checkpointing": Rename(
        "training.gradient_checkpointing", read=_gradient_checkpointing
    ),
    "disable_gradient_checkpointing": switch("training.gradient_checkpointing", False, True),
    "pure_bf16": switch("model.dtype", "bfloat16"),
    "bfloat16": switch("model.dtype", "bfloat16"),
    "float16": switch("model.dtype", "float16"),
    "use_dft_loss": switch("sft.loss_type", "dft"),
    "optim": Rename("training.optim", read=_name_in(_OPTIMIZERS)),
    "max_steps": Rename(
        "training.max_steps", read=lambda steps: None if steps in (-1, 0) else steps
    ),
    "load_in_4bit": switch("model.quantization", "4bit"),
    "load_in_8bit": switch("model.quantization", "8bit"),
    "quantization_bit": Rename("model.quantization", read=lambda bits: f"{bits}bit"),
    "attn_implementation": Rename(
        "model.attn_implementation", read=_name_in(model_settings.ATTENTION)
    ),
    "use_flash_attention_2": switch("model.attn_implementation", "flash_attention_2"),
    "flash_attention": switch("model.attn_implementation", "flash_attention_2"),
    "sdp_attention": switch("model.attn_implementation", "sdpa"),
    "eager_attention": switch("model.attn_implementation", "eager"),
    "flex_attention": switch("model.attn_implementation", "flex_attention"),
    **_together(
        model_settings.start,
        "model_name_or_path model_revision adapter_name_or_path create_new_adapter",
        "the starting adapter's adapter_config.json names its base",
    ),
    **_together(
        model_settings.tokenizer, "tokenizer_name_or_path", "it is the model's own tokenizer"
    ),
    **_together(
        model_settings.remote_code,
        "trust_remote_code",
        "transformers has the classes of most models",
    ),
    **_together(
        model_settings.dtype,
        "dtype bf16 fp16 mixed_precision_dtype",
        "the precision follows the device: bfloat16 autocast if it supports it",
    ),
    **_together(
        model_settings.template,
        "chat_template chat_template_jinja",
        "only chat_template: jinja uses the other key",
    ),
    **_together(model_settings.special_tokens, "special_tokens"),
    **_together(
        model_settings.lora,
        " ".join(model_settings.LORA_KEYS),
        "the section lora does not need it",
    ),
    **_together(
        method_settings.train_on_prompt,
        "train_on_prompt",
        "only sft trains on prompts, and on completions alone by default",
    ),
    **_together(method_settings.packing, "packing neat_packing"),
    **_together(method_settings.loss, "loss_type loss_weights rpo_alpha discopop_tau"),
    **_together(method_settings.divergence, "f_divergence_type f_alpha_divergence_coef"),
    **_together(method_settings.margin, "simpo_gamma gamma_beta_ratio"),
    **_together(
        method_settings.completion_length,
        "max_completion_length",
        "trl reads it for encoder-decoder models only",
    ),
    **_together(trl_data.dataset_kwargs, "dataset_kwargs"),
    **_together(
        training_settings.schedule, "lr_scheduler_type lr_scheduler_kwargs cosine_min_lr_ratio"
    ),
    **_together(
        training_settings.warmup,
        "warmup_ratio warmup_steps",
        "warmup_steps overrides warmup_ratio, and a constant schedule has no warmup",
    ),
    **_together(
        training_settings.batch_size, "per_device_train_batch_size gradient_accumulation_steps"
    ),
    **_together(
        training_settings.accelerator, "accelerator_config", "prefcli configures accelerate itself"
    ),
    **_together(
        training_settings.evaluation,
        "eval_strategy eval_steps per_device_eval_batch_size evals_per_epoch",
        "data.eval and training.eval_steps, a number of steps, say when prefcli evaluates",
    ),
    **_together(
        training_settings.early_stopping,
        "load_best_model_at_end early_stopping_patience early_stopping_threshold "
        "metric_for_best_model greater_is_better",
        "training.early_stopping, if the recipe has it, always ends with the best checkpoint",
    ),
    **_together(
        training_settings.saving,
        "save_strategy save_steps saves_per_epoch save_epoch",
        "prefcli saves a checkpoint every training.save_steps",
    ),
    **_together(
        output_settings.push_to_hub,
        "push_to_hub hub_model_id hub_private_repo hub_revision hub_strategy hub_always_push",
        "prefcli pushes the finished model once, if the recipe has a section push_to_hub",
    ),
    **_together(
        output_settings.trackers,
        f"report_to run_name wandb_run_id {output_settings.TRACKER_SWITCHES}",
        "logging.report_to lists the trackers",
    ),
    **reasons(),
}


def _table(tool: str, translate_data: Callable[[Draft], None], *data_keys: str) -> RuleTable:
    """Return the rules of a tool's keys: those of its data, and the settings that it has."""
    keys = " ".join(data_keys)
    data = _together(translate_data, keys)
    return data | {key: rule for key, rule in _SETTINGS.items() if key not in NOT_IN.get(tool, ())}


TABLES: dict[str, RuleTable] = {
    "trl": _table("trl", trl_data.translate, *trl_data.KEYS),
    "W&B": _table("W&B", trl_data.translate, *trl_data.KEYS),
    "alignment-handbook": _table(
        "alignment-handbook", trl_data.translate_mixture, *trl_data.MIXTURE_KEYS, *trl_data.KEYS
    ),
    "LLaMA-Factory": _table(
        "LLaMA-Factory", llama_factory_data.translate, *llama_factory_data.KEYS
    ),
    "oumi": {
        **_table("oumi", oumi_data.translate, "data"),
        **_together(oumi_data.quantization, "q_lora quantization_bit"),
        **_together(oumi_data.tokenizer_options, "tokenizer_kwargs"),
    },
    "axolotl": {
        **_table("axolotl", axolotl_data.translate, *axolotl_data.KEYS),
        **_together(axolotl_data.plugins, "plugins"),
    },
}
"""The rules of each tool's keys, by trl's names."""
