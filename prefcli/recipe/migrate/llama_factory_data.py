"""LLaMA-Factory's datasets: names that its dataset_info.json explains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefcli.recipe.migrate.base import Draft, is_on, words
from prefcli.recipe.migrate.shared_rules import evaluates, put_sources
from prefcli.recipe.migrate.training_arguments import STRATEGIES
from prefcli.recipe.migrate.trl_data import no_random_split

_INFO = "dataset_info.json"
_SHAREGPT = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
}
_OPENAI = {"role_tag": "role", "content_tag": "content", "user_tag": "user"}
_OPENAI |= {"assistant_tag": "assistant", "system_tag": "system"}
_COLUMNS = {"messages", "chosen", "rejected"}
_KEYS = {"hf_hub_url", "ms_hub_url", "om_hub_url", "file_name", "formatting", "ranking", "subset"}
_KEYS |= {"split", "columns", "tags", "file_sha1"}


def translate_data(draft: Draft) -> None:
    draft.settled |= {"dataset", "eval_dataset", "dataset_dir", "max_samples", "val_size"}
    if (info := _info(draft)) is None:
        return
    folder, entries = info
    for key, path in (("dataset", "data.train"), ("eval_dataset", "data.eval")):
        if draft.given(key) is None:
            continue
        if (names := words(draft.given(key))) is None:
            draft.refuse(key, "is neither a dataset's name nor a list of names")
            continue
        found = [_source(draft, key, name, folder, entries) for name in names]
        if None not in found and (key == "dataset" or evaluates(draft, *STRATEGIES)):
            put_sources(draft, path, [(source, ()) for source in found if source], key)
    if draft.given("dataset_dir") is not None:
        draft.drop("dataset_dir", f"{_INFO} is read now, not by the recipe")
    if is_on(draft.given("val_size")):
        no_random_split(draft, "val_size")
    else:
        draft.drop("val_size", "it is off")


def _info(draft: Draft) -> tuple[Path, dict[str, Any]] | None:
    """The folder of dataset_info.json, as this process finds it, and what it holds."""
    named = draft.given("dataset_dir")
    folders = [Path(str(named)), draft.folder / str(named)] if named is not None else []
    folders += [draft.folder, draft.folder / "data"]
    key = "dataset_dir" if named is not None else "dataset"
    for folder in folders:
        path = folder / _INFO
        if not path.is_file():
            continue
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            draft.refuse(key, f"{path} can't be read: {error}")
            return None
        if isinstance(entries, dict):
            return folder, entries
    draft.refuse(
        key,
        f"dataset names are explained by {_INFO}, which is neither beside this file nor in "
        "dataset_dir",
        f"copy it beside this file, or give its folder: dataset_dir: FOLDER_OF_{_INFO}",
    )
    return None


def _source(
    draft: Draft, key: str, name: str, folder: Path, entries: dict[str, Any]
) -> dict[str, Any] | None:
    entry = entries.get(name)
    if not isinstance(entry, dict):
        draft.refuse(key, f"{name!r} is not in {folder / _INFO}")
        return None
    if unknown := sorted(entry.keys() - _KEYS):
        draft.refuse(key, f"{name}: prefcli migrate does not know its {', '.join(unknown)}")
        return None
    columns = _columns(draft, key, name, entry)
    if columns is None:
        return None
    if "hf_hub_url" in entry:
        source = {"path": entry["hf_hub_url"]}
    elif "file_name" in entry:
        source = {"path": str(folder / entry["file_name"])}
    else:
        draft.refuse(key, f"{name} is on another hub than Hugging Face's")
        return None
    if entry.get("subset"):
        source["name"] = entry["subset"]
    split, rows = entry.get("split", "train"), draft.given("max_samples")
    if rows is not None:
        split = f"{split}[:{rows}]"
    return source | ({} if split == "train" else {"split": split}) | columns


def _columns(draft: Draft, key: str, name: str, entry: dict[str, Any]) -> dict[str, Any] | None:
    """prefcli's names of the columns; None, with the reason, for rows of another shape."""
    formatting, theirs = entry.get("formatting", "alpaca"), entry.get("columns", {})
    if formatting not in ("sharegpt", "openai"):
        draft.refuse(
            key,
            f"{name}: LLaMA-Factory puts {formatting} rows into its template; prefcli takes text "
            "as it is",
            "convert the rows to conversations (formatting: sharegpt)",
        )
        return None
    if unread := sorted(k for k, column in theirs.items() if column and k not in _COLUMNS):
        draft.refuse(key, f"{name}: prefcli does not read its {', '.join(unread)}")
        return None
    tags = _SHAREGPT | entry.get("tags", {})
    messages = theirs.get("messages", "conversations")
    if tags not in (_SHAREGPT, _OPENAI) and formatting == "sharegpt":
        draft.refuse(key, f"{name}: prefcli reads from/value and role/content, not these tags")
        return None
    if draft.method == "kto":
        draft.refuse(key, f"{name}: prefcli's kto reads prompt, completion and label")
        return None
    pairs = draft.method != "sft"
    ours = {"conversations" if pairs or tags == _SHAREGPT else "messages": messages}
    if pairs:
        ours |= {side: theirs.get(side, side) for side in ("chosen", "rejected")}
    renamed = {our: their for our, their in ours.items() if our != their}
    return {"columns": renamed} if renamed else {}
