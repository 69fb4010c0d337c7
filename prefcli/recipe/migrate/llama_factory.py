"""LLaMA-Factory: its own arguments beside transformers'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefcli.recipe.migrate import training_arguments
from prefcli.recipe.migrate.base import (
    REMOTE_CODE,
    Draft,
    Drop,
    MultiKeyRule,
    Refuse,
    Table,
    To,
    is_on,
    words,
)
from prefcli.recipe.migrate.llama_factory_data import translate_data
from prefcli.recipe.migrate.shared_rules import put_lora
from prefcli.recipe.migrate.source_tool import Tool

_LORA = {
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "use_rslora": "lora.use_rslora",
    "use_dora": "lora.use_dora",
}


def _trains(data: Mapping[str, Any]) -> set[str]:
    stage, loss = str(data.get("stage", "sft")), data.get("pref_loss") or "sigmoid"
    if stage != "dpo":
        return {stage} & {"sft", "kto"}
    if loss in ("orpo", "simpo"):
        return {str(loss)}
    # With an SFT term (pref_ftx) ipo is one loss of two, which dpo has.
    return {"ipo"} if loss == "ipo" and not data.get("pref_ftx") else {"dpo"}


def _defaults(method: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    own: dict[str, Any] = {"learning_rate": 5e-5, "cutoff_len": 2048, "pref_beta": 0.1}
    if method == "sft":
        own["train_on_prompt"] = False
        del own["pref_beta"]
    if method == "simpo":
        own["simpo_gamma"] = 0.5
    if method == "kto":
        own |= {"kto_chosen_weight": 1.0, "kto_rejected_weight": 1.0}
    if (data.get("finetuning_type") or "lora") == "lora":
        rank = data.get("lora_rank") or 8
        own |= {"lora_rank": 8, "lora_dropout": 0.0, "lora_target": "all"}
        own["lora_alpha"] = 2 * rank if isinstance(rank, int) else None
    return training_arguments.DEFAULTS | own


def _lora(draft: Draft) -> None:
    kind = draft.given("finetuning_type") or "lora"
    keys = ("lora_target", *_LORA)
    if kind == "lora":
        draft.drop("finetuning_type", "the lora section says it")
        put_lora(draft, _LORA)
        names = words(draft.value("lora_target")) or draft.value("lora_target")
        draft.put("lora.target_modules", "all-linear" if names == ["all"] else names, "lora_target")
    elif kind == "full":
        for key in ("finetuning_type", *keys):
            draft.drop(key, "no lora section is full fine-tuning")
    else:
        draft.settled |= {*keys}
        draft.refuse("finetuning_type", f"prefcli has no {kind!r}", "it has full and lora")


def _quantization(draft: Draft) -> None:
    bits, how = draft.given("quantization_bit"), draft.given("quantization_method") or "bnb"
    if how not in ("bnb", "bitsandbytes"):
        draft.refuse("quantization_method", "prefcli quantises with bitsandbytes", "write bnb")
    elif bits in (4, 8):
        draft.put("model.quantization", f"{bits}bit", "quantization_bit")
    elif bits is not None:
        draft.refuse("quantization_bit", "prefcli has 4 and 8 bits")
    for key in ("quantization_method", "double_quantization"):
        if key not in draft.settled:
            draft.drop(key, "prefcli's 4bit is QLoRA's: bitsandbytes, quantised constants too")


def _loss(draft: Draft) -> None:
    loss, weight = draft.given("pref_loss"), draft.given("pref_ftx")
    if draft.method not in ("dpo", "ipo", "orpo", "simpo"):
        draft.drop("pref_loss", "only stage dpo reads it")
    elif draft.method == "dpo" and loss == "kto_pair":
        draft.refuse("pref_loss", "trl no longer has kto_pair", "see stage: kto, or aot")
    elif draft.method == "dpo" and not weight and loss:
        draft.put("dpo.loss_type", loss, "pref_loss")
    else:
        draft.drop("pref_loss", f"the {draft.method} section says it")
    if loss in ("hinge", "ipo"):
        draft.remark(
            f"LLaMA-Factory with trl 0.24 trains sigmoid whatever pref_loss says; this is {loss}"
        )
    if not weight:
        draft.drop("pref_ftx", "it is off")
    elif draft.method == "dpo":
        draft.put("dpo.loss_type", [loss or "sigmoid", "sft"], "pref_ftx")
        draft.put("dpo.loss_weights", [1.0, weight], "pref_ftx")
    elif draft.method == "simpo":
        draft.put("simpo.cpo_alpha", weight, "pref_ftx")
    else:
        draft.refuse("pref_ftx", f"{draft.method} has no further SFT term", "take it out")
    if weight and draft.method in ("dpo", "simpo"):
        draft.remark(
            "pref_ftx: LLaMA-Factory's SFT term is a mean over rows of each row's mean, this one a "
            "mean over tokens, so long answers weigh more"
        )


def _sft(draft: Draft) -> None:
    """LLaMA-Factory masks all but the assistant's turns, unless told to train on the prompt."""
    if draft.method != "sft":
        draft.drop("train_on_prompt", "only sft reads it")
    elif is_on(draft.given("train_on_prompt")):
        draft.put("sft.completion_only_loss", False, "train_on_prompt")
    else:
        draft.put("sft.assistant_only_loss", True, "train_on_prompt")


