"""trl: a YAML file with the arguments of its training scripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from prefcli.methods import METHODS
from prefcli.methods.dpo import PairLoss
from prefcli.methods.kto import Kto
from prefcli.methods.sft import Sft
from prefcli.recipe.migrate import training_arguments
from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.rules import (
    Drop,
    MultiKeyRule,
    Refuse,
    Rename,
    RuleTable,
    is_on,
)
from prefcli.recipe.migrate.shared_rules import SAME_TRAINING, put_lora, remote_code
from prefcli.recipe.migrate.source_tool import SourceTool, methods_with_keys
from prefcli.recipe.migrate.trl_data import DATA_KEYS, dataset_kwargs, translate_data

_LORA = {
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target_modules": "lora.target_modules",
    "use_rslora": "lora.use_rslora",
    "use_dora": "lora.use_dora",
}


def _lora(draft: Draft) -> None:
    if not is_on(draft.given("use_peft")):
        for key in ("use_peft", *_LORA):
            draft.drop(key, "use_peft is off")
        return
    draft.drop("use_peft", "the section lora enables it")
    if not draft.given("lora_target_modules"):
        draft.refuse(
            "use_peft",
            "lora_target_modules is missing, so that peft chooses the layers by architecture",
            code="RCP161",
            hint="write lora_target_modules: all-linear, or a list of layers",
        )
    put_lora(draft, _LORA)


def quantization(draft: Draft) -> None:
    """Translate load_in_4bit and load_in_8bit."""
    if is_on(draft.given("load_in_4bit")):
        draft.put("model.quantization", "4bit", "load_in_4bit")
    elif is_on(draft.given("load_in_8bit")):
        draft.put("model.quantization", "8bit", "load_in_8bit")
    for key in ("load_in_4bit", "load_in_8bit"):
        if not is_on(draft.given(key)):
            draft.drop(key, "it is off")


def _dtype(draft: Draft) -> None:
    for key in ("torch_dtype", "dtype"):
        value = draft.given(key)
        if value == "auto":
            draft.refuse(
                key,
                "'auto' is the dtype of the checkpoint's files; prefcli's auto is float32 with "
                "bfloat16 autocast",
                code="RCP160",
                hint="write float32, bfloat16 or float16",
            )
        elif value is None:
            draft.drop(key, "model.dtype auto: float32 weights, bfloat16 autocast on a GPU")
        else:
            draft.put("model.dtype", value, key)
            if value == "bfloat16" and not is_on(draft.given("use_peft")):
                draft.note(
                    "model.dtype bfloat16 keeps the trained weights in bfloat16, which rounds "
                    "small updates to zero; remove it for float32 with bfloat16 autocast"
                )


def _loss(draft: Draft) -> None:
    """Translate loss_type: a loss of DPO, KTO, SFT and CPO, or the method simpo."""
    given = draft.given("loss_type")
    loss = given[0] if isinstance(given, list) and len(given) == 1 else given
    if given is None and draft.method == "simpo" and "gamma_beta_ratio" not in draft.data:
        draft.refuse(
            "loss_type",
            "is missing, so trl would ignore simpo_gamma",
            code="RCP161",
            hint="write loss_type: simpo",
        )
    elif given is None:
        pass
    elif loss == draft.method or "gamma_beta_ratio" in draft.data:
        # ipo of DPOConfig, kto of KTOConfig, simpo of CPOConfig or of the SimPO authors' trainer.
        draft.drop("loss_type", f"the section {draft.method} replaces it")
    elif "loss_type" in METHODS[draft.method].model_fields:
        draft.put(f"{draft.method}.loss_type", loss, "loss_type")
    else:
        message = f"{draft.method} has no loss_type"
        draft.refuse("loss_type", message, code="RCP158", hint="remove it")
    _loss_weights(draft, loss)


def _loss_weights(draft: Draft, loss: Any) -> None:
    weights, alpha = draft.given("loss_weights"), draft.given("rpo_alpha")
    if weights is not None and draft.method == "dpo":
        draft.put("dpo.loss_weights", weights, "loss_weights")
    if alpha is None:
        return
    if draft.method != "dpo" or isinstance(loss, list):
        message = "only dpo with a single loss takes an SFT term"
        draft.refuse("rpo_alpha", message, code="RCP158", hint="remove it, or write loss_weights")
        return
    draft.put("dpo.loss_type", [loss or "sigmoid", "sft"], "rpo_alpha")
    draft.put("dpo.loss_weights", [1.0, alpha], "rpo_alpha")


def _divergence(draft: Draft) -> None:
    """Translate f_divergence_type, with f_alpha_divergence_coef for alpha_divergence."""
    kind, alpha = draft.given("f_divergence_type"), draft.given("f_alpha_divergence_coef")
    if kind is not None:
        draft.put("dpo.f_divergence_type", kind, "f_divergence_type")
    if kind == "alpha_divergence" and alpha is not None:
        draft.put("dpo.f_alpha_divergence_coef", alpha, "f_alpha_divergence_coef")
    else:
        draft.drop("f_alpha_divergence_coef", "only alpha_divergence uses it")


def _margin(draft: Draft) -> None:
    """Translate simpo_gamma, or the ratio of gamma to beta in the SimPO authors' trainer."""
    ratio = draft.given("gamma_beta_ratio")
    if draft.method == "cpo" and draft.given("loss_type") == "alphapo":
        draft.put("cpo.gamma", draft.value("simpo_gamma"), "simpo_gamma")
    if draft.method != "simpo":
        return
    if ratio is None:
        draft.put("simpo.gamma", draft.value("simpo_gamma"), "simpo_gamma")
    elif isinstance(beta := draft.value("beta"), int | float) and isinstance(ratio, int | float):
        draft.put("simpo.gamma", ratio * beta, "gamma_beta_ratio")
    else:
        draft.refuse("gamma_beta_ratio", "it and beta must be numbers", code="RCP157")


