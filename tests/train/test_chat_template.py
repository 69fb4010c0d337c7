"""Warnings about chat templates."""

from __future__ import annotations

from prefcli.model import load_tokenizer
from prefcli.model.chat_template import chat_template_warnings
from prefcli.preflight.stop_token_check import tokenizer_warnings
from tests.support.tiny_tokenizers import CHATML, ENDED, NO_END, chatml, no_end, story


def test_chat_template_warnings_missing_generation_prompt_is_reported():
    tokenizer = no_end()
    assert chat_template_warnings(tokenizer, conversational=True) == []
    tokenizer.chat_template = NO_END.partition("{% if add")[0]
    [warning] = chat_template_warnings(tokenizer, conversational=True)
    assert "'A: ' before an answer is trained as part of the answer" in warning.message
    assert warning.hint.endswith("{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}")
    assert chat_template_warnings(tokenizer, conversational=False) == []
    assert chat_template_warnings(story(), conversational=True) == []  # answers have no header


def test_chat_template_warnings_changed_template_is_reported():
    tokenizer, saved = chatml(), chatml()
    saved.chat_template = "{# the same #}" + CHATML
    assert chat_template_warnings(tokenizer, saved, conversational=True) == []
    saved.chat_template = CHATML.replace("<|im_end|>\n", "<|im_end|>")
    [warning] = chat_template_warnings(tokenizer, saved, conversational=True, stage="sft")
    assert (warning.code, warning.path) == ("MDL019", "model.chat_template")
    assert warning.message == (
        r"this template renders 'a question<|im_end|>\n<|im_start|>assista', but the template of "
        r"the sft stage renders 'a question<|im_end|><|im_start|>assistan'"
    )


def test_chat_template_warnings_first_template_is_reported_after_a_stage_only():
    bare = chatml()
    bare.chat_template = None
    assert chat_template_warnings(chatml(), bare, conversational=True) == []
    [warning] = chat_template_warnings(chatml(), bare, conversational=True, stage="sft")
    assert warning.message.startswith("the sft stage had no chat template")


def test_tokenizer_warnings_changed_template_is_reported(recipe_data, make_recipe):
    """The tiny model has its own template and no problem."""
    recipe = make_recipe(recipe_data).recipe
    assert tokenizer_warnings(recipe, load_tokenizer(recipe.model), conversational=True) == []
    recipe_data["model"]["chat_template"] = ENDED
    recipe = make_recipe(recipe_data).recipe
    tokenizer = load_tokenizer(recipe.model)
    [warning] = tokenizer_warnings(recipe, tokenizer, conversational=True)
    assert warning.code == "MDL019"
    assert tokenizer_warnings(recipe, tokenizer, conversational=False) == []
