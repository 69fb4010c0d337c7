"""What the model is trained on, token by token: checked and shown, on tokenizers of every habit."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    DataCollatorForLanguageModeling,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from prefcli.data import tokenize
from prefcli.data.run_datasets import load_run_datasets
from prefcli.data.special_tokens import SpecialTokenCheck
from prefcli.data.token_text import TokenText
from prefcli.data.token_view import prompt_boundary, view
from prefcli.data.tokenization import SpecialTokens, is_chat
from prefcli.errors import RecipeError
from prefcli.methods import Dpo, Kto, Orpo, Sft, Simpo
from prefcli.model import load_tokenizer
from prefcli.model.chat_template import chat_template_warnings
from prefcli.model.stop_tokens import load_stop_tokens, stop_token_warnings
from prefcli.preflight.collator_check import ends_are_trained, ends_in
from prefcli.preflight.tokenizer_warnings import tokenizer_warnings
from prefcli.recipe.sections import DataChecks, Model
from prefcli.training.run import train
from tests.support.tiny_runs import labelled, pairs, trainer_of, write_jsonl

LLAMA3 = (
    "{% for m in messages %}{{ bos_token if loop.first else '' }}"
    "{{ '<|start|>' + m.role + '<|end|>' + m.content + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m.role[0] | upper }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}A: {% endif %}"
)
ENDED = (
    "{% for m in messages %}{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
TURNS_END_WITH_PAD = "{{ bos_token }}{% for m in messages %}{{ m.content }}<pad>{% endfor %}"
WITH_BOS = "{{ bos_token }}" + ENDED

TEXT = {"prompt": "say", "chosen": " yes", "rejected": " no"}
CHAT = {
    "prompt": [{"role": "user", "content": "say"}],
    "chosen": [{"role": "assistant", "content": "yes"}],
    "rejected": [{"role": "assistant", "content": "no"}],
}


def letters(*special, merges=(), prepends=False, template=None, **marks):
    """A byte-level tokenizer of which every letter is a token; special tokens are 0, 1, 2, ..."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*special, *alphabet, *("".join(pair) for pair in merges)]
    bpe = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, list(merges)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(list(special))
    if prepends:
        bos = marks["bos_token"]
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, special.index(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **marks)
    tokenizer.chat_template = template
    return tokenizer


def llama3():
    """eos of the instruct model: the turn's end, id 2; the text's end, 1, stops it as well."""
    return letters(
        *("<|begin|>", "<|eos|>", "<|eot|>", "<|start|>", "<|end|>"),
        prepends=True,
        template=LLAMA3,
        bos_token="<|begin|>",
        eos_token="<|eot|>",
    )


def chatml(eos="<|im_end|>"):
    special = ("<|im_start|>", "<|im_end|>", "<|eos|>")
    return letters(*special, template=CHATML, eos_token=eos)


def no_end():
    return letters("<s>", "</s>", template=NO_END, eos_token="</s>")


def never_prepended():
    """GPT-2's: bos and eos are one token, and text begins without it."""
    return letters("<|eos|>", template=ENDED, bos_token="<|eos|>", eos_token="<|eos|>")


def story(template=WITH_BOS):
    """stories260K's: bos and eos are one token, and text begins with it."""
    return letters("<s>", prepends=True, template=template, bos_token="<s>", eos_token="<s>")


def faults(row, tokenizer, ends, method=None, max_length=1000, **masked):
    marks = SpecialTokenCheck.of(tokenizer, frozenset(ends), method or Dpo(), chat=is_chat(row))
    return marks(tokenize(row, tokenizer), max_length, **masked)


@pytest.mark.parametrize("row", [TEXT, CHAT], ids=["text", "chat"])
@pytest.mark.parametrize(
    ("tokenizer", "ends"),
    [(llama3(), {1, 2}), (chatml(), {1, 2}), (never_prepended(), {0}), (story(), {0})],
    ids=["llama3", "chatml", "never prepended", "bos is eos"],
)
def test_sound_rows_have_no_fault(tokenizer, ends, row):
    assert faults(row, tokenizer, ends) == set()


def test_a_template_that_ends_no_turn():
    assert faults(CHAT, no_end(), {1}) == {"no_end"}
    assert faults(TEXT, no_end(), {1}) == set()  # text is given its end token


