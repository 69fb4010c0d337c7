"""LLaMA-Factory: its own arguments, in addition to transformers'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefcli.recipe.migrate import training_arguments
from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.llama_factory_data import DATA_KEYS, translate_data
from prefcli.recipe.migrate.rules import (
    Drop,
    MultiKeyRule,
    Refuse,
    Rename,
    RuleTable,
    is_on,
    word_list,
)
from prefcli.recipe.migrate.shared_rules import (
    SAME_TRAINING,
    put_lora,
    remote_code,
)
from prefcli.recipe.migrate.source_tool import SourceTool

_LORA = {
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "use_rslora": "lora.use_rslora",
    "use_dora": "lora.use_dora",
}


def _candidate_methods(data: Mapping[str, Any]) -> set[str]:
    stage, loss = str(data.get("stage", "sft")), data.get("pref_loss") or "sigmoid"
    if stage != "dpo":
        return {stage} & {"sft", "kto"}
    if loss in ("orpo", "simpo"):
        return {str(loss)}
    # With an SFT term (pref_ftx) ipo is one loss of two, which only dpo has.
    return {"ipo"} if loss == "ipo" and not data.get("pref_ftx") else {"dpo"}


def _defaults(method: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    defaults: dict[str, Any] = {"learning_rate": 5e-5, "cutoff_len": 2048, "pref_beta": 0.1}
    if method == "sft":
        defaults["train_on_prompt"] = False
        del defaults["pref_beta"]
    if method == "simpo":
        defaults["simpo_gamma"] = 0.5
    if method == "kto":
        defaults |= {"kto_chosen_weight": 1.0, "kto_rejected_weight": 1.0}
    if (data.get("finetuning_type") or "lora") == "lora":
        rank = data.get("lora_rank") or 8
        defaults |= {"lora_rank": 8, "lora_dropout": 0.0, "lora_target": "all"}
        defaults["lora_alpha"] = 2 * rank if isinstance(rank, int) else None
    return training_arguments.DEFAULTS | defaults


def _lora(draft: Draft) -> None:
    kind = draft.given("finetuning_type") or "lora"
    keys = ("lora_target", *_LORA)
    if kind == "lora":
        draft.drop("finetuning_type", "the section lora replaces it")
        put_lora(draft, _LORA)
        names = word_list(draft.value("lora_target")) or draft.value("lora_target")
        draft.put("lora.target_modules", "all-linear" if names == ["all"] else names, "lora_target")
    elif kind == "full":
        for key in ("finetuning_type", *keys):
            draft.drop(key, "without a section lora all weights are trained")
    else:
        draft.handled |= {*keys}
        message = f"prefcli does not have {kind!r}"
        draft.refuse("finetuning_type", message, code="RCP156", hint="write full or lora")


def _quantization(draft: Draft) -> None:
    bits, library = draft.given("quantization_bit"), draft.given("quantization_method") or "bnb"
    if library not in ("bnb", "bitsandbytes"):
        message = "prefcli quantizes with bitsandbytes"
        draft.refuse("quantization_method", message, code="RCP156", hint="write bnb")
    elif bits in (4, 8):
        draft.put("model.quantization", f"{bits}bit", "quantization_bit")
    elif bits is not None:
        message = f"prefcli does not quantize to {bits} bits"
        draft.refuse("quantization_bit", message, code="RCP156", hint="write 4 or 8")
    for key in ("quantization_method", "double_quantization"):
        if key not in draft.handled:
            draft.drop(key, "prefcli's 4bit is QLoRA's: bitsandbytes with double quantization")


def _loss(draft: Draft) -> None:
    loss, weight = draft.given("pref_loss"), draft.given("pref_ftx")
    if draft.method not in ("dpo", "ipo", "orpo", "simpo"):
        draft.drop("pref_loss", "only stage dpo uses it")
    elif draft.method == "dpo" and loss == "kto_pair":
        message, hint = "trl no longer has kto_pair", "use stage: kto, or pref_loss: aot"
        draft.refuse("pref_loss", message, code="RCP156", hint=hint)
    elif draft.method == "dpo" and not weight and loss:
        draft.put("dpo.loss_type", loss, "pref_loss")
    else:
        draft.drop("pref_loss", f"the section {draft.method} replaces it")
    if loss in ("hinge", "ipo"):
        draft.note(
            f"LLaMA-Factory with trl 0.24 ignores pref_loss and trains sigmoid; this is {loss}"
        )
    if not weight:
        draft.drop("pref_ftx", "it is off")
    elif draft.method == "dpo":
        draft.put("dpo.loss_type", [loss or "sigmoid", "sft"], "pref_ftx")
        draft.put("dpo.loss_weights", [1.0, weight], "pref_ftx")
    elif draft.method == "simpo":
        draft.put("simpo.cpo_alpha", weight, "pref_ftx")
    else:
        message = f"{draft.method} has no additional SFT term"
        draft.refuse("pref_ftx", message, code="RCP158", hint="remove it")
    if weight and draft.method in ("dpo", "simpo"):
        draft.note(
            "pref_ftx: LLaMA-Factory's SFT term is the mean over rows of each row's mean, and this "
            "one is the mean over tokens, so long responses have more weight"
        )


def _train_on_prompt(draft: Draft) -> None:
    """Translate train_on_prompt; its default trains on the assistant's turns only."""
    if draft.method != "sft":
        draft.drop("train_on_prompt", "only sft uses it")
    elif is_on(draft.given("train_on_prompt")):
        draft.put("sft.completion_only_loss", False, "train_on_prompt")
    else:
        draft.put("sft.assistant_only_loss", True, "train_on_prompt")


