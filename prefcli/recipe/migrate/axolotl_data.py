"""axolotl's datasets: a path, and a type that says how rows are rendered."""

from __future__ import annotations

from typing import Any

from prefcli.recipe.migrate.draft import Draft
from prefcli.recipe.migrate.model_settings import NAMED_TEMPLATES
from prefcli.recipe.migrate.reasons import SAME_TRAINING
from prefcli.recipe.migrate.rules import RuleBook, word_list
from prefcli.recipe.migrate.sources import (
    NOT_NEEDED,
    SourceList,
    put_held_out,
    put_sources,
    read_section,
    sections,
)

RULES = RuleBook()
_COPIED = "path name split revision data_files"
_READ = "type field_messages field_chosen field_rejected field conversation roles ds_type"
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of messages that prefcli passes to the chat template under the name that it reads."""
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "roles_to_train": (["assistant"], ["gpt"], ["assistant", "gpt"]),
    "train_on_eos": ("turn", "last"),
    "message_property_mappings": (
        {"role": "role", "content": "content"},
        {"role": "from", "content": "value"},
    ),
    "field_thinking": _REASONING,
    "template_thinking_key": _REASONING,
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
_FIELDS: dict[str, dict[str, dict[str, str]]] = {
    "sft": {
        "chat_template": {"messages": "field_messages"},
        "sharegpt": {"conversations": "field"},
        "completion": {"text": "field"},
        "alpaca": {},
    },
    "pair": {
        "chat_template.default": {
            "chosen": "field_chosen",
            "rejected": "field_rejected",
            "conversations": "field_messages",
        },
        "chat_template.argilla": {"chosen": "field_chosen", "rejected": "field_rejected"},
        "chat_template.argilla_chat": {"chosen": "field_chosen", "rejected": "field_rejected"},
    },
    "labelled": {},
}
"""By kind of rows and type: prefcli's columns, with the key that may name the column otherwise."""
_OWN_FIELDS = {
    "sft": ("instruction", "input", "output"),
    "pair": ("prompt", "chosen", "rejected"),
    "labelled": (),
}
"""The columns of a type of the file's own, which is a section."""
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


@RULES.together("datasets test_datasets val_set_size", NOT_NEEDED)
def translate(draft: Draft) -> None:
    """Translate datasets and test_datasets."""
    for key, path in (("datasets", "data.train"), ("test_datasets", "data.eval")):
        entries = draft.given(key)
        if entries is None:
            continue
        entries = sections(draft, entries, key)
        sources: SourceList = [
            (_source(draft, key, i, entry), (i,)) for i, entry in enumerate(entries)
        ]
        has_chats = any(entry.get("type") in ("chat_template", "sharegpt") for entry in entries)
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
    source = read_section(draft, entry, _COPIED, _READ, key, i, harmless=_HARMLESS)
    if not _roles_are_known(entry.get("roles") or {}):
        message, hint = "prefcli does not know all of these roles", "rename them in the data"
        draft.refuse(key, message, i, "roles", code="RCP164", hint=hint)
    row_type, template, shape = entry.get("type"), *str(entry.get("type")).partition(".")[::2]
    kind = {"sft": "sft", "kto": "labelled"}.get(draft.method, "pair")
    columns: dict[str, str] = {}
    if isinstance(row_type, dict) and _is_read(row_type, kind):
        columns = {name: row_type.get(f"field_{name}") or name for name in _OWN_FIELDS[kind]}
    elif kind != "sft" and template in ("chatml", "llama3") and shape in _RENDERED:
        draft.put("model.chat_template", template, key, i, "type")
        source["chat"] = True
        columns = _RENDERED[shape]
        if kind == "labelled":
            columns = {name: columns[name] for name in columns.keys() & {"prompt"}}
    elif draft.method == "reward" and row_type == "bradley_terry.chat_template":
        source["chat"] = True
        columns = {"prompt": "input"}
    elif row_type == "sharegpt" and entry.get("conversation") not in NAMED_TEMPLATES:
        _refuse_type(draft, kind, key, i, row_type)
    elif isinstance(row_type, str) and row_type in _FIELDS[kind]:
        columns = _columns(entry, _FIELDS[kind][row_type])
        if row_type == "sharegpt":
            draft.put("model.chat_template", entry["conversation"], key, i, "conversation")
    elif row_type is not None or kind == "sft":
        _refuse_type(draft, kind, key, i, row_type)
    if kind == "sft" and (row_type == "alpaca" or isinstance(row_type, dict)):
        source["prompt_template"] = _prompt_template(row_type)
    columns = {column: source for column, source in columns.items() if column != source}
    return source | ({"columns": columns} if columns else {})


def _columns(entry: dict[str, Any], fields: dict[str, str]) -> dict[str, str]:
    """Return the names of the columns in the data."""
    return {
        column: entry.get(key) or (column if key == "field" else key.removeprefix("field_"))
        for column, key in fields.items()
    }


def _refuse_type(draft: Draft, kind: str, key: str, i: int, row_type: Any) -> None:
    hint = "convert the rows to messages and remove the type"
    if known := " or ".join(_FIELDS[kind]):
        hint = f"write type: {known}; or {hint}"
    draft.refuse(
        key,
        f"axolotl renders type {row_type!r} with its own rules",
        i,
        *(("type",) if row_type is not None else ()),
        code="RCP164",
        hint=hint,
    )


def _is_read(row_type: dict[str, Any], kind: str) -> bool:
    """Return whether prefcli reads a type of the file's own: texts, or one text around them."""
    if kind == "sft":
        return _prompt_template(row_type) is not None
    names = _OWN_FIELDS[kind]
    is_plain = all(row_type.get(f"{name}_format") in (None, f"{{{name}}}") for name in names)
    return is_plain and bool(names) and not row_type.get("field_system")


def _roles_are_known(roles: Any) -> bool:
    if not isinstance(roles, dict):
        return False
    pairs = [(word_list(names), _ROLES.get(role, set())) for role, names in roles.items()]
    return all(names is not None and known.issuperset(names) for names, known in pairs)


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


_OTHER_PLUGINS = ("liger", "cut_cross_entropy", "kernels", "swanlab")
"""Plugins that save memory, and of a tracker."""


@RULES.together("plugins")
def plugins(draft: Draft) -> None:
    """Drop plugins that do not change training, and refuse others."""
    for i, plugin in enumerate(word_list(draft.given("plugins") or []) or []):
        if any(name in plugin.lower() for name in _OTHER_PLUGINS):
            draft.drop("plugins", SAME_TRAINING, i)
        else:
            message, hint = f"prefcli does not have the plugin {plugin}", "remove it"
            draft.refuse("plugins", message, i, code="RCP156", hint=hint)