def test_a_turn_ends_with_a_token_that_stops_nothing():
    """A base model tuned on ChatML, whose generation config still says <|endoftext|>."""
    base = chatml(eos="<|eos|>")
    assert faults(CHAT, base, {2}) == {"no_end"}
    assert faults(TEXT, base, {2}) == set()
    assert faults(CHAT, llama3(), {1}) == {"no_end"}
    assert faults(TEXT, llama3(), {1}) == {"no_end"}


def test_one_bad_side_is_enough():
    row = {**CHAT, "rejected": [{"role": "assistant", "content": "no"}] * 2}
    template = ENDED.replace("m.role == 'assistant'", "m.role == 'assistant' and not loop.last")
    tokenizer = never_prepended()
    tokenizer.chat_template = template
    assert faults(row, tokenizer, {0}) == {"no_end"}


def test_two_bos():
    """Text gets the tokenizer's BOS, rendered messages only their template's."""
    written = {**TEXT, "prompt": "<|begin|>say"}
    assert faults(written, llama3(), {2}) == {"two_bos"}
    assert tokenize(written, llama3())["prompt_ids"][:2] == [0, 0]
    twice = llama3()
    twice.chat_template = "{{ bos_token }}" + LLAMA3
    assert faults(CHAT, twice, {2}) == {"two_bos"}
    assert faults({**TEXT, "prompt": "<s>say"}, story(), {0}) == {"two_bos"}
    assert faults({"text": "<s>say yes"}, story(), {0}, Sft()) == {"two_bos"}


def test_no_bos_where_the_tokenizer_puts_one_before_text():
    assert faults(CHAT, story(ENDED), {0}) == {"no_bos"}
    assert faults(CHAT, story("\n" + WITH_BOS), {0}) == {"no_bos"}
    assert faults(CHAT, story("\n" + ENDED), {7}) == {"no_bos", "no_end"}


def test_bos_in_later_turns_is_no_fault():
    tokenizer = story(
        "{% for m in messages %}{{ bos_token + m.content }}{% endfor %}{{ bos_token }}"
    )
    assert faults(CHAT, tokenizer, {0}) == set()


@pytest.mark.parametrize("method", [Orpo(), Simpo()], ids=lambda m: m.name)
def test_trl_frames_the_rows_of_orpo_and_simpo(method):
    """Their trainers put BOS and EOS where they are missing, and no second BOS."""
    assert faults(CHAT, story(ENDED), {0}, method) == set()
    assert faults(CHAT, no_end(), {1}, method) == set()
    assert faults({**TEXT, "prompt": "<|begin|>say"}, llama3(), {2}, method) == set()
    twice = llama3()
    twice.chat_template = "{{ bos_token }}" + LLAMA3
    assert faults(CHAT, twice, {2}, method) == {"two_bos"}


def test_a_cut_completion_may_lack_its_end():
    tokenizer = no_end()
    # "U: say\n" and "A: " are 10 tokens; "yes\n" 4 more.
    assert faults(CHAT, tokenizer, {1}, max_length=14) == {"no_end"}
    assert faults(CHAT, tokenizer, {1}, max_length=12) == set()
    # At 13 the chosen side is cut, but "no\n" still fits, without an end.
    assert faults(CHAT, tokenizer, {1}, max_length=13) == {"no_end"}


def test_the_end_has_to_be_among_the_trained_tokens():
    row = {"messages": [*CHAT["prompt"], *CHAT["chosen"]]}
    tokenizer = letters("<s>", eos_token="<s>")
    outside = (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{{ eos_token }}\n{% endfor %}"
    )
    inside = outside.replace(
        "{% endgeneration %}{{ eos_token }}", "{{ eos_token }}{% endgeneration %}"
    )
    for template, expected in ((outside, {"no_end"}), (inside, set())):
        tokenizer.chat_template = template
        mask = tokenizer.apply_chat_template(
            row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )["assistant_masks"]
        assert faults(row, tokenizer, {0}, Sft(), trained=mask) == expected
    assert faults(row, tokenizer, {0}, Sft()) == set()  # every token is trained


