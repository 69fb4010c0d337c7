"""Rows are read and tokenised once, for all processes, later starts and `prefcli prepare`."""

from __future__ import annotations

import importlib

import pytest

from tests.train.conftest import pairs, trainer_of, write_jsonl
from tests.train.processes import in_processes

METHODS = ("sft", "dpo", "kto", "orpo", "simpo")
TRAIN, EVAL = 10, 4


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

    measures = importlib.import_module("prefcli.data.measures")
    ours = counting(files[0], measures.tokenise_all, lambda columns, _: len(columns["prompt"]))
    monkeypatch.setattr(measures, "tokenise_all", ours)
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
# ORPO and CPO have one function for all of it. kto makes two rows of a pair, and drops the last.
CALLS = {"sft": 2, "dpo": 3, "kto": 4, "orpo": 1, "simpo": 1}


def test_two_processes_and_the_next_start_tokenise_once(fresh, make_recipe, tmp_path, counted):
    recipe = make_recipe(fresh).recipe

    def job(name):
        return lambda: trainer_of(recipe, name)

    for name in METHODS:
        ended = in_processes([job(name)], tmp_path / "logs")
        assert ended.codes == [0, 0], ended.said
        rows = TRAIN + EVAL
        # What makes no difference to sft's tokens, as simpo's to orpo's, is found again.
        assert counted() == (
            {"simpo": 0}.get(name, rows * (2 if name == "kto" else 1)),
            rows * CALLS[name],
        ), name
        other = make_recipe(
            fresh, "output_dir=other", "training.learning_rate=2e-3", "dpo.beta=0.2"
        )
        trainer_of(other.recipe, name)
        assert counted() == (0, 0), name
