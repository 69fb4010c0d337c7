"""The token ids are equal to those of trl's trainers, for any tokenizer and chat template.

Counts, drops and check-sft rely on it.
"""

from __future__ import annotations

import json

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from prefcli.data import tokenize
from prefcli.data.run_datasets import read_run_datasets
from prefcli.data.token_view import view
from prefcli.data.tokenization import tokenize_batch
from prefcli.methods import Dpo
from prefcli.model import load_tokenizer
from tests.support.tiny_runs import ANYTHING, TEMPLATE, labelled, pairs, trainer_of, write_jsonl

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{{ bos_token | default('') if loop.first else '' }}"
    "{{ '[' + m.role + ']\n\n' + m.content | trim + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n\n{% endif %}"
)
# As in Qwen 3 and Gemma: the generation prompt has tokens that the rendered turn lacks.
THINKING = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: <think>\n\n</think>{% endif %}"
)
NO_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def plain(tokenizer):
    pass


def prepends_bos(tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.convert_tokens_to_ids("<s>"))]
    )


def appends_eos(tokenizer):
    """Make a prompt alone end with </s>, which it does not before a completion."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[(t, tokenizer.convert_tokens_to_ids(t)) for t in ("<s>", "</s>")],
    )


def bos_is_eos(tokenizer):
    prepends_bos(tokenizer)
    tokenizer.eos_token = "<s>"


def no_bos(tokenizer):
    tokenizer.bos_token = None


TOKENIZERS = (plain, prepends_bos, appends_eos, bos_is_eos, no_bos)
TEMPLATES = {
    "tiny": TEMPLATE,
    "chatml": CHATML,
    "llama3": LLAMA3,
    "thinking": THINKING,
    "no end token": NO_END,
}

# The prompt ends inside a word, or at a space or line end: tokens merge with the completion.
MERGING = [
    {"prompt": "say re", "chosen": "d blue green thanks", "rejected": " blue no"},
    {"prompt": "say ", "chosen": "red", "rejected": "blue green"},
    {"prompt": "say\n", "chosen": "\nred", "rejected": "\n\n blue"},
    {"prompt": "say red", "chosen": "</s>", "rejected": " blue</s>"},
    {"prompt": "sm", "chosen": "all", "rejected": "all small"},
    {"prompt": "r", "chosen": "ed red", "rejected": "udé 😀"},
]


def chat(rows):
    """Convert text rows to messages, with a system turn in every second one."""
    system = {"role": "system", "content": " be kind "}
    return [
        {
            key: value
            if key == "label"
            else [*([system] if i % 2 else []), {"role": "user", "content": value}]
            if key == "prompt"
            else [{"role": "assistant", "content": value}]
            for key, value in row.items()
        }
        for i, row in enumerate(rows)
    ]


@pytest.fixture
def built(recipe_data, make_recipe, tmp_path):
    """Build (canonical rows, the rows that trl prepares from them, tokenizer) for a method."""

    def build(name, rows, change=plain, template=None, max_length=64):
        recipe_data["data"] = {
            "checks": ANYTHING,
            "train": {"path": str(write_jsonl(tmp_path / "rows.jsonl", rows))},
            "max_length": max_length,
        }
        recipe = make_recipe(recipe_data).recipe
        tokenizer = load_tokenizer(recipe.model)
        change(tokenizer)
        tokenizer.chat_template = template
        trainer, inputs = trainer_of(recipe, name, tokenizer)
        return inputs.train.rows.to_list(), trainer.train_dataset.to_list(), tokenizer

    return build


def pair_rows():
    return [*pairs(6), *MERGING]


def label_rows():
    sides = [
        {"prompt": r["prompt"], "completion": r[side], "label": side == "chosen"}
        for r in MERGING
        for side in ("chosen", "rejected")
    ]
    return [*labelled(5), *sides]


def sft_rows():
    return [{"prompt": r["prompt"], "completion": r["completion"]} for r in label_rows()]


# (how the tokenizer is changed, chat template or None for text rows)
CASES = [(change, None) for change in TOKENIZERS] + [
    (change, template) for template in TEMPLATES for change in (plain, prepends_bos, bos_is_eos)
]


def tokenizers(cases=CASES):
    ids = [f"{change.__name__}-{template or 'text'}" for change, template in cases]
    return pytest.mark.parametrize(("change", "template"), cases, ids=ids)


def assert_same_ids(canonical, prepared_rows, tokenizer):
    assert len(canonical) == len(prepared_rows) > 0
    for row, prepared in zip(canonical, prepared_rows, strict=True):
        ids = tokenize(row, tokenizer)
        ids.pop("merged_tokens")
        assert ids == {key: prepared[key] for key in ids}


@tokenizers()
def test_tokenize_dpo_rows_equals_trl(built, change, template):
    rows = chat(pair_rows()) if template else pair_rows()
    assert_same_ids(*built("dpo", rows, change, TEMPLATES.get(template)))


@tokenizers()
def test_tokenize_kto_rows_equals_trl(built, change, template):
    rows = chat(label_rows()) if template else label_rows()
    assert_same_ids(*built("kto", rows, change, TEMPLATES.get(template)))


def test_tokenize_pairs_for_kto_equals_trl(built):
    """Each side is divided from the prompt separately."""
    assert_same_ids(*built("kto", pair_rows()))


@tokenizers()
def test_tokenize_sft_rows_equals_trl(built, change, template):
    rows = chat(sft_rows()) if template else sft_rows()
    canonical, prepared_rows, tokenizer = built("sft", rows, change, TEMPLATES.get(template))
    for row, prepared in zip(canonical, prepared_rows, strict=True):
        ids = tokenize(row, tokenizer)
        assert prepared["input_ids"] == ids["prompt_ids"] + ids["completion_ids"]
        assert prepared["labels"] == [-100] * len(ids["prompt_ids"]) + ids["completion_ids"]


@pytest.mark.parametrize("change", TOKENIZERS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("kind", ["text", *TEMPLATES])
def test_tokenize_texts_and_conversations_equals_trl(built, change, kind):
    texts = [r["prompt"] + r["chosen"] for r in pair_rows()]
    messages = [[*r["prompt"], *r["chosen"]] for r in chat(pair_rows())]
    rows = [{"text": t} for t in texts] if kind == "text" else [{"messages": m} for m in messages]
    canonical, prepared_rows, tokenizer = built("sft", rows, change, TEMPLATES.get(kind))
    for row, prepared in zip(canonical, prepared_rows, strict=True):
        ids = tokenize(row, tokenizer)
        assert ids["prompt_ids"] == []
        assert prepared["input_ids"] == prepared["labels"] == ids["completion_ids"]


# trl's ORPO and CPO (which trains simpo) tokenize without special tokens, so the tokenizer adds no
# EOS.
@pytest.mark.parametrize("name", ["orpo", "simpo"])
@tokenizers([case for case in CASES if case[0] is not appends_eos])
def test_tokenize_orpo_and_simpo_rows_equals_trl(built, name, change, template):
    """The trainer adds BOS and EOS to the ids."""
    rows = chat(pair_rows()) if template else pair_rows()
    canonical, prepared_rows, tokenizer = built(name, rows, change, TEMPLATES.get(template))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for row, prepared in zip(canonical, prepared_rows, strict=True):
        ids = tokenize(row, tokenizer)
        for side in ("chosen", "rejected"):
            sequence = ids["prompt_ids"] + ids[f"{side}_ids"]
            if bos is not None and sequence[0] != bos:
                sequence = [bos, *sequence]
            if sequence[-1] != eos:
                sequence = [*sequence, eos]
            assert prepared[f"{side}_input_ids"] == sequence


@pytest.mark.parametrize("name", ["orpo", "simpo"])
@tokenizers([case for case in CASES if case[0] is not appends_eos])
def test_trainer_long_prompts_keep_trained_tokens(built, name, change, template):
    """Prompts have every length up to max_length, with and without trl's BOS."""
    texts = [{"prompt": "x" * n, "chosen": " red", "rejected": " blue"} for n in range(1, 64)]
    rows = chat(texts) if template else texts
    _, prepared_rows, _ = built(name, rows, change, TEMPLATES.get(template), max_length=64)
    assert 0 < len(prepared_rows) < len(rows)
    assert max(len(row["chosen_input_ids"]) for row in prepared_rows) == 64
    for row in prepared_rows:
        for side in ("chosen", "rejected"):
            assert any(label != -100 for label in row[f"{side}_labels"])


