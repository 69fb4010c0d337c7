"""Row formats: each documented one with its canonical row, and invalid rows."""
# ruff: noqa: E501 - one case per line

import json

import pytest

from prefcli.formats import FORMATS, RowError, detect
from prefcli.formats.cells import JSON_MESSAGES, PROMPT_TEMPLATE, TEXT_AS_TURNS, prepare
from prefcli.formats.chat_columns import add_chat_columns
from prefcli.formats.labelled import to_label

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}
B = {"role": "assistant", "content": "bad"}
S = {"role": "system", "content": "s"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}],
}
RESULT = {"role": "tool", "content": "2", "name": "f", "tool_call_id": "1"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}
HH = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"

VALID = {
    "text pairs": ("pairs", {"prompt": "q", "chosen": "good", "rejected": "bad"}, {"prompt": "q", "chosen": "good", "rejected": "bad"}),
    "other columns are ignored": ("pairs", {"prompt": "q", "chosen": "a", "rejected": "b", "score": 1}, {"prompt": "q", "chosen": "a", "rejected": "b"}),
    "message pairs": ("pairs", {"prompt": [U], "chosen": [A], "rejected": [B]}, {"prompt": [U], "chosen": [A], "rejected": [B]}),
    "sides repeat the prompt": ("pairs", {"prompt": [S, U], "chosen": [S, U, A], "rejected": [S, U, B]}, {"prompt": [S, U], "chosen": [A], "rejected": [B]}),
    "one side repeats it": ("pairs", {"prompt": [U], "chosen": [U, A], "rejected": [B]}, {"prompt": [U], "chosen": [A], "rejected": [B]}),
    "one message alone": ("pairs", {"prompt": U, "chosen": A, "rejected": B}, {"prompt": [U], "chosen": [A], "rejected": [B]}),
    "text sides of messages": ("pairs", {"prompt": [U], "chosen": "good", "rejected": "bad"}, {"prompt": [U], "chosen": [A], "rejected": [B]}),
    "more turns after the prompt": ("pairs", {"prompt": [U], "chosen": [A, U, A], "rejected": [B]}, {"prompt": [U], "chosen": [A, U, A], "rejected": [B]}),
    "ultrafeedback": ("pairs", {"prompt": "q", "chosen": [U, A], "rejected": [U, B]}, {"prompt": [U], "chosen": [A], "rejected": [B]}),
    "ultrafeedback, system": ("pairs", {"prompt": "q", "chosen": [S, U, A], "rejected": [S, U, B]}, {"prompt": [S, U], "chosen": [A], "rejected": [B]}),
    "text prompt, answers": ("pairs", {"prompt": "q", "chosen": [A], "rejected": [B]}, {"prompt": [U], "chosen": [A], "rejected": [B]}),
    "sharegpt": ("sharegpt pairs", {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "bad"}}, {"prompt": [U], "chosen": [A], "rejected": [B]}),
    "sharegpt, text answers": ("sharegpt pairs", {"conversations": [HUMAN], "chosen": "good", "rejected": "bad"}, {"prompt": [U], "chosen": [A], "rejected": [B]}),
    "implicit": ("conversation pairs", {"chosen": [S, U, A], "rejected": [S, U, B]}, {"prompt": [S, U], "chosen": [A], "rejected": [B]}),
    "implicit, two turns": ("conversation pairs", {"chosen": [U, A, U, A], "rejected": [U, A, U, B]}, {"prompt": [U, A, U], "chosen": [A], "rejected": [B]}),
    "hh-rlhf": ("Human/Assistant text pairs", {"chosen": f"{HH} x", "rejected": f"{HH} y"}, {"prompt": HH, "chosen": " x", "rejected": " y"}),
    "labelled text": ("labelled", {"prompt": "q", "completion": "a", "label": False}, {"prompt": "q", "completion": "a", "label": False}),
    "labelled messages": ("labelled", {"prompt": [U], "completion": [A], "label": True}, {"prompt": [U], "completion": [A], "label": True}),
    "labelled, text and messages": ("labelled", {"prompt": "q", "completion": [A], "label": True}, {"prompt": [U], "completion": [A], "label": True}),
    "messages": ("messages", {"messages": [S, U, A]}, {"messages": [S, U, A]}),
    "alpaca": ("instruction and output", {"instruction": "q", "input": "", "output": "good"}, {"prompt": [U], "completion": [A]}),
    "alpaca, input": ("instruction and output", {"instruction": "q", "input": "i", "output": "good"}, {"prompt": [{"role": "user", "content": "q\ni"}], "completion": [A]}),
    "alpaca pairs": ("instruction pairs", {"instruction": "q", "chosen": "good", "rejected": "bad"}, {"prompt": [U], "chosen": [A], "rejected": [B]}),
    "alpaca kto": ("instruction with kto_tag", {"instruction": "q", "input": None, "output": "bad", "kto_tag": 0}, {"prompt": [U], "completion": [B], "label": False}),
    "labelled conversation": ("labelled messages", {"messages": [S, U, A], "label": "True"}, {"prompt": [S, U], "completion": [A], "label": True}),
    "labelled sharegpt": ("labelled conversations", {"conversations": [HUMAN, GPT], "label": 1.0}, {"prompt": [U], "completion": [A], "label": True}),
    "label of another kind": ("messages", {"messages": [U, A], "label": "sports"}, {"messages": [U, A]}),
    "reasoning keys": ("pairs", {"prompt": [U], "chosen": [{**A, "thinking": "hm"}], "rejected": [{**B, "reasoning_content": "so"}]}, {"prompt": [U], "chosen": [{**A, "thinking": "hm"}], "rejected": [{**B, "reasoning_content": "so"}]}),
    "nulls of a struct": ("messages", {"messages": [{**U, "name": None, "tool_calls": None}, {**A, "name": None, "tool_calls": []}]}, {"messages": [U, A]}),
    "tool turns": ("messages", {"messages": [U, CALL, RESULT, A]}, {"messages": [U, CALL, RESULT, A]}),
    "arguments as text": ("messages", {"messages": [U, {**CALL, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"x": 1}'}}]}, A]}, {"messages": [U, {**CALL, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"x": 1}}}]}, A]}),
    "sharegpt tools": ("conversations", {"conversations": [HUMAN, {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}, {"from": "observation", "value": "2"}, GPT]}, {"messages": [U, {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}, {"role": "tool", "content": "2"}, A]}),
    "parts of text": ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, " and r"]}, A]}, {"messages": [{"role": "user", "content": "q and r"}, A]}),
    "conversations": ("conversations", {"conversations": [HUMAN, GPT]}, {"messages": [U, A]}),
    "prompt and completion": ("prompt and completion", {"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "a"}),
    "the same as messages": ("prompt and completion", {"prompt": [U], "completion": [A]}, {"prompt": [U], "completion": [A]}),
    "text": ("text", {"text": "a b"}, {"text": "a b"}),
}  # fmt: skip

INVALID = {
    "prompt null": ({"prompt": None, "chosen": "a", "rejected": "b"}, "nothing in 'prompt'", "text or a list of messages"),
    "chosen null": ({"prompt": "q", "chosen": None, "rejected": "b"}, "nothing in 'chosen' with a text prompt", "text"),
    "rejected number": ({"prompt": "q", "chosen": "a", "rejected": 3}, "int 3 in 'rejected'", "text"),
    "mixed sides": ({"prompt": "q", "chosen": "a", "rejected": [B]}, "a list of 1 in 'rejected' with a text prompt", "text"),
    "mixed sides, other way": ({"prompt": "q", "chosen": [U, A], "rejected": 1.5}, "float 1.5 in 'rejected'", "an assistant message or its text"),
    "prompt elsewhere": ({"prompt": "other", "chosen": [U, A], "rejected": [U, B]}, "'prompt' text 'other' that is not the first or the last user message", "the same prompt in both"),
    "prompt ends with the assistant": ({"prompt": [U, A], "chosen": [A], "rejected": [B]}, "a prompt that ends with an assistant", "a user message at the end"),
    "only the prompt": ({"prompt": [U], "chosen": [U], "rejected": [U, B]}, "'chosen' that ends after the prompt", "an assistant message"),
    "another prompt": ({"prompt": [U], "chosen": [S, A], "rejected": [B]}, "'chosen' that starts with a system message", "the messages of the prompt"),
    "ends with the user": ({"prompt": [U], "chosen": [A, U], "rejected": [B]}, "'chosen' that ends with user", "an assistant message at the end"),
    "unknown role": ({"prompt": [{"role": "boss", "content": "q"}], "chosen": [A], "rejected": [B]}, "text 'boss' as role of prompt[0]", "one of user, human"),
    "role missing": ({"chosen": [{"role": None, "content": "q"}, A], "rejected": [U, B]}, "nothing as role of chosen[0]", "one of"),
    "role a list": ({"chosen": [{"role": ["user"], "content": "q"}, A], "rejected": [U, B]}, "a list of 1 as role of chosen[0]", "one of"),
    "content null": ({"chosen": [U, {"role": "assistant", "content": None}], "rejected": [U, B]}, "nothing as content of chosen[1]", "text"),
    "part without text": ({"messages": [{"role": "user", "content": [{"type": "text"}]}, A]}, "a part of type 'text' in content of messages[0]", "parts of text"),
    "image part": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, A]}, "a part of type 'image_url' in content of messages[0]", "parts of text"),
    "thinking in parts": ({"messages": [U, {**A, "thinking": ["x"]}]}, "a list of 1 as thinking of messages[1]", "text"),
    "image": ({"messages": [{**U, "images": ["x"]}, A]}, "'images' in messages[0]", "text messages"),
    "tool calls no calls": ({"messages": [U, {**A, "tool_calls": [1]}]}, "a list of 1 as tool_calls of messages[1]", "a list of calls"),
    "one side no conversation": ({"chosen": [U, A], "rejected": "b"}, "text 'b' in 'rejected'", "a list of messages"),
    "different starts": ({"chosen": [U, A], "rejected": [S, U, B]}, "conversations that differ before", "the same messages up to"),
    "no prompt at all": ({"chosen": [A], "rejected": [B]}, "an assistant message without a prompt", "a user message before it"),
    "no answer": ({"chosen": [U], "rejected": [U]}, "'chosen' that ends with user", "an assistant message"),
    "sharegpt answered": ({"conversations": [HUMAN, GPT], "chosen": GPT, "rejected": GPT}, "a prompt that ends with an assistant", "a user message"),
    "sharegpt null": ({"conversations": None, "chosen": GPT, "rejected": GPT}, "nothing in 'conversations'", "a list of messages"),
    "hh differs": ({"chosen": f"{HH} x", "rejected": "\n\nHuman: z\n\nAssistant: y"}, "texts that differ before", "the same dialogue"),
    "hh other side": ({"chosen": f"{HH} x", "rejected": "y"}, "text 'y' in 'rejected'", "\\n\\nAssistant:"),
    "hh null": ({"chosen": f"{HH} x", "rejected": None}, "nothing in 'rejected'", "text with"),
    "label a number": ({"prompt": "q", "completion": "a", "label": 2}, "int 2 in 'label'", "true or false"),
    "label null": ({"prompt": "q", "completion": "a", "label": None}, "nothing in 'label'", "true or false"),
    "label a word": ({"prompt": "q", "completion": "a", "label": "yes"}, "text 'yes' in 'label'", "true or false"),
    "completion null": ({"prompt": "q", "completion": None}, "nothing in 'completion'", "text"),
    "messages null": ({"messages": None}, "nothing in 'messages'", "a list of messages"),
    "messages empty": ({"messages": []}, "'messages' without an assistant", "at least one assistant message"),
    "messages of text": ({"messages": ["q"]}, "text 'q' in messages[0]", "role and content"),
    "nothing to learn": ({"messages": [U]}, "'messages' without an assistant message", "at least one"),
    "open end": ({"messages": [A, U]}, "'messages' that ends with user", "an assistant message at the end"),
    "text null": ({"text": None}, "nothing in 'text'", "text"),
    "text a list": ({"text": ["a"]}, "a list of 1 in 'text'", "text"),
    "many keys": ({"text": {str(i): i for i in range(900)}}, "'0', '1', '10', '100', '101' and 895 more in 'text'", "text"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "row", "canonical"), VALID.values(), ids=VALID)
