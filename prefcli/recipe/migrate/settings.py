"""Settings that the tools spread over several keys, by trl's names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

from prefcli.methods import METHODS
from prefcli.metrics import metric
from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.rules import is_on, word_list
from prefcli.recipe.paths import is_commit, is_local
from prefcli.recipe.sections import Logging, Training

SourceList = list[tuple[dict[str, Any], tuple[str | int, ...]]]
"""Data sources, each with its place inside the key that it came from."""

_TRACKERS = get_args(get_args(Logging.model_fields["report_to"].annotation)[0])
NAMED_TEMPLATES = ("chatml", "gemma", "llama3", "phi3", "zephyr")
"""The chat templates that prefcli has by name and the tools render the same. mistral's differ."""
TRL_TOOLS = ("trl", "alignment-handbook", "W&B")
"""The tools whose defaults are those of trl."""
_NEVER_STOP = 1_000_000
"""Patience of a run that keeps the best checkpoint but does not stop early."""


# model


def start(draft: Draft) -> None:
    """Translate the starting model, which may be an adapter."""
    name, adapter = draft.given("model_name_or_path"), draft.given("adapter_name_or_path")
    revision = draft.given("model_revision")
    if adapter:
        draft.handled |= {"model_name_or_path", "model_revision", "create_new_adapter"}
        folder = word_list(adapter)
        if folder is None or len(folder) != 1:
            message = "prefcli starts from one adapter"
            draft.refuse("adapter_name_or_path", message, code="RCP156", hint="merge the others")
            return
        draft.put("model.name_or_path", folder[0], "adapter_name_or_path")
        how = "stack" if is_on(draft.given("create_new_adapter")) else "continue"
        draft.put("model.adapter", how, "adapter_name_or_path")
        for key in ("model_name_or_path", "model_revision"):
            draft.drop(key, "the adapter's own adapter_config.json names its base")
        draft.note(f"the adapter must have been trained on {name}: its adapter_config.json decides")
    elif name is not None:
        draft.put("model.name_or_path", name, "model_name_or_path")
        if revision is not None:
            draft.put("model.revision", revision, "model_revision")
        if _looks_like_adapter(str(name)):
            _put_adapter(draft, str(name))


def _looks_like_adapter(name: str) -> bool:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return (folder / "adapter_config.json").exists()
    parts = set(re.split(r"[-_./]", name.lower()))
    return bool(parts & {"lora", "qlora", "adapter", "adapters", "peft"}) and "merged" not in parts


def _put_adapter(draft: Draft, name: str) -> None:
    """Write how to use an adapter that is the starting model, as its name suggests."""
    how = "stack" if _trains_adapter(draft) else "merge"
    if any(is_on(draft.given(key)) for key in ("load_in_4bit", "load_in_8bit", "quantization_bit")):
        how = "continue"  # The others merge, which quantized weights do not allow.
    draft.put("model.adapter", how, "model_name_or_path")
    draft.note(
        f"the name {name} looks like a LoRA adapter, so model.adapter is {how}; if it is a whole "
        "model, remove model.adapter" + (" and write a lora section" if how == "continue" else "")
    )


def tokenizer(draft: Draft) -> None:
    """Translate a tokenizer that is not the model's."""
    key = "tokenizer_name_or_path"
    if draft.given(key) == draft.given("model_name_or_path"):
        draft.drop(key, "it is the model's own")
    elif is_on(draft.given(key)):
        draft.put("model.tokenizer", draft.given(key), key)


def remote_code(draft: Draft) -> None:
    """Translate trust_remote_code, which prefcli allows for local models and pinned commits."""
    name, revision = str(draft.given("model_name_or_path")), draft.given("model_revision")
    if not is_on(draft.given("trust_remote_code")):
        draft.drop("trust_remote_code", "it is off")
    elif is_local(name) or (isinstance(revision, str) and is_commit(revision)):
        draft.put("model.trust_remote_code", True, "trust_remote_code")
    else:
        draft.drop("trust_remote_code", "transformers has the classes of most models")
        draft.note(
            f"{draft.name('trust_remote_code')} is needed only if transformers does not have the "
            f"class of {name}; in that case write model.trust_remote_code: true and "
            "model.revision: COMMIT"
        )


