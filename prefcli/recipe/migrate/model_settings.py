"""Settings of the model and its adapter that the tools spread over several keys, by trl's names."""

from __future__ import annotations

import re
from pathlib import Path

from prefcli.recipe.migrate.draft import TRL_TOOLS, Draft
from prefcli.recipe.migrate.rules import RuleBook, is_on, word_list
from prefcli.recipe.paths import is_commit, is_local

RULES = RuleBook()
NAMED_TEMPLATES = ("chatml", "gemma", "llama3", "phi3", "zephyr")
"""The chat templates that prefcli has by name and the tools render the same. mistral's differ."""
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
ATTENTION = {
    "fa2": "flash_attention_2",
    "fa3": "flash_attention_3",
    "kernels-community/flash-attn2": "flash_attention_2",
    "kernels-community/vllm-flash-attn3": "flash_attention_3",
    "xformers": "sdpa",
    "disabled": "eager",
}
"""Other names of attention implementations."""
LORA = {
    "lora_r": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "use_rslora": "lora.use_rslora",
    "use_dora": "lora.use_dora",
}
LORA_KEYS = (
    *("use_peft", "lora_target_modules", "lora_target_linear"),
    *("lora_target_parameters", "lora_modules_to_save"),
    *LORA,
)


@RULES.together(
    "model_name_or_path model_revision adapter_name_or_path create_new_adapter",
    "the starting adapter's adapter_config.json names its base",
)
def start(draft: Draft) -> None:
    """Translate the starting model, which may be an adapter."""
    name, adapter = draft.given("model_name_or_path"), draft.given("adapter_name_or_path")
    if adapter:
        folder = word_list(adapter)
        if folder is None or len(folder) != 1:
            message = "prefcli starts from one adapter"
            draft.refuse("adapter_name_or_path", message, code="RCP156", hint="merge the others")
            return
        draft.put("model.name_or_path", folder[0], "adapter_name_or_path")
        how = "stack" if is_on(draft.given("create_new_adapter")) else "continue"
        draft.put("model.adapter", how, "adapter_name_or_path")
        draft.note(f"the adapter must have been trained on {name}: its adapter_config.json decides")
    elif name is not None:
        draft.put("model.name_or_path", name, "model_name_or_path")
        draft.put_given("model.revision", "model_revision")
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


@RULES.together("tokenizer_name_or_path", "it is the model's own tokenizer")
def tokenizer(draft: Draft) -> None:
    """Translate a tokenizer that is not the model's."""
    if draft.given("tokenizer_name_or_path") != draft.given("model_name_or_path"):
        draft.put_given("model.tokenizer", "tokenizer_name_or_path")


@RULES.together("trust_remote_code", "transformers has the classes of most models")
def remote_code(draft: Draft) -> None:
    """Translate trust_remote_code, which prefcli allows for local models and pinned commits."""
    name, revision = str(draft.given("model_name_or_path")), draft.given("model_revision")
    if not is_on(draft.given("trust_remote_code")):
        return
    if is_local(name) or (isinstance(revision, str) and is_commit(revision)):
        draft.put("model.trust_remote_code", True, "trust_remote_code")
    else:
        draft.note(
            f"{draft.name('trust_remote_code')} is needed only if transformers does not have the "
            f"class of {name}; in that case write model.trust_remote_code: true and "
            "model.revision: COMMIT"
        )


@RULES.together(
    "dtype bf16 fp16 mixed_precision_dtype",
    "the precision follows the device: bfloat16 autocast if it supports it",
)
def dtype(draft: Draft) -> None:
    """Translate the data type of the weights, with bf16 and fp16."""
    value, mixed = draft.value("dtype"), draft.value("mixed_precision_dtype")
    bf16, fp16 = draft.given("bf16"), draft.given("fp16")
    if mixed is not None:
        bf16, fp16 = str(mixed).lower() == "bf16", str(mixed).lower() == "fp16"
    name = str(value).removeprefix("torch.")
    name = DTYPES.get(name, name)
    trains_all = not _trains_adapter(draft)
    if draft.tool == "axolotl" and trains_all and is_on(bf16):
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
    elif name == "bfloat16" and trains_all and is_on(bf16) and _is_sharded(draft):
        draft.drop("dtype", "FSDP and ZeRO-3 train float32 copies of such weights")
        draft.note(
            f"{draft.name('dtype')} bfloat16 is not in the recipe: under FSDP or ZeRO-3, as with "
            f"{draft.devices or 'several'} devices, weights are updated in float32. Without them "
            "write model.dtype: bfloat16"
        )
    elif value is not None:
        draft.put("model.dtype", name, "dtype")
        if name == "bfloat16" and trains_all:
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


def _is_sharded(draft: Draft) -> bool:
    return (draft.devices or 1) > 1 or any(is_on(draft.given(k)) for k in ("deepspeed", "fsdp"))


@RULES.together("chat_template chat_template_jinja", "only chat_template: jinja uses the other key")
def template(draft: Draft) -> None:
    """Translate the chat template: its text, or the name of one."""
    name, jinja = draft.given("chat_template"), draft.given("chat_template_jinja")
    if name in (None, "jinja") and jinja:
        draft.put("model.chat_template", jinja, "chat_template_jinja")
    elif name in (None, "tokenizer_default"):
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


@RULES.together("special_tokens")
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
            hint = "save a tokenizer that has it and write model.tokenizer"
            message = "prefcli does not add tokens"
            draft.refuse("special_tokens", message, name, code="RCP156", hint=hint)


def _trains_adapter(draft: Draft) -> bool:
    return draft.value("use_peft") in (True, "lora", "qlora")


@RULES.together(" ".join(LORA_KEYS), "the section lora does not need it")
def lora(draft: Draft) -> None:
    """Translate the settings of the adapter, if the file trains one."""
    kind = draft.value("use_peft")
    if not _trains_adapter(draft):
        if is_on(kind) and kind != "full":
            message = f"prefcli does not have {kind!r}"
            draft.refuse("use_peft", message, code="RCP156", hint="write lora, or train in full")
        return
    if draft.values.get("model.adapter") == "continue":
        for key in LORA_KEYS:
            draft.drop(key, "model.adapter continue keeps the settings of that adapter")
        return
    for key, path in LORA.items():
        if (value := draft.value(key)) is not None:
            draft.put(path, value, key)
    if is_on(parameters := draft.given("lora_target_parameters")):
        value = word_list(parameters) or parameters
        draft.put("lora.target_parameters", value, "lora_target_parameters")
    if is_on(layers := draft.given("lora_modules_to_save")):
        draft.put("lora.modules_to_save", word_list(layers) or layers, "lora_modules_to_save")
    modules = draft.value("lora_target_modules")
    names = word_list(modules) if modules else None
    if is_on(draft.given("lora_target_linear")):
        draft.put("lora.target_modules", "all-linear", "lora_target_linear")
    elif names and names[0] in ("all", "all-linear"):
        draft.put("lora.target_modules", "all-linear", "lora_target_modules")
    elif modules:
        draft.put("lora.target_modules", names or modules, "lora_target_modules")
    elif draft.tool == "axolotl":
        message = "neither lora_target_linear nor lora_target_modules is given"
        hint = "write lora_target_linear: true"
        path = "lora.target_modules"
        draft.refuse("use_peft", message, code="RCP161", hint=hint, path=path)
    else:
        draft.put("lora.target_modules", "default", "lora_target_modules")