def _packing(draft: Draft) -> None:
    packing, neat = is_on(draft.given("packing")), is_on(draft.given("neat_packing"))
    if neat:
        draft.put("sft.packing", True, "neat_packing")
        draft.drop("packing", "neat_packing implies it")
    elif packing:
        draft.refuse(
            "packing",
            "without neat_packing, rows attend to other rows in the same sequence; prefcli "
            "separates them",
            code="RCP156",
            hint="write neat_packing: true, or remove it",
        )
    for key in ("packing", "neat_packing"):
        if key not in draft.handled:
            draft.drop(key, "it is off")


def _template(draft: Draft) -> None:
    if (name := draft.given("template")) is not None:
        draft.drop("template", "prefcli uses the tokenizer's chat template")
        draft.note(
            f"LLaMA-Factory uses its own template {name!r} and prefcli the tokenizer's chat "
            "template: check that they are the same, or write model.chat_template"
        )


def _attention(name: Any) -> Any:
    names = {"fa2": "flash_attention_2", "fa3": "flash_attention_3", "disabled": "eager"}
    return names.get(name, name) if isinstance(name, str) else name


_MEDIA = "prefcli trains on text only"
_CACHE = "datasets caches the converted rows"
_TOKENIZER = "prefcli does not change the tokenizer"
_TEMPLATE = "prefcli uses the tokenizer's chat template"