def dtype(draft: Draft) -> None:
    """Translate the data type of the weights, with bf16 and fp16."""
    value, mixed = draft.value("dtype"), draft.value("mixed_precision_dtype")
    bf16, fp16 = draft.given("bf16"), draft.given("fp16")
    if mixed is not None:
        bf16, fp16 = str(mixed).lower() == "bf16", str(mixed).lower() == "fp16"
    for key in ("bf16", "fp16", "mixed_precision_dtype"):
        draft.drop(key, "the precision follows the device: bfloat16 autocast if it supports it")
    name = str(value).removeprefix("torch.")
    name = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}.get(name, name)
    full = not _trains_adapter(draft)
    if draft.tool == "axolotl" and full and is_on(bf16):
        draft.note(
            "axolotl keeps the trained weights in bfloat16, except under FSDP or DeepSpeed; "
            "prefcli's are float32 with bfloat16 autocast, unless model.dtype is bfloat16"
        )
    if name == "float32" and (is_on(bf16) or (bf16 is None and draft.tool in TRL_TOOLS)):
        draft.drop("dtype", "float32 weights with bfloat16 autocast are model.dtype auto")
    elif value == "auto":
        draft.drop("dtype", "it is the data type of the model's files")
        draft.note(
            f"{draft.name('dtype')} auto is the data type of the model's files; model.dtype auto "
            "is float32 weights with bfloat16 autocast, and bfloat16 for weights under an adapter"
        )
    elif value is not None and name == "bfloat16" and full and is_on(bf16) and _sharded(draft):
        draft.drop("dtype", "FSDP and ZeRO-3 train float32 copies of such weights")
        draft.note(
            f"{draft.name('dtype')} bfloat16 is not in the recipe: under FSDP or ZeRO-3, as with "
            f"{draft.devices or 'several'} devices, weights are updated in float32. Without them "
            "write model.dtype: bfloat16"
        )
    elif value is not None:
        draft.put("model.dtype", name, "dtype")
        if name == "bfloat16" and full:
            draft.note(
                "model.dtype bfloat16 keeps the trained weights in bfloat16, which rounds small "
                "updates to zero; remove it for float32 with bfloat16 autocast"
            )
    elif is_on(fp16) or (bf16 is not None and not is_on(bf16)):
        other = "float16" if is_on(fp16) else "float32"
        draft.note(
            f"the file asks for {other}; without model.dtype prefcli uses bfloat16 autocast on a "
            f"GPU that supports it, so write model.dtype: {other} to force it"
        )


def _sharded(draft: Draft) -> bool:
    return (draft.devices or 1) > 1 or any(is_on(draft.given(k)) for k in ("deepspeed", "fsdp"))


def quantization(draft: Draft) -> None:
    """Translate the bits of quantized weights."""
    bits, library = draft.value("quantization_bit"), draft.given("quantization_method") or "bnb"
    if is_on(draft.data.get("q_lora", True)):
        for key, value in (("load_in_4bit", 4), ("load_in_8bit", 8), ("quantization_bit", bits)):
            if not is_on(draft.value(key)):
                draft.drop(key, "it is off")
            elif value in (4, 8):
                draft.put("model.quantization", f"{value}bit", key)
            else:
                message = f"prefcli does not quantize to {value} bits"
                draft.refuse(key, message, code="RCP156", hint="write 4 or 8")
    if library not in ("bnb", "bitsandbytes"):
        message = "prefcli quantizes with bitsandbytes"
        draft.refuse("quantization_method", message, code="RCP156", hint="write bnb")
    for key in ("q_lora", "quantization_bit", "quantization_method"):
        if key not in draft.handled:
            draft.drop(key, "model.quantization replaces it")


