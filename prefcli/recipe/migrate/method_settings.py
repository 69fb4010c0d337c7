"""Settings of the methods that the tools spread over several keys, by trl's names."""

from __future__ import annotations

from typing import Any

from prefcli.methods import METHODS
from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.rules import RuleBook, is_on

RULES = RuleBook()
_LONGEST_PROMPT = 1024
"""Tokens of a prompt for which data.max_length has room, where a tool has no limit."""


@RULES.together(
    "train_on_prompt", "only sft trains on prompts, and on completions alone by default"
)
def train_on_prompt(draft: Draft) -> None:
    """Translate the turns of a conversation that sft trains on."""
    if draft.method == "sft" and is_on(draft.value("train_on_prompt")):
        draft.put("sft.completion_only_loss", False, "train_on_prompt")
    elif draft.method == "sft" and "conversations" in draft.row_types:
        draft.put("sft.assistant_only_loss", True, "train_on_prompt")


@RULES.together("packing neat_packing")
def packing(draft: Draft) -> None:
    """Translate packing, which LLaMA-Factory calls neat_packing if rows do not see each other."""
    attends = draft.tool == "LLaMA-Factory" and not is_on(draft.given("neat_packing"))
    for key in ("packing", "neat_packing"):
        if not is_on(draft.given(key)):
            continue
        if draft.method != "sft":
            message = f"{draft.method} does not pack rows"
            draft.refuse(key, message, code="RCP158", hint="remove it")
        elif attends:
            message = "rows that are packed without neat_packing attend to each other"
            hint = "write neat_packing: true, or remove it"
            draft.refuse("packing", message, code="RCP156", hint=hint)
        else:
            draft.put("sft.packing", True, key)


@RULES.together("max_completion_length", "trl reads it for encoder-decoder models only")
def completion_length(draft: Draft) -> None:
    """Refuse max_completion_length, unless trl only reads it for encoder-decoder models."""
    key = "max_completion_length"
    if draft.method == "rloo":
        length = draft.value(key)
        draft.put("rloo.max_completion_length", length, key)
        if isinstance(length, int):
            # RLOOConfig has no limit for a prompt; prefcli drops and counts longer ones.
            draft.put("data.max_length", _LONGEST_PROMPT + length, key)
    elif draft.given(key) is not None and draft.method in ("sft", "dpo", "ipo"):
        message = "prefcli has one limit for prompt and completion, data.max_length"
        draft.refuse(key, message, code="RCP156", hint="remove it if data.max_length is enough")


@RULES.together("temperature top_p", "only generation uses it")
def sampling(draft: Draft) -> None:
    """Translate how RLOO samples its completions."""
    if draft.method == "rloo":
        draft.put_given("rloo.temperature", "temperature")
        draft.put_given("rloo.top_p", "top_p")


@RULES.together("reward_model_name_or_path reward_funcs")
def judge(draft: Draft) -> None:
    """Translate what scores RLOO's completions."""
    if draft.method != "rloo":
        return
    draft.put_given("judge.reward_model.name_or_path", "reward_model_name_or_path")
    if draft.given("reward_funcs"):
        draft.refuse(
            "reward_funcs",
            "trl calls reward functions with other arguments",
            code="RCP156",
            hint="name a function of (prompts, completions) in judge.function.name",
        )