@pytest.mark.parametrize("name", ["dpo", "kto", "sft"])
def test_trainer_prompt_that_leaves_one_token_is_not_dropped(built, name):
    """A prompt of max_length - 1 tokens is kept with one trained token; a longer one is dropped."""
    rows = [{"prompt": "x" * n, "chosen": " red", "rejected": " blue"} for n in range(14, 18)]
    canonical, prepared_rows, tokenizer = built(name, rows, max_length=16)
    assert {len(tokenize(row, tokenizer)["prompt_ids"]) for row in canonical} == {14, 15}
    assert len(prepared_rows) == len(canonical)


WITH_ALL = (
    "{{ 'tools: ' + tools | tojson if tools else '' }}{% for m in messages %}{{ m.role }}: "
    "{{ '<think>' + m.thinking + '</think>' if m.thinking is defined else '' }}"
    "{{ m.content if m.content is string else '' }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
    "{{ ' please' if polite else '' }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
QUESTION = {"role": "user", "content": "say red", "name": "sun"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1.5}}}],
}
RESULT = {"role": "tool", "content": "red", "tool_call_id": "1"}
THOUGHT = {"role": "assistant", "content": " red", "thinking": "big sun"}
OTHER = {"role": "assistant", "content": " red", "thinking": "small dog"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"a": {"type": "number"}}}}]
COLUMNS = (
    {"tools": TOOLS},
    {"tools": json.dumps(TOOLS)},
    {"chat_template_kwargs": {"polite": True}},
    {},
)