def attention(draft: Draft) -> None:
    """Translate attn_implementation, or the switches of older forms."""
    switches = {
        "use_flash_attention_2": "flash_attention_2",
        "flash_attention": "flash_attention_2",
        "sdp_attention": "sdpa",
        "eager_attention": "eager",
        "flex_attention": "flex_attention",
    }
    names = {"fa2": "flash_attention_2", "fa3": "flash_attention_3", "disabled": "eager"}
    names |= {"kernels-community/flash-attn2": "flash_attention_2"}
    if (given := draft.given("attn_implementation")) is not None:
        value = names.get(given, given) if isinstance(given, str) else given
        draft.put("model.attn_implementation", value, "attn_implementation")
    for key, name in switches.items():
        if not is_on(draft.given(key)):
            draft.drop(key, "it is off")
        elif given is not None:
            draft.drop(key, "attn_implementation overrides it")
        else:
            draft.put("model.attn_implementation", name, key)


def template(draft: Draft) -> None:
    """Translate the chat template: its text, or the name of one."""
    name, jinja = draft.given("chat_template"), draft.given("chat_template_jinja")
    if name in (None, "jinja") and jinja:
        draft.put("model.chat_template", jinja, "chat_template_jinja")
        draft.drop("chat_template", "model.chat_template replaces it")
        return
    draft.drop("chat_template_jinja", "only chat_template: jinja uses it")
    if name in (None, "tokenizer_default"):
        draft.drop("chat_template", "prefcli's default is the tokenizer's template")
    elif name in NAMED_TEMPLATES:
        draft.put("model.chat_template", name, "chat_template")
        draft.note(f"model.chat_template {name} is prefcli's template of this name")
    elif not isinstance(name, str) or "{" in name or name.endswith(".jinja"):
        draft.put("model.chat_template", name, "chat_template")
    else:
        name = name.removeprefix("tokenizer_default_fallback_")
        draft.drop("chat_template", "prefcli uses the tokenizer's chat template")
        draft.note(
            f"{draft.tool} uses its own template {name!r} and prefcli the tokenizer's chat "
            "template: check that they are the same, or write model.chat_template"
        )


def special_tokens(draft: Draft) -> None:
    """Translate the end token, and drop those that hardly ever differ from the tokenizer's."""
    given = draft.given("special_tokens")
    for name, token in (given if isinstance(given, dict) else {}).items():
        if name == "eos_token" and token is not None:
            draft.put("model.eos_token", token, "special_tokens", name)
        elif name == "pad_token" or token is None:
            draft.drop("special_tokens", "padding is masked by position, whatever its token", name)
        elif name in ("bos_token", "unk_token"):
            draft.drop("special_tokens", "prefcli uses the tokenizer's own", name)
            draft.note(f"{name} is the tokenizer's own; check that it is {token!r} there as well")
        else:
            hint = "set it in the tokenizer's files; remove it if it is already set there"
            message = "prefcli does not change this token"
            draft.refuse("special_tokens", message, name, code="RCP156", hint=hint)


# lora

LORA = {
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "use_rslora": "lora.use_rslora",
    "use_dora": "lora.use_dora",
}


def _trains_adapter(draft: Draft) -> bool:
    return draft.value("use_peft") in (True, "lora", "qlora")


