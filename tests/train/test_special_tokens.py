"""The checks of BOS and stop tokens, on tokenizers with different habits."""

from __future__ import annotations

import pytest
from tokenizers import processors

from prefcli.data import tokenize
from prefcli.data.special_tokens import SpecialTokenCheck, SpecialTokens
from prefcli.data.tokenization import is_chat
from prefcli.methods import Dpo, Orpo, Sft, Simpo
from prefcli.recipe.sections import DataChecks
from tests.support.tiny_runs import pairs
from tests.support.tiny_tokenizers import (
    CHAT,
    ENDED,
    LLAMA3,
    NO_END,
    TEXT,
    WITH_BOS,
    chatml,
    letters,
    llama3,
    never_prepended,
    no_end,
    story,
)


def faults(row, tokenizer, stop_ids, method=None, max_length=1000, **masked):
    check = SpecialTokenCheck.of(tokenizer, frozenset(stop_ids), method or Dpo(), chat=is_chat(row))
    return check(tokenize(row, tokenizer), max_length, **masked)


@pytest.mark.parametrize("row", [TEXT, CHAT], ids=["text", "chat"])
@pytest.mark.parametrize(
    ("tokenizer", "ends"),
    [(llama3(), {1, 2}), (chatml(), {1, 2}), (never_prepended(), {0}), (story(), {0})],
    ids=["llama3", "chatml", "never prepended", "bos is eos"],
)
def test_special_token_check_valid_row_has_no_fault(tokenizer, ends, row):
    assert faults(row, tokenizer, ends) == set()


def test_special_token_check_template_without_end_is_no_end():
    assert faults(CHAT, no_end(), {1}) == {"no_end"}
    assert faults(TEXT, no_end(), {1}) == set()  # text gets its EOS token


def test_special_token_check_end_token_that_is_not_a_stop_token_is_no_end():
    """A base model tuned on ChatML, with <|endoftext|> in its generation config."""
    base = chatml(eos="<|eos|>")
    assert faults(CHAT, base, {2}) == {"no_end"}
    assert faults(TEXT, base, {2}) == set()
    assert faults(CHAT, llama3(), {1}) == {"no_end"}
    assert faults(TEXT, llama3(), {1}) == {"no_end"}


def test_special_token_check_names_a_stop_token_that_begins_the_next_turn():
    """Some models stop at the header of the next turn, and end the last answer with nothing."""
    template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    ended = template.replace("{% endfor %}", "{% endfor %}<|user|>")
    special = ("<|eos|>", "<|user|>", "<|assistant|>")
    for text, names in ((template, {"no_end"}), (ended, set())):
        tokenizer = letters(*special, template=text, eos_token="<|eos|>")
        assert faults(CHAT, tokenizer, {0, 1}) == names
        check = SpecialTokenCheck.of(tokenizer, frozenset({0, 1}), Dpo(), chat=True)
        assert check.cures.keys() == names
        assert all("write <|user|> there" in cure for cure in check.cures.values())
    assert SpecialTokenCheck.of(no_end(), frozenset({1}), Dpo(), chat=True).cures == {}


def test_special_token_check_one_side_without_end_is_no_end():
    row = {**CHAT, "rejected": [{"role": "assistant", "content": "no"}] * 2}
    template = ENDED.replace("m.role == 'assistant'", "m.role == 'assistant' and not loop.last")
    tokenizer = never_prepended()
    tokenizer.chat_template = template
    assert faults(row, tokenizer, {0}) == {"no_end"}


def test_special_token_check_bos_in_text_and_tokenizer_is_two_bos():
    """Text gets the tokenizer's BOS, rendered messages only the template's."""
    row_with_bos = {**TEXT, "prompt": "<|begin|>say"}
    assert faults(row_with_bos, llama3(), {2}) == {"two_bos"}
    assert tokenize(row_with_bos, llama3())["prompt_ids"][:2] == [0, 0]
    twice = llama3()
    twice.chat_template = "{{ bos_token }}" + LLAMA3
    assert faults(CHAT, twice, {2}) == {"two_bos"}
    assert faults({**TEXT, "prompt": "<s>say"}, story(), {0}) == {"two_bos"}
    assert faults({"text": "<s>say yes"}, story(), {0}, Sft()) == {"two_bos"}