def test_convert_valid_row_returns_canonical_row(name, row, canonical):
    row_format = detect(row)
    assert row_format is not None
    assert (row_format.name, row_format.convert(row)) == (name, canonical)
    assert set(row_format.convert(row)) == {
        "pair": {"prompt", "chosen", "rejected"},
        "labelled": {"prompt", "completion", "label"},
    }.get(row_format.kind, set(canonical))


@pytest.mark.parametrize(("row", "actual", "expected"), INVALID.values(), ids=INVALID)
def test_convert_invalid_row_raises_row_error(row, actual, expected):
    row_format = detect(row)
    assert row_format is not None
    with pytest.raises(RowError) as caught:
        row_format.convert(row)
    assert actual in caught.value.actual
    assert expected in caught.value.expected
    assert str(caught.value) == f"found {caught.value.actual}; expected {caught.value.expected}"


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"chosen": "a", "rejected": "b"},
        {"chosen": None, "rejected": None},
        {"prompt": "q"},
        {"prompt": "q", "chosen": "a"},
        {"Text": "a"},
        {"question": "q", "answer": "a"},
    ],
    ids=str,
)
def test_detect_row_without_prompt_column_returns_none(row):
    assert detect(row) is None


@pytest.mark.parametrize(
    ("value", "label"),
    [(True, True), (0, False), (1.0, True), ("TRUE", True), (" false ", False), ("0", False)],
)
def test_to_label_known_spelling_is_a_label(value, label):
    assert to_label(value, "label") is label