def tool_rows(name):
    """Return rows with calls and reasoning and other columns, and two without."""
    chats = {
        "sft": {"messages": [QUESTION, CALL, RESULT, THOUGHT]},
        "kto": {"prompt": [QUESTION, CALL, RESULT], "completion": [THOUGHT], "label": True},
        "dpo": {"prompt": [QUESTION, CALL, RESULT], "chosen": [THOUGHT], "rejected": [OTHER]},
    }
    rows = [{**chats[name], **columns} for columns in COLUMNS]
    plain = [{"role": "user", "content": "say blue"}], [{"role": "assistant", "content": " no"}]
    last = {
        "sft": {"messages": [*plain[0], *plain[1]]},
        "kto": {"prompt": plain[0], "completion": plain[1], "label": False},
        "dpo": {"prompt": plain[0], "chosen": plain[1], "rejected": [OTHER]},
    }
    return [*rows, last[name], last[name]]


@pytest.mark.parametrize("name", ["sft", "dpo", "kto"])
def test_tokenize_rows_with_tools_and_reasoning_equals_trl(built, name):
    canonical, prepared_rows, tokenizer = built(
        name, tool_rows(name), template=WITH_ALL, max_length=999
    )
    by_row = []
    for row, prepared in zip(canonical, prepared_rows, strict=True):
        ids = tokenize(row, tokenizer)
        by_row.append(ids["prompt_ids"] + ids.get("chosen_ids", ids.get("completion_ids", [])))
        if name == "sft":
            assert prepared["input_ids"] == prepared["labels"] == by_row[-1]
        else:
            ids.pop("merged_tokens")
            assert ids == {key: prepared[key] for key in ids}
    expected = []
    for columns in [*COLUMNS, None, None]:
        chat = [QUESTION, CALL, RESULT, THOUGHT]
        if columns is None:
            chat = [
                {"role": "user", "content": "say blue"},
                {"role": "assistant", "content": " no"},
            ]
        options = {"tools": TOOLS if columns and "tools" in columns else None}
        options |= (columns or {}).get("chat_template_kwargs", {})
        expected.append(tokenizer.apply_chat_template(chat, **options)["input_ids"])
    assert sorted(by_row) == sorted(expected)  # kto's rows are shuffled
    assert len(set(map(tuple, by_row))) == 4


def test_load_split_trainer_without_tools_counts_them_as_unread(recipe_data, make_recipe, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", tool_rows("dpo"))
    recipe_data["data"] = {"checks": ANYTHING, "train": {"path": str(path)}}
    recipe_data["model"]["chat_template"] = WITH_ALL
    recipe = make_recipe(recipe_data).recipe
    split = read_run_datasets(recipe, recipe.methods["orpo"], load_tokenizer(recipe.model)).train
    finding = next(f for f in split.findings if f.name == "unread")
    assert (finding.count, finding.note) == (2, "tools in 2 (such as a list of 1)")
    assert "does not pass them to the template" in finding.cure


def test_view_of_a_call_shows_it_trained(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = WITH_ALL
    row = {
        "prompt": [QUESTION],
        "chosen": [CALL, RESULT, THOUGHT],
        "rejected": [OTHER],
        "tools": json.dumps(TOOLS),
    }
    parts = view(row, tokenizer, Dpo(), 999, "rows.jsonl: row 1").parts
    texts = {name: "".join(t.text for t in part.tokens) for name, part in parts.items()}
    assert "tools: [{" in texts["prompt"]
    assert '<call>{"name": "f"' in texts["chosen"].replace("\u0120", " ")
    assert "<think>big sun</think> red" in texts["chosen"]
    assert "<think>small dog</think> red" in texts["rejected"]
    assert all(token.trained for token in parts["chosen"].tokens)


def test_tokenize_batch_equals_tokenize(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for rows in (pair_rows(), label_rows(), sft_rows(), chat(pair_rows()), chat(sft_rows())):
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        assert tokenize_batch(columns, tokenizer) == [tokenize(row, tokenizer) for row in rows]