def test_special_token_check_template_without_bos_is_no_bos():
    assert faults(CHAT, story(ENDED), {0}) == {"no_bos"}
    assert faults(CHAT, story("\n" + WITH_BOS), {0}) == {"no_bos"}
    assert faults(CHAT, story("\n" + ENDED), {7}) == {"no_bos", "no_end"}


def test_special_token_check_bos_in_later_turns_has_no_fault():
    tokenizer = story(
        "{% for m in messages %}{{ bos_token + m.content }}{% endfor %}{{ bos_token }}"
    )
    assert faults(CHAT, tokenizer, {0}) == set()


@pytest.mark.parametrize("method", [Orpo(), Simpo()], ids=lambda m: m.name)
def test_special_token_check_orpo_and_simpo_rows_get_bos_and_eos_from_trl(method):
    """Their trainers add missing BOS and EOS tokens, and no second BOS."""
    assert faults(CHAT, story(ENDED), {0}, method) == set()
    assert faults(CHAT, no_end(), {1}, method) == set()
    assert faults({**TEXT, "prompt": "<|begin|>say"}, llama3(), {2}, method) == set()
    twice = llama3()
    twice.chat_template = "{{ bos_token }}" + LLAMA3
    assert faults(CHAT, twice, {2}, method) == {"two_bos"}


def test_special_token_check_cut_completion_has_no_fault():
    tokenizer = no_end()
    # "U: say\n" and "A: " are 10 tokens; "yes\n" 4 more.
    assert faults(CHAT, tokenizer, {1}, max_length=14) == {"no_end"}
    assert faults(CHAT, tokenizer, {1}, max_length=12) == set()
    # At 13 the chosen side is cut, but "no\n" still fits, without an end.
    assert faults(CHAT, tokenizer, {1}, max_length=13) == {"no_end"}


def test_special_token_check_end_outside_the_mask_is_no_end():
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


def test_special_token_check_line_end_may_be_the_stop_token():
    tokenizer = letters("</s>", template=NO_END, eos_token="</s>")
    newline = tokenizer.convert_tokens_to_ids("Ċ")
    assert faults(CHAT, tokenizer, {newline}) == set()
    assert newline in SpecialTokenCheck.of(tokenizer, frozenset(), Dpo(), chat=True).blanks


def test_special_token_check_faults_are_data_checks():
    assert set(SpecialTokenCheck.names) <= set(DataChecks.model_fields)


def prepend_bos(tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )


def unchanged(tokenizer):
    pass


@pytest.mark.parametrize("name", ["orpo", "simpo"])
@pytest.mark.parametrize("change", [prepend_bos, unchanged])
@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_special_tokens_around_equals_trl_rows(trl_rows, name, change, chat):
    rows = pairs(4, chat=chat)
    if not chat:
        rows.append({"prompt": "<s>say", "chosen": " red", "rejected": " blue"})
    canonical, prepared_rows, tokenizer, recipe = trl_rows(name, rows, change)
    special = SpecialTokens.of(tokenizer, recipe.methods[name], chat=chat)
    for row, prepared in zip(canonical, prepared_rows, strict=True):
        ids = special.around(tokenize(row, tokenizer))
        for side in ("chosen", "rejected"):
            sequence = ids["prompt_ids"] + ids[f"{side}_ids"]
            assert prepared[f"{side}_input_ids"] == sequence
            masked = [-100] * len(ids["prompt_ids"])
            assert prepared[f"{side}_labels"] == masked + ids[f"{side}_ids"]
