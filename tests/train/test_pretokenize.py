"""Rows are read and tokenised once, for all processes, later starts and `prefcli prepare`."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import sys
import time
from pathlib import Path

import pytest

from prefcli import cli
from prefcli.data.arrow_cache import folder as cache
from prefcli.data.run_datasets import load_run_datasets, read_run_datasets
from prefcli.data.run_once import once
from prefcli.errors import DataError
from prefcli.model import load_tokenizer
from prefcli.training.run import train
from tests.support.processes import in_processes
from tests.support.tiny_runs import pairs, trainer_of, write_jsonl

METHODS = ("sft", "dpo", "kto", "orpo")
TRAIN, EVAL = 10, 4
ROWS = TRAIN + EVAL


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """A function that tells how many rows have been tokenised since it was last asked: (by us, by
    trl), whatever process did it."""
    files = [tmp_path / "ours", tmp_path / "theirs"]

    def counting(file, function, rows):
        def counts(*args, **kwargs):
            with file.open("a") as log:
                log.write("x" * rows(*args))
            return function(*args, **kwargs)

        return counts

    measures = importlib.import_module("prefcli.data.row_stats")
    ours = counting(files[0], measures.tokenize_batch, lambda columns, _: len(columns["prompt"]))
    monkeypatch.setattr(measures, "tokenize_batch", ours)
    for name in ("sft", "dpo", "kto"):
        module = importlib.import_module(f"trl.trainer.{name}_trainer")
        calls = counting(files[1], module._tokenize, lambda *args: 1)
        monkeypatch.setattr(module, "_tokenize", calls)
    for name in ("ORPO", "CPO"):
        module = importlib.import_module(f"trl.experimental.{name.lower()}")
        trainer = getattr(module, f"{name}Trainer")
        calls = counting(files[1], trainer.tokenize_row, lambda *args: 1)
        calls.__qualname__ = "tokenize_row"
        monkeypatch.setattr(trainer, "tokenize_row", calls)

    def since() -> tuple[int, int]:
        found = [file.stat().st_size if file.exists() else 0 for file in files]
        for file in files:
            file.unlink(missing_ok=True)
        return found[0], found[1]

    return since


@pytest.fixture
def fresh(recipe_data, tmp_path):
    """A recipe over rows that no test has had before."""
    rows = pairs(TRAIN + EVAL)
    for row in rows:
        row["prompt"] = f"{tmp_path.name} {row['prompt']}"
    recipe_data["data"]["train"] = {"path": str(write_jsonl(tmp_path / "t.jsonl", rows[:TRAIN]))}
    recipe_data["data"]["eval"] = {"path": str(write_jsonl(tmp_path / "e.jsonl", rows[TRAIN:]))}
    recipe_data["training"] |= {
        "max_steps": 1,
        "global_batch_size": 4,
        "per_device_train_batch_size": 2,
    }
    return recipe_data


# Of each row trl tokenises the prompt, and prompt and answer together; of a pair, two answers.
# ORPO has one function for all of it. kto makes two rows of a pair, and drops the last.
CALLS = {"sft": 2, "dpo": 3, "kto": 4, "orpo": 1}


def test_two_processes_and_the_next_start_tokenise_once(fresh, make_recipe, tmp_path, counted):
    recipe = make_recipe(fresh).recipe
    changed = ("output_dir=other", "training.learning_rate=2e-3", "dpo.beta=0.2")
    other = make_recipe(fresh, *changed).recipe
    for name in METHODS:
        ended = in_processes([functools.partial(trainer_of, recipe, name)], tmp_path / "logs")
        assert ended.codes == [0, 0], ended.said
        measured = 2 * ROWS if name == "kto" else ROWS
        assert counted() == (measured, CALLS[name] * ROWS), name
        trainer_of(other, name)
        assert counted() == (0, 0), name


def test_what_is_kept_is_what_was_read(fresh, make_recipe):
    recipe = make_recipe(fresh).recipe
    tokenizer = load_tokenizer(recipe.model)
    for name in ("sft", "kto"):
        made = read_run_datasets(recipe, recipe.methods[name], tokenizer)
        first = load_run_datasets(recipe, recipe.methods[name], tokenizer)
        again = load_run_datasets(recipe, recipe.methods[name], tokenizer)
        assert again.was_cached
        for split, one, two in zip(made.splits, first.splits, again.splits, strict=True):
            assert list(split.rows) == list(one.rows) == list(two.rows)
            assert split.as_dict() == one.as_dict() == two.as_dict()
            assert split.lines() == two.lines()
            assert one.rows._fingerprint == two.rows._fingerprint


def test_other_rows_or_limits_are_read_anew(fresh, make_recipe, tmp_path, counted):
    tokenizer = load_tokenizer(make_recipe(fresh).recipe.model)

    def tokenised(*overrides: str) -> int:
        recipe = make_recipe(fresh, *overrides).recipe
        load_run_datasets(recipe, recipe.dpo, tokenizer)
        return counted()[0]

    assert tokenised() == ROWS
    assert tokenised("data.checks.cut.warn=0.5", "data.num_proc=1") == 0
    assert tokenised("data.max_length=60") == ROWS
    assert tokenised("seed=7") == ROWS
    train_file = Path(fresh["data"]["train"]["path"])
    stamp = train_file.stat().st_mtime_ns
    train_file.write_text(train_file.read_text().replace("say ", "tell "))
    os.utime(train_file, ns=(stamp, stamp))
    assert tokenised() == ROWS


def test_a_torn_file_is_made_again(fresh, make_recipe, counted):
    recipe = make_recipe(fresh).recipe
    tokenizer = load_tokenizer(recipe.model)
    kept = load_run_datasets(recipe, recipe.dpo, tokenizer).kept
    for torn in (
        kept,
        kept.with_suffix(".npz"),
        cache() / json.loads(kept.read_text())["train"]["rows"],
    ):
        counted()
        torn.write_bytes(torn.read_bytes()[:-40])
        assert len(load_run_datasets(recipe, recipe.dpo, tokenizer).train.rows) == TRAIN
        assert counted()[0] == ROWS, torn
        assert load_run_datasets(recipe, recipe.dpo, tokenizer).was_cached


def test_prepare_leaves_a_run_nothing_to_tokenise(
    fresh, make_recipe, tmp_path, counted, monkeypatch, capsys
):
    make_recipe(fresh)
    monkeypatch.setattr(
        sys, "argv", ["prefcli", "prepare", f"{tmp_path}/recipe.yaml", "--method", "dpo", "--json"]
    )
    with contextlib.suppress(SystemExit):
        cli.main()
    out, err = capsys.readouterr()
    assert json.loads(out)["splits"]["train"]["kept"] == TRAIN
    assert f"data: kept in {cache()}" in err
    assert counted() == (ROWS, CALLS["dpo"] * ROWS)
    recipe = make_recipe(fresh).recipe
    train(recipe, recipe.dpo)
    assert counted() == (0, 0)
    assert "data: prepared before (train 10, eval 4 rows; key " in capsys.readouterr().err


def test_who_waited_hears_the_error_and_does_not_try_again(tmp_path):
    """A second process comes while the first is at it, and the first fails."""
    log = tmp_path / "log"

    def make() -> int:
        with log.open("a") as file:
            file.write("x")
        time.sleep(1.0)
        raise DataError("row 3 is broken", place="a.jsonl: row 3")

    def job() -> None:
        try:
            once(tmp_path / "key.json", "data", lambda: None, make)
        except DataError as error:
            print(error)
            raise SystemExit(error.exit_code) from None

    ended = in_processes([job], tmp_path / "logs")
    assert ended.codes == [4, 4]
    assert ended.said == ["a.jsonl: row 3: row 3 is broken\n"] * 2
    assert log.read_text() == "x"
    with pytest.raises(DataError):  # a later start looks for itself
        once(tmp_path / "key.json", "data", lambda: None, make)
    assert log.read_text() == "xx"