def lora(draft: Draft) -> None:
    """Translate the settings of the adapter, if the file trains one."""
    kind = draft.value("use_peft")
    settings = ("lora_target_modules", "lora_target_linear", "lora_modules_to_save", *LORA)
    draft.handled |= {*settings}
    if not _trains_adapter(draft):
        if is_on(kind) and kind != "full":
            message = f"prefcli does not have {kind!r}"
            draft.refuse("use_peft", message, code="RCP156", hint="write lora, or train in full")
        for key in ("use_peft", *settings):
            draft.drop(key, "without a section lora all weights are trained")
        return
    draft.drop("use_peft", "the section lora replaces it")
    if draft.values.get("model.adapter") == "continue":
        for key in settings:
            draft.drop(key, "model.adapter continue keeps the settings of that adapter")
        return
    for key, path in LORA.items():
        if (value := draft.value(key)) is not None:
            draft.put(path, value, key)
    if is_on(layers := draft.given("lora_modules_to_save")):
        draft.put("lora.modules_to_save", word_list(layers) or layers, "lora_modules_to_save")
    modules = draft.value("lora_target_modules")
    names = word_list(modules) if modules else None
    if is_on(draft.given("lora_target_linear")):
        draft.put("lora.target_modules", "all-linear", "lora_target_linear")
        draft.drop("lora_target_modules", "all linear layers are adapted")
    elif names and names[0] in ("all", "all-linear"):
        draft.put("lora.target_modules", "all-linear", "lora_target_modules")
    elif modules:
        draft.put("lora.target_modules", names or modules, "lora_target_modules")
        draft.drop("lora_target_linear", "it is off")
    elif draft.tool == "axolotl":
        message = "neither lora_target_linear nor lora_target_modules is given"
        hint = "write lora_target_linear: true"
        path = "lora.target_modules"
        draft.refuse("use_peft", message, code="RCP161", hint=hint, path=path)
    else:
        draft.put("lora.target_modules", "default", "lora_target_modules")


# data


def held_out(draft: Draft, share: Any, key: str, *inside: str | int) -> None:
    """Translate a share of the training rows that is split off at random for evaluation."""
    if isinstance(share, int | float) and 0 < share < 1:
        draft.put("data.eval", {"from_train": share}, key, *inside)
        draft.note(
            f"data.eval.from_train draws prompts with prefcli's seed, so the held-out rows differ "
            f"from {draft.tool}'s, which draws rows"
        )
    else:
        draft.drop(key, "prefcli holds out a share of the prompts, not a number of rows", *inside)
        draft.note(
            f"the recipe does not evaluate: {draft.tool} holds out {share} rows, and the file does "
            "not say how many rows the data has; write data.eval: {from_train: SHARE}"
        )


def put_sources(draft: Draft, path: str, sources: SourceList, key: str) -> None:
    """Write data.train or data.eval."""
    if not sources or draft.sets(f"{path}.path"):
        draft.drop(key, f"the command line sets {path}")
        return
    values = [
        {name: value for name, value in source.items() if (name, value) != ("fraction", 1.0)}
        for source, _ in sources
    ]
    if len(values) == 1:
        draft.put(path, values[0], key, *sources[0][1])
    else:
        draft.put(path, values, key)
        for i, (_, inside) in enumerate(sources):
            draft.origins[f"{path}[{i}]"] = draft.at(key, *inside)
    if any({"fraction", "rows"} & source.keys() for source in values):
        draft.note(
            f"{path}: a part of the rows is drawn with prefcli's seed, so they differ from "
            f"{draft.tool}'s"
        )


def train_on_prompt(draft: Draft) -> None:
    """Translate the turns of a conversation that sft trains on."""
    if draft.method != "sft":
        draft.drop("train_on_prompt", "only sft uses it")
    elif is_on(draft.value("train_on_prompt")):
        draft.put("sft.completion_only_loss", False, "train_on_prompt")
    elif "conversations" in draft.row_types:
        draft.put("sft.assistant_only_loss", True, "train_on_prompt")
    else:
        draft.drop("train_on_prompt", "prefcli's sft trains on completions by default")


def packing(draft: Draft) -> None:
    """Translate packing, which LLaMA-Factory calls neat_packing if rows do not see each other."""
    attends = draft.tool == "LLaMA-Factory" and not is_on(draft.given("neat_packing"))
    for key in ("packing", "neat_packing"):
        if not is_on(draft.given(key)):
            draft.drop(key, "it is off")
        elif draft.method != "sft":
            message = f"{draft.method} does not pack rows"
            draft.refuse(key, message, code="RCP158", hint="remove it")
        elif attends:
            message = "rows that are packed without neat_packing attend to each other"
            hint = "write neat_packing: true, or remove it"
            draft.refuse("packing", message, code="RCP156", hint=hint)
        else:
            draft.put("sft.packing", True, key)


