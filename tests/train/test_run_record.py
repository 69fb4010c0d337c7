"""run.json: its keys, their types, and files that an older prefcli wrote."""

from __future__ import annotations

import json
from typing import get_type_hints

import pytest
from pydantic import TypeAdapter

from prefcli.checkpoints.run_dir import RunDir
from prefcli.checkpoints.run_record import RunRecord
from prefcli.training.run import train
from tests.support.problems import stops_with

ALWAYS = {
    "status",
    "method",
    "head",
    "advice",
    "started",
    "prefcli",
    "versions",
    "python",
    "device",
    "lineage",
    "processes",
    "strategy",
    "data",
    "hub",
    "parts",
    "plan",
    "settings",
    "effective",
    "model",
    "finished",
    "steps",
    "eval",
    "expected",
    "speed",
}
"""Keys of every finished run."""
HINTS = get_type_hints(RunRecord)
TYPES = {name: TypeAdapter(hint) for name, hint in HINTS.items() if name != "folder"}


@pytest.fixture
def finished(recipe_data, make_recipe) -> RunDir:
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    return RunDir(recipe.output_dir)


def test_run_json_of_finished_run_has_the_keys_and_types_of_the_record(finished):
    run = json.loads(finished.run.read_text("utf-8"))
    assert set(run) == ALWAYS | {"step_zero", "start_weights"}
    for key, value in run.items():
        TYPES[key].validate_python(value, strict=True)


def test_record_that_is_loaded_and_saved_leaves_run_json_unchanged(finished):
    before = finished.run.read_text("utf-8")
    RunRecord.load(finished).save()
    assert json.loads(finished.run.read_text("utf-8")) == json.loads(before)


def test_record_of_older_prefcli_is_loaded(tmp_path):
    folder = RunDir(str(tmp_path))
    old = {"status": "finished", "method": "dpo", "anchor": {}, "push": {"status": "done"}, "x": 1}
    folder.run.write_text(json.dumps(old), encoding="utf-8")
    record = RunRecord.load(folder)
    assert (record.status, record.method) == ("finished", "dpo")
    assert (record.expected, record.push_to_hub) == ({}, {"status": "done"})
    assert record.started is None


def test_record_that_is_unreadable_raises(tmp_path):
    folder = RunDir(str(tmp_path))
    folder.run.write_text("{", encoding="utf-8")
    with stops_with("RUN016"):
        RunRecord.load(folder)
