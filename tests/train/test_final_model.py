"""The files of a run: models that transformers alone loads, metrics and the run record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefcli.checkpoints.run_dir import RunDir
from prefcli.errors import DivergedError
from prefcli.methods import METHODS
from prefcli.recipe import load
from prefcli.recipe.defaults import resolve_defaults
from prefcli.training.run import train
from tests.support.problems import stops_with
from tests.support.tiny_runs import ANYTHING, metric_rows, pairs, write_jsonl


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(3, 20)[None]).logits


@pytest.mark.parametrize("name", METHODS)
def test_saved_model_loads_with_transformers_alone(recipe_data, make_recipe, tiny_model, name):
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.methods[name])
    folder = Path(recipe.output_dir) / "model"
    assert not list(folder.glob("adapter*"))
    after = AutoModelForCausalLM.from_pretrained(folder)
    before = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert after.dtype == torch.float32
    assert not torch.equal(logits(after), logits(before))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template


@pytest.mark.parametrize(
    "name", [name for name, method in METHODS.items() if method.head == "language_model"]
)
def test_saved_adapter_names_its_base_model(recipe_data, make_recipe, tiny_model, name):
    recipe_data["lora"] = {"rank": 2, "alpha": 64}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.methods[name])
    folder = Path(recipe.output_dir) / "model"
    assert [p.name for p in folder.glob("*.safetensors")] == ["adapter_model.safetensors"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_model)
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    with_adapter = logits(model)
    with model.disable_adapter():
        without = logits(model)
    base = logits(AutoModelForCausalLM.from_pretrained(tiny_model))
    assert torch.equal(without, base)
    assert not torch.equal(with_adapter, base)
    assert AutoTokenizer.from_pretrained(folder).eos_token == "</s>"


def test_saved_model_has_the_chat_template_of_the_recipe(recipe_data, make_recipe, tmp_path):
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}{{ eos_token }}"
    (tmp_path / "own.jinja").write_text(template)
    recipe_data["model"]["chat_template"] = str(tmp_path / "own.jinja")
    data = write_jsonl(tmp_path / "chat.jsonl", pairs(10, chat=True))
    recipe_data["data"] = {"checks": ANYTHING, "train": {"path": str(data)}, "max_length": 64}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    saved = AutoTokenizer.from_pretrained(Path(recipe.output_dir) / "model")
    assert saved.chat_template == template


def test_run_folder_contains_recipe_record_and_metrics(recipe_data, make_recipe):
    loaded = make_recipe(recipe_data)
    train(loaded.recipe, loaded.recipe.dpo)
    folder = RunDir(loaded.recipe.output_dir)
    saved = load(str(folder.recipe)).recipe
    assert saved.launch.strategy == "single"
    resolved = resolve_defaults(loaded.recipe, loaded.recipe.dpo)
    assert saved == resolved.model_copy(update={"launch": saved.launch})
    run = folder.read_run()
    assert run["status"] == "finished"
    assert run["versions"].keys() >= {"torch", "trl", "transformers"}
    counts = {"read": 24, "available": 24, "kept": 24, "dropped": {}, "notes": []}
    assert run["data"]["train"].items() >= counts.items()
    assert run["data"]["train"].keys() >= {"tokens", "findings", "lengths"}
    assert run["eval"]["last"]["eval_loss"] > 0
    rows = metric_rows(folder.path)
    assert [r["step"] for r in rows if "loss" in r] == [1, 2]
    assert {p.name for p in folder.path.iterdir()} >= {"recipe.yaml", "run.json", "model"}
    assert not (folder.path / "README.md").exists()


def test_evaluation_runs_once_per_step(recipe_data, make_recipe):
    recipe_data["training"] |= {"eval_steps": 2, "max_steps": 4}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    assert [r["step"] for r in metric_rows(recipe.output_dir) if "eval_loss" in r] == [0, 2, 4]


def test_lineage_contains_every_stage(recipe_data, make_recipe, tmp_path, tiny_model):
    first = make_recipe(recipe_data, f"output_dir={tmp_path / 'one'}").recipe
    train(first, first.sft)
    second = make_recipe(
        recipe_data,
        f"output_dir={tmp_path / 'two'}",
        f"model.name_or_path={tmp_path / 'one' / 'model'}",
    ).recipe
    train(second, second.dpo)
    lineage = RunDir(second.output_dir).read_run()["lineage"]
    assert [(e["stage"], e["model"]) for e in lineage] == [
        ("start", str(tiny_model)),
        ("sft", str(tmp_path / "one" / "model")),
    ]


def test_random_init_depends_on_the_seed_only(recipe_data, make_recipe, tmp_path):
    recipe_data["model"]["init"] = "random"

    def start(seed: int, name: str) -> float:
        recipe = make_recipe(recipe_data, f"seed={seed}", f"output_dir={tmp_path / name}").recipe
        train(recipe, recipe.sft)
        return metric_rows(recipe.output_dir)[0]["eval_loss"]

    assert start(1, "a") == start(1, "b") != start(2, "c")


def test_diverged_run_has_no_model(recipe_data, make_recipe):
    recipe_data["training"] |= {"learning_rate": 1.0, "optim": "sgd", "max_steps": 60}
    recipe_data["training"] |= {"max_grad_norm": 1e9, "warmup_steps": 0}
    recipe_data["dpo"] = {"beta": 1000.0, "loss_type": "hinge"}
    recipe_data["health"] = {"collapse": "off"}  # which would stop it earlier
    recipe = make_recipe(recipe_data).recipe
    with pytest.raises(DivergedError, match="at step"):
        train(recipe, recipe.dpo)
    folder = RunDir(recipe.output_dir)
    assert folder.read_run()["status"] == "diverged"
    assert not folder.model.exists()
    for line in folder.metrics.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    with stops_with("RUN002", DivergedError):
        train(recipe, recipe.dpo)


def test_run_folder_contains_no_secret(recipe_data, make_recipe, monkeypatch):
    secret = "hf_" + "x" * 34
    monkeypatch.setenv("HF_TOKEN", secret)
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    for path in Path(recipe.output_dir).iterdir():
        if path.is_file():
            assert secret not in path.read_text("utf-8")
    assert yaml.safe_load((Path(recipe.output_dir) / "recipe.yaml").read_text())["seed"] == 42