@pytest.mark.parametrize("value", [None, -1, 2, 0.5, "", "yes", "-1", [True], {}], ids=repr)
def test_to_label_other_value_raises(value):
    with pytest.raises(RowError, match="in 'label'; expected true or false"):
        to_label(value, "label")


JSON = '[{"role": "user", "content": "q"}]'
CELLS = {
    # id: (row, chat, changed cells, notes)
    "messages in JSON": ({"messages": JSON}, False, {"messages": [U]}, [JSON_MESSAGES]),
    "a message in JSON": ({"chosen": '{"from": "gpt", "value": "good"}'}, False, {"chosen": GPT}, [JSON_MESSAGES]),
    "prompt and a side": ({"prompt": JSON, "chosen": "a", "rejected": f" {JSON}"}, True, {"prompt": [U], "rejected": [U]}, [JSON_MESSAGES]),
    "other JSON": ({"prompt": '{"a": 1}', "completion": "[1, 2]"}, False, {}, []),
    "broken JSON": ({"prompt": JSON[:-1]}, False, {}, []),
    "text as turns": ({"prompt": "q", "chosen": "a"}, True, {"prompt": [U]}, [TEXT_AS_TURNS]),
    "hh as turns": ({"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}, True, {"chosen": [U, A], "rejected": [U, B]}, [TEXT_AS_TURNS]),
    "already turns": ({"prompt": [U], "chosen": [A]}, True, {}, []),
}  # fmt: skip


@pytest.mark.parametrize(("row", "chat", "changed", "notes"), CELLS.values(), ids=CELLS)
def test_prepare_reads_cells(row, chat, changed, notes):
    assert prepare(row, chat=chat) == ({**row, **changed}, notes)


ALPACA = "### Instruction:\nadd\n\n"
PROMPTS = {
    # id: (template, row, prompt)
    "alpaca": ("alpaca", {"instruction": "add", "input": ""}, f"{ALPACA}### Response:\n"),
    "alpaca, input": ("alpaca", {"instruction": "add", "input": "1 2"}, f"{ALPACA}### Input:\n1 2\n\n### Response:\n"),
    "own text": ("Q: {instruction} {input}\nA:", {"instruction": "{input}", "input": "1"}, "Q: {input} 1\nA:"),
}  # fmt: skip


@pytest.mark.parametrize(("template", "row", "prompt"), PROMPTS.values(), ids=PROMPTS)
def test_prepare_writes_the_prompt_of_an_instruction(template, row, prompt):
    for answers, expected in (
        ({"output": "3", "id": 1}, {"completion": "3", "id": 1}),
        ({"chosen": "3", "rejected": "4"}, {"chosen": "3", "rejected": "4"}),
    ):
        written, notes = prepare(row | answers, chat=False, prompt_template=template)
        assert notes == [PROMPT_TEMPLATE]
        assert written.pop("prompt").endswith(prompt)
        assert written == expected


def test_prepare_prompt_template_without_an_instruction_raises():
    with pytest.raises(RowError, match="nothing in 'instruction'"):
        prepare({"prompt": "q", "completion": "a"}, chat=False, prompt_template="alpaca")


def test_prepare_python_list_raises():
    with pytest.raises(RowError, match="a Python list of messages as text in 'messages'"):
        prepare({"messages": repr([U, A])}, chat=False)
    text = "[{'role': 'user'} is Python]"
    assert prepare({"prompt": text}, chat=False) == ({"prompt": text}, [])


T = [{"type": "function", "function": {"name": "f"}}]
CHAT_COLUMNS = {
    # id: (columns, canonical row, expected changes, columns read)
    "system": ({"system": "s"}, {"prompt": [U], "completion": [A]}, {"prompt": [S, U]}, {"system"}),
    "system of a conversation": ({"system": "s"}, {"messages": [U, A]}, {"messages": [S, U, A]}, {"system"}),
    "the same system": ({"system": "s"}, {"messages": [S, U, A]}, {}, {"system"}),
    "another system": ({"system": "x"}, {"messages": [S, U, A]}, {}, set()),
    "history": ({"history": [["q", "good"]]}, {"prompt": [S, U]}, {"prompt": [S, U, A, U]}, {"history"}),
    "history in JSON, system": ({"history": '[["q", "good"]]', "system": "s"}, {"prompt": [U]}, {"prompt": [S, U, A, U]}, {"history", "system"}),
    "history of messages": ({"history": [U, A]}, {"prompt": [U]}, {"prompt": [U, A, U]}, {"history"}),
    "tools": ({"tools": T}, {"messages": [U, A]}, {"tools": json.dumps(T)}, {"tools"}),
    "tools in JSON": ({"tools": json.dumps(T)}, {"prompt": [U]}, {"tools": json.dumps(T)}, {"tools"}),
    "no tools": ({"tools": [], "system": "", "history": None, "chat_template_kwargs": {}}, {"prompt": [U]}, {}, set()),
    "options": ({"chat_template_kwargs": {"think": False}}, {"prompt": [U]}, {"chat_template_kwargs": {"think": False}}, {"chat_template_kwargs"}),
    "text": ({"system": "s", "tools": T, "history": [["q", "a"]]}, {"prompt": "q"}, {}, set()),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "row", "changed", "read"), CHAT_COLUMNS.values(), ids=CHAT_COLUMNS)
def test_add_chat_columns_adds_what_templates_know(raw, row, changed, read):
    assert add_chat_columns(raw, row, tools=True) == ({**row, **changed}, read)


def test_add_chat_columns_trainer_without_tools_leaves_them_unread():
    assert add_chat_columns({"tools": T}, {"prompt": [U]}, tools=False) == ({"prompt": [U]}, set())


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ({"tools": "a search tool"}, "text 'a search tool' in 'tools'"),
        ({"tools": [1]}, "a list of 1 in 'tools'"),
        ({"history": [["q"]]}, "a list of 1 in 'history'"),
        ({"history": [["q", None]]}, "nothing in 'history'"),
        ({"chat_template_kwargs": [1]}, "a list of 1 in 'chat_template_kwargs'"),
    ],
)
def test_add_chat_columns_invalid_value_raises(raw, value):
    with pytest.raises(RowError) as caught:
        add_chat_columns(raw, {"prompt": [U]}, tools=True)
    assert caught.value.actual == value


def test_formats_are_all_in_the_tables():
    assert {name for name, _, _ in VALID.values()} == {f.name for f in FORMATS}
    assert all(f.columns and f.__doc__ for f in FORMATS)


def test_convert_does_not_change_the_row():
    row = {"prompt": "q", "chosen": [U, A], "rejected": [U, B]}
    before = repr(row)
    row_format = detect(row)
    assert row_format is not None
    row_format.convert(row)
    assert repr(row) == before
