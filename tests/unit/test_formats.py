"""Row formats: each documented one with its canonical row, and invalid rows."""
# ruff: noqa: E501 - one case per line

import pytest

from prefcli.formats import FORMATS, RowError, detect

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}
B = {"role": "assistant", "content": "bad"}
S = {"role": "system", "content": "s"}
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
    "content in parts": ({"messages": [{"role": "user", "content": [{"type": "text"}]}, A]}, "a list of 1 as content of messages[0]", "text"),
    "image": ({"messages": [{**U, "images": ["x"]}, A]}, "'images' in messages[0]", "text messages"),
    "tool call": ({"messages": [U, {**A, "tool_calls": [1]}]}, "'tool_calls' in messages[1]", "not supported"),
    "one side no conversation": ({"chosen": [U, A], "rejected": "b"}, "text 'b' in 'rejected'", "a list of messages"),
    "different starts": ({"chosen": [U, A], "rejected": [S, U, B]}, "conversations that differ before", "the same messages up to"),
    "no prompt at all": ({"chosen": [A], "rejected": [B]}, "an assistant message without a prompt", "a user message before it"),
    "no answer": ({"chosen": [U], "rejected": [U]}, "'chosen' that ends with user", "an assistant message"),
    "sharegpt answered": ({"conversations": [HUMAN, GPT], "chosen": GPT, "rejected": GPT}, "a prompt that ends with an assistant", "a user message"),
    "sharegpt null": ({"conversations": None, "chosen": GPT, "rejected": GPT}, "nothing in 'conversations'", "a list of messages"),
    "hh differs": ({"chosen": f"{HH} x", "rejected": "\n\nHuman: z\n\nAssistant: y"}, "texts that differ before", "the same dialogue"),
    "hh other side": ({"chosen": f"{HH} x", "rejected": "y"}, "text 'y' in 'rejected'", "\\n\\nAssistant:"),
    "hh null": ({"chosen": f"{HH} x", "rejected": None}, "nothing in 'rejected'", "text with"),
    "label a number": ({"prompt": "q", "completion": "a", "label": 1}, "int 1 in 'label'", "true or false"),
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