def completion_length(draft: Draft) -> None:
    """Drop max_completion_length where trl only reads it for encoder-decoder models."""
    key = "max_completion_length"
    if draft.given(key) is None or draft.method in ("orpo", "kto", "simpo", "cpo"):
        draft.drop(key, "trl reads it for encoder-decoder models only")
    else:
        message = "prefcli has one limit for prompt and completion, data.max_length"
        draft.refuse(key, message, code="RCP156", hint="remove it if data.max_length is enough")


# methods


def loss(draft: Draft) -> None:
    """Translate the loss and its SFT term. ipo and simpo are losses in trl, methods here."""
    given = draft.given("loss_type")
    single = given[0] if isinstance(given, list) and len(given) == 1 else given
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
    if draft.given("loss_weights") is not None and draft.method == "dpo":
        draft.put("dpo.loss_weights", draft.given("loss_weights"), "loss_weights")
    tau = draft.given("discopop_tau")
    if (
        tau is not None
        and draft.method == "dpo"
        and "discopop" in (given if isinstance(given, list) else [given])
    ):
        draft.put("dpo.discopop_tau", tau, "discopop_tau")
    else:
        draft.drop("discopop_tau", "only the loss discopop uses it")
    if is_on(draft.given("rpo_alpha")):
        _sft_term(draft, single, draft.given("rpo_alpha"))


def _sft_term(draft: Draft, single: Any, weight: Any) -> None:
    """Write the weight of the SFT term: of rpo_alpha, or of LLaMA-Factory's pref_ftx."""
    factory = draft.tool == "LLaMA-Factory"
    if draft.method == "dpo" and not isinstance(single, list):
        draft.put("dpo.loss_type", [single or "sigmoid", "sft"], "rpo_alpha")
        draft.put("dpo.loss_weights", [1.0, weight], "rpo_alpha")
        draft.drop("loss_type", "dpo.loss_type lists it")
    elif draft.method == "simpo" and factory:
        draft.put("simpo.cpo_alpha", weight, "rpo_alpha")
    else:
        message = f"{draft.method} with these losses has no additional SFT term"
        draft.refuse("rpo_alpha", message, code="RCP158", hint="remove it, or write loss_weights")
        return
    if factory:
        draft.note(
            "pref_ftx: LLaMA-Factory's SFT term is the mean over rows of each row's mean, and this "
            "one is the mean over tokens, so long responses have more weight"
        )


def divergence(draft: Draft) -> None:
    """Translate f_divergence_type, with f_alpha_divergence_coef for alpha_divergence."""
    kind, alpha = draft.given("f_divergence_type"), draft.given("f_alpha_divergence_coef")
    if kind is not None:
        draft.put("dpo.f_divergence_type", kind, "f_divergence_type")
    if kind == "alpha_divergence" and alpha is not None:
        draft.put("dpo.f_alpha_divergence_coef", alpha, "f_alpha_divergence_coef")
    else:
        draft.drop("f_alpha_divergence_coef", "only alpha_divergence uses it")


def margin(draft: Draft) -> None:
    """Translate simpo_gamma, or the ratio of gamma to beta in the SimPO authors' trainer."""
    ratio, beta = draft.given("gamma_beta_ratio"), draft.value("beta")
    if draft.method == "cpo" and draft.given("loss_type") == "alphapo":
        draft.put("cpo.gamma", draft.value("simpo_gamma"), "simpo_gamma")
    if draft.method != "simpo":
        return
    if ratio is None:
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


# training


def batch_size(draft: Draft) -> None:
    """Translate per-device batch size and accumulation, with the number of devices."""
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    rows, steps = map(draft.value, names)
    draft.handled |= {*names}
    for key, value in zip(names, (rows, steps), strict=True):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            draft.refuse(key, f"{value!r} is not a whole number of 1 or more", code="RCP157")
            return
    key = names[1] if names[1] in draft.data else names[0]
    if draft.sets("training.global_batch_size"):
        draft.drop(names[1], "the command line sets training.global_batch_size")
        draft.put("training.per_device_train_batch_size", rows, names[0])
    elif draft.devices is None:
        draft.refuse(
            key,
            "global_batch_size depends on the number of devices, which the file does not have",
            code="RCP159",
            hint=f"pass --devices N (per-device {rows} x accumulation {steps} x N)",
        )
    else:
        total = rows * steps * draft.devices
        draft.put("training.global_batch_size", total, names[1])
        draft.put("training.per_device_train_batch_size", rows, names[0])
        draft.note(
            f"global_batch_size {total} is per-device {rows} x accumulation {steps} x "
            f"{draft.devices} devices"
        )