_ONLY = {
    "dpo": ("loss_weights", "rpo_alpha", "f_divergence_type", "f_alpha_divergence_coef"),
    "simpo": ("simpo_gamma", "gamma_beta_ratio"),
    "sft": ("max_seq_length", "dataset_text_field", "dataset_kwargs", "eos_token"),
}
"""Keys of one method's config, in addition to those that are renamed to its section."""


def _candidate_methods(data: Mapping[str, Any]) -> set[str]:
    methods = set(methods_with_keys(TABLE, data))
    for method, keys in _ONLY.items():
        if any(data.get(key) is not None for key in keys):
            methods &= {method}
    given = data.get("loss_type")
    loss = given[0] if isinstance(given, list) and len(given) == 1 else given
    if loss == "alphapo" or (methods == {"cpo", "simpo"} and loss != "simpo"):
        return {"cpo"}  # only CPOConfig has cpo_alpha, and its default loss is sigmoid
    if loss is not None:
        methods -= {"cpo"}
    if loss in ("ipo", "simpo"):
        return methods & {loss}
    if isinstance(loss, list):
        return methods & {"dpo"}
    if isinstance(loss, str) and "gamma_beta_ratio" not in data:
        methods &= {method for method, losses in _LOSSES.items() if loss in losses}
    return methods


_LOSSES = {
    method: get_args(options.model_fields["loss_type"].annotation)
    for method, options in (("kto", Kto), ("sft", Sft))
} | {"dpo": get_args(PairLoss)}


