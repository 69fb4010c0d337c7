"""axolotl's datasets: a path, and a type that says how rows are rendered."""

from __future__ import annotations

from typing import Any

from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.model_settings import NAMED_TEMPLATES
from prefcli.recipe.migrate.reasons import SAME_TRAINING
from prefcli.recipe.migrate.rules import refuse_unknown, word_list
from prefcli.recipe.migrate.sources import SourceList, put_held_out, put_sources

KEYS = ("datasets", "test_datasets", "val_set_size")
_COPIED = ("path", "name", "split", "revision", "data_files")
_FORMAT_KEYS = {"type", "field_messages", "field_chosen", "field_rejected", "field", "conversation"}
_UNUSED = {"ds_type"}
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "roles_to_train": (["assistant"], ["gpt"], ["assistant", "gpt"]),
    "train_on_eos": ("turn", "last"),
    "message_property_mappings": (
        {"role": "role", "content": "content"},
        {"role": "from", "content": "value"},
    ),
    "message_field_role": ("role", "from"),
    "message_field_content": ("content", "value"),
}
"""Keys, with the values that match what prefcli does."""
_ROLES = {
    "user": {"user", "human"},
    "assistant": {"assistant", "gpt", "chatgpt", "model"},
    "system": {"system"},
    "tool": {"tool"},
}
_CHAT_TYPE = "chat_template"
_RENDERED = {
    "intel": {"prompt": "question"},
    "icr": {"prompt": "input"},
    "argilla": {
        "prompt": "instruction",
        "chosen": "chosen_response",
        "rejected": "rejected_response",
    },
    "prompt_pairs": {},
    "ultra": {},
}
"""Types such as chatml.intel, which render text rows as a named template: their columns."""
_PAIR_TYPE = "chat_template.default"
_ARGILLA_TYPES = ("chat_template.argilla_chat", "chat_template.argilla")


def translate(draft: Draft) -> None:
    """Translate datasets and test_datasets."""
    draft.handled |= {*KEYS}
    for key, path in (("datasets", "data.train"), ("test_datasets", "data.eval")):
        entries = draft.given(key)
        if entries is None:
            continue
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            draft.refuse(key, "is not a list of sections with a path", code="RCP157")
            continue
        sources: SourceList = [
            (_source(draft, key, i, entry), (i,)) for i, entry in enumerate(entries)
        ]
        has_chats = any(entry.get("type") in (_CHAT_TYPE, "sharegpt") for entry in entries)
        if key == "datasets" and has_chats:
            draft.row_types.add("conversations")
        put_sources(draft, path, sources, key)
    put_held_out(draft, draft.given("val_set_size"), "val_set_size")
    if draft.given("excess_length_strategy") != "truncate":
        draft.note(
            "axolotl drops rows that are longer than sequence_len; prefcli truncates them at the "
            "end and counts them"
        )


def _source(draft: Draft, key: str, i: int, entry: dict[str, Any]) -> dict[str, Any]:
    source = {name: entry[name] for name in _COPIED if entry.get(name) is not None}
    for name, value in entry.items():
        if name in _COPIED or name in _FORMAT_KEYS or name in _UNUSED or value is None:
            continue
        if name == "roles":
            if not _roles_are_known(value):
                message, hint = (
                    "prefcli does not know all of these roles",
                    "rename them in the data",
                )
                draft.refuse(key, message, i, name, code="RCP164", hint=hint)
        elif name not in _HARMLESS:
            refuse_unknown(draft, key, i, name)
        elif value not in _HARMLESS[name]:
            message = f"prefcli has no setting for {value!r}"
            hint = "remove it if the run does not need it"
            draft.refuse(key, message, i, name, code="RCP156", hint=hint)
    columns = _columns(draft, key, i, entry)
    if _is_rendered(entry.get("type")):
        source["chat"] = True
    elif (template := _prompt_template(entry.get("type"))) is not None and draft.method == "sft":
        source["prompt_template"] = template
    return source | ({"columns": columns} if columns else {})


def _roles_are_known(roles: Any) -> bool:
    if not isinstance(roles, dict):
        return False
    pairs = [(word_list(names), _ROLES.get(role, set())) for role, names in roles.items()]
    return all(names is not None and known.issuperset(names) for names, known in pairs)


