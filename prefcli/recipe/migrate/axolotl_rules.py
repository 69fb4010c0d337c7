"""Rules for settings that only axolotl spreads over several keys."""

from __future__ import annotations

from typing import Any

from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.rules import is_on
from prefcli.recipe.migrate.shared_rules import put_lora, put_min_lr

LORA = {
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "peft_use_rslora": "lora.use_rslora",
    "peft_use_dora": "lora.use_dora",
}


def lora(draft: Draft) -> None:
    """Translate adapter and its settings."""
    kind = draft.given("adapter")
    is_linear, modules = draft.given("lora_target_linear"), draft.given("lora_target_modules")
    if kind not in ("lora", "qlora", None):
        draft.handled |= {"lora_target_linear", "lora_target_modules", *LORA}
        message = f"prefcli does not have {kind!r}"
        draft.refuse("adapter", message, code="RCP156", hint="write lora")
        return
    if kind is None:
        for key in ("adapter", "lora_target_linear", "lora_target_modules", *LORA):
            draft.drop(key, "adapter is not set")
        return
    draft.drop("adapter", "the section lora replaces it")
    put_lora(draft, LORA)
    for key in ("lora_r", "lora_alpha"):
        if draft.given(key) is None:
            draft.refuse("adapter", f"{key} is missing", code="RCP161", hint=f"write {key}")
    if is_on(is_linear):
        draft.put("lora.target_modules", "all-linear", "lora_target_linear")
        draft.drop("lora_target_modules", "lora_target_linear selects all linear layers")
    elif modules:
        draft.drop("lora_target_linear", "it is off")
        draft.put("lora.target_modules", modules, "lora_target_modules")
    else:
        message = "lora_target_linear or lora_target_modules is missing"
        hint = "write lora_target_linear: true"
        draft.refuse("adapter", message, code="RCP161", hint=hint)


def schedule(draft: Draft) -> None:
    """Translate the learning rate schedule."""
    if draft.given("learning_rate") is None:
        message = "is missing, and axolotl has no default"
        draft.refuse("learning_rate", message, code="RCP161", hint="write learning_rate")
    ratio, kind = draft.given("cosine_min_lr_ratio"), draft.value("lr_scheduler")
    if ratio and kind == "cosine":
        put_min_lr(draft, ratio, "cosine_min_lr_ratio", scheduler="lr_scheduler")
        return
    draft.put("training.lr_scheduler_type", kind, "lr_scheduler")
    draft.drop("cosine_min_lr_ratio", "only a cosine schedule uses it")
    no_warmup_key = draft.given("warmup_ratio") is None and draft.given("warmup_steps") is None
    if no_warmup_key and kind != "constant":
        draft.note("axolotl's default warmup is 3 % of the steps, and at most 100 steps")


def template(draft: Draft) -> None:
    """Translate the chat template."""
    name, jinja = draft.given("chat_template"), draft.given("chat_template_jinja")
    if name in (None, "jinja") and jinja:
        draft.put("model.chat_template", jinja, "chat_template_jinja")
        draft.drop("chat_template", "model.chat_template replaces it")
    elif name == "tokenizer_default":
        draft.drop("chat_template", "prefcli's default is the tokenizer's template")
        draft.drop("chat_template_jinja", "only chat_template: jinja uses it")
    elif name is not None:
        draft.refuse(
            "chat_template",
            f"{name!r} is a template inside axolotl, which prefcli does not have",
            code="RCP156",
            hint="write tokenizer_default if that is the same; or write jinja, and the template "
            "as chat_template_jinja",
        )


def per_epoch(draft: Draft) -> None:
    """Drop the numbers of evaluations and checkpoints per epoch, with a note."""
    for key, path in (("evals_per_epoch", "eval_steps"), ("saves_per_epoch", "save_steps")):
        if draft.given(key) is None:
            continue
        if key == "evals_per_epoch" and "data.eval" not in draft.values:
            draft.drop(key, "there is no evaluation")
        else:
            draft.drop(key, f"prefcli counts steps: training.{path}")
            draft.note(f"{key} {draft.given(key)}: write it in steps, as training.{path}")


