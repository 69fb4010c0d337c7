"""oumi's data: a section per split with a list of datasets."""

from __future__ import annotations

from typing import Any

from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.rules import is_on, refuse_unknown
from prefcli.recipe.migrate.sources import SourceList, evaluates, put_sources

_OWN_CLASSES = ("text_sft", "text_sft_jsonl", "PromptResponseDataset", "preference_dpo")
"""oumi's generic dataset classes, whose dataset_path or hub name is the data."""
_UNUSED = ("shuffle", "seed", "shuffle_buffer_size", "transform_num_workers", "trust_remote_code")
_SPLIT_UNUSED = (
    *("seed", "mixture_strategy", "use_torchdata", "use_async_dataset", "target_col"),
    "collator_kwargs",
)


def translate(draft: Draft) -> None:
    """Translate data.train and data.validation."""
    draft.handled.add("data")
    sections = draft.given("data")
    for split, path in (("train", "data.train"), ("validation", "data.eval")):
        section = sections.get(split) if isinstance(sections, dict) else None
        if not isinstance(section, dict):
            continue
        entries = section.get("datasets") or []
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            draft.refuse("data", "is not a list of datasets", split, "datasets", code="RCP157")
            continue
        sources: SourceList = [
            (_source(draft, split, i, entry), (split, "datasets", i))
            for i, entry in enumerate(entries)
        ]
        if split == "train" or evaluates(draft):
            put_sources(draft, path, sources, "data")
        if split == "train":
            _split_settings(draft, section)


def _split_settings(draft: Draft, section: dict[str, Any]) -> None:
    for key, value in section.items():
        if key == "pack" and is_on(value) and draft.method == "sft":
            draft.put("sft.packing", True, "data", "train", "pack")
        elif key == "collator_name" and value == "text_completions_only_with_padding":
            draft.put("sft.assistant_only_loss", True, "data", "train", key)
        elif key == "collator_name" and value not in (None, "text_with_padding"):
            hint = "remove it if the rows are text"
            message = f"prefcli does not have the collator {value}"
            draft.refuse("data", message, "train", key, code="RCP156", hint=hint)
        elif key == "stream" and is_on(value):
            draft.drop("data", "the rows are the same", "train", key)
        elif key not in ("datasets", "pack", "stream", "collator_name", *_SPLIT_UNUSED):
            refuse_unknown(draft, "data", "train", key)


def _source(draft: Draft, split: str, i: int, entry: dict[str, Any]) -> dict[str, Any]:
    inside = (split, "datasets", i)
    options = entry.get("dataset_kwargs") or {}
    name, path = entry.get("dataset_name"), entry.get("dataset_path") or options.get("dataset_path")
    hub_name = options.get("hf_dataset_path")
    source: dict[str, Any] = {"path": path or hub_name or name}
    if source["path"] in _OWN_CLASSES:
        draft.refuse("data", f"{name} without dataset_path", *inside, code="RCP157")
    for key, target in (("subset", "name"), ("split", "split")):
        if entry.get(key) is not None:
            source[target] = entry[key]
    for key in ("sample_count", "mixture_proportion"):
        if entry.get(key) is None:
            continue
        if key == "sample_count" and entry.get("shuffle"):
            source["rows"] = entry[key]
        elif key == "sample_count":
            source["split"] = f"{source.get('split', 'train')}[:{entry[key]}]"
        else:
            message = "oumi repeats or drops rows until the shares of the datasets are met"
            hint = "write sample_count, or fraction in the recipe"
            draft.refuse("data", message, *inside, key, code="RCP156", hint=hint)
    for key in options.keys() - {"dataset_path", "hf_dataset_path"}:
        refuse_unknown(draft, "data", *inside, "dataset_kwargs", key)
    known = ("dataset_name", "dataset_path", "subset", "split", "dataset_kwargs", *_UNUSED)
    for key in entry.keys() - {*known, "sample_count", "mixture_proportion"}:
        refuse_unknown(draft, "data", *inside, key)
    return source


def quantization(draft: Draft) -> None:
    """Translate the bits of quantized weights, which only q_lora uses."""
    if is_on(draft.given("q_lora")):
        draft.put("model.quantization", f"{draft.value('quantization_bit')}bit", "quantization_bit")
        draft.drop("q_lora", "model.quantization replaces it")
    else:
        draft.drop("quantization_bit", "only q_lora uses it")