OPTIMIZERS = {
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_bnb_8bit": "paged_adamw_8bit",
    "adamw_hf": "adamw_torch",
}
"""transformers' other names of the same optimizers."""


def accelerator(draft: Draft) -> None:
    """Drop accelerate's configuration, unless it splits the batches."""
    given = draft.given("accelerator_config")
    if isinstance(given, dict) and not is_on(given.get("split_batches")):
        draft.drop("accelerator_config", "prefcli configures accelerate itself")
    elif given is not None:
        message, hint = "prefcli configures accelerate itself", "remove it"
        draft.refuse("accelerator_config", message, code="RCP156", hint=hint)


def max_steps(draft: Draft) -> None:
    """Translate max_steps, which is off at -1."""
    steps = draft.given("max_steps")
    if steps in (None, -1, 0):
        draft.drop("max_steps", "it sets no limit")
    else:
        draft.put("training.max_steps", steps, "max_steps")


def warmup(draft: Draft) -> None:
    """Translate warmup as in transformers: warmup_steps above 0 overrides warmup_ratio."""
    ratio, steps = draft.value("warmup_ratio"), draft.given("warmup_steps")
    if draft.value("lr_scheduler_type") == "constant":
        for key in ("warmup_ratio", "warmup_steps"):
            draft.drop(key, "a constant schedule has no warmup")
    elif steps:
        draft.drop("warmup_ratio", "warmup_steps overrides it")
        # transformers 5 reads warmup_steps below 1 as a ratio.
        is_ratio = isinstance(steps, float) and steps < 1
        draft.put(f"training.warmup_{'ratio' if is_ratio else 'steps'}", steps, "warmup_steps")
    else:
        draft.drop("warmup_steps", "it is off")
        draft.put("training.warmup_ratio", 0.0 if ratio is None else ratio, "warmup_ratio")
        if draft.tool == "axolotl" and draft.given("warmup_ratio") is None:
            draft.note("axolotl's default warmup is 3 % of the steps, and at most 100 steps")


def schedule(draft: Draft) -> None:
    """Translate the schedule, and the floor of a cosine."""
    kind, given = draft.value("lr_scheduler_type"), draft.given("lr_scheduler_kwargs")
    options = dict(given) if isinstance(given, dict) else {}
    floor = draft.given("cosine_min_lr_ratio")
    peak, key = draft.value("learning_rate"), "lr_scheduler_kwargs"
    inside: tuple[str, ...] = ()
    if kind == "cosine" and floor:
        kind, key = "cosine_with_min_lr", "cosine_min_lr_ratio"
    elif kind == "cosine_with_min_lr" and "min_lr_rate" in options:
        floor, inside = options.pop("min_lr_rate"), ("min_lr_rate",)
    elif kind == "cosine_with_min_lr" and isinstance(options.get("min_lr"), float | int):
        inside = ("min_lr",)
        floor = options.pop("min_lr") / peak if isinstance(peak, float | int) and peak else None
    draft.put("training.lr_scheduler_type", kind, "lr_scheduler_type")
    if kind == "cosine_with_min_lr" and floor is not None:
        draft.put("training.min_lr_ratio", floor, key, *inside)
    elif kind == "cosine_with_min_lr":
        draft.refuse(
            "lr_scheduler_type",
            "lr_scheduler_kwargs has no min_lr_rate or min_lr",
            code="RCP161",
            hint="write lr_scheduler_kwargs: {min_lr_rate: 0.1}",
            path="training.min_lr_ratio",
        )
    else:
        draft.drop("cosine_min_lr_ratio", "only a cosine schedule uses it")
    for name in options:
        message, hint = "prefcli's schedules have no such setting", "remove it"
        draft.refuse("lr_scheduler_kwargs", message, name, code="RCP156", hint=hint)
    if not given:
        draft.drop("lr_scheduler_kwargs", "it is not set")