def special_tokens(draft: Draft) -> None:
    """Drop the padding token, and refuse other special tokens."""
    given = draft.given("special_tokens")
    for name, token in (given if isinstance(given, dict) else {}).items():
        if name == "pad_token" or token is None:
            draft.drop("special_tokens", "padding is masked by position, whatever its token", name)
        else:
            draft.refuse(
                "special_tokens",
                "prefcli does not change the tokenizer",
                name,
                code="RCP156",
                hint="set it in the tokenizer's files; remove it if it is already set there",
            )


def packing(draft: Draft) -> None:
    """Translate sample_packing."""
    if not is_on(draft.given("sample_packing")):
        draft.drop("sample_packing", "it is off")
    elif draft.method == "sft":
        draft.put("sft.packing", True, "sample_packing")
    else:
        message = f"{draft.method} does not pack rows"
        draft.refuse("sample_packing", message, code="RCP158", hint="remove it")


def loss(draft: Draft) -> None:
    """Translate rl, dpo_loss_type and rpo_alpha."""
    if draft.method == "simpo" and draft.given("simpo_gamma") is None:
        message = "is missing, and axolotl has no default"
        draft.refuse("simpo_gamma", message, code="RCP161", hint="write simpo_gamma")
    losses, alpha = draft.given("dpo_loss_type"), draft.given("rpo_alpha")
    if losses is not None and draft.method == "dpo":
        is_single = isinstance(losses, list) and len(losses) == 1
        draft.put("dpo.loss_type", losses[0] if is_single else losses, "dpo_loss_type")
    draft.drop("rl", f"the section {draft.method} replaces it")
    if losses == ["ipo"] and draft.method == "ipo":
        draft.drop("dpo_loss_type", "the section ipo replaces it")
    if alpha is not None and draft.method == "dpo" and losses is None:
        draft.put("dpo.loss_type", ["sigmoid", "sft"], "rpo_alpha")
        draft.put("dpo.loss_weights", [1.0, alpha], "rpo_alpha")


def trackers(draft: Draft) -> None:
    """Translate the keys of wandb and mlflow."""
    keys = {"wandb": "wandb_project", "mlflow": "mlflow_experiment_name"}
    names = [name for name, key in keys.items() if draft.given(key) or draft.given(f"use_{name}")]
    if names:
        key = keys[names[0]]
        draft.put("logging.report_to", names, key if key in draft.data else f"use_{names[0]}")
    run_name_key = next((k for k in ("wandb_name", "wandb_run_id") if draft.given(k)), None)
    if names and run_name_key:
        draft.put("logging.run_name", draft.given(run_name_key), run_name_key)
    for name, key in keys.items():
        if draft.given(key):
            draft.drop(key, "set the project in the tracker's variable, such as WANDB_PROJECT")
        if draft.given(f"use_{name}") is not None:
            draft.drop(f"use_{name}", "logging.report_to replaces it")
    for key in ("wandb_name", "wandb_run_id"):
        if key not in draft.handled and draft.given(key):
            draft.drop(key, "only trackers use it")


def attention(draft: Draft) -> None:
    """Translate attn_implementation, or the flags of its older form."""
    flags = {
        "flash_attention": "flash_attention_2",
        "sdp_attention": "sdpa",
        "eager_attention": "eager",
        "flex_attention": "flex_attention",
    }
    if (given := draft.given("attn_implementation")) is not None:
        draft.put("model.attn_implementation", given, "attn_implementation")
    for key, name in flags.items():
        if is_on(draft.given(key)) and given is None:
            draft.put("model.attn_implementation", name, key)
        else:
            draft.drop(key, "it is off" if given is None else "attn_implementation overrides it")


def gradient_checkpointing(value: Any) -> Any:
    """Return true for `offload` and the like, which also store activations elsewhere."""
    return True if isinstance(value, str) and is_on(value) else value
