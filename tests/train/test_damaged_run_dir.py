"""Damaged files of a run folder: refused with their name, or their broken lines dropped."""

from __future__ import annotations

import json

import pytest

from prefcli.checkpoints.metrics_log import MetricsLog, truncate_logs
from prefcli.checkpoints.resume import check_run_dir
from prefcli.checkpoints.resume_compat import ResumeDiff
from prefcli.checkpoints.run_dir import RunDir
from prefcli.errors import RecipeError
from tests.support.problems import stops_with


@pytest.fixture
def started(recipe_data, make_recipe):
    """A run that was killed after its first checkpoint, without training one."""
    recipe = make_recipe(recipe_data).recipe
    folder = RunDir(recipe.output_dir)
    folder.start(recipe, "dpo")
    folder.write_run({"status": "running", "method": "dpo"})
    (folder.path / "checkpoint-2").mkdir()
    return folder, recipe


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"seed: [", b"\xff\xfe", b"3: 4", b'output_dir: "\\U00110000"', b"[" * 10000],
)
def test_check_run_dir_damaged_recipe_names_the_file(started, content):
    folder, recipe = started
    folder.recipe.write_bytes(content)
    with stops_with("RUN016", RecipeError) as error:
        check_run_dir(folder, recipe, recipe.dpo, "auto")
    assert str(folder.recipe) in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"status": "run',
        "[]",
        '{"status": "odd"}',
        '{"status": "running", "data": []}',
        '{"status": "running", "resumed": {}}',
        '{"status": "running", "step_zero": "x"}',
        '{"status": "running", "hub": 3}',
    ],
)
def test_check_run_dir_damaged_record_names_the_file(started, content):
    folder, recipe = started
    folder.run.write_text(content)
    with stops_with("RUN016", RecipeError) as error:
        check_run_dir(folder, recipe, recipe.dpo, "auto")
    assert str(folder.run) in str(error.value)


def test_check_run_dir_force_resume_is_not_offered_for_a_finished_run(started, tiny_model):
    folder, recipe = started
    folder.write_run({"status": "finished", "method": "dpo"})
    folder.model.symlink_to(tiny_model)
    training = recipe.training.model_copy(update={"max_steps": 9})
    changed = recipe.model_copy(update={"training": training})
    with stops_with("RUN007", RecipeError) as error:
        check_run_dir(folder, changed, recipe.dpo, "auto", ResumeDiff())
    assert "--force-resume" not in str(error.value)


def test_truncate_logs_lines_that_prefcli_did_not_write_are_dropped(started, capsys):
    folder, _ = started
    good = {"step": 1, "loss": 0.5, "grad_norm": None}
    broken = ["3", "{}", '{"step": "x"}', '{"step": 1, "loss": []}', "\x00\x00", "[" * 10000]
    folder.metrics.write_text(
        "\n".join([json.dumps(good), *broken, json.dumps(good | {"step": 2})])
    )
    folder.health.write_bytes(b'\xff\n{"step": 1}\n{"step": 1, "rule": "x", "level": "warn"}\n')
    folder.samples.write_text('{"step": 1}\n{"step": 1, "place": "a", "prompt": "b"}\n')

    truncate_logs(folder, 1)
    assert MetricsLog(folder).rows() == [good]
    assert [advice["rule"] for advice in MetricsLog(folder).advice()] == ["x"]
    assert folder.samples.read_text() == '{"step": 1, "place": "a", "prompt": "b"}\n'
    assert "metrics.jsonl: " in capsys.readouterr().out
