"""The shipped recipes' chat templates, rendered: the exact text of each published format."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from prefcli.recipe import load
from prefcli.recipe.library import find

CHAT = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye."},
]
ZEPHYR = "<|user|>\nHi.</s>\n<|assistant|>\nHello!</s>\n<|user|>\nBye.</s>\n"
CHATML = (
    "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
    "<|im_start|>user\nBye.<|im_end|>\n"
)
SMOL = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n"
)


@pytest.fixture
def render(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def render(name: str, messages: list, **options) -> str:
        tokenizer.chat_template = load(str(find(name).path)).recipe.model.chat_template
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)

    return render


@pytest.mark.parametrize("name", ["zephyr-sft", "mistral-orpo"])
def test_zephyrs_turns(render, name):
    assert render(name, CHAT) == ZEPHYR
    assert render(name, CHAT, add_generation_prompt=True) == ZEPHYR + "<|assistant|>\n"
    system = [{"role": "system", "content": "Be kind."}, *CHAT]
    assert render(name, system) == "<|system|>\nBe kind.</s>\n" + ZEPHYR


@pytest.mark.parametrize("name", ["smollm2-135m-sft", "smollm2-1.7b-sft"])
def test_smollms_turns(render, name):
    assert render(name, CHAT) == SMOL + CHATML
    assert render(name, CHAT, add_generation_prompt=True) == (
        SMOL + CHATML + "<|im_start|>assistant\n"
    )
    system = [{"role": "system", "content": "Be kind."}, *CHAT]
    assert render(name, system) == "<|im_start|>system\nBe kind.<|im_end|>\n" + CHATML


@pytest.mark.parametrize("name", ["zephyr-sft", "smollm2-135m-sft"])
def test_the_marks_cover_the_answers_and_their_end(render, tiny_model, name):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = load(str(find(name).path)).recipe.model.chat_template
    marked = tokenizer.apply_chat_template(
        CHAT, return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(marked["input_ids"], marked["assistant_masks"], strict=True)
    end = "</s>" if name == "zephyr-sft" else "<|im_end|>"
    assert tokenizer.decode([token for token, mask in pairs if mask]) == "Hello!" + end
