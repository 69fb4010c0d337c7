"""A run folder as plain data, whatever state it is in."""

from __future__ import annotations

import pytest

from prefcli.errors import RecipeError
from prefcli.report.run_data import read_run
from tests.support.run_dirs import RUN, dpo_run, eval_row, train_row, write_run


def test_rows_of_training_and_evaluations_are_apart(tmp_path):
    run = read_run(dpo_run(tmp_path / "zephyr"))
    assert run.name == "zephyr"
    assert (run.method, run.status) == ("dpo", "finished")
    assert [row["step"] for row in run.evals] == [0, 100, 200]
    assert len(run.rows) == 41
    assert run.evals[-1]["rewards/margins"] == 1.05
    assert run.at("dpo.beta") == 0.1
    assert run.at("dpo.beta.deeper") is None
    assert run.eval_rows == 400
    assert run.last_step == 200
    assert [advice["step"] for advice in run.health] == [120, 150]
    assert run.unreadable == 0


def test_an_accuracy_over_nothing_but_ties_is_none(tmp_path):
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


def test_a_torn_last_line_is_no_news_and_a_broken_one_is_counted(tmp_path):
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


def test_a_separator_in_a_text_ends_no_line(tmp_path):
    folder = write_run(tmp_path)
    text = '{"step": 0, "prompt": "a\u2028b"}\n'
    (folder / "samples.jsonl").write_text(text, encoding="utf-8")
    assert read_run(folder).samples == [{"step": 0, "prompt": "a\u2028b"}]


@pytest.mark.parametrize("inside", ["", "/", "/model", "/checkpoint-3/", "/metrics.jsonl"])
def test_the_run_is_found_from_within(tmp_path, inside, monkeypatch):
    folder = write_run(tmp_path / "runs" / "one", rows=[])
    (folder / "model").mkdir()
    (folder / "checkpoint-3").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_run(f"runs/one{inside}").name == "one"


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(RecipeError, match="nowhere: there is no such folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="no run folder"):
        read_run(tmp_path)
    for name in "ab":
        write_run(tmp_path / name)
    with pytest.raises(RecipeError) as error:
        read_run(tmp_path)
    assert f"name one or more: {tmp_path}/a, {tmp_path}/b" in str(error.value)


def test_damage_is_no_error(tmp_path):
    folder = write_run(tmp_path, recipe="a: [", rows=[])
    (folder / "run.json").write_text("[1]")
    run = read_run(folder)
    assert (run.run, run.recipe, run.rows) == ({}, {}, [])
    assert (run.status, run.method, run.ties_at_start) == ("unknown", "?", False)
