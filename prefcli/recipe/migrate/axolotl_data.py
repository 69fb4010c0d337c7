"""axolotl's datasets: a path, and a type that says how rows become text."""

from __future__ import annotations

from typing import Any

from prefcli.recipe.migrate.base import Draft, is_on, words
from prefcli.recipe.migrate.shared_rules import Listed, put_sources
from prefcli.recipe.migrate.trl_data import no_random_split

_SAME = ("path", "name", "split", "revision", "data_files")
_SHAPE = {"type", "field_messages", "field_chosen", "field_rejected", "field"}
_NEEDLESS = {"ds_type"}
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "roles_to_train": (["assistant"], ["gpt"], ["assistant", "gpt"]),
    "train_on_eos": ("turn", "last"),
    "message_property_mappings": (
        {"role": "role", "content": "content"},
        {"role": "from", "content": "value"},
    ),
    "message_field_role": ("role", "from"),
    "message_field_content": ("content", "value"),
}
"""Keys that prefcli does without where they have one of these values."""
_ROLES = {
    "user": {"user", "human"},
    "assistant": {"assistant", "gpt", "chatgpt", "model"},
    "system": {"system"},
    "tool": {"tool"},
}
_CHATS = ("chat_template",)
_PAIRS = ("chat_template.default",)
_WHOLE = ("chat_template.argilla_chat", "chat_template.argilla")


def translate_data(draft: Draft) -> None:
    draft.settled |= {"datasets", "test_datasets", "val_set_size", "train_on_inputs"}
    kinds: set[Any] = set()
    for key, path in (("datasets", "data.train"), ("test_datasets", "data.eval")):
        listed = draft.given(key)
        if listed is None:
            continue
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            draft.refuse(key, "is no list of sections with a path")
            continue
        sources: Listed = [(_source(draft, key, i, entry), (i,)) for i, entry in enumerate(listed)]
        kinds |= {str(entry.get("type")) for entry in listed}
        put_sources(draft, path, sources, key)
    if not is_on(draft.given("val_set_size")):
        draft.drop("val_set_size", "it is off")
    else:
        no_random_split(draft, "val_set_size")
    _masks(draft, kinds)
    if draft.given("excess_length_strategy") == "truncate":
        return
    draft.remark(
        "axolotl leaves out rows that are longer than sequence_len; prefcli cuts their end, and "
        "counts them"
    )


def _masks(draft: Draft, kinds: set[Any]) -> None:
    """Which turns of a conversation are trained on."""
    if draft.method != "sft" or not kinds & {*_CHATS}:
        draft.drop("train_on_inputs", "only conversations for sft read it")
    elif is_on(draft.given("train_on_inputs")):
        draft.put("sft.assistant_only_loss", False, "train_on_inputs")
    else:
        draft.put("sft.assistant_only_loss", True, "train_on_inputs")


def _source(draft: Draft, key: str, i: int, entry: dict[str, Any]) -> dict[str, Any]:
    source = {name: entry[name] for name in _SAME if entry.get(name) is not None}
    for name, value in entry.items():
        if name in _SAME or name in _SHAPE or name in _NEEDLESS or value is None:
            continue
        if name == "roles":
            if not _roles_are_known(value):
                draft.refuse(key, "prefcli does not know all of these roles", None, i, name)
        elif name not in _DEFAULTS:
            draft.refuse(key, "prefcli migrate does not know this key", None, i, name)
        elif value not in _DEFAULTS[name]:
            draft.refuse(key, f"prefcli has no counterpart of {value!r}", None, i, name)
    columns = _columns(draft, key, i, entry)
    return source | ({"columns": columns} if columns else {})


def _roles_are_known(roles: Any) -> bool:
    if not isinstance(roles, dict):
        return False
    pairs = [(words(theirs), _ROLES.get(ours, set())) for ours, theirs in roles.items()]
    return all(theirs is not None and known.issuperset(theirs) for theirs, known in pairs)


def _columns(draft: Draft, key: str, i: int, entry: dict[str, Any]) -> dict[str, str]:
    """Our name: theirs, where they differ."""
    kind, sft = entry.get("type"), draft.method == "sft"
    ours: dict[str, str] = {}
    if sft and kind in _CHATS:
        ours = {"messages": entry.get("field_messages") or "messages"}
    elif sft and kind == "completion":
        ours = {"text": entry.get("field") or "text"}
    elif draft.method != "kto" and not sft and kind in (*_PAIRS, *_WHOLE):
        ours = {side: entry.get(f"field_{side}") or side for side in ("chosen", "rejected")}
        if kind in _PAIRS:
            ours["conversations"] = entry.get("field_messages") or "messages"
    elif kind is not None or sft:
        known = ("chat_template", "completion") if sft else (*_PAIRS, *_WHOLE)
        what = "none" if draft.method == "kto" else " or ".join(known)
        draft.refuse(
            key,
            f"type {kind!r} renders rows by rules of axolotl's own",
            f"prefcli's types are {what}; else convert the rows to messages, and take type out",
            i,
            *(("type",) if kind is not None else ()),
        )
    return {our: their for our, their in ours.items() if our != their}
