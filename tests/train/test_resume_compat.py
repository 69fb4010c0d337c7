"""Changes between the parts of a run: refused, accepted by --force-resume, or free."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefcli.checkpoints.resume_compat import FREE, RESUMABLE, ResumeDiff
from prefcli.checkpoints.run_dir import RunDir
from prefcli.data.digests import rows_digest
from prefcli.errors import ExitCode, RecipeError
from prefcli.training.run import train
from tests.support.tiny_runs import interrupt, metric_rows, pairs, write_jsonl


@pytest.fixture
def half_done(recipe_data, make_recipe, tmp_path):
    """A recipe with its rows in a separate file, whose run stopped after two of four steps."""
    recipe_data["data"]["train"]["path"] = str(write_jsonl(tmp_path / "rows.jsonl", pairs(24)))
    recipe_data["training"] |= {"max_steps": 4, "save_steps": 2, "lr_scheduler_type": "constant"}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    interrupt(recipe.output_dir, "checkpoint-4")
    return recipe_data


def refused(recipe, **options) -> str:
    with pytest.raises(RecipeError) as error:
        train(recipe, recipe.dpo, **options)
    assert error.value.exit_code == ExitCode.RECIPE
    return str(error.value)


def test_resume_with_changed_settings_needs_force_resume(half_done, make_recipe, capsys):
    changes = ["training.learning_rate=5e-4", "training.save_steps=1"]
    recipe = make_recipe(half_done, *changes).recipe
    message = refused(recipe)
    assert "training.learning_rate was 0.001 there and is 0.0005 now" in message
    assert "training.save_steps was 2 there and is 1 now" in message
    assert "or accept it with --force-resume" in message

    other = make_recipe(half_done, *changes, "dpo.beta=0.2", "seed=1").recipe
    message = refused(other, force_resume=True)
    assert "dpo.beta was 0.1 there and is 0.2 now" in message
    assert "seed was 42 there and is 1 now" in message
    assert "learning_rate" not in message
    assert "--force-resume" not in message

    capsys.readouterr()
    train(recipe, recipe.dpo, force_resume=True)
    output = capsys.readouterr().out
    assert output.count("warning: --force-resume: training.learning_rate was 0.001 there and") == 1
    # The learning rates are those of the recipe, not those of the saved optimizer.
    rates = {r["step"]: r["learning_rate"] for r in metric_rows(recipe.output_dir) if "loss" in r}
    assert rates == {1: 1e-3, 2: 1e-3, 3: 5e-4, 4: 5e-4}
    assert (Path(recipe.output_dir) / "checkpoint-3").is_dir()
    (resumed,) = RunDir(recipe.output_dir).read_run()["resumed"]
    assert [line.partition(" ")[0] for line in resumed["anyway"]] == [
        "training.learning_rate",
        "training.save_steps",
    ]

    message = refused(make_recipe(half_done, "training.max_steps=8").recipe, force_resume=True)
    assert "holds a finished run" in message


def test_resume_with_changed_rows_needs_force_resume(half_done, make_recipe):
    write_jsonl(Path(half_done["data"]["train"]["path"]), pairs(25)[1:])
    recipe = make_recipe(half_done).recipe
    before = RunDir(recipe.output_dir).read_run()["data"]["train"]["fingerprint"]
    message = refused(recipe)
    assert f"data.train was '24 rows with the digest {before}' there and is '24 rows" in message
    assert "data.eval" not in message
    train(recipe, recipe.dpo, force_resume=True)
    run = RunDir(recipe.output_dir).read_run()
    assert run["data"]["train"]["fingerprint"] != before
    assert run["resumed"][0]["anyway"][0].startswith("data.train was")


def test_resume_with_other_processes_needs_force_resume(half_done, make_recipe):
    recipe = make_recipe(half_done).recipe
    folder = RunDir(recipe.output_dir)
    run = folder.read_run()
    assert (run["processes"], run["strategy"]) == (1, "single")
    folder.write_run({**run, "processes": 2, "strategy": "ddp"})
    message = refused(recipe)
    assert "processes was 2 there and is 1 now; strategy was 'ddp' there and is 'single'" in message
    assert "or accept it with --force-resume" in message
    folder.write_run({**run, "processes": 2, "strategy": "zero3"})
    assert "strategy was 'zero3' there" in refused(recipe, force_resume=True)

    # A launch section alone is not a difference.
    folder.write_run(run)
    launched = make_recipe(half_done, "launch.processes=1").recipe
    train(launched, launched.dpo)
    assert folder.read_run()["status"] == "finished"


def test_resume_with_another_judge_is_another_run_where_the_judge_gives_the_loss(tmp_path):
    before = {"judge": {"function": {"name": "a:a", "timeout": 1.0}}}
    slower = {"judge": {"function": {"name": "a:a", "timeout": 2.0}}}
    other = {"judge": {"function": {"name": "b:b", "timeout": 1.0}}}
    for method, now in (("rloo", slower), ("dpo", other)):
        ResumeDiff().judge(tmp_path, {"method": method, **before}, {"method": method, **now})
    both = {"method": "rloo", **before}, {"method": "rloo", **other}
    with pytest.raises(
        RecipeError, match=r"(?s)judge\.function\.name was 'a:a' there.*--force-resume"
    ):
        ResumeDiff().judge(tmp_path, *both)
    forced = ResumeDiff(force=True)
    forced.judge(tmp_path, *both)
    assert len(forced.accepted) == 1
    assert not forced.changes_optimizer
    assert not forced.changes_rows


def test_resume_tables_name_existing_settings(recipe_data, make_recipe):
    schema = json.dumps(make_recipe(recipe_data).recipe.model_json_schema(by_alias=True))
    for start in (*FREE, *RESUMABLE):
        for part in start.strip(".").split("."):
            assert f'"{part}' in schema or part in ("processes", "strategy"), start


def test_rows_digest_depends_on_rows_and_their_order(tmp_path):
    from datasets import Dataset, concatenate_datasets

    rows = [
        {"prompt": [{"role": "user", "content": "ü" * i}], "chosen": "x" * i, "label": i % 2 == 0}
        for i in range(5)
    ]
    dataset = Dataset.from_list(rows)
    digest = rows_digest(dataset)
    assert (
        rows_digest(concatenate_datasets([dataset.select([0, 1]), dataset.select([2, 3, 4])]))
        == digest
    )
    assert rows_digest(dataset.select([4, 3, 2, 1, 0]).select([4, 3, 2, 1, 0])) == digest
    assert rows_digest(dataset.select([1, 0, 2, 3, 4])) != digest
    # The same text, divided differently.
    two = Dataset.from_list([{"a": "xy", "b": "z"}])
    assert rows_digest(two) != rows_digest(Dataset.from_list([{"a": "x", "b": "yz"}]))