@RULES.together("loss_type loss_weights rpo_alpha discopop_tau")
def loss(draft: Draft) -> None:
    """Translate the loss and its SFT term. ipo and simpo are losses in trl, methods here."""
    given = draft.given("loss_type")
    losses = given if isinstance(given, list) else [given]
    single = losses[0] if len(losses) == 1 else given
    has_loss = "loss_type" in METHODS[draft.method].model_fields
    if single == "kto_pair":
        message, hint = "trl no longer has kto_pair", "use kto, or the loss aot"
        draft.refuse("loss_type", message, code="RCP156", hint=hint)
    elif single == draft.method or "gamma_beta_ratio" in draft.data:
        # ipo of DPOConfig, kto of KTOConfig, simpo of CPOConfig or of the SimPO authors' trainer.
        draft.drop("loss_type", f"the section {draft.method} replaces it")
    elif given is not None and not has_loss and draft.tool in ("axolotl", "LLaMA-Factory"):
        draft.drop("loss_type", f"{draft.tool} ignores it for {draft.method}")
    elif given is not None and not has_loss:
        draft.refuse(
            "loss_type", f"{draft.method} has no loss_type", code="RCP158", hint="remove it"
        )
    elif given is not None and not is_on(draft.given("rpo_alpha")):
        draft.put(f"{draft.method}.loss_type", single, "loss_type")
    if draft.tool == "LLaMA-Factory" and single in ("hinge", "ipo"):
        draft.note(
            f"LLaMA-Factory with trl 0.24 ignores pref_loss and trains sigmoid; this is {single}"
        )
    if draft.method == "dpo":
        draft.put_given("dpo.loss_weights", "loss_weights")
    if draft.method == "dpo" and "discopop" in losses:
        draft.put_given("dpo.discopop_tau", "discopop_tau")
    else:
        draft.drop("discopop_tau", "only the loss discopop uses it")
    if is_on(draft.given("rpo_alpha")):
        _put_sft_term(draft, single, draft.given("rpo_alpha"))


def _put_sft_term(draft: Draft, single: Any, weight: Any) -> None:
    """Write the weight of the SFT term: of rpo_alpha, or of LLaMA-Factory's pref_ftx."""
    if draft.method == "dpo" and not isinstance(single, list):
        draft.put("dpo.loss_type", [single or "sigmoid", "sft"], "rpo_alpha")
        draft.put("dpo.loss_weights", [1.0, weight], "rpo_alpha")
        draft.drop("loss_type", "dpo.loss_type lists it")
    elif draft.method == "simpo" and draft.tool == "LLaMA-Factory":
        draft.put("simpo.cpo_alpha", weight, "rpo_alpha")
    else:
        message = f"{draft.method} with these losses has no additional SFT term"
        draft.refuse("rpo_alpha", message, code="RCP158", hint="remove it, or write loss_weights")
        return
    if draft.tool == "LLaMA-Factory":
        draft.note(
            "pref_ftx: LLaMA-Factory's SFT term is the mean over rows of each row's mean, and this "
            "one is the mean over tokens, so long responses have more weight"
        )


@RULES.together("f_divergence_type f_alpha_divergence_coef")
def divergence(draft: Draft) -> None:
    """Translate f_divergence_type, with f_alpha_divergence_coef for alpha_divergence."""
    draft.put_given("dpo.f_divergence_type", "f_divergence_type")
    if draft.given("f_divergence_type") == "alpha_divergence":
        draft.put_given("dpo.f_alpha_divergence_coef", "f_alpha_divergence_coef")
    else:
        draft.drop("f_alpha_divergence_coef", "only alpha_divergence uses it")


@RULES.together("simpo_gamma gamma_beta_ratio")
def margin(draft: Draft) -> None:
    """Translate simpo_gamma, or the ratio of gamma to beta in the SimPO authors' trainer."""
    ratio, beta = draft.given("gamma_beta_ratio"), draft.value("beta")
    if draft.method == "cpo" and draft.given("loss_type") == "alphapo":
        draft.put("cpo.gamma", draft.value("simpo_gamma"), "simpo_gamma")
    elif draft.method != "simpo":
        return
    elif ratio is None:
        if (gamma := draft.value("simpo_gamma")) is not None:
            draft.put("simpo.gamma", gamma, "simpo_gamma")
    elif isinstance(beta, int | float) and isinstance(ratio, int | float):
        draft.put("simpo.gamma", ratio * beta, "gamma_beta_ratio")
        draft.note(
            "gamma_beta_ratio is read as that of the SimPO authors' trainer; other trainers with "
            "this key have another loss"
        )
    else:
        draft.refuse("gamma_beta_ratio", "it and beta must be numbers", code="RCP157")
