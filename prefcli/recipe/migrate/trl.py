"""trl: the arguments of its scripts in a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from prefcli.methods.dpo import PairLoss
from prefcli.methods.kto import Kto
from prefcli.methods.sft import Sft
from prefcli.recipe.migrate import training_arguments
from prefcli.recipe.migrate.base import (
    REMOTE_CODE,
    Draft,
    Drop,
    MultiKeyRule,
    Refuse,
    Table,
    To,
    gone,
    is_on,
)
from prefcli.recipe.migrate.shared_rules import put_lora
from prefcli.recipe.migrate.source_tool import Tool, by_keys
from prefcli.recipe.migrate.trl_data import data_by_name, dataset_kwargs

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
            draft.drop(key, "use_peft is not on, so nothing reads it")
        return
    draft.drop("use_peft", "the lora section says it")
    if not draft.given("lora_target_modules"):
        draft.refuse(
            "use_peft",
            "without lora_target_modules peft chooses the layers by the model's architecture",
            "name them: lora_target_modules: all-linear, or a list",
        )
    put_lora(draft, _LORA)


def quantization(draft: Draft) -> None:
    four, eight = is_on(draft.given("load_in_4bit")), is_on(draft.given("load_in_8bit"))
    if four:
        draft.put("model.quantization", "4bit", "load_in_4bit")
    elif eight:
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
                "'auto' is the type in the checkpoint's own files; prefcli's auto is float32 with "
                "bfloat16 autocast",
                "write the type: float32, bfloat16 or float16",
            )
        elif value is None:
            draft.drop(key, "prefcli's auto: float32 weights, bfloat16 autocast on a GPU with it")
        else:
            draft.put("model.dtype", value, key)
            if value == "bfloat16" and not is_on(draft.given("use_peft")):
                draft.remark(
                    "model.dtype bfloat16: the trained weights themselves are bfloat16, which "
                    "rounds small updates away; leave it out for float32 with bfloat16 autocast"
                )


def _loss(draft: Draft) -> None:
    """loss_type names a loss in DPO, KTO and SFT, and in CPO the method."""
    given = draft.given("loss_type")
    single = given[0] if isinstance(given, list) and len(given) == 1 else given
    if given is None and draft.method == "simpo" and "gamma_beta_ratio" not in draft.data:
        draft.refuse("loss_type", "is missing; trl's CPO is SimPO only with loss_type: simpo")
    elif given is None:
        pass
    elif single == draft.method or "gamma_beta_ratio" in draft.data:
        # ipo of DPOConfig, simpo of CPOConfig or of its authors' own trainer, kto.
        draft.drop("loss_type", f"the {draft.method} section says it")
    elif draft.method in ("dpo", "kto", "sft"):
        draft.put(f"{draft.method}.loss_type", single, "loss_type")
    else:
        draft.refuse("loss_type", f"{draft.method} has no loss_type")
    _weighted(draft, single)


def _weighted(draft: Draft, loss: Any) -> None:
    weights, alpha = draft.given("loss_weights"), draft.given("rpo_alpha")
    if weights is not None and draft.method == "dpo":
        draft.put("dpo.loss_weights", weights, "loss_weights")
    if alpha is None:
        return
    if draft.method != "dpo" or isinstance(loss, list):
        draft.refuse("rpo_alpha", "an SFT term goes with one loss of dpo")
        return
    draft.put("dpo.loss_type", [loss or "sigmoid", "sft"], "rpo_alpha")
    draft.put("dpo.loss_weights", [1.0, alpha], "rpo_alpha")


def _divergence(draft: Draft) -> None:
    """f_alpha_divergence_coef has no effect beside another divergence."""
    kind, alpha = draft.given("f_divergence_type"), draft.given("f_alpha_divergence_coef")
    if kind is not None:
        draft.put("dpo.f_divergence_type", kind, "f_divergence_type")
    if kind == "alpha_divergence" and alpha is not None:
        draft.put("dpo.f_alpha_divergence_coef", alpha, "f_alpha_divergence_coef")
    else:
        draft.drop("f_alpha_divergence_coef", "without alpha_divergence nothing reads it")


def _margin(draft: Draft) -> None:
    """simpo_gamma, or the SimPO authors' ratio of it to beta."""
    ratio = draft.given("gamma_beta_ratio")
    if draft.method != "simpo":
        return
    if ratio is None:
        draft.put("simpo.gamma", draft.value("simpo_gamma"), "simpo_gamma")
    elif isinstance(beta := draft.value("beta"), int | float) and isinstance(ratio, int | float):
        draft.put("simpo.gamma", ratio * beta, "gamma_beta_ratio")
    else:
        draft.refuse("gamma_beta_ratio", "is not a number to multiply beta with")


