"""The files of a run folder as plain data, in every state."""

from __future__ import annotations

import pytest

from prefcli.errors import RecipeError
from prefcli.report.run_data import format_lineage, read_run
from tests.support.run_dirs import RUN, dpo_run, eval_row, train_row, write_run


def test_read_run_separates_training_and_evaluation_rows(tmp_path):
    run = read_run(dpo_run(tmp_path / "zephyr"))
    assert run.name == "zephyr"
    assert (run.method, run.status) == ("dpo", "finished")
    assert [row["step"] for row in run.evals] == [0, 100, 200]
    assert len(run.rows) == 41
    assert run.evals[-1]["rewards/margins"] == 1.05
    assert run.recipe_value("dpo.beta") == 0.1
    assert run.recipe_value("dpo.beta.deeper") is None
    assert run.eval_rows == 400
    assert run.last_step == 200
    assert [advice["step"] for advice in run.advice] == [120, 150]
    assert run.unreadable == 0


def test_read_run_removes_accuracies_over_ties(tmp_path):
    rows = [eval_row(0), train_row(1), train_row(2)]
    run = read_run(write_run(tmp_path / "a", rows=rows))
    assert "rewards/accuracies" not in run.evals[0]
    assert "rewards/accuracies" not in run.rows[0]
    assert "rewards/accuracies" in run.rows[1]
    without = {key: value for key, value in RUN.items() if key != "step_zero"}
    assert (
        "rewards/accuracies" in read_run(write_run(tmp_path / "b", run=without, rows=rows)).rows[0]
    )
    other = "reference: {name_or_path: other}\n"
    run = read_run(write_run(tmp_path / "c", recipe=other, rows=rows))
    assert run.evals[0]["rewards/accuracies"] == 0.0


def test_read_run_counts_unreadable_lines_but_not_a_truncated_last_one(tmp_path):
    folder = write_run(tmp_path, rows=[])
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 1.0}\n'
        "{oh no}\n"
        '{"loss": 2.0}\n'
        "[1]\n"
        "\n"
        '{"step": 2, "loss": NaN, "word": "x", "yes": true, "eval_x": 1}\n'
        '{"step": 3, "loss": 1' + "0" * 400 + "}\n"
        '{"step": 4, "lo',
        encoding="utf-8",
    )
    run = read_run(folder)
    assert run.rows == [{"step": 1, "loss": 1.0}, {"step": 3, "loss": None}]
    assert run.evals == [{"step": 2, "loss": None, "x": 1}]
    assert run.unreadable == 3


def test_read_run_with_a_line_separator_in_a_text_reads_one_line(tmp_path):
    folder = write_run(tmp_path)
    text = '{"step": 0, "prompt": "a\u2028b"}\n'
    (folder / "samples.jsonl").write_text(text, encoding="utf-8")
    assert read_run(folder).samples == [{"step": 0, "prompt": "a\u2028b"}]


@pytest.mark.parametrize("inside", ["", "/", "/model", "/checkpoint-3/", "/metrics.jsonl"])
def test_find_run_accepts_paths_inside_a_run(tmp_path, inside, monkeypatch):
    folder = write_run(tmp_path / "runs" / "one", rows=[])
    (folder / "model").mkdir()
    (folder / "checkpoint-3").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_run(f"runs/one{inside}").name == "one"


def test_find_run_outside_a_run_suggests_the_runs_inside(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(RecipeError) as error:
            read_run(path)
        assert [problem.code for problem in error.value.problems] == ["RUN100"]
    for name in "ab":
        write_run(tmp_path / name)
    with pytest.raises(RecipeError) as error:
        read_run(tmp_path)
    assert error.value.problems[0].hint.endswith(f": {tmp_path}/a, {tmp_path}/b")


def test_read_run_of_damaged_files_does_not_raise(tmp_path):
    folder = write_run(tmp_path, recipe="a: [", rows=[])
    (folder / "run.json").write_text("[1]")
    run = read_run(folder)
    assert (run.record, run.recipe, run.rows) == ({}, {}, [])
    assert (run.status, run.method, run.ties_at_start) == ("unknown", "?", False)


def test_format_lineage_names_stages_and_adapters():
    stages = [
        {"stage": "start", "model": "base"},
        {"stage": "sft", "model": "runs/sft/model", "adapter": "stack"},
    ]
    assert format_lineage(stages, "dpo") == (
        "base -> sft (runs/sft/model, adapter: stack) -> dpo (this run)"
    )
    assert format_lineage(stages[:1], "sft", this="this model", name=str.upper) == (
        "BASE -> sft (this model)"
    )


@pytest.mark.parametrize("key", ["expected", "anchor"])
def test_expected_results_of_older_runs_are_read(tmp_path, key):
    run = {key: {"eval_loss": RUN["expected"]["eval_loss"], "eval_kl": {"value": 1}}}
    recipe = f"{key}: {{source: a paper}}\n"
    data = read_run(write_run(tmp_path, run=run, recipe=recipe))
    assert list(data.expected_results) == ["eval_loss"]
    assert data.expected_source == "a paper"
