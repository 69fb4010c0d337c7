"""The shipped recipes: dry-runs, and chat templates that render the published text."""

from __future__ import annotations

import pytest
from huggingface_hub import constants
from transformers import AutoTokenizer

from prefcli.methods import METHODS
from prefcli.recipe import load
from prefcli.recipe.catalog import find, shipped
from prefcli.recipe.offline import hub_names
from prefcli.training.dry_run import dry_run
from tests.support.tiny_runs import pairs, write_jsonl

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
def test_template_of_zephyr_renders_the_published_text(render, name):
    assert render(name, CHAT) == ZEPHYR
    assert render(name, CHAT, add_generation_prompt=True) == ZEPHYR + "<|assistant|>\n"
    system = [{"role": "system", "content": "Be kind."}, *CHAT]
    assert render(name, system) == "<|system|>\nBe kind.</s>\n" + ZEPHYR


@pytest.mark.parametrize("name", ["smollm2-135m-sft", "smollm2-1.7b-sft"])
def test_template_of_smollm_renders_the_published_text(render, name):
    assert render(name, CHAT) == SMOL + CHATML
    assert render(name, CHAT, add_generation_prompt=True) == (
        SMOL + CHATML + "<|im_start|>assistant\n"
    )
    system = [{"role": "system", "content": "Be kind."}, *CHAT]
    assert render(name, system) == "<|im_start|>system\nBe kind.<|im_end|>\n" + CHATML


@pytest.mark.parametrize("name", ["zephyr-sft", "smollm2-135m-sft"])
def test_generation_marks_cover_the_answers_with_their_end(render, tiny_model, name):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = load(str(find(name).path)).recipe.model.chat_template
    marked = tokenizer.apply_chat_template(
        CHAT, return_dict=True, return_assistant_tokens_mask=True
    )
    pairs = zip(marked["input_ids"], marked["assistant_masks"], strict=True)
    end = "</s>" if name == "zephyr-sft" else "<|im_end|>"
    assert tokenizer.decode([token for token, mask in pairs if mask]) == "Hello!" + end


LIBRARY = shipped()
QUICKSTART = [recipe.name for recipe in LIBRARY if recipe.folder == "quickstart"]
PUBLISHED = [recipe.name for recipe in LIBRARY if not recipe.folder]
AFTER_A_STAGE = ("smollm2-135m", "smollm2-360m", "smollm2-1.7b")
"""Recipes whose model is a folder that an earlier stage writes."""


def test_shipped_recipes_all_have_a_dry_run_test():
    assert len(QUICKSTART) == len(METHODS)
    assert len(QUICKSTART) + len(PUBLISHED) == len(LIBRARY)


@pytest.mark.parametrize("name", QUICKSTART)
def test_dry_run_of_a_quickstart_recipe_succeeds(name, tmp_path):
    """Run the dry-run with random weights instead of those of stage 1."""
    path = find(name).path
    start = [f"model.name_or_path={path.parent / 'model'}", "model.init=random"]
    if name == "quickstart/rloo":  # its reward model is another run
        start.append("judge={function: {name: tests.support.judge:count_vowels}}")
    recipe = load(str(path), [f"output_dir={tmp_path / 'run'}", *start]).recipe
    (method,) = recipe.methods.values()
    result = dry_run(recipe, method)
    assert (result.problems, result.unchecked, result.will_run) == ([], [], True)
    assert result.facts["parameters"] < 10**6
    assert result.facts["steps"] > 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_dry_run_of_a_published_recipe_lacks_only_the_hub(name, tmp_path, monkeypatch):
    """Run the dry-run with an empty cache and no earlier run: only hub names are unchecked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    path = str(find(name).path)
    monkeypatch.chdir(tmp_path)
    if name.startswith("stories"):  # a recipe for rows of the user
        for split in ("train", "eval"):
            write_jsonl(tmp_path / f"pairs_{split}.jsonl", pairs(8))
            write_jsonl(tmp_path / f"text_{split}.jsonl", [{"text": "Once."}] * 8)
    recipe = load(path).recipe
    for method in recipe.methods.values():
        result = dry_run(recipe, method)
        if name in AFTER_A_STAGE:
            (stage,) = result.problems
            assert stage.message == f"no such folder: runs/{name}-sft/model"
            assert stage.code == "MDL001"
        else:
            assert result.problems == []
            assert result.will_run is None
        words = [
            problem.message.split("the hub is unreachable for ") for problem in result.unchecked
        ]
        assert all(problem.path.endswith(("name_or_path", ".path")) for problem in result.unchecked)
        names = {rest.partition(",")[0] for _, rest in words}
        assert names == set(hub_names(recipe))