def _packing(draft: Draft) -> None:
    packing, neat = is_on(draft.given("packing")), is_on(draft.given("neat_packing"))
    if neat:
        draft.put("sft.packing", True, "neat_packing")
        draft.drop("packing", "neat_packing turns it on")
    elif packing:
        draft.refuse(
            "packing",
            "rows packed without neat_packing see each other; prefcli keeps them apart",
            "write neat_packing: true, or take it out",
        )
    for key in ("packing", "neat_packing"):
        if key not in draft.settled:
            draft.drop(key, "it is off")


def _template(draft: Draft) -> None:
    if (name := draft.given("template")) is not None:
        draft.drop("template", "rows are rendered by the tokenizer's own chat template")
        draft.remark(
            f"LLaMA-Factory renders with its template {name!r}, prefcli with the chat template "
            "beside the weights: see that they agree, or write model.chat_template"
        )


def _attention(name: Any) -> Any:
    ours = {"fa2": "flash_attention_2", "fa3": "flash_attention_3", "disabled": "eager"}
    return ours.get(name, name) if isinstance(name, str) else name


def _not(value: Any) -> Any:
    return not is_on(value)


_MEDIA = "prefcli trains on text"
_SPEED = "it changes memory or speed, not what is trained"
_CACHE = "prefcli keeps converted rows in datasets' cache"

