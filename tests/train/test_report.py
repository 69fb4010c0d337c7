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
from prefcli.report.run_page import run_page, write_report
from prefcli.report.verdict import verdict
from prefcli.training.run import train
from tests.support.pages import read


def check_ranked_rows(run):
    """Compare the held-out rows with the last evaluation, whose metrics are means over rows."""
    last = run.evals[-1]
    rows = [row for row in run.ranked if row["step"] == last["step"]]
    assert run.record["settings"]["data"]["max_length"] == run.recipe["data"]["max_length"]
    if METHODS[run.method].rows in ("demonstration", "prompt"):
        assert rows == []
        return
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores)
    if run.method == "kto":  # 15 of 20 rows
        assert len(rows) == 15
        assert all(("chosen" in row) == (row["score"] == row["reward"]) for row in rows)
    else:
        assert len(rows) == 10
        assert sum(scores) / 10 == pytest.approx(last["rewards/margins"], abs=1e-5)
        assert sum(score > 0 for score in scores) / 10 == pytest.approx(last["rewards/accuracies"])
        assert all(row["chosen"] != row["rejected"] for row in rows)
    assert "the worst and the best" in run_page(run)


@pytest.mark.parametrize("name", METHODS)
def test_run_of_a_method_writes_a_page_and_a_card(recipe_data, make_recipe, name, capsys):
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.methods[name])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("done: ")]
    outcome = verdict(read_run(recipe.output_dir))
    assert lines[1:] == [f"done: {line}" for line in outcome.lines()]
    assert f"prefcli {name}: run" in read(write_report(Path(recipe.output_dir)).read_text()).text
    check_ranked_rows(read_run(recipe.output_dir))
    card = ModelCard.load(write_card(Path(recipe.output_dir), type(recipe.methods[name]).__doc__))
    assert card.data.library_name == "transformers"
    task = "classification" if METHODS[name].head == "reward" else "generation"
    assert card.data.pipeline_tag == f"text-{task}"
    assert card.data.tags == ["prefcli", "trl", name]
    assert str(Path(recipe.output_dir).parent) not in card.content


@pytest.mark.parametrize(
    ("name", "lora"), [("dpo", False), ("dpo", True), ("reward", False), ("reward", True)]
)
def test_card_snippet_generates_text_or_prints_a_reward(
    recipe_data, make_recipe, monkeypatch, name, lora
):
    if lora:
        recipe_data["lora"] = {"rank": 2}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.methods[name])
    path = write_card(Path(recipe.output_dir), "A method.")
    assert metadata_load(path)["library_name"] == ("peft" if lora else "transformers")
    monkeypatch.chdir(path.parent)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(re.search(r"```python\n(.*?)```", path.read_text(), re.DOTALL)[1], {})
    assert output.getvalue().strip()
