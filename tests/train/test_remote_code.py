"""Python code and pickled weights of a model: used only if the recipe allows it."""

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
def _no_terminal(monkeypatch):
    def ask(*args):
        raise AssertionError("transformers prompted at the terminal")

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


def test_load_config_with_code_and_no_consent_raises(with_code):
    options = Model(name_or_path=str(with_code))
    problem = problem_of(lambda: load_config(options))
    assert problem.path == "model.name_or_path"
    assert problem.code == "MDL002"
    assert "model.trust_remote_code: true" in problem.hint


def test_load_policy_with_code_and_consent_runs_it(with_code, capsys):
    options = Model(name_or_path=str(with_code), trust_remote_code=True)
    policy = load_policy(options, torch.float32, 0)
    assert type(policy).__name__ == "OwnModel"
    assert type(empty_model(load_config(options), options)).__name__ == "OwnModel"
    load_tokenizer(options)
    assert capsys.readouterr().out == (
        f"warning: model.trust_remote_code: running the Python files of {with_code}\n"
    )


def test_load_config_code_of_another_repository_raises(with_code):
    others = {**CLASSES, "AutoConfig": "evil/other--own.OwnConfig"}
    rewrite(with_code / "config.json", auto_map=others)
    options = Model(name_or_path=str(with_code), trust_remote_code=True)
    problem = problem_of(lambda: load_config(options))
    assert problem.code == "MDL024"
    assert problem.message == (f"{with_code} loads code from evil/other without a pinned commit")


def test_load_config_hub_code_without_commit_raises():
    base = Model.model_construct(name_or_path="org/base", revision=None, trust_remote_code=True)
    assert problem_of(lambda: load_config(base)).code == "MDL024"


def test_resolve_model_pickled_adapter_raises(tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    adapter.save_pretrained(str(tmp_path))
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    options = Model(name_or_path=str(tmp_path), adapter="merge")
    problem = problem_of(lambda: resolve_model(options))
    assert problem.code == "MDL005"


def test_check_weights_pickled_model_raises(tiny_model, tmp_path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "pickled"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    options = Model(name_or_path=str(folder))
    assert problem_of(lambda: check_weights(options)).code == "MDL005"
    assert problem_of(lambda: load_policy(options, torch.float32, 0)).path == "model.name_or_path"
