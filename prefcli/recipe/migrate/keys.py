"""The table of all tools' keys: what each becomes, or why it is dropped or refused.

A setting that several tools have is listed once, by trl's name; names.py has the other names, and
reasons.py the keys that become nothing. Keys that only have a meaning together are registered by
the functions that translate them, in *_settings.py and *_data.py. The rules of the data come first
in a tool's table, as evaluation needs data.eval.
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
from prefcli.recipe.migrate.names import NOT_IN
from prefcli.recipe.migrate.reasons import reasons
from prefcli.recipe.migrate.rules import Rename, Rule, RuleTable, is_on, switch

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
        kto.undesirable_weight rloo.num_generations rloo.normalize_advantages
        rloo.reward_clip_range rloo.mask_truncated_completions cpo.alpha
        sft.assistant_only_loss sft.completion_only_loss
        chat_template_path=model.chat_template precompute_ref_log_probs=reference.precompute
        ref_model_name_or_path=reference.name_or_path
    """),
    "beta": Rename(*(f"{m.name}.{m.strength_key}" for m in METHODS.values() if m.strength_key)),
    "label_smoothing": Rename("dpo.label_smoothing", "cpo.label_smoothing"),
    "center_rewards_coefficient": Rename(
        "reward.center_rewards_coefficient", read=lambda weight: weight or None
    ),
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
    **model_settings.RULES,
    **method_settings.RULES,
    **training_settings.RULES,
    **output_settings.RULES,
    **reasons(),
}


def _table(tool: str, data: RuleTable) -> RuleTable:
    """Return the rules of a tool's keys: those of its data, and of the settings that it has."""
    others = {*data, *NOT_IN.get(tool, ())}
    return {**data, **{key: rule for key, rule in _SETTINGS.items() if key not in others}}


TABLES: dict[str, RuleTable] = {
    "trl": _table("trl", trl_data.RULES),
    "W&B": _table("W&B", trl_data.RULES),
    "alignment-handbook": _table("alignment-handbook", trl_data.RULES | trl_data.MIXTURE_RULES),
    "LLaMA-Factory": _table("LLaMA-Factory", llama_factory_data.RULES),
    "oumi": _table("oumi", oumi_data.RULES),
    "axolotl": _table("axolotl", axolotl_data.RULES),
}
"""The rules of each tool's keys, by trl's names."""