def _is_rendered(row_type: Any) -> bool:
    template, _, shape = str(row_type).partition(".")
    return template in ("chatml", "llama3") and shape in _RENDERED


def _prompt_template(row_type: Any) -> str | None:
    """Return the text around an instruction: Alpaca's, or that of the file's own type."""
    if not isinstance(row_type, dict):
        return "alpaca" if row_type == "alpaca" else None
    formats = {row_type.get("format"), row_type.get("no_input_format", row_type.get("format"))}
    if not row_type.get("field_input"):
        formats = {row_type.get("no_input_format", row_type.get("format"))}
    text = formats.pop()
    has_system = row_type.get("field_system") or row_type.get("system_prompt")
    if has_system or formats or not isinstance(text, str) or "{instruction}" not in text:
        return None
    return text.replace("{{", "{").replace("}}", "}")


def _is_plain_pair(row_type: dict[str, Any]) -> bool:
    """Return whether a type of the file's own takes the texts of pairs as they are."""
    names = ("prompt", "chosen", "rejected")
    plain = all(row_type.get(f"{name}_format") in (None, f"{{{name}}}") for name in names)
    return plain and not row_type.get("field_system")


def _columns(draft: Draft, key: str, i: int, entry: dict[str, Any]) -> dict[str, str]:
    """Return prefcli's column names with the names in the data, if they differ."""
    row_type, is_sft = entry.get("type"), draft.method == "sft"
    columns: dict[str, str] = {}
    if is_sft and row_type == _CHAT_TYPE:
        columns = {"messages": entry.get("field_messages") or "messages"}
    elif is_sft and _prompt_template(row_type) is not None:
        names = ("instruction", "input", "output")
        fields = row_type if isinstance(row_type, dict) else {}
        columns = {name: fields.get(f"field_{name}") or name for name in names}
    elif is_sft and row_type == "completion":
        columns = {"text": entry.get("field") or "text"}
    elif (
        not is_sft
        and draft.method != "kto"
        and isinstance(row_type, dict)
        and _is_plain_pair(row_type)
    ):
        names = ("prompt", "chosen", "rejected")
        columns = {name: row_type.get(f"field_{name}") or name for name in names}
    elif draft.method != "kto" and not is_sft and row_type in (_PAIR_TYPE, *_ARGILLA_TYPES):
        columns = {side: entry.get(f"field_{side}") or side for side in ("chosen", "rejected")}
        if row_type == _PAIR_TYPE:
            columns["conversations"] = entry.get("field_messages") or "messages"
    elif not is_sft and draft.method != "kto" and _is_rendered(row_type):
        template, _, shape = str(row_type).partition(".")
        draft.put("model.chat_template", template, key, i, "type")
        columns = _RENDERED[shape]
    elif is_sft and row_type == "sharegpt" and entry.get("conversation") in NAMED_TEMPLATES:
        draft.put("model.chat_template", entry["conversation"], key, i, "conversation")
        columns = {"conversations": entry.get("field") or "conversations"}
    elif row_type is not None or is_sft:
        known = (_CHAT_TYPE, "completion", "alpaca") if is_sft else (_PAIR_TYPE, *_ARGILLA_TYPES)
        hint = "convert the rows to messages and remove the type"
        if draft.method != "kto":
            hint = f"write type: {' or '.join(known)}; or {hint}"
        draft.refuse(
            key,
            f"axolotl renders type {row_type!r} with its own rules",
            i,
            *(("type",) if row_type is not None else ()),
            code="RCP164",
            hint=hint,
        )
    return {column: source for column, source in columns.items() if column != source}


_MEMORY_PLUGINS = ("liger", "cut_cross_entropy", "kernels")


def plugins(draft: Draft) -> None:
    """Drop plugins that save memory, and refuse others."""
    for i, plugin in enumerate(word_list(draft.given("plugins") or []) or []):
        if any(name in plugin.lower() for name in _MEMORY_PLUGINS):
            draft.drop("plugins", SAME_TRAINING, i)
        else:
            message, hint = f"prefcli does not have the plugin {plugin}", "remove it"
            draft.refuse("plugins", message, i, code="RCP156", hint=hint)