def test_a_line_end_may_be_the_end():
    tokenizer = letters("</s>", template=NO_END, eos_token="</s>")
    newline = tokenizer.convert_tokens_to_ids("Ċ")
    assert faults(CHAT, tokenizer, {newline}) == set()
    assert newline in SpecialTokenCheck.of(tokenizer, frozenset(), Dpo(), chat=True).blanks


def test_every_fault_is_explained():
    assert set(SpecialTokenCheck.names) <= set(DataChecks.model_fields)


@pytest.fixture
def rows_of_trl(recipe_data, make_recipe, tmp_path):
    """(our rows, trl's rows, tokenizer) of a method."""

    def build(name, rows, change=lambda tokenizer: None, **section):
        train = write_jsonl(tmp_path / "rows.jsonl", rows)
        recipe_data["data"] = {"train": {"path": str(train)}, "max_length": 64}
        recipe_data[name] = section
        recipe = make_recipe(recipe_data).recipe
        tokenizer = load_tokenizer(recipe.model)
        change(tokenizer)
        trainer, inputs = trainer_of(recipe, name, tokenizer)
        return inputs.train.rows.to_list(), trainer.train_dataset.to_list(), tokenizer, recipe

    return build


def put_bos(tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )


def leave(tokenizer):
    pass


@pytest.mark.parametrize("name", ["orpo", "simpo"])
@pytest.mark.parametrize("change", [put_bos, leave])
@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_framed_rows_are_those_of_trl(rows_of_trl, name, change, chat):
    rows = pairs(4, chat=chat)
    if not chat:
        rows.append({"prompt": "<s>say", "chosen": " red", "rejected": " blue"})
    ours, theirs, tokenizer, recipe = rows_of_trl(name, rows, change)
    frame = SpecialTokens.of(tokenizer, recipe.methods[name], chat=chat)
    for row, prepared in zip(ours, theirs, strict=True):
        ids = frame.around(tokenize(row, tokenizer))
        for side in ("chosen", "rejected"):
            whole = ids["prompt_ids"] + ids[f"{side}_ids"]
            assert prepared[f"{side}_input_ids"] == whole
            hidden = [-100] * len(ids["prompt_ids"])
            assert prepared[f"{side}_labels"] == hidden + ids[f"{side}_ids"]


# What generation stops at


@pytest.fixture
def folder(tmp_path):
    """A model folder without weights: config, and a generation config if it is given."""

    def make(config_eos, generation_eos=None):
        LlamaConfig(eos_token_id=config_eos, vocab_size=300).save_pretrained(tmp_path)
        if generation_eos is not None:
            GenerationConfig(eos_token_id=generation_eos).save_pretrained(tmp_path)
        return Model(name_or_path=str(tmp_path))

    return make


def test_ends_are_those_of_the_generation_config(folder):
    found = load_stop_tokens(folder(1, [1, 2]), llama3(), adapter=False)
    assert (found.ids, found.named_in) == ({1, 2}, "generation_config.json")


def test_else_those_of_the_config_else_the_tokenizers(folder):
    found = load_stop_tokens(folder([2, 3]), llama3(), adapter=False)
    assert (found.ids, found.named_in) == ({2, 3}, "config.json")
    found = load_stop_tokens(folder(None), llama3(), adapter=False)
    assert (found.ids, found.named_in) == ({2}, "the tokenizer")


def test_the_tokenizers_end_is_added_to_a_whole_model_not_to_an_adapters_base(folder):
    model, tokenizer = folder(1, 1), llama3()
    tokenizer.pad_token = "<|eot|>"
    whole, adapter = (load_stop_tokens(model, tokenizer, adapter=on) for on in (False, True))
    assert (whole.ids, adapter.ids) == ({1, 2}, {1})
    [added], [left] = stop_token_warnings(whole, tokenizer), stop_token_warnings(adapter, tokenizer)
    shared = (
        "the tokenizer ends texts with <|eot|>=2, but by generation_config.json the model stops at "
        "<|eos|>=1 alone; "
    )
    assert (
        added.message
        == shared + "the trained model will stop at both, as training adds the " + ("tokenizer's")
    )
    assert left.message == shared + "an adapter does not change that"
    assert left.hint.startswith("put 2 into eos_token_id")


