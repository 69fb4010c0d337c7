"""The stop tokens of a model before and after training."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import GenerationConfig, LlamaConfig

from prefcli.data.run_datasets import load_run_datasets
from prefcli.errors import RecipeError
from prefcli.model import load_tokenizer
from prefcli.model.stop_tokens import load_stop_tokens, stop_token_warnings
from prefcli.recipe.sections import Model
from prefcli.training.run import train
from tests.support.tiny_runs import write_jsonl
from tests.support.tiny_tokenizers import CHAT, llama3

TURNS_END_WITH_PAD = "{{ bos_token }}{% for m in messages %}{{ m.content }}<pad>{% endfor %}"


@pytest.fixture
def folder(tmp_path):
    """Make a model folder without weights: a config, and a generation config if it is given."""

    def make(config_eos, generation_eos=None):
        LlamaConfig(eos_token_id=config_eos, vocab_size=300).save_pretrained(tmp_path)
        if generation_eos is not None:
            GenerationConfig(eos_token_id=generation_eos).save_pretrained(tmp_path)
        return Model(name_or_path=str(tmp_path))

    return make


def test_load_stop_tokens_reads_the_generation_config(folder):
    stop_tokens = load_stop_tokens(folder(1, [1, 2]), llama3(), adapter=False)
    assert (stop_tokens.ids, stop_tokens.source) == ({1, 2}, "generation_config.json")


def test_load_stop_tokens_falls_back_to_config_and_tokenizer(folder):
    stop_tokens = load_stop_tokens(folder([2, 3]), llama3(), adapter=False)
    assert (stop_tokens.ids, stop_tokens.source) == ({2, 3}, "config.json")
    stop_tokens = load_stop_tokens(folder(None), llama3(), adapter=False)
    assert (stop_tokens.ids, stop_tokens.source) == ({2}, "the tokenizer")


def test_load_stop_tokens_adds_the_eos_to_a_full_model_only(folder):
    model, tokenizer = folder(1, 1), llama3()
    tokenizer.pad_token = "<|eot|>"
    full, adapter = (load_stop_tokens(model, tokenizer, adapter=on) for on in (False, True))
    assert (full.ids, adapter.ids) == ({1, 2}, {1})
    [full_warning] = stop_token_warnings(full, tokenizer)
    [adapter_warning] = stop_token_warnings(adapter, tokenizer)
    assert {full_warning.code, adapter_warning.code} == {"MDL020"}
    shared = (
        "the tokenizer ends texts with <|eot|>=2, but generation stops only at <|eos|>=1 "
        "(generation_config.json); "
    )
    assert (
        full_warning.message
        == shared + "the trained model will stop at both, since training adds the tokenizer's"
    )
    assert adapter_warning.message == shared + "training an adapter does not change that"
    assert adapter_warning.hint.startswith("add 2 to eos_token_id")


@pytest.mark.parametrize("lora", [False, True])
def test_train_saves_the_stop_tokens_of_load_stop_tokens(
    tiny_model, recipe_data, make_recipe, tmp_path, lora
):
    start = tmp_path / "start"
    shutil.copytree(tiny_model, start)
    GenerationConfig(eos_token_id=[5]).save_pretrained(start)
    recipe_data["model"]["name_or_path"] = str(start)
    recipe_data["training"]["max_steps"] = 1
    if lora:
        recipe_data["lora"] = {"rank": 2}
    recipe = make_recipe(recipe_data).recipe
    stop_tokens = load_stop_tokens(
        recipe.model, load_tokenizer(recipe.model), adapter=recipe.trains_adapter
    )
    train(recipe, recipe.methods["sft"])
    saved = tmp_path / "run" / "model" / "generation_config.json"
    if lora:
        assert stop_tokens.ids == {5}
        assert not saved.exists()
    else:
        assert stop_tokens.ids == {1, 5}
        assert json.loads(saved.read_text())["eos_token_id"] == [1, 5]


def test_stop_token_warnings_padding_token_is_reported(folder):
    tokenizer = llama3()
    tokenizer.pad_token = "<|eos|>"
    stop_tokens = load_stop_tokens(folder(2, [1, 2]), tokenizer, adapter=False)
    [warning] = stop_token_warnings(stop_tokens, tokenizer)
    assert warning.message.startswith("the padding token <|eos|>=1 is a stop token")
    assert warning.code == "MDL021"
    tokenizer.pad_token = tokenizer.eos_token  # the default of load_tokenizer
    assert stop_token_warnings(stop_tokens, tokenizer) == []


def test_train_with_eos_token_of_the_recipe_saves_it(recipe_data, make_recipe, tmp_path):
    """The template's end token is trained, checked, and saved with the model."""
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
    saved = load_tokenizer(Model(name_or_path=f"{recipe.output_dir}/model"))
    assert saved.eos_token == "<pad>"
    with pytest.raises(RecipeError) as caught:
        load_tokenizer(recipe.model.model_copy(update={"eos_token": "nothing"}))
    assert caught.value.problems[0].code == "MDL013"