_ONLY = {
    "dpo": ("loss_weights", "rpo_alpha", "f_divergence_type", "f_alpha_divergence_coef"),
    "simpo": ("simpo_gamma", "gamma_beta_ratio"),
    "sft": ("max_seq_length", "dataset_text_field", "dataset_kwargs", "eos_token"),
}
"""Keys of one method's configuration, beside those that go to its section alone."""


def _trains(data: Mapping[str, Any]) -> set[str]:
    fit = by_keys(TABLE, data)
    for method, keys in _ONLY.items():
        if any(data.get(key) is not None for key in keys):
            fit &= {method}
    loss = data.get("loss_type")
    single = loss[0] if isinstance(loss, list) and len(loss) == 1 else loss
    if single in ("ipo", "simpo"):
        return fit & {single}
    if isinstance(single, list):
        return fit & {"dpo"}
    if isinstance(single, str) and "gamma_beta_ratio" not in data:
        fit &= {method for method, losses in _LOSSES.items() if single in losses}
    return fit


_LOSSES = {
    method: get_args(options.model_fields["loss_type"].annotation)
    for method, options in (("kto", Kto), ("sft", Sft))
} | {"dpo": get_args(PairLoss)}


def _defaults(method: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """trl 1.16's, where they are not prefcli's."""
    rate = {"learning_rate": 2e-5 if method == "sft" else 1e-6}
    own: dict[str, Any] = {}
    if method == "kto":
        own = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    elif method == "simpo" and "gamma_beta_ratio" in data:
        own = {"beta": 2.0, "cpo_alpha": 0.0}
    elif method == "simpo":
        own = {"beta": 0.1, "simpo_gamma": 0.5, "cpo_alpha": 1.0}
    adapter = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
    return (
        training_arguments.DEFAULTS | rate | own | (adapter if is_on(data.get("use_peft")) else {})
    )


_TOKENIZER = "prefcli trains with the tokenizer as it is"
_FRAMES = "prefcli keeps whole rows together when it packs"
_MEMORY = "it changes memory or speed, not what is trained"

TABLE: Table = {
    # The data first: evaluation has a meaning only with data.eval.
    "dataset_name": (data := MultiKeyRule(data_by_name, "data.train", "data.eval")),
    "dataset_config": data,
    "dataset_train_split": data,
    "dataset_test_split": data,
    "dataset_text_field": data,
    "datasets": data,
    "test_split_size": data,
    **training_arguments.TABLE,
    # model
    "model_name_or_path": To("model.name_or_path"),
    "model_revision": To("model.revision"),
    "dtype": (dtype := MultiKeyRule(_dtype, "model.dtype")),
    "torch_dtype": dtype,
    "attn_implementation": To("model.attn_implementation"),
    "chat_template_path": To("model.chat_template"),
    "load_in_4bit": (bits := MultiKeyRule(quantization, "model.quantization")),
    "load_in_8bit": bits,
    "bnb_4bit_quant_type": Refuse("prefcli's 4bit is nf4", harmless=("nf4",)),
    "use_bnb_nested_quant": Drop("prefcli's 4bit quantises its own constants too, as QLoRA does"),
    "trust_remote_code": Refuse(*REMOTE_CODE),
    "eos_token": To("model.eos_token"),
    "pad_token": Drop("padding is masked by position, whatever the token"),
    "model_init_kwargs": Refuse("prefcli passes nothing else to the model"),
    # lora
    "use_peft": (lora := MultiKeyRule(_lora, *_LORA.values())),
    **dict.fromkeys(_LORA, lora),
    "lora_task_type": Drop("the task is always causal language modelling"),
    "lora_modules_to_save": Refuse("prefcli trains adapters only, no whole layers beside them"),
    "lora_target_parameters": Refuse("prefcli adapts layers, not single parameters"),
    # data
    "dataset_streaming": Refuse("prefcli reads data from files, whole"),
    "streaming": Refuse("prefcli reads data from files, whole"),
    "dataset_num_proc": To("data.num_proc"),
    "dataset_kwargs": MultiKeyRule(dataset_kwargs),
    "max_length": To("data.max_length"),
    "max_seq_length": To("data.max_length"),
    "max_prompt_length": Drop(gone("max_prompt_length")),
    "max_completion_length": Refuse("prefcli bounds prompt and completion together"),
    "truncation_mode": Refuse(
        "prefcli cuts the end of what is too long, as trl 1.16 does", harmless=("keep_start",)
    ),
    "shuffle_dataset": Drop("rows are drawn in random order anyway"),
    # methods
    "beta": To("dpo.beta", "ipo.beta", "kto.beta", "orpo.lambda", "simpo.beta"),
    "loss_type": (
        loss := MultiKeyRule(
            _loss, "dpo.loss_type", "dpo.loss_weights", "kto.loss_type", "sft.loss_type"
        )
    ),
    "loss_weights": loss,
    "rpo_alpha": loss,
    "label_smoothing": To("dpo.label_smoothing"),
    "ld_alpha": To("dpo.ld_alpha"),
    "f_divergence_type": (
        divergence := MultiKeyRule(
            _divergence, "dpo.f_divergence_type", "dpo.f_alpha_divergence_coef"
        )
    ),
    "f_alpha_divergence_coef": divergence,
    "discopop_tau": To("dpo.discopop_tau"),
    "desirable_weight": To("kto.desirable_weight"),
    "undesirable_weight": To("kto.undesirable_weight"),
    "cpo_alpha": To("simpo.cpo_alpha"),
    "simpo_gamma": (margin := MultiKeyRule(_margin, "simpo.gamma")),
    "gamma_beta_ratio": margin,
    "precompute_ref_log_probs": To("reference.precompute"),
    "packing": To("sft.packing"),
    "assistant_only_loss": To("sft.assistant_only_loss"),
    "completion_only_loss": To("sft.completion_only_loss"),
    "packing_strategy": Refuse(_FRAMES, harmless=("bfd", "ffd")),
    "eval_packing": Drop("evaluation rows are packed as training rows are"),
    "sync_ref_model": Refuse(gone("sync_ref_model")),
    "ref_model_mixup_alpha": Drop("only sync_ref_model reads it"),
    "ref_model_sync_steps": Drop("only sync_ref_model reads it"),
    "reference_free": Refuse("prefcli's dpo always has a reference", "see simpo or orpo"),
    "use_weighting": Refuse("prefcli does not weigh pairs by the policy (WPO)"),
    "disable_dropout": Refuse("preference training always goes without dropout", harmless=(True,)),
    "sft_weight": Refuse("its SFT term is not trl's; see simpo.cpo_alpha"),
    "generate_during_eval": Drop("prefcli sample writes answers, after training"),
    "precompute_ref_batch_size": Drop(_MEMORY),
    "activation_offloading": Drop(_MEMORY),
    "padding_free": Drop(_MEMORY),
    "pad_to_multiple_of": Drop(_MEMORY),
    "use_logits_to_keep": Drop(_MEMORY),
    "ignore_bias_buffers": Drop(_MEMORY),
}

TRL = Tool("trl", frozenset({"model_name_or_path", "dataset_name"}), TABLE, _defaults, _trains)
