"""Every key of a recipe is explained: in the schema, by `prefcli explain` and in a first recipe."""

from __future__ import annotations

import json
import sys

import pytest

from prefcli import cli
from prefcli.methods import METHODS
from prefcli.recipe import load
from prefcli.recipe.reference import recipe_json_schema, recipe_keys
from prefcli.recipe.starter import starter_recipe
from prefcli.recipe.suggestions import all_paths


def test_every_key_has_a_type_and_a_description():
    for key in recipe_keys():
        assert key.description, key.path
        assert key.type not in ("", "any value"), key.path


def test_keys_are_those_of_the_schema():
    paths = [key.path for key in recipe_keys()]
    assert len(paths) == len(set(paths))
    assert set(all_paths()) <= set(paths)


@pytest.mark.parametrize(
    ("path", "kind", "default"),
    [
        ("dpo.beta", "number above 0", "0.1"),
        ("output_dir", "text", None),
        ("lora", "section", "null"),
        ("performance", "section", "{}"),
        ("training.max_steps", "whole number at least 1 or null", "null"),
        ("model.init", "pretrained | random", "pretrained"),
        ("data.train", "section or list of section", None),
        ("data.checks.cut", "section", "{warn: 0.01, error: 0.1}"),
        ("logging.report_to", "list of tensorboard | wandb | trackio | mlflow", "[]"),
        ("health.collapse.level", "note | warn | stop | off", "stop"),
    ],
)
def test_key_has_the_type_and_the_default_of_its_field(path, kind, default):
    (key,) = [key for key in recipe_keys() if key.path == path]
    assert (key.type, key.default) == (kind, default)


def test_schema_of_an_optional_section_is_the_section():
    schema = recipe_json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"].startswith("urn:prefcli:recipe:")
    assert schema["properties"]["lora"]["$ref"] == "#/$defs/Lora"
    assert "title" not in schema["$defs"]["Dpo"]["properties"]["f_alpha_divergence_coef"]


def explained(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["prefcli", "explain", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    return capsys.readouterr().out


def test_explain_a_key_prints_meaning_default_and_published_range(monkeypatch, capsys):
    printed = explained(monkeypatch, capsys, "dpo.beta")
    assert "number above 0; default: 0.1" in printed
    assert "published for dpo: 0.01 to 0.6" in printed
    assert "dpo.beta=VALUE" in printed


def test_explain_the_last_part_of_a_key_prints_all_its_homes(monkeypatch, capsys):
    keys = json.loads(explained(monkeypatch, capsys, "beta", "--json"))
    assert [key["path"] for key in keys][:3] == ["dpo.beta", "ipo.beta", "kto.beta"]


def test_explain_a_section_lists_its_keys(monkeypatch, capsys):
    assert "  lora.rank " in explained(monkeypatch, capsys, "lora")
    assert "data.train.path" in explained(monkeypatch, capsys, "data.train[0].path")


def test_starter_recipe_keeps_long_names_apart_from_comments(tmp_path):
    model, data = f"/models/{'m' * 60}", f"data/{'d' * 60}.jsonl"
    text = starter_recipe("dpo", model, data, held_out=data, lora=True, output_dir="runs/first")
    path = tmp_path / "recipe.yaml"
    path.write_text(text, "utf-8")
    recipe = load(str(path)).recipe
    assert recipe.model.name_or_path == model
    assert recipe.data.train[0].path == recipe.data.eval_sources[0].path == data


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("lora", [False, True])
def test_starter_recipe_is_valid_and_has_a_comment_per_key(method, lora, tmp_path):
    text = starter_recipe(
        method, "org/model", "rows.jsonl", held_out=None, lora=lora, output_dir="runs/first"
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(text, "utf-8")
    recipe = load(str(path)).recipe
    assert list(recipe.methods) == [method]
    assert recipe.data.eval is not None
    assert (recipe.lora is not None) == lora
    assert text.startswith("# yaml-language-server: $schema=")
    lines = text.splitlines()[1:]
    for before, line in zip(["", *lines], lines, strict=False):
        assert "#" in line or before.lstrip().startswith("#"), line
    assert max(map(len, lines)) <= 110