@pytest.mark.parametrize("lora", [False, True])
def test_training_adds_the_end_as_we_say(tiny_model, recipe_data, make_recipe, tmp_path, lora):
    start = tmp_path / "start"
    shutil.copytree(tiny_model, start)
    GenerationConfig(eos_token_id=[5]).save_pretrained(start)
    recipe_data["model"]["name_or_path"] = str(start)
    recipe_data["training"]["max_steps"] = 1
    if lora:
        recipe_data["lora"] = {"rank": 2}
    recipe = make_recipe(recipe_data).recipe
    found = load_stop_tokens(
        recipe.model, load_tokenizer(recipe.model), adapter=recipe.trains_adapter
    )
    train(recipe, recipe.methods["sft"])
    saved = tmp_path / "run" / "model" / "generation_config.json"
    if lora:
        assert found.ids == {5}
        assert not saved.exists()
    else:
        assert found.ids == {1, 5}
        assert json.loads(saved.read_text())["eos_token_id"] == [1, 5]


def test_padding_among_the_ends(folder):
    tokenizer = llama3()
    tokenizer.pad_token = "<|eos|>"
    found = load_stop_tokens(folder(2, [1, 2]), tokenizer, adapter=False)
    [remark] = stop_token_warnings(found, tokenizer)
    assert remark.message.startswith("the padding token <|eos|>=1 is among the tokens")
    tokenizer.pad_token = tokenizer.eos_token  # as load_tokenizer sets it where there is none
    assert stop_token_warnings(found, tokenizer) == []


# Chat templates


def test_no_generation_prompt():
    tokenizer = no_end()
    assert chat_template_warnings(tokenizer, conversational=True) == []
    tokenizer.chat_template = NO_END.partition("{% if add")[0]
    [remark] = chat_template_warnings(tokenizer, conversational=True)
    assert "'A: ' before an answer is trained as part of it" in remark.message
    assert remark.hint.endswith("{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}")
    assert chat_template_warnings(tokenizer, conversational=False) == []
    assert chat_template_warnings(story(), conversational=True) == []  # answers have no header


def test_another_template_than_the_models():
    ours, theirs = chatml(), chatml()
    theirs.chat_template = "{# the same #}" + CHATML
    assert chat_template_warnings(ours, theirs, conversational=True) == []
    theirs.chat_template = CHATML.replace("<|im_end|>\n", "<|im_end|>")
    [remark] = chat_template_warnings(ours, theirs, conversational=True, stage="sft")
    assert remark.path == "model.chat_template"
    assert remark.message == (
        r"this template writes 'a question<|im_end|>\n<|im_start|>assista', where that of the sft "
        r"stage writes 'a question<|im_end|><|im_start|>assistan'"
    )


def test_a_first_template():
    bare = chatml()
    bare.chat_template = None
    assert chat_template_warnings(chatml(), bare, conversational=True) == []
    [remark] = chat_template_warnings(chatml(), bare, conversational=True, stage="sft")
    assert remark.message.startswith("the sft stage had no chat template")


def test_remarks_of_a_recipe(recipe_data, make_recipe):
    """The tiny model has a template of its own, and nothing odd."""
    recipe = make_recipe(recipe_data).recipe
    assert tokenizer_warnings(recipe, load_tokenizer(recipe.model), conversational=True) == []
    recipe_data["model"]["chat_template"] = ENDED
    recipe = make_recipe(recipe_data).recipe
    tokenizer = load_tokenizer(recipe.model)
    [remark] = tokenizer_warnings(recipe, tokenizer, conversational=True)
    assert "where that of the model writes" in remark.message
    assert tokenizer_warnings(recipe, tokenizer, conversational=False) == []


# Padding