TABLE: RuleTable = {
    # The data comes first: the evaluation rules need data.eval.
    **dict.fromkeys(DATA_KEYS, MultiKeyRule(translate_data, "data.train", "data.eval")),
    **training_arguments.TABLE,
    "stage": Drop("the method's section replaces it"),
    # model
    "model_name_or_path": Rename("model.name_or_path"),
    "model_revision": Rename("model.revision"),
    "adapter_name_or_path": Refuse(
        "prefcli takes an adapter as the model",
        "write its folder as model_name_or_path, and add model.adapter: continue, stack or merge "
        "to the recipe",
    ),
    "trust_remote_code": remote_code("model_name_or_path", "model_revision"),
    "flash_attn": Rename("model.attn_implementation", read=_attention),
    "template": MultiKeyRule(_template),
    "pure_bf16": Rename("model.dtype", read=lambda on: "bfloat16" if is_on(on) else "auto"),
    "quantization_bit": (bits := MultiKeyRule(_quantization, "model.quantization")),
    "quantization_method": bits,
    "double_quantization": bits,
    "quantization_type": Refuse("prefcli's 4bit is nf4", harmless=("nf4",)),
    "resize_vocab": Refuse(_TOKENIZER),
    "add_special_tokens": Refuse(_TOKENIZER),
    "rope_scaling": Refuse("prefcli does not change the model's position embeddings"),
    "default_system": Refuse("prefcli does not add a system message", "add it to the data"),
    # lora
    "finetuning_type": (lora := MultiKeyRule(_lora, "lora.target_modules", *_LORA.values())),
    "lora_target": lora,
    **dict.fromkeys(_LORA, lora),
    "additional_target": Refuse("prefcli does not train full layers next to an adapter"),
    "pissa_init": Refuse("prefcli initializes adapters to zero"),
    "loraplus_lr_ratio": Refuse("prefcli has one learning rate for all weights"),
    # data
    "cutoff_len": Rename("data.max_length"),
    "preprocessing_num_workers": Rename("data.num_proc"),
    "mix_strategy": Refuse("prefcli concatenates its sources", harmless=("concat",)),
    "streaming": Refuse("prefcli does not stream data"),
    "mask_history": Refuse("prefcli's sft trains on every assistant turn of a conversation"),
    "train_on_prompt": MultiKeyRule(
        _train_on_prompt, "sft.assistant_only_loss", "sft.completion_only_loss"
    ),
    "packing": (packing := MultiKeyRule(_packing, "sft.packing")),
    "neat_packing": packing,
    "overwrite_cache": Drop(_CACHE),
    "tokenized_path": Drop(_CACHE),
    "preprocessing_batch_size": Drop(_CACHE),
    "enable_thinking": Drop(_TEMPLATE),
    # methods
    "pref_beta": Rename("dpo.beta", "ipo.beta", "kto.beta", "orpo.lambda", "simpo.beta"),
    "pref_loss": (
        loss := MultiKeyRule(_loss, "dpo.loss_type", "dpo.loss_weights", "simpo.cpo_alpha")
    ),
    "pref_ftx": loss,
    "simpo_gamma": Rename("simpo.gamma"),
    "kto_chosen_weight": Rename("kto.desirable_weight"),
    "kto_rejected_weight": Rename("kto.undesirable_weight"),
    "ld_alpha": Rename("dpo.ld_alpha"),
    "dpo_label_smoothing": Refuse(
        "trl 1.16's sigmoid loss has no label smoothing", "remove it, or use pref_loss: robust"
    ),
    "pref_bco_weight": Refuse("prefcli does not add a BCO term to another loss"),
    "ref_model": Rename("reference.name_or_path"),
    "ref_model_adapters": Refuse(
        "prefcli takes an adapter as the reference", "write its folder as ref_model"
    ),
    "ref_model_quantization_bit": Refuse("prefcli quantizes the reference like the policy"),
    "use_dft_loss": Rename("sft.loss_type", read=lambda on: "dft" if is_on(on) else "nll"),
    "disable_gradient_checkpointing": Rename(
        "training.gradient_checkpointing", read=lambda on: not is_on(on)
    ),
    "disable_shuffling": Refuse("prefcli always shuffles rows"),
    "early_stopping_steps": training_arguments.TABLE["early_stopping_patience"],
    "plot_loss": Drop("`prefcli report` plots the curves"),
    "include_num_input_tokens_seen": Drop("metrics.jsonl has the number of tokens"),
    "enable_liger_kernel": Drop(SAME_TRAINING),
    "use_unsloth": Drop(SAME_TRAINING),
    "use_unsloth_gc": Drop(SAME_TRAINING),
    "use_reentrant_gc": Drop(SAME_TRAINING),
    "low_cpu_mem_usage": Drop(SAME_TRAINING),
    "cache_dir": Drop("HF_HOME sets the cache folder"),
    "hf_hub_token": Drop("log in with `hf auth login`, or export HF_TOKEN"),
    "use_galore": Refuse("prefcli does not have GaLore"),
    "use_badam": Refuse("prefcli does not have BAdam"),
    "use_apollo": Refuse("prefcli does not have APOLLO"),
    "use_muon": Refuse("prefcli does not have Muon"),
    "use_adam_mini": Refuse("prefcli does not have Adam-mini"),
    "use_llama_pro": Refuse("prefcli does not add layers (LLaMA Pro)"),
    "use_swanlab": Refuse("prefcli does not report to SwanLab"),
    "image_max_pixels": Refuse(_MEDIA),
    "video_max_pixels": Refuse(_MEDIA),
    "freeze_vision_tower": Refuse(_MEDIA),
}

LLAMA_FACTORY = SourceTool(
    "LLaMA-Factory",
    frozenset({"stage", "finetuning_type", "cutoff_len", "pref_loss", "pref_beta"}),
    TABLE,
    _defaults,
    _candidate_methods,
    method_key="stage",
)
