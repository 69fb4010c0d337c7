"""The token view of a row: its tokens, the loss mask, the cut and the prompt boundary."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from prefcli.data.token_text import TokenText
from prefcli.data.token_view import prompt_boundary, view
from prefcli.methods import Dpo, Kto, Orpo, Sft, Simpo
from tests.support.tiny_runs import pairs
from tests.support.tiny_tokenizers import CHAT, NO_END, TEXT, chatml, letters, story


def shown(row, tokenizer, method=None, max_length=1000):
    return view(row, tokenizer, method or Dpo(), max_length, "rows.jsonl: row 1")


def test_view_pair_lists_tokens_and_labels():
    assert shown(TEXT, story()).lines() == [
        "tokens: rows.jsonl: row 1",
        "  prompt     4 tokens, not trained:  |<s>=0|s|a|y|",
        "  chosen     5 tokens, trained:      | |y|e|s|<s>=0|",
        "  rejected   4 tokens, trained:      | |n|o|<s>=0|",
    ]


def test_view_messages_escapes_line_ends():
    row = {"prompt": CHAT["prompt"], "completion": CHAT["chosen"]}
    assert shown(row, chatml(), Kto()).lines()[-1] == (
        r"  completion 5 tokens, trained:       |y|e|s|<|im_end|>=1|\n|"
    )


def test_view_cut_row_counts_the_cut_tokens():
    lines = shown(TEXT, story(), max_length=6).lines()
    assert lines[2:] == [
        "  chosen     2 tokens, trained:      | |y| ... cut here at 6; 3 tokens more",
        "  rejected   2 tokens, trained:      | |n| ... cut here at 6; 2 tokens more",
    ]


def test_view_long_row_is_shortened_and_wrapped():
    row = {"prompt": "a" * 40 + "b" * 10, "completion": "x" * 90}
    lines = shown(row, story(), Kto()).lines()[1:]
    assert lines == [
        "  prompt     51 tokens, not trained:  |<s>=0"
        + 7 * "|a"
        + "| ... 27 more ... "
        + 6 * "|a"
        + 5 * "|b"
        + "|",
        " " * 38 + 5 * "|b" + "|",
        "  completion 91 tokens, trained:      "
        + 8 * "|x"
        + "| ... 67 more ... "
        + 13 * "|x"
        + "|",
        " " * 38 + 2 * "|x" + "|<s>=0|",
    ]
    assert max(map(len, lines)) == 99


def test_view_unprintable_characters_are_escaped():
    tokenizer = letters("<s>", merges=[("Ã", "©")], eos_token="<s>")
    row = {"text": "é😀\t\u200b\\|"}
    assert [t.text for t in shown(row, tokenizer, Sft()).parts["text"].tokens] == [
        *("é", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", r"\t"),
        *("<0xE2>", "<0x80>", "<0x8B>", r"\\", "|", "<s>=0"),
    ]


def test_token_text_sentencepiece_bytes_are_escaped():
    words = ["<unk>", "</s>", "▁", "▁a", "<0xC3>", "<0xA9>", "<0x0A>"]
    bpe = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", unk_token="<unk>")
    assert [TokenText(tokenizer).text(i) for i in range(8)] == [
        *("<unk>=0", "</s>=1", " ", " a", "<0xC3>", "<0xA9>", r"\n", "[no token 7]"),
    ]


def test_prompt_boundary_merged_tokens_are_shown():
    tokenizer = letters("</s>", merges=[("a", "b")], eos_token="</s>")
    row = {"prompt": "xa", "chosen": "bc", "rejected": "c"}
    boundary = prompt_boundary(row, tokenizer)
    assert (boundary.alone, boundary.with_completion) == (
        ["a"],
        {"chosen": ["ab"], "rejected": ["a"]},
    )
    assert shown(row, tokenizer).lines()[1:] == [
        "  prompt     1 token, not trained:  |x|",
        "  chosen     3 tokens, trained:     |ab|c|</s>=0|",
        "  rejected   3 tokens, trained:     |a|c|</s>=0|",
        "  prompt boundary: the prompt alone ends with |a|, with chosen: |ab|, with rejected: |a|",
    ]
    row["rejected"] = "b"
    assert prompt_boundary(row, tokenizer).line() == (
        "the prompt alone ends with |a|, with the completion: |ab|"
    )
    assert prompt_boundary({"prompt": "x", "chosen": "b", "rejected": "c"}, tokenizer) is None
    assert prompt_boundary({"text": "xab"}, tokenizer) is None


def test_view_as_dict_is_json():
    tokenizer = letters("</s>", eos_token="</s>")
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    document = shown({"prompt": "a", "completion": "bb"}, tokenizer, Kto(), 3).as_dict()
    assert json.loads(json.dumps(document)) == {
        "place": "rows.jsonl: row 1",
        "max_length": 3,
        "parts": {
            "prompt": {"tokens": [["a", a, False]], "cut": 0},
            "completion": {"tokens": [["b", b, True], ["b", b, True]], "cut": 1},
        },
        "prompt_boundary": None,
    }


def test_view_orpo_trains_the_prompt_with_the_special_tokens_of_trl():
    tokenizer = letters("<s>", "</s>", template=NO_END, bos_token="<s>", eos_token="</s>")
    assert shown(CHAT, tokenizer, Orpo()).lines()[1:3] == [
        r"  prompt     11 tokens, trained by the SFT term only:  |<s>=0|U|:| |s|a|y|\n|A|:| |",
        r"  chosen     5 tokens, trained:                        |y|e|s|\n|</s>=1|",
    ]
    assert "11 tokens, not trained:" in shown(CHAT, tokenizer, Simpo()).lines()[1]


def test_view_assistant_only_marks_assistant_turns():
    template = (
        "{% for m in messages %}{{ m.role[0] }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content + eos_token }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    tokenizer = letters("</s>", eos_token="</s>", template=template)
    row = {"messages": [*CHAT["prompt"], *CHAT["chosen"], *CHAT["prompt"], *CHAT["rejected"]]}
    assert shown(row, tokenizer, Sft(assistant_only_loss=True)).lines()[1:] == [
        "  messages   5 tokens, not trained:  |u|s|a|y|a|",
        "             4 tokens, trained:      |y|e|s|</s>=0|",
        "             5 tokens, not trained:  |u|s|a|y|a|",
        "             3 tokens, trained:      |n|o|</s>=0|",
    ]
    assert shown(row, tokenizer, Sft()).lines()[1].startswith("  messages   17 tokens, trained:")


@pytest.mark.parametrize(
    ("section", "conversation"),
    [
        ({}, False),
        ({"completion_only_loss": False}, False),
        ({"assistant_only_loss": True}, False),
        ({"completion_only_loss": False, "assistant_only_loss": True}, False),
        ({}, True),
        ({"assistant_only_loss": True}, True),
    ],
)
def test_view_trained_tokens_are_trl_labels(trl_rows, section, conversation):
    turns = [(*r["prompt"], *r["chosen"], *r["prompt"]) for r in pairs(3, chat=True)]
    answer = [{"role": "assistant", "content": "yes please"}]
    rows = [
        {"messages": [*turn, *answer]}
        if conversation
        else {"prompt": [*turn], "completion": answer}
        for turn in turns
    ]
    canonical, prepared_rows, tokenizer, recipe = trl_rows("sft", rows, **section)
    for row, prepared in zip(canonical, prepared_rows, strict=True):
        parts = view(row, tokenizer, recipe.methods["sft"], 64, "row").parts.values()
        tokens = [token for part in parts for token in part.tokens]
        assert [t.id for t in tokens] == prepared["input_ids"]
        assert [t.id if t.trained else -100 for t in tokens] == prepared["labels"]