def _defaults(method: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return trl 1.16's defaults that differ from prefcli's."""
    learning_rate = {"learning_rate": 2e-5 if method == "sft" else 1e-6}
    special: dict[str, Any] = {}
    if method == "kto":
        special = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    elif method == "cpo" and data.get("loss_type") == "alphapo":
        special = {"beta": 0.1, "simpo_gamma": 0.5}
    elif method == "simpo" and "gamma_beta_ratio" in data:
        special = {"beta": 2.0, "cpo_alpha": 0.0}
    elif method == "simpo":
        special = {"beta": 0.1, "simpo_gamma": 0.5, "cpo_alpha": 1.0}
    lora = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
    return (
        training_arguments.DEFAULTS
        | learning_rate
        | special
        | (lora if is_on(data.get("use_peft")) else {})
    )


TABLE: RuleTable = {
    # The data comes first: the evaluation rules need data.eval.
    **dict.fromkeys(DATA_KEYS, MultiKeyRule(translate_data, "data.train", "data.eval")),
    **training_arguments.TABLE,
    # model
    "model_name_or_path": Rename("model.name_or_path"),
    "model_revision": Rename("model.revision"),
    "dtype": (dtype := MultiKeyRule(_dtype, "model.dtype")),
    "torch_dtype": dtype,
    "attn_implementation": Rename("model.attn_implementation"),
    "chat_template_path": Rename("model.chat_template"),
    "load_in_4bit": (bits := MultiKeyRule(quantization, "model.quantization")),
    "load_in_8bit": bits,
    "bnb_4bit_quant_type": Refuse("prefcli's 4bit is nf4", harmless=("nf4",)),
    "use_bnb_nested_quant": Drop("prefcli's 4bit always uses double quantization, as QLoRA does"),
    "trust_remote_code": remote_code("model_name_or_path", "model_revision"),
    "eos_token": Rename("model.eos_token"),
    "pad_token": Drop("padding is masked by position, whatever its token"),
    "model_init_kwargs": Refuse("prefcli passes no other arguments to the model"),
    # lora
    "use_peft": (lora := MultiKeyRule(_lora, *_LORA.values())),
    **dict.fromkeys(_LORA, lora),
    "lora_task_type": Drop("the task is always causal language modeling"),
    "lora_modules_to_save": Refuse("prefcli does not train full layers next to an adapter"),
    "lora_target_parameters": Refuse("prefcli adapts modules, not single parameters"),
    # data
    "dataset_streaming": Refuse("prefcli does not stream data"),
    "streaming": Refuse("prefcli does not stream data"),
    "dataset_num_proc": Rename("data.num_proc"),
    "dataset_kwargs": MultiKeyRule(dataset_kwargs),
    "max_length": Rename("data.max_length"),
    "max_seq_length": Rename("data.max_length"),
    "max_prompt_length": Drop(
        "trl 1.x has no prompt limit; data.max_length bounds prompt and completion"
    ),
    "max_completion_length": Refuse(
        "prefcli has one limit for prompt and completion, data.max_length"
    ),
    "truncation_mode": Refuse(
        "prefcli truncates at the end, as trl 1.16 does", harmless=("keep_start",)
    ),
    "shuffle_dataset": Drop("prefcli always shuffles rows"),
    # methods
    "beta": Rename(*(f"{m.name}.{m.strength_key}" for m in METHODS.values() if m.strength_key)),
    "loss_type": (
        loss := MultiKeyRule(
            _loss,
            "dpo.loss_type",
            "dpo.loss_weights",
            "kto.loss_type",
            "sft.loss_type",
            "cpo.loss_type",
        )
    ),
    "loss_weights": loss,
    "rpo_alpha": loss,
    "label_smoothing": Rename("dpo.label_smoothing", "cpo.label_smoothing"),
    "ld_alpha": Rename("dpo.ld_alpha"),
    "f_divergence_type": (
        divergence := MultiKeyRule(
            _divergence, "dpo.f_divergence_type", "dpo.f_alpha_divergence_coef"
        )
    ),
    "f_alpha_divergence_coef": divergence,
    "discopop_tau": Rename("dpo.discopop_tau"),
    "desirable_weight": Rename("kto.desirable_weight"),
    "undesirable_weight": Rename("kto.undesirable_weight"),
    "cpo_alpha": Rename("simpo.cpo_alpha", "cpo.cpo_alpha"),
    "simpo_gamma": (margin := MultiKeyRule(_margin, "simpo.gamma", "cpo.gamma")),
    "alpha": Rename("cpo.alpha"),
    "gamma_beta_ratio": margin,
    "precompute_ref_log_probs": Rename("reference.precompute"),
    "packing": Rename("sft.packing"),
    "assistant_only_loss": Rename("sft.assistant_only_loss"),
    "completion_only_loss": Rename("sft.completion_only_loss"),
    "packing_strategy": Refuse("prefcli's packing does not split rows", harmless=("bfd", "ffd")),
    "eval_packing": Drop("evaluation rows are packed like training rows"),
    "sync_ref_model": Refuse("prefcli never updates the reference model"),
    "ref_model_mixup_alpha": Drop("only sync_ref_model uses it"),
    "ref_model_sync_steps": Drop("only sync_ref_model uses it"),
    "reference_free": Refuse("prefcli's dpo always has a reference", "use simpo or orpo"),
    "use_weighting": Refuse("prefcli does not weight pairs by the policy (WPO)"),
    "disable_dropout": Refuse("prefcli disables dropout in preference training", harmless=(True,)),
    "sft_weight": Refuse("trl has no such SFT term", "write cpo_alpha for the one that trl has"),
    "generate_during_eval": Drop("run `prefcli sample` for generations after training"),
    "precompute_ref_batch_size": Drop(SAME_TRAINING),
    "activation_offloading": Drop(SAME_TRAINING),
    "padding_free": Drop(SAME_TRAINING),
    "pad_to_multiple_of": Drop(SAME_TRAINING),
    "use_logits_to_keep": Drop(SAME_TRAINING),
    "ignore_bias_buffers": Drop(SAME_TRAINING),
}

TRL = SourceTool(
    "trl", frozenset({"model_name_or_path", "dataset_name"}), TABLE, _defaults, _candidate_methods
)
