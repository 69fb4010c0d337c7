"""Rows are read and tokenized once, for all processes, later starts and `prefcli prepare`."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import select
import sys
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from prefcli import cli
from prefcli.data.arrow_cache import cache_folder
from prefcli.data.run_datasets import load_run_datasets, read_run_datasets
from prefcli.data.run_once import run_once
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
    """Count tokenized rows: a function returns (by prefcli, by trl) since its last call.

    The rows of all processes count.
    """
    files = [tmp_path / "prefcli", tmp_path / "trl"]

    def counting(file, function, rows):
        def counts(*args, **kwargs):
            with file.open("a") as log:
                log.write("x" * rows(*args))
            return function(*args, **kwargs)

        return counts

    row_stats = importlib.import_module("prefcli.data.row_stats")
    calls = counting(files[0], row_stats.tokenize_batch, lambda columns, *_: len(columns["prompt"]))
    monkeypatch.setattr(row_stats, "tokenize_batch", calls)
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
        counts = [file.stat().st_size if file.exists() else 0 for file in files]
        for file in files:
            file.unlink(missing_ok=True)
        return counts[0], counts[1]

    return since


@pytest.fixture
def fresh(recipe_data, tmp_path):
    """A recipe with rows that no other test has cached."""
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


# trl tokenizes the prompt of each row, and the prompt with each answer. ORPO has one function for
# all of it. kto makes two rows of a pair and drops the last.
CALLS = {"sft": 2, "dpo": 3, "kto": 4, "orpo": 1}


def test_trainer_rows_are_tokenized_once_by_all_processes(fresh, make_recipe, tmp_path, counted):
    recipe = make_recipe(fresh).recipe
    changed = (f"output_dir={tmp_path / 'other'}", "training.learning_rate=2e-3", "dpo.beta=0.2")
    other = make_recipe(fresh, *changed).recipe
    for name in METHODS:
        ended = in_processes([functools.partial(trainer_of, recipe, name)], tmp_path / "logs")
        assert ended.codes == [0, 0], ended.logs
        measured = 2 * ROWS if name == "kto" else ROWS
        assert counted() == (measured, CALLS[name] * ROWS), name
        trainer_of(other, name)
        assert counted() == (0, 0), name


def test_load_run_datasets_cached_splits_equal_those_read(fresh, make_recipe):
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


def test_load_run_datasets_changed_rows_are_read_again(fresh, make_recipe, tmp_path, counted):
    tokenizer = load_tokenizer(make_recipe(fresh).recipe.model)

    def tokenized(*overrides: str) -> int:
        recipe = make_recipe(fresh, *overrides).recipe
        load_run_datasets(recipe, recipe.dpo, tokenizer)
        return counted()[0]

    assert tokenized() == ROWS
    assert tokenized("data.checks.cut.warn=0.5", "data.num_proc=1") == 0
    assert tokenized("data.max_length=60") == ROWS
    assert tokenized("seed=7") == ROWS
    train_file = Path(fresh["data"]["train"]["path"])
    stamp = train_file.stat().st_mtime_ns
    train_file.write_text(train_file.read_text().replace("say ", "name "))
    os.utime(train_file, ns=(stamp, stamp))
    assert tokenized() == ROWS


def test_load_run_datasets_damaged_cache_is_rebuilt(fresh, make_recipe, counted):
    recipe = make_recipe(fresh).recipe
    tokenizer = load_tokenizer(recipe.model)
    entry = load_run_datasets(recipe, recipe.dpo, tokenizer).cache_path
    for damaged in (
        entry,
        entry.with_suffix(".npz"),
        cache_folder() / json.loads(entry.read_text())["train"]["rows"],
    ):
        counted()
        damaged.write_bytes(damaged.read_bytes()[:-40])
        assert len(load_run_datasets(recipe, recipe.dpo, tokenizer).train.rows) == TRAIN
        assert counted()[0] == ROWS, damaged
        assert load_run_datasets(recipe, recipe.dpo, tokenizer).was_cached


def test_prepare_command_leaves_nothing_to_tokenize(
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
    assert f"data: cached in {cache_folder()}" in err
    assert counted() == (ROWS, CALLS["dpo"] * ROWS)
    recipe = make_recipe(fresh).recipe
    train(recipe, recipe.dpo)
    assert counted() == (0, 0)
    assert "data: prepared before (train 10, eval 4 rows; key " in capsys.readouterr().err


def test_run_once_waiting_process_raises_the_error_of_the_first(tmp_path, monkeypatch):
    """The first process fails while the second waits for its lock."""
    log = tmp_path / "log"
    contended, signal_contended = os.pipe()

    class SignallingLock(FileLock):
        """Write to the pipe when another process holds the lock."""

        def acquire(self, *args, **kwargs):
            try:
                return super().acquire(*args, **kwargs)
            except Timeout:
                os.write(signal_contended, b"x")
                raise

    monkeypatch.setattr("prefcli.data.run_once.FileLock", SignallingLock)

    def make() -> int:
        with log.open("a") as file:
            file.write("x")
        select.select([contended], [], [], 60)
        raise DataError("row 3 is invalid", code="DAT010", place="a.jsonl: row 3")

    def job() -> None:
        try:
            run_once(tmp_path / "key.json", "data", lambda: None, make)
        except DataError as error:
            print(error)
            raise SystemExit(error.exit_code) from None

    ended = in_processes([job], tmp_path / "logs")
    assert ended.codes == [4, 4]
    assert ended.logs == ["a.jsonl: row 3: row 3 is invalid [DAT010]\n"] * 2
    assert log.read_text() == "x"
    with pytest.raises(DataError):  # a later start tries again
        run_once(tmp_path / "key.json", "data", lambda: None, make)
    assert log.read_text() == "xx"