def evaluates(draft: Draft) -> bool:
    """Return whether the file has an evaluation strategy other than `no`."""
    return is_on(draft.value("eval_strategy"))


def evaluation(draft: Draft) -> None:
    """Translate the evaluation schedule. It follows the data in a table, as it needs data.eval."""
    keys = ("eval_strategy", "eval_steps", "per_device_eval_batch_size", "evals_per_epoch")
    if "data.eval" not in draft.values:
        for key in keys:
            draft.drop(key, "prefcli evaluates if data.eval is given, and it is not")
        return
    strategy, steps = draft.value("eval_strategy"), draft.given("eval_steps")
    rows = draft.given("per_device_eval_batch_size")
    draft.drop("eval_strategy", "data.eval and training.eval_steps replace it")
    if rows is not None:
        draft.put("training.per_device_eval_batch_size", rows, "per_device_eval_batch_size")
    if strategy == "steps" and isinstance(steps, int | None) and not draft.given("evals_per_epoch"):
        if interval := steps or draft.value("logging_steps"):
            draft.put("training.eval_steps", interval, "eval_steps" if steps else "logging_steps")
        return
    for key in ("eval_steps", "evals_per_epoch"):
        draft.drop(key, "prefcli only takes a whole number of steps")
    unit = "a share of the run" if isinstance(steps, float) else "an epoch"
    draft.note(
        f"evaluation runs before the first step and after the last, as the steps of {unit} are "
        "not in the file; write training.eval_steps for more"
    )


def early_stopping(draft: Draft) -> None:
    """Translate the best checkpoint as the model, and early stopping. It follows evaluation()."""
    settings = ("early_stopping_threshold", "metric_for_best_model", "greater_is_better")
    patience = "early_stopping_patience"
    key = patience if draft.given(patience) else "load_best_model_at_end"
    steps = draft.values.get("training.eval_steps")
    if not is_on(draft.given(key)):
        for name in (patience, "load_best_model_at_end", *settings):
            draft.drop(name, "early stopping is off")
        return
    if steps is None:
        draft.handled |= {patience, "load_best_model_at_end", *settings}
        draft.refuse(
            key,
            "training.early_stopping needs data.eval and training.eval_steps, and the file "
            "gives no evaluation data or no number of steps",
            code="RCP163",
            hint="give evaluation data and eval_steps, or remove it",
        )
        return
    draft.put(
        "training.early_stopping.patience",
        draft.given(key) if key == patience else _NEVER_STOP,
        key,
    )
    draft.put("training.save_steps", steps, key)
    if key == patience:
        draft.drop("load_best_model_at_end", "training.early_stopping always does this")
    else:
        draft.note(
            "training.early_stopping.patience is so large that the run does not stop early, "
            "but its best checkpoint becomes the model, as with load_best_model_at_end"
        )
    if (threshold := draft.given("early_stopping_threshold")) is not None:
        draft.put("training.early_stopping.threshold", threshold, "early_stopping_threshold")
    _put_metric(draft)


def _put_metric(draft: Draft) -> None:
    name, greater = draft.given("metric_for_best_model"), draft.given("greater_is_better")
    name = "eval_loss" if name is None else str(name)
    name = name if name.startswith("eval_") else f"eval_{name}"
    if draft.given("metric_for_best_model") is not None:
        draft.put("training.early_stopping.metric", name, "metric_for_best_model")
    better = metric(name).better
    if greater is not None and better and is_on(greater) != (better == "higher"):
        draft.refuse(
            "greater_is_better",
            f"prefcli takes the checkpoint with the {better} {name}",
            code="RCP156",
            hint="remove it, or write another metric_for_best_model",
        )
    else:
        draft.drop("greater_is_better", "prefcli knows for each metric what is better")


