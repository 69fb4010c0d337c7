"""The report and the model card of real runs of each method."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, metadata_load

from prefcli.methods import METHODS
from prefcli.report.model_card import write_card
from prefcli.report.run_data import read_run
from prefcli.report.run_page import write_report
from prefcli.report.verdict import verdict
from prefcli.training.run import train
from tests.support.pages import read


@pytest.mark.parametrize("name", METHODS)
def test_run_of_a_method_writes_a_page_and_a_card(recipe_data, make_recipe, name, capsys):
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.methods[name])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("done: ")]
    outcome = verdict(read_run(recipe.output_dir))
    assert lines[1:] == [f"done: {line}" for line in outcome.lines()]
    assert f"prefcli {name}: run" in read(write_report(Path(recipe.output_dir)).read_text()).text
    card = ModelCard.load(write_card(Path(recipe.output_dir), type(recipe.methods[name]).__doc__))
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.tags == ["prefcli", "trl", name]
    assert str(Path(recipe.output_dir).parent) not in card.content


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_card_snippet_generates_text(recipe_data, make_recipe, monkeypatch, lora):
    if lora:
        recipe_data["lora"] = {"rank": 2}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    path = write_card(Path(recipe.output_dir), "A method.")
    assert metadata_load(path)["library_name"] == ("peft" if lora else "transformers")
    monkeypatch.chdir(path.parent)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(re.search(r"```python\n(.*?)```", path.read_text(), re.DOTALL)[1], {})
    assert output.getvalue().strip()
