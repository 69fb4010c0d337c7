"""LLaMA-Factory's datasets: names of entries in its dataset_info.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.rules import RuleBook, word_list
from prefcli.recipe.migrate.sources import NOT_NEEDED, evaluates, put_held_out, put_sources

RULES = RuleBook()
_INFO_FILE = "dataset_info.json"
_TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "system_tag")
_SHAREGPT = dict(zip(_TAGS, ("from", "value", "human", "gpt", "system"), strict=True))
_OPENAI = dict(zip(_TAGS, ("role", "content", "user", "assistant", "system"), strict=True))
_CHATS = {"messages": "conversations", "system": "system", "tools": "tools"}
_ROWS = {
    "alpaca": {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "system": "system",
        "history": "history",
    },
    "sharegpt": _CHATS,
    "openai": _CHATS,
}
_ANSWERS = {"chosen": "chosen", "rejected": "rejected", "kto_tag": "kto_tag"}
"""By format, LLaMA-Factory's roles of columns with prefcli's column names."""
_TYPES: dict[str, type] = {"formatting": str, "file_name": str, "columns": dict, "tags": dict}
_INFO_KEYS = {*_TYPES, "hf_hub_url", "ms_hub_url", "om_hub_url", "ranking", "subset", "split"}
_INFO_KEYS |= {"file_sha1"}


@RULES.together("dataset eval_dataset dataset_dir max_samples val_size", NOT_NEEDED)
def translate(draft: Draft) -> None:
    """Translate dataset and eval_dataset by the entries of dataset_info.json."""
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
    put_held_out(draft, draft.given("val_size"), "val_size")


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
    wrong = [k for k, kind in _TYPES.items() if not isinstance(entry.get(k, kind()), kind)]
    if wrong:
        message = f"{name}: {', '.join(wrong)} of {folder / _INFO_FILE} has the wrong type"
        draft.refuse(key, message, code="RCP165", hint=f"correct the entry in {_INFO_FILE}")
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
    formatting, given = entry.get("formatting", "alpaca"), entry.get("columns", {})
    roles = {**_ROWS.get(formatting, {}), **_ANSWERS}
    unread = sorted(role for role, column in given.items() if column and role not in roles)
    tags = _SHAREGPT | entry.get("tags", {})
    message = None
    if formatting not in _ROWS:
        message = f"{name}: LLaMA-Factory renders {formatting} rows with its own template"
    elif unread:
        message = f"{name}: prefcli does not read its {', '.join(unread)}"
    elif tags not in (_SHAREGPT, _OPENAI) and formatting == "sharegpt":
        message = f"{name}: prefcli reads messages with from/value or role/content, not these tags"
    elif draft.method == "kto" and not given.get("kto_tag"):
        message = f"{name}: kto reads rows with a label, and its columns have no kto_tag"
    if message is not None:
        hint = "convert the rows to conversations (formatting: sharegpt)"
        draft.refuse(key, message, code="RCP164", hint=hint, path="data.train")
        return None
    if formatting == "alpaca" and given.get("history") and draft.method == "sft":
        draft.note(f"{name}: LLaMA-Factory also trains on the answers of history, prefcli does not")
    if formatting != "alpaca":
        draft.row_types.add("conversations")
        is_openai = tags != _SHAREGPT and draft.method in ("sft", "kto")
        roles |= {"messages": "messages" if is_openai else "conversations"}
        roles |= {"kto_tag": "label"}
        given = {"messages": "conversations", **given}
    if draft.method not in ("sft", "kto"):
        given = {"chosen": "chosen", "rejected": "rejected", **given}
    names = {roles[role]: column for role, column in given.items() if column}
    changed = {column: source for column, source in names.items() if column != source}
    return {"columns": changed} if changed else {}
