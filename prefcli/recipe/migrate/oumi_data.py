"""oumi's data: a section per split with a list of datasets."""

from __future__ import annotations

from typing import Any

from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.rules import RuleBook, is_on
from prefcli.recipe.migrate.sources import (
    NOT_NEEDED,
    SourceList,
    evaluates,
    put_sources,
    read_section,
    sections,
)

RULES = RuleBook()
_OWN_CLASSES = ("text_sft", "text_sft_jsonl", "PromptResponseDataset", "preference_dpo")
"""oumi's generic dataset classes, whose dataset_path or hub name is the data."""
_COLLATORS = ("text_completions_only_with_padding", "text_with_padding")
_ALL_TURNS = "ALL_ASSISTANT_TURNS"
_SPLIT_KEYS = (
    "datasets pack stream seed mixture_strategy use_torchdata use_async_dataset target_col "
    "collator_kwargs"
)
_SOURCE_KEYS = (
    "dataset_name dataset_path dataset_kwargs sample_count mixture_proportion shuffle seed "
    "shuffle_buffer_size transform_num_workers trust_remote_code"
)


@RULES.together("data", NOT_NEEDED)
def translate(draft: Draft) -> None:
    """Translate data.train and data.validation."""
    splits = draft.given("data")
    for split, path in (("train", "data.train"), ("validation", "data.eval")):
        section = splits.get(split) if isinstance(splits, dict) else None
        if not isinstance(section, dict):
            continue
        entries = sections(draft, section.get("datasets") or [], "data", split, "datasets")
        sources: SourceList = [
            (_source(draft, split, i, entry), (split, "datasets", i))
            for i, entry in enumerate(entries)
        ]
        if split == "train" or evaluates(draft):
            put_sources(draft, path, sources, "data")
        if split == "train":
            harmless = {"collator_name": _COLLATORS, "train_target": (_ALL_TURNS,)}
            read_section(draft, section, "", _SPLIT_KEYS, "data", split, harmless=harmless)
            if is_on(section.get("pack")) and draft.method == "sft":
                draft.put("sft.packing", True, "data", split, "pack")
            for key, value in (("collator_name", _COLLATORS[0]), ("train_target", _ALL_TURNS)):
                if section.get(key) == value:
                    draft.put("sft.assistant_only_loss", True, "data", split, key)


def _source(draft: Draft, split: str, i: int, entry: dict[str, Any]) -> dict[str, Any]:
    inside = (split, "datasets", i)
    options = entry.get("dataset_kwargs")
    options = options if isinstance(options, dict) else {}
    place = (*inside, "dataset_kwargs")
    read_section(draft, options, "", "dataset_path hf_dataset_path", "data", *place)
    name, path = entry.get("dataset_name"), entry.get("dataset_path") or options.get("dataset_path")
    source: dict[str, Any] = {"path": path or options.get("hf_dataset_path") or name}
    if source["path"] in _OWN_CLASSES:
        draft.refuse("data", f"{name} without dataset_path", *inside, code="RCP157")
    source |= read_section(draft, entry, "subset=name split", _SOURCE_KEYS, "data", *inside)
    if (count := entry.get("sample_count")) is not None and entry.get("shuffle"):
        source["rows"] = count
    elif count is not None:
        source["split"] = f"{source.get('split', 'train')}[:{count}]"
    if entry.get("mixture_proportion") is not None:
        message = "oumi repeats or drops rows until the shares of the datasets are met"
        hint = "write sample_count, or fraction in the recipe"
        draft.refuse("data", message, *inside, "mixture_proportion", code="RCP156", hint=hint)
    return source


@RULES.together("q_lora quantization_bit")
def quantization(draft: Draft) -> None:
    """Translate the bits of quantized weights, which only q_lora uses."""
    if is_on(draft.given("q_lora")):
        draft.put("model.quantization", f"{draft.value('quantization_bit')}bit", "quantization_bit")
        draft.drop("q_lora", "model.quantization replaces it")
    else:
        draft.drop("quantization_bit", "only q_lora uses it")


@RULES.together("tokenizer_kwargs")
def tokenizer_options(draft: Draft) -> None:
    """Translate tokenizer_kwargs, which may only set the padding token."""
    given = draft.given("tokenizer_kwargs")
    if isinstance(given, dict):
        read_section(draft, given, "", "pad_token", "tokenizer_kwargs")
        draft.drop("tokenizer_kwargs", "padding is masked by position, whatever its token")
