"""Broken config, tokenizer, template and generation files are errors that name the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from prefcli.data.model_fit import check_model_fit, check_rows_fit
from prefcli.data.run_datasets import read_run_datasets
from prefcli.errors import DataError, PrefcliError, RecipeError
from prefcli.model import load_base_config, load_policy, load_tokenizer
from prefcli.model.base_model import check_start_weights
from prefcli.model.chat_template import check_template
from prefcli.model.stop_tokens import load_stop_tokens
from prefcli.recipe.sections import Model
from tests.support.problems import stops_with
from tests.support.tiny_runs import write_jsonl


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def load_all(options: Model) -> None:
    """Load everything that the checks before a run load."""
    load_base_config(options)
    check_start_weights(options)
    load_stop_tokens(options, load_tokenizer(options), adapter=False)


def replace_values(path: Path, values: dict) -> None:
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | values))


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, "\ud800"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_loading_a_file_that_is_no_json_object_names_it(model, file, text):
    (model / file).write_bytes(text.encode("utf-8", "surrogatepass"))
    with stops_with("MDL030", RecipeError) as error:
        load_all(Model(name_or_path=str(model)))
    assert str(model / file) in str(error.value)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"num_attention_heads": 5}),
        ("config.json", {"hidden_act": "nonsense"}),
        ("config.json", {"quantization_config": 3}),
        ("config.json", {"dtype": "float8"}),
        ("tokenizer_config.json", {"pad_token": 3}),
        ("tokenizer_config.json", {"tokenizer_class": 3}),
        ("tokenizer_config.json", {"model_max_length": "x"}),
        ("tokenizer.json", {"model": 3}),
        ("generation_config.json", {"eos_token_id": "x"}),
    ],
)
def test_loading_a_wrong_value_is_an_error_of_the_model(model, file, values):
    replace_values(model / file, values)
    with stops_with("MDL002", RecipeError):
        load_all(Model(name_or_path=str(model)))


def test_load_base_config_model_of_another_kind_raises(model):
    replace_values(model / "config.json", {"model_type": "t5"})
    with stops_with("MDL032", RecipeError):
        load_base_config(Model(name_or_path=str(model)))


def test_load_model_sampling_settings_without_do_sample_can_be_saved(model, tmp_path):
    values = {"temperature": 0.6, "top_p": 0.9, "do_sample": False}
    replace_values(model / "generation_config.json", values)
    loaded = load_policy(Model(name_or_path=str(model)), torch.float32, 0)
    loaded.generation_config.eos_token_id = [1, 2]  # as training does
    loaded.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert (saved["do_sample"], saved["temperature"]) == (True, 0.6)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{% include 'x' %}",
        "{% break %}",
        "{{ '\ud800' }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 2000000 }}",
    ],
)
def test_load_tokenizer_recipe_template_that_fails_raises(tiny_model, template):
    with stops_with("MDL015", RecipeError):
        load_tokenizer(Model(name_or_path=str(tiny_model), chat_template=template + "\n"))


def test_check_template_without_an_end_raises(model):
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    tokenizer = load_tokenizer(Model(name_or_path=str(model)))
    tokenizer.chat_template = endless
    with stops_with("MDL015", RecipeError) as error:
        check_template(tokenizer, "model", own=True, seconds=0.1)
    assert "does not end within" in str(error.value)


def test_load_tokenizer_template_in_latin1_names_the_file(tiny_model, tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_bytes("{{ 'é' }}".encode("latin-1"))
    with stops_with("MDL014", RecipeError) as error:
        load_tokenizer(Model(name_or_path=str(tiny_model), chat_template=str(path)))
    assert str(path) in str(error.value)


def test_load_tokenizer_named_templates_takes_the_default(model):
    (model / "chat_template.jinja").unlink(missing_ok=True)
    names = {"default": "{{ messages[0].content }}", "tools": "x"}
    replace_values(model / "tokenizer_config.json", {"chat_template": names})
    assert load_tokenizer(Model(name_or_path=str(model))).chat_template == names["default"]

    del names["default"]
    replace_values(model / "tokenizer_config.json", {"chat_template": names})
    with stops_with("MDL015", RecipeError):
        load_tokenizer(Model(name_or_path=str(model)))


def grow_tokenizer(model: Path, *tokens: str, **special: str):
    tokenizer = load_tokenizer(Model(name_or_path=str(model)))
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_special_tokens(special)
    return tokenizer


def test_check_model_fit_pad_token_past_the_embedding_raises(model, recipe_data, make_recipe):
    recipe, config = make_recipe(recipe_data).recipe, AutoConfig.from_pretrained(model)
    with stops_with("MDL031", RecipeError) as error:
        check_model_fit(recipe, config, grow_tokenizer(model, pad_token="[PAD]"))
    assert "'[PAD]' is 300 in the tokenizer" in str(error.value)
    assert "rows 0 to 299" in str(error.value)
    check_model_fit(recipe, config, grow_tokenizer(model, "<a>", "<b>"))  # nothing uses them


def test_check_rows_fit_token_past_the_embedding_names_the_row(
    model, recipe_data, make_recipe, tmp_path
):
    tokenizer = grow_tokenizer(model, '<"a">')
    rows = [
        {"prompt": f"{i} ", "completion": " yes no" if i < 2 else ' <"a"> no'} for i in range(4)
    ]
    recipe_data["data"]["train"] = {"path": str(write_jsonl(tmp_path / "rows.jsonl", rows))}
    recipe_data["data"].pop("eval")
    recipe = make_recipe(recipe_data).recipe
    split = read_run_datasets(recipe, recipe.sft, tokenizer).train
    with stops_with("MDL031", DataError) as error:
        check_rows_fit(split, tokenizer, 300)
    assert "row 3" in str(error.value)
    check_rows_fit(split, tokenizer, 301)


def test_loading_reports_no_error_of_prefcli_as_one_of_a_library(model):
    (model / "model.safetensors").unlink()
    with pytest.raises(PrefcliError) as error:
        load_all(Model(name_or_path=str(model)))
    assert error.value.problems[0].code == "MDL001"
