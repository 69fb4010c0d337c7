"""Settings that axolotl spreads over several keys, or spells in its own way."""

from __future__ import annotations

from typing import Any

from prefcli.recipe.migrate.base import Draft, is_on
from prefcli.recipe.migrate.shared_rules import put_lora, put_min_lr

LORA = {
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "peft_use_rslora": "lora.use_rslora",
    "peft_use_dora": "lora.use_dora",
}


def lora(draft: Draft) -> None:
    kind = draft.given("adapter")
    linear, modules = draft.given("lora_target_linear"), draft.given("lora_target_modules")
    if kind not in ("lora", "qlora", None):
        draft.settled |= {"lora_target_linear", "lora_target_modules", *LORA}
        draft.refuse("adapter", f"prefcli has no {kind!r}", "it has lora")
        return
    if kind is None:
        for key in ("adapter", "lora_target_linear", "lora_target_modules", *LORA):
            draft.drop(key, "adapter is not set, so nothing reads it")
        return
    draft.drop("adapter", "the lora section says it")
    put_lora(draft, LORA)
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


def schedule(draft: Draft) -> None:
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


def template(draft: Draft) -> None:
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


def epochs(draft: Draft) -> None:
    """So often an epoch: a number of steps that is not in the file."""
    for key, path in (("evals_per_epoch", "eval_steps"), ("saves_per_epoch", "save_steps")):
        if draft.given(key) is None:
            continue
        reason = f"prefcli counts steps: training.{path}"
        off = key == "evals_per_epoch" and "data.eval" not in draft.values
        draft.drop(key, "there is no evaluation" if off else reason)
        if not off:
            draft.remark(f"{key} {draft.given(key)}: write it in steps, as training.{path}")


def special_tokens(draft: Draft) -> None:
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


def packing(draft: Draft) -> None:
    if not is_on(draft.given("sample_packing")):
        draft.drop("sample_packing", "it is off")
    elif draft.method == "sft":
        draft.put("sft.packing", True, "sample_packing")
    else:
        draft.refuse("sample_packing", f"{draft.method} does not pack rows")


def loss(draft: Draft) -> None:
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


def trackers(draft: Draft) -> None:
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


def attention(draft: Draft) -> None:
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


def checkpointing(value: Any) -> Any:
    """offload and the like checkpoint too, and put the rest elsewhere."""
    return True if isinstance(value, str) and is_on(value) else value
