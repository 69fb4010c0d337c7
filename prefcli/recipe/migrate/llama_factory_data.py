"""LLaMA-Factory's datasets: names of entries in its dataset_info.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.rules import is_on, word_list
from prefcli.recipe.migrate.settings import evaluates, held_out, put_sources

KEYS = ("dataset", "eval_dataset", "dataset_dir", "max_samples", "val_size")
_INFO_FILE = "dataset_info.json"
_SHAREGPT = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
}
_OPENAI = {"role_tag": "role", "content_tag": "content", "user_tag": "user"}
_OPENAI |= {"assistant_tag": "assistant", "system_tag": "system"}
_READ_COLUMNS = {"messages", "chosen", "rejected"}
_INFO_KEYS = {
    "hf_hub_url",
    "ms_hub_url",
    "om_hub_url",
    "file_name",
    "formatting",
    "ranking",
    "subset",
}
_INFO_KEYS |= {"split", "columns", "tags", "file_sha1"}


def translate(draft: Draft) -> None:
    """Translate dataset and eval_dataset by the entries of dataset_info.json."""
    draft.handled |= {*KEYS}
    if (info := _read_info(draft)) is None:
        return
    folder, entries = info
    for key, path in (("dataset", "data.train"), ("eval_dataset", "data.eval")):
        if draft.given(key) is None:
            continue
        if (names := word_list(draft.given(key))) is None:
            message = "is not the name of a dataset or a list of names"
            draft.refuse(key, message, code="RCP157")
            continue
        sources = [_source(draft, key, name, folder, entries) for name in names]
        if None not in sources and (key == "dataset" or evaluates(draft)):
            put_sources(draft, path, [(source, ()) for source in sources if source], key)
    if draft.given("dataset_dir") is not None:
        draft.drop("dataset_dir", f"the recipe does not need {_INFO_FILE}")
    if is_on(draft.given("val_size")):
        held_out(draft, "val_size")
    else:
        draft.drop("val_size", "it is off")


def _read_info(draft: Draft) -> tuple[Path, dict[str, Any]] | None:
    """Return the folder of dataset_info.json and its entries."""
    given = draft.given("dataset_dir")
    above = [draft.folder.absolute(), *draft.folder.absolute().parents][:6]
    if given is not None:
        folders = [Path(str(given)), *(folder / str(given) for folder in above)]
    else:
        folders = [draft.folder, Path("data"), *(folder / "data" for folder in above)]
    key = "dataset_dir" if given is not None else "dataset"
    for folder in folders:
        path = folder / _INFO_FILE
        if not path.is_file():
            continue
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            draft.refuse(key, f"{path} can't be read: {error}", code="RCP165")
            return None
        if isinstance(entries, dict):
            return folder, entries
    draft.refuse(
        key,
        f"{_INFO_FILE}, which defines the datasets, is not in {given or 'this folder or data/'}",
        code="RCP165",
        hint=f"copy it to this file's folder, or write dataset_dir: FOLDER_OF_{_INFO_FILE}",
        path="data.train",
    )
    return None


def _source(
    draft: Draft, key: str, name: str, folder: Path, entries: dict[str, Any]
) -> dict[str, Any] | None:
    entry = entries.get(name)
    if not isinstance(entry, dict):
        draft.refuse(key, f"{name!r} is not in {folder / _INFO_FILE}", code="RCP165")
        return None
    if unknown := sorted(entry.keys() - _INFO_KEYS):
        message = f"{name}: prefcli migrate does not know the keys {', '.join(unknown)}"
        draft.refuse(key, message, code="RCP155", hint=f"remove them from {_INFO_FILE}")
        return None
    columns = _columns(draft, key, name, entry)
    if columns is None:
        return None
    if "hf_hub_url" in entry:
        source = {"path": entry["hf_hub_url"]}
    elif "file_name" in entry:
        source = {"path": str(folder / entry["file_name"])}
    else:
        message = f"{name} is not on the Hugging Face Hub"
        draft.refuse(key, message, code="RCP164", hint="download it, and write file_name")
        return None
    if entry.get("subset"):
        source["name"] = entry["subset"]
    split, rows = entry.get("split", "train"), draft.given("max_samples")
    if rows is not None:
        split = f"{split}[:{rows}]"
    return source | ({} if split == "train" else {"split": split}) | columns


def _columns(draft: Draft, key: str, name: str, entry: dict[str, Any]) -> dict[str, Any] | None:
    """Return the entry's columns, or None after refusing rows that prefcli can't read."""
    formatting, columns = entry.get("formatting", "alpaca"), entry.get("columns", {})
    hint = "convert the rows to conversations (formatting: sharegpt)"
    if formatting not in ("sharegpt", "openai"):
        message = f"{name}: LLaMA-Factory renders {formatting} rows with its own template"
        draft.refuse(key, message, code="RCP164", hint=hint)
        return None
    if unread := sorted(k for k, column in columns.items() if column and k not in _READ_COLUMNS):
        message = f"{name}: prefcli does not read its {', '.join(unread)}"
        draft.refuse(key, message, code="RCP164", hint="convert the rows first")
        return None
    tags = _SHAREGPT | entry.get("tags", {})
    messages = columns.get("messages", "conversations")
    if tags not in (_SHAREGPT, _OPENAI) and formatting == "sharegpt":
        message = f"{name}: prefcli reads messages with from/value or role/content, not these tags"
        draft.refuse(key, message, code="RCP164", hint=hint)
        return None
    if draft.method == "kto":
        message = f"{name}: kto reads rows with prompt, completion and label"
        draft.refuse(key, message, code="RCP164", hint="convert the rows first")
        return None
    is_pair = draft.method != "sft"
    draft.row_types.add("conversations")
    names = {"conversations" if is_pair or tags == _SHAREGPT else "messages": messages}
    if is_pair:
        names |= {side: columns.get(side, side) for side in ("chosen", "rejected")}
    changed = {column: source for column, source in names.items() if column != source}
    return {"columns": changed} if changed else {}
