"""Python and pickles that come with a model: run, or read, only where the recipe says so."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from prefcli.errors import RecipeError
from prefcli.model import load_policy, load_tokenizer
from prefcli.model.base_model import resolve_model
from prefcli.model.loading import check_weights, empty_model, load_config
from prefcli.recipe.sections import Model

CODE = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM
pathlib.Path(__file__).with_name("ran").touch()
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
CLASSES = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}


@pytest.fixture(autouse=True)
def _nobody_answers(monkeypatch):
    def ask(*args):
        raise AssertionError("a job was asked at the terminal")

    monkeypatch.setattr(builtins, "input", ask)


@pytest.fixture
def with_code(tiny_model, tmp_path) -> Path:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "with_code"))
    (folder / "own.py").write_text(CODE)
    rewrite(folder / "config.json", model_type="own", auto_map=CLASSES)
    return folder


def rewrite(file: Path, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def problem_of(call):
    with pytest.raises(RecipeError) as caught:
        call()
    (problem,) = caught.value.problems
    return problem


def test_code_is_not_run_unasked(with_code):
    options = Model(name_or_path=str(with_code))
    problem = problem_of(lambda: load_config(options))
    assert problem.path == "model.name_or_path"
    assert "model.trust_remote_code: true" in problem.hint
    assert "model.revision" in problem.hint


def test_code_that_is_asked_for(with_code, capsys):
    options = Model(name_or_path=str(with_code), trust_remote_code=True)
    policy = load_policy(options, torch.float32, 0)
    assert type(policy).__name__ == "OwnModel"
    assert type(empty_model(load_config(options), options)).__name__ == "OwnModel"
    load_tokenizer(options)
    said = capsys.readouterr().out
    assert said == (f"warning: model.trust_remote_code: the Python files of {with_code} are run\n")


def test_code_of_elsewhere(with_code):
    others = {**CLASSES, "AutoConfig": "evil/other--own.OwnConfig"}
    rewrite(with_code / "config.json", auto_map=others)
    options = Model(name_or_path=str(with_code), trust_remote_code=True)
    problem = problem_of(lambda: load_config(options))
    assert (
        problem.message
        == f"{with_code} takes its code from evil/other, of which no commit is named"
    )


def test_an_adapters_base_on_the_hub_needs_a_commit_too():
    base = Model.model_construct(name_or_path="org/base", revision=None, trust_remote_code=True)
    assert "org/base is not named by its commit" in problem_of(lambda: load_config(base)).message


def test_a_pickled_adapter_is_not_read(tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    adapter.save_pretrained(str(tmp_path))
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    options = Model(name_or_path=str(tmp_path), adapter="merge")
    problem = problem_of(lambda: resolve_model(options))
    assert "holds no adapter_model.safetensors; pickled weights" in problem.message


def test_a_pickled_model_is_not_read(tiny_model, tmp_path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "pickled"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    options = Model(name_or_path=str(folder))
    assert "only pickled weights" in problem_of(lambda: check_weights(options)).message
    assert problem_of(lambda: load_policy(options, torch.float32, 0)).path == "model.name_or_path"