TABLE: Table = {
    # The data first: evaluation has a meaning only with data.eval.
    "dataset": (data := MultiKeyRule(translate_data, "data.train", "data.eval")),
    "eval_dataset": data,
    "dataset_dir": data,
    "max_samples": data,
    "val_size": data,
    **training_arguments.TABLE,
    "stage": Drop("the method's section says it"),
    # model
    "model_name_or_path": To("model.name_or_path"),
    "model_revision": To("model.revision"),
    "adapter_name_or_path": Refuse(
        "prefcli takes an adapter for the model itself",
        "write it as model_name_or_path here, and model.adapter: continue, stack or merge there",
    ),
    "trust_remote_code": Refuse(*REMOTE_CODE),
    "flash_attn": To("model.attn_implementation", read=_attention),
    "template": MultiKeyRule(_template),
    "pure_bf16": To("model.dtype", read=lambda on: "bfloat16" if is_on(on) else "auto"),
    "quantization_bit": (bits := MultiKeyRule(_quantization, "model.quantization")),
    "quantization_method": bits,
    "double_quantization": bits,
    "quantization_type": Refuse("prefcli's 4bit is nf4", harmless=("nf4",)),
    "resize_vocab": Refuse("prefcli trains with the tokenizer as it is"),
    "add_special_tokens": Refuse("prefcli trains with the tokenizer as it is"),
    "rope_scaling": Refuse("prefcli trains the model's positions as they are"),
    "default_system": Refuse("prefcli adds no system message", "put it into the data"),
    # lora
    "finetuning_type": (lora := MultiKeyRule(_lora, "lora.target_modules", *_LORA.values())),
    "lora_target": lora,
    **dict.fromkeys(_LORA, lora),
    "additional_target": Refuse("prefcli trains adapters only, no whole layers beside them"),
    "pissa_init": Refuse("prefcli starts adapters at zero"),
    "loraplus_lr_ratio": Refuse("prefcli has one learning rate"),
    # data
    "cutoff_len": To("data.max_length"),
    "preprocessing_num_workers": To("data.num_proc"),
    "mix_strategy": Refuse("prefcli joins its sources", harmless=("concat",)),
    "streaming": Refuse("prefcli reads data from files, whole"),
    "mask_history": Refuse("prefcli's sft trains on every assistant turn of a conversation"),
    "train_on_prompt": MultiKeyRule(_sft, "sft.assistant_only_loss", "sft.completion_only_loss"),
    "packing": (packing := MultiKeyRule(_packing, "sft.packing")),
    "neat_packing": packing,
    "overwrite_cache": Drop(_CACHE),
    "tokenized_path": Drop(_CACHE),
    "preprocessing_batch_size": Drop(_CACHE),
    "enable_thinking": Drop("rows are rendered by the tokenizer's own chat template"),
    # methods
    "pref_beta": To("dpo.beta", "ipo.beta", "kto.beta", "orpo.lambda", "simpo.beta"),
    "pref_loss": (
        loss := MultiKeyRule(_loss, "dpo.loss_type", "dpo.loss_weights", "simpo.cpo_alpha")
    ),
    "pref_ftx": loss,
    "simpo_gamma": To("simpo.gamma"),
    "kto_chosen_weight": To("kto.desirable_weight"),
    "kto_rejected_weight": To("kto.undesirable_weight"),
    "ld_alpha": To("dpo.ld_alpha"),
    "dpo_label_smoothing": Refuse("trl 1.16's sigmoid has no label smoothing; robust is another"),
    "pref_bco_weight": Refuse("prefcli mixes no BCO term into another loss"),
    "ref_model": To("reference.name_or_path"),
    "ref_model_adapters": Refuse("name the adapter's folder as ref_model"),
    "ref_model_quantization_bit": Refuse("prefcli's reference is quantised as the policy is"),
    "use_dft_loss": To("sft.loss_type", read=lambda on: "dft" if is_on(on) else "nll"),
    "disable_gradient_checkpointing": To("training.gradient_checkpointing", read=_not),
    "disable_shuffling": Refuse("prefcli draws rows in random order"),
    "plot_loss": Drop("metrics.jsonl holds the curves"),
    "include_num_input_tokens_seen": Drop("metrics.jsonl holds what prefcli counts"),
    "enable_liger_kernel": Drop(_SPEED),
    "use_unsloth": Drop(_SPEED),
    "use_unsloth_gc": Drop(_SPEED),
    "use_reentrant_gc": Drop(_SPEED),
    "low_cpu_mem_usage": Drop(_SPEED),
    "cache_dir": Drop("the hub's cache is where HF_HOME says"),
    "hf_hub_token": Drop("log in with `hf auth login`, or export HF_TOKEN"),
    "use_galore": Refuse("prefcli has no GaLore"),
    "use_badam": Refuse("prefcli has no BAdam"),
    "use_apollo": Refuse("prefcli has no APOLLO"),
    "use_muon": Refuse("prefcli has no Muon"),
    "use_adam_mini": Refuse("prefcli has no Adam-mini"),
    "use_llama_pro": Refuse("prefcli adds no layers (LLaMA Pro)"),
    "use_swanlab": Refuse("prefcli does not report to SwanLab"),
    "image_max_pixels": Refuse(_MEDIA),
    "video_max_pixels": Refuse(_MEDIA),
    "freeze_vision_tower": Refuse(_MEDIA),
}

LLAMA_FACTORY = Tool(
    "LLaMA-Factory",
    frozenset({"stage", "finetuning_type", "cutoff_len", "pref_loss", "pref_beta"}),
    TABLE,
    _defaults,
    _trains,
    named_by="stage",
)
