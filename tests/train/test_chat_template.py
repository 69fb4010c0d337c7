"""Warnings about chat templates, and the shipped ones."""
# ruff: noqa: E501 - published templates are one line each

from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import pytest
import trl
from jinja2 import TemplateError

from prefcli.errors import RecipeError
from prefcli.model import load_tokenizer
from prefcli.model.chat_template import chat_template_warnings
from prefcli.model.tokenizer import shipped_templates
from prefcli.preflight.stop_token_check import tokenizer_warnings
from tests.support.tiny_tokenizers import CHATML, ENDED, NO_END, chatml, no_end, story

# Published templates, as their models' repositories have them; trl ships those without a text here.
PUBLISHED = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "gemma": None,
    "llama3": None,
    "mistral": "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    "phi3": None,
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
}  # fmt: skip
TURN = [
    {"role": "user", "content": " a question\n"},
    {"role": "assistant", "content": " an answer "},
]
SYSTEM = [{"role": "system", "content": "a rule"}]


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_template_renders_what_the_published_one_does(recipe_data, make_recipe, name):
    assert list(PUBLISHED) == shipped_templates()
    recipe_data["model"]["chat_template"] = name
    shipped = load_tokenizer(make_recipe(recipe_data).recipe.model)
    published = copy.deepcopy(shipped)
    folder = Path(trl.__file__).parent / "chat_templates"
    published.chat_template = PUBLISHED[name] or (folder / f"{name}.jinja").read_text("utf-8")
    chats = [TURN, [*TURN, *TURN], TURN[:1], [*TURN, TURN[0]]]
    if name not in ("gemma", "mistral"):
        chats += [SYSTEM + chat for chat in chats]
    for chat in chats:
        for generate in (False, True):
            options = {"tokenize": False, "add_generation_prompt": generate}
            texts = [t.apply_chat_template(chat, **options) for t in (shipped, published)]
            assert texts[0] == texts[1]
    marked = shipped.apply_chat_template(TURN, return_dict=True, return_assistant_tokens_mask=True)
    assert any(marked["assistant_masks"])
    with pytest.raises(TemplateError) if len(chats) == 4 else contextlib.nullcontext():
        shipped.apply_chat_template(SYSTEM + TURN)


def test_load_tokenizer_template_file_loses_its_byte_order_mark(recipe_data, make_recipe, tmp_path):
    (tmp_path / "chat.jinja").write_bytes(
        b"\xef\xbb\xbf" + CHATML.encode().replace(b"%}{{", b"%}\r\n{{")
    )
    recipe_data["model"]["chat_template"] = str(tmp_path / "chat.jinja")
    tokenizer = load_tokenizer(make_recipe(recipe_data).recipe.model)
    text = tokenizer.apply_chat_template(TURN, tokenize=False)
    assert text.startswith("<|im_start|>user")
    assert "\r" not in text


def test_load_tokenizer_unknown_template_lists_the_shipped_ones(recipe_data, make_recipe):
    recipe_data["model"]["chat_template"] = "chatlm"
    with pytest.raises(RecipeError, match="one of chatml, gemma, llama3, mistral, phi3, zephyr"):
        load_tokenizer(make_recipe(recipe_data).recipe.model)


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