def saving(draft: Draft) -> None:
    """Translate the checkpoint schedule. It follows early stopping, which sets it."""
    strategy, steps = draft.given("save_strategy"), draft.given("save_steps")
    keys = ("save_strategy", "save_steps", "saves_per_epoch", "save_epoch")
    if "training.save_steps" in draft.values:
        for key in keys:
            draft.drop(key, "early stopping saves a checkpoint at each evaluation")
        return
    draft.drop("save_strategy", "prefcli saves a checkpoint every training.save_steps")
    if strategy in (None, "steps") and isinstance(steps, int) and steps > 0:
        draft.put("training.save_steps", steps, "save_steps")
    for key in keys:
        if key not in draft.handled:
            draft.drop(key, "prefcli only takes a whole number of steps")
    unclear = (strategy, steps) != (None, None) or draft.given("saves_per_epoch")
    if "training.save_steps" not in draft.values and unclear:
        default = Training.model_fields["save_steps"].default
        draft.note(
            f"a checkpoint is saved every {default} steps, prefcli's default; write "
            "training.save_steps to change it"
        )


# reports and the hub

_SWITCHES = {
    "wandb": ("wandb_project", "use_wandb", "enable_wandb"),
    "mlflow": ("mlflow_experiment_name", "use_mlflow", "enable_mlflow"),
    "tensorboard": ("use_tensorboard", "enable_tensorboard"),
}


TRACKER_SWITCHES = " ".join(switch for switches in _SWITCHES.values() for switch in switches)


def trackers(draft: Draft) -> None:
    """Translate experiment trackers, and the name of the run there."""
    given = draft.given("report_to")
    names = word_list(given) if given else []
    if names is None:
        message = "is not the name of a tracker or a list of names"
        draft.refuse("report_to", message, code="RCP157")
        return
    key = "report_to"
    for name, switches in _SWITCHES.items():
        for switch in switches:
            if is_on(draft.given(switch)) and name not in names:
                key = key if names else switch
                names = [*names, name]
    if unknown := [name for name in names if name not in _TRACKERS and is_on(name)]:
        draft.note(
            f"prefcli does not report to {', '.join(unknown)}; metrics.jsonl is always written, "
            f"and logging.report_to takes {', '.join(_TRACKERS)}"
        )
    known = [name for name in names if name in _TRACKERS]
    run_name = next((k for k in ("run_name", "wandb_run_id") if draft.given(k)), None)
    if known:
        draft.put("logging.report_to", known, key)
        if run_name:
            draft.put("logging.run_name", draft.given(run_name), run_name)
    for other in ("report_to", "run_name", "wandb_run_id", *TRACKER_SWITCHES.split()):
        if other not in draft.handled:
            draft.drop(other, "logging.report_to lists the trackers")


HUB_KEYS = (
    *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy"),
    *("hub_always_push", "push_to_hub_model_id"),
)


def push_to_hub(draft: Draft) -> None:
    """Translate the push of the finished model; in axolotl, hub_model_id alone enables it."""
    repository, implied = draft.given("hub_model_id"), draft.tool == "axolotl"
    if not (repository if implied else is_on(draft.given("push_to_hub"))):
        for key in HUB_KEYS:
            draft.drop(key, "the file pushes nothing to the hub")
        return
    if repository is None:
        repository = Path(str(draft.given("output_dir"))).absolute().name
        draft.put("push_to_hub.repo_id", repository, "push_to_hub")
    else:
        draft.put("push_to_hub.repo_id", repository, "hub_model_id")
        draft.drop("push_to_hub", "the section push_to_hub enables it")
    if draft.given("hub_private_repo") is not None:
        draft.put("push_to_hub.private", draft.given("hub_private_repo"), "hub_private_repo")
    elif not implied:
        draft.note(
            "push_to_hub: the repository is private, prefcli's default; write "
            "push_to_hub.private: false to publish the model"
        )
    if draft.given("hub_revision") is not None:
        draft.put("push_to_hub.revision", draft.given("hub_revision"), "hub_revision")
    for key in HUB_KEYS:
        if key not in draft.handled:
            draft.drop(key, "prefcli pushes the finished model once")