def make_pad_eos(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token


@pytest.mark.parametrize("name", ["sft", "dpo", "ipo", "kto", "orpo", "simpo"])
def test_ends_are_trained_whatever_the_padding(recipe_data, make_recipe, tmp_path, name):
    """By the collator alone, and by the loss of the real trainer, which padding can't change."""
    rows = labelled(8) if name in ("kto", "sft") else pairs(8)
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    recipe_data["data"] = {"train": {"path": str(path)}, "max_length": 64}
    recipe = make_recipe(recipe_data).recipe
    losses = []
    for change in (leave, make_pad_eos):
        tokenizer = load_tokenizer(recipe.model)
        change(tokenizer)
        method = recipe.methods[name]
        inputs = load_run_datasets(recipe, method, tokenizer)
        frame = SpecialTokens.of(tokenizer, method, chat=False)
        ids = [
            frame.around(tokenize(row, tokenizer))
            for row in inputs.train.for_trl().select(range(3)).to_list()
        ]
        assert len({len(i["prompt_ids"]) for i in ids}) > 1
        assert ends_are_trained(method, tokenizer, ids)
        trainer, _ = trainer_of(recipe, name, tokenizer)
        prepared = [trainer.train_dataset[i] for i in range(4)]
        batch = trainer.data_collator(prepared)
        assert (batch_ids(batch) == tokenizer.pad_token_id).any()
        trainer.model.eval()
        with torch.no_grad():
            losses.append(float(trainer.compute_loss(trainer.model, batch)))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def batch_ids(batch):
    return next(batch[k] for k in ("input_ids", "chosen_input_ids") if k in batch)


def test_a_collator_that_hides_ends_is_found_out():
    """transformers' own masks every token that is the padding token, and so every end."""
    sequences = [[5, 6, 1], [7, 1]]
    tokenizer = letters("<s>", "</s>", eos_token="</s>", pad_token="</s>")
    hides = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    assert not ends_in(sequences, hides([{"input_ids": ids} for ids in sequences])["labels"])
    tokenizer.pad_token = "<s>"
    assert ends_in(sequences, hides([{"input_ids": ids} for ids in sequences])["labels"])


# A row, shown


def shown(row, tokenizer, method=None, max_length=1000):
    return view(row, tokenizer, method or Dpo(), max_length, "rows.jsonl: row 1")


def test_a_pair():
    assert shown(TEXT, story()).lines() == [
        "tokens: rows.jsonl: row 1",
        "  prompt     4 tokens, not trained:  |<s>=0|s|a|y|",
        "  chosen     5 tokens, trained:      | |y|e|s|<s>=0|",
        "  rejected   4 tokens, trained:      | |n|o|<s>=0|",
    ]


def test_messages_with_line_ends():
    row = {"prompt": CHAT["prompt"], "completion": CHAT["chosen"]}
    assert shown(row, chatml(), Kto()).lines()[-1] == (
        r"  completion 5 tokens, trained:       |y|e|s|<|im_end|>=1|\n|"
    )


def test_where_it_is_cut():
    lines = shown(TEXT, story(), max_length=6).lines()
    assert lines[2:] == [
        "  chosen     2 tokens, trained:      | |y| ... cut here at 6; 3 tokens more",
        "  rejected   2 tokens, trained:      | |n| ... cut here at 6; 2 tokens more",
    ]


def test_long_rows_lose_their_middle_and_are_wrapped():
    row = {"prompt": "a" * 40 + "b" * 10, "completion": "x" * 90}
    found = shown(row, story(), Kto()).lines()[1:]
    assert found == [
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
    assert max(map(len, found)) == 99


def test_bytes_and_signs_that_do_not_print():
    tokenizer = letters("<s>", merges=[("Ã", "©")], eos_token="<s>")
    row = {"text": "é😀\t\u200b\\|"}
    assert [t.text for t in shown(row, tokenizer, Sft()).parts["text"].tokens] == [
        *("é", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", r"\t"),
        *("<0xE2>", "<0x80>", "<0x8B>", r"\\", "|", "<s>=0"),
    ]


def test_sentencepiece_and_its_bytes():
    words = ["<unk>", "</s>", "▁", "▁a", "<0xC3>", "<0xA9>", "<0x0A>"]
    bpe = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", unk_token="<unk>")
    assert [TokenText(tokenizer).text(i) for i in range(8)] == [
        *("<unk>=0", "</s>=1", " ", " a", "<0xC3>", "<0xA9>", r"\n", "[no token 7]"),
    ]


def test_a_seam():
    tokenizer = letters("</s>", merges=[("a", "b")], eos_token="</s>")
    row = {"prompt": "xa", "chosen": "bc", "rejected": "c"}
    seam = prompt_boundary(row, tokenizer)
    assert (seam.alone, seam.beside) == (["a"], {"chosen": ["ab"], "rejected": ["a"]})
    seen = shown(row, tokenizer)
    assert seen.lines()[1:] == [
        "  prompt     1 token, not trained:  |x|",
        "  chosen     3 tokens, trained:     |ab|c|</s>=0|",
        "  rejected   3 tokens, trained:     |a|c|</s>=0|",
        "  seam: the prompt alone ends |a|, beside chosen |ab|, beside rejected |a|",
    ]
    row["rejected"] = "b"
    assert prompt_boundary(row, tokenizer).in_words() == (
        "the prompt alone ends |a|, beside the completion |ab|"
    )
    assert prompt_boundary({"prompt": "x", "chosen": "b", "rejected": "c"}, tokenizer) is None
    assert prompt_boundary({"text": "xab"}, tokenizer) is None


def test_as_json():
    tokenizer = letters("</s>", eos_token="</s>")
    a, b = tokenizer.convert_tokens_to_ids(["a", "b"])
    found = shown({"prompt": "a", "completion": "bb"}, tokenizer, Kto(), 3).as_dict()
    assert json.loads(json.dumps(found)) == {
        "place": "rows.jsonl: row 1",
        "max_length": 3,
        "parts": {
            "prompt": {"tokens": [["a", a, False]], "cut": 0},
            "completion": {"tokens": [["b", b, True], ["b", b, True]], "cut": 1},
        },
        "seam": None,
    }


def test_orpo_trains_the_prompt_too_and_both_ends_are_trls():
    tokenizer = letters("<s>", "</s>", template=NO_END, bos_token="<s>", eos_token="</s>")
    assert shown(CHAT, tokenizer, Orpo()).lines()[1:3] == [
        r"  prompt     11 tokens, trained by the SFT term alone:  |<s>=0|U|:| |s|a|y|\n|A|:| |",
        r"  chosen     5 tokens, trained:                         |y|e|s|\n|</s>=1|",
    ]
    assert "11 tokens, not trained:" in shown(CHAT, tokenizer, Simpo()).lines()[1]


def test_only_assistant_turns():
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
    ("section", "whole"),
    [
        ({}, False),
        ({"completion_only_loss": False}, False),
        ({"assistant_only_loss": True}, False),
        ({"completion_only_loss": False, "assistant_only_loss": True}, False),
        ({}, True),
        ({"assistant_only_loss": True}, True),
    ],
)
def test_what_is_shown_as_trained_is_trls_labels(rows_of_trl, section, whole):
    turns = [(*r["prompt"], *r["chosen"], *r["prompt"]) for r in pairs(3, chat=True)]
    answer = [{"role": "assistant", "content": "yes please"}]
    rows = [
        {"messages": [*turn, *answer]} if whole else {"prompt": [*turn], "completion": answer}
        for turn in turns
    ]
    ours, theirs, tokenizer, recipe = rows_of_trl("sft", rows, **section)
    for row, prepared in zip(ours, theirs, strict=True):
        parts = view(row, tokenizer, recipe.methods["sft"], 64, "row").parts.values()
        tokens = [token for part in parts for token in part.tokens]
        assert [t.id for t in tokens] == prepared["input_ids"]
        assert [t.id if t.trained else -100 for t in tokens] == prepared["labels"]


def test_the_end_token_of_the_recipe(recipe_data, make_recipe, tmp_path):
    """A template's own end is taught, checked, and kept with the trained model."""
    recipe_data["model"] |= {
        "chat_template": TURNS_END_WITH_PAD,
        "eos_token": "<pad>",
    }
    rows = [{"messages": [*CHAT["prompt"], *CHAT["chosen"]]}] * 24
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    recipe_data["data"]["train"] = {"path": str(path)}
    recipe_data["data"].pop("eval")
    recipe = make_recipe(recipe_data).recipe
    inputs = load_run_datasets(recipe, recipe.sft, load_tokenizer(recipe.model))
    assert not [f for f in inputs.train.findings if f.name == "no_end"]
    train(recipe, recipe.sft)
    kept = load_tokenizer(Model(name_or_path=f"{recipe.output_dir}/model"))
    assert kept.eos_token == "<pad>"
    with pytest.raises(RecipeError, match="the tokenizer has no token 'nothing'"):
        load_tokenizer(recipe.model.model_copy(update={"eos_token": "nothing"}))
