"""Our token ids are those that trl's own trainers prepare, whatever tokenizer and template.

Counts, drops and check-sft all rest on this.
"""

from __future__ import annotations

import pytest
from tokenizers import processors

from prefcli.data import tokenize
from prefcli.data.tokenization import tokenize_batch
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
# As in Qwen 3 and Gemma: the generation prompt opens what the rendered turn does not have.
THINKING = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: <think>\n\n</think>{% endif %}"
)
NO_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def plain(tokenizer):
    pass


def puts_bos(tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.convert_tokens_to_ids("<s>"))]
    )


def puts_eos(tokenizer):
    """Then even a prompt alone ends with </s>, which it does not beside a completion."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[(t, tokenizer.convert_tokens_to_ids(t)) for t in ("<s>", "</s>")],
    )


def bos_is_eos(tokenizer):
    puts_bos(tokenizer)
    tokenizer.eos_token = "<s>"


def no_bos(tokenizer):
    tokenizer.bos_token = None


TOKENIZERS = (plain, puts_bos, puts_eos, bos_is_eos, no_bos)
TEMPLATES = {
    "ours": TEMPLATE,
    "chatml": CHATML,
    "llama3": LLAMA3,
    "thinking": THINKING,
    "no end token": NO_END,
}

# The prompt stops inside a word, and beside a space or line end: tokens merge over the seam.
SEAMS = [
    {"prompt": "say re", "chosen": "d blue green thanks", "rejected": " blue no"},
    {"prompt": "say ", "chosen": "red", "rejected": "blue green"},
    {"prompt": "say\n", "chosen": "\nred", "rejected": "\n\n blue"},
    {"prompt": "say red", "chosen": "</s>", "rejected": " blue</s>"},
    {"prompt": "sm", "chosen": "all", "rejected": "all small"},
    {"prompt": "r", "chosen": "ed red", "rejected": "udé 😀"},
]


def chat(rows):
    """Text rows as messages, with a system turn in every second one."""
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
    """Build (our rows, trl's rows, tokenizer) for a method."""

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
    return [*pairs(6), *SEAMS]


def label_rows():
    sides = [
        {"prompt": r["prompt"], "completion": r[side], "label": side == "chosen"}
        for r in SEAMS
        for side in ("chosen", "rejected")
    ]
    return [*labelled(5), *sides]


def sft_rows():
    return [{"prompt": r["prompt"], "completion": r["completion"]} for r in label_rows()]


# (how the tokenizer is changed, chat template or None for text rows)
CASES = [(change, None) for change in TOKENIZERS] + [
    (change, template) for template in TEMPLATES for change in (plain, puts_bos, bos_is_eos)
]


def tokenizers(cases=CASES):
    ids = [f"{change.__name__}-{template or 'text'}" for change, template in cases]
    return pytest.mark.parametrize(("change", "template"), cases, ids=ids)


def same(ours, theirs, tokenizer):
    assert len(ours) == len(theirs) > 0
    for row, prepared in zip(ours, theirs, strict=True):
        ids = tokenize(row, tokenizer)
        ids.pop("seam")
        assert ids == {key: prepared[key] for key in ids}


@tokenizers()
def test_dpo(built, change, template):
    rows = chat(pair_rows()) if template else pair_rows()
    same(*built("dpo", rows, change, TEMPLATES.get(template)))


@tokenizers()
def test_kto(built, change, template):
    rows = chat(label_rows()) if template else label_rows()
    same(*built("kto", rows, change, TEMPLATES.get(template)))


def test_kto_from_pairs(built):
    """Each side is divided from the prompt by itself, not where both sides agree."""
    same(*built("kto", pair_rows()))


@tokenizers()
def test_sft(built, change, template):
    rows = chat(sft_rows()) if template else sft_rows()
    ours, theirs, tokenizer = built("sft", rows, change, TEMPLATES.get(template))
    for row, prepared in zip(ours, theirs, strict=True):
        ids = tokenize(row, tokenizer)
        assert prepared["input_ids"] == ids["prompt_ids"] + ids["completion_ids"]
        assert prepared["labels"] == [-100] * len(ids["prompt_ids"]) + ids["completion_ids"]


@pytest.mark.parametrize("change", TOKENIZERS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("kind", ["text", *TEMPLATES])
def test_sft_on_whole_texts(built, change, kind):
    texts = [r["prompt"] + r["chosen"] for r in pair_rows()]
    messages = [[*r["prompt"], *r["chosen"]] for r in chat(pair_rows())]
    rows = [{"text": t} for t in texts] if kind == "text" else [{"messages": m} for m in messages]
    ours, theirs, tokenizer = built("sft", rows, change, TEMPLATES.get(kind))
    for row, prepared in zip(ours, theirs, strict=True):
        ids = tokenize(row, tokenizer)
        assert ids["prompt_ids"] == []
        assert prepared["input_ids"] == prepared["labels"] == ids["completion_ids"]


# trl's ORPO and CPO (which trains simpo) tokenise without special tokens, so a tokenizer's own EOS
# is not there.
@pytest.mark.parametrize("name", ["orpo", "simpo"])
@tokenizers([case for case in CASES if case[0] is not puts_eos])
def test_orpo_and_simpo(built, name, change, template):
    """The same ids but for its own BOS before and EOS after them."""
    rows = chat(pair_rows()) if template else pair_rows()
    ours, theirs, tokenizer = built(name, rows, change, TEMPLATES.get(template))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for row, prepared in zip(ours, theirs, strict=True):
        ids = tokenize(row, tokenizer)
        for side in ("chosen", "rejected"):
            mine = ids["prompt_ids"] + ids[f"{side}_ids"]
            if bos is not None and mine[0] != bos:
                mine = [bos, *mine]
            if mine[-1] != eos:
                mine = [*mine, eos]
            assert prepared[f"{side}_input_ids"] == mine


@pytest.mark.parametrize("name", ["orpo", "simpo"])
@tokenizers([case for case in CASES if case[0] is not puts_eos])
def test_no_completion_is_cut_away(built, name, change, template):
    """Prompts of every length up to max_length, whether or not trl adds its BOS."""
    texts = [{"prompt": "x" * n, "chosen": " red", "rejected": " blue"} for n in range(1, 64)]
    rows = chat(texts) if template else texts
    _, theirs, _ = built(name, rows, change, TEMPLATES.get(template), max_length=64)
    assert 0 < len(theirs) < len(rows)
    assert max(len(row["chosen_input_ids"]) for row in theirs) == 64
    for row in theirs:
        for side in ("chosen", "rejected"):
            assert any(label != -100 for label in row[f"{side}_labels"])


@pytest.mark.parametrize("name", ["dpo", "kto", "sft"])
def test_cut_at_max_length_to_the_token(built, name):
    """A prompt of max_length - 1 tokens is kept, with one token to learn; one more is dropped."""
    rows = [{"prompt": "x" * n, "chosen": " red", "rejected": " blue"} for n in range(14, 18)]
    ours, theirs, tokenizer = built(name, rows, max_length=16)
    assert {len(tokenize(row, tokenizer)["prompt_ids"]) for row in ours} == {14, 15}
    assert len(theirs) == len(ours)


def test_many_at_once_are_as_one_by_one(tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for rows in (pair_rows(), label_rows(), sft_rows(), chat(pair_rows()), chat(sft_rows())):
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        assert tokenize_batch(columns, tokenizer) == [tokenize(row, tokenizer) for row in rows]
