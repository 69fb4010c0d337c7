"""One list of checks: a run refuses what its dry-run refuses, with the same error code."""

from __future__ import annotations

import json
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from prefcli import cli
from prefcli.preflight.checks import CHECKS, checks_for
from prefcli.training.finish import Outcome
from tests.support.tiny_runs import interrupt, pairs, write_jsonl


class Bench(NamedTuple):
    """The objects that a planted failure may change."""

    data: dict
    """The recipe."""
    model: Path
    """A copy of the tiny model."""
    folder: Path
    patch: pytest.MonkeyPatch
    train: object
    """Trains the recipe as it is."""


def output_dir(bench: Bench) -> None:
    (bench.folder / "run").mkdir()
    (bench.folder / "run" / "thesis.tex").write_text("important")


def launch(bench: Bench) -> None:
    bench.data["launch"] = {"strategy": "ddp", "processes": 2}
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
        bench.patch.setenv(name, value)


def push_to_hub(bench: Bench) -> None:
    bench.data["push"] = {"repo_id": "me/tiny"}


def packages(bench: Bench) -> None:
    bench.data["logging"] = {"report_to": ["mlflow"]}


def global_batch(bench: Bench) -> None:
    bench.data["training"] |= {"global_batch_size": 7, "per_device_train_batch_size": 2}


def settings(bench: Bench) -> None:
    early_stopping = {"metric": "eval_no_such_metric", "patience": 1}
    bench.data["training"] |= {"early_stopping": early_stopping, "eval_steps": 1, "save_steps": 1}


def base_model(bench: Bench) -> None:
    bench.data["model"]["adapter"] = "continue"  # of a model that is not one


def weights(bench: Bench) -> None:
    (bench.model / "model.safetensors").unlink()


def reference_weights(bench: Bench) -> None:
    other = bench.folder / "reference"
    shutil.copytree(bench.model, other)
    (other / "model.safetensors").unlink()
    bench.data["reference"] = {"name_or_path": str(other)}


def tokenizer(bench: Bench) -> None:
    (bench.model / "tokenizer.json").write_text("{")


def config(bench: Bench) -> None:
    text = (bench.model / "config.json").read_text()
    (bench.model / "config.json").write_text(text.replace('"llama"', '"no-such-architecture"'))


def fit(bench: Bench) -> None:
    bench.data["data"]["max_length"] = 4096


def reference(bench: Bench) -> None:
    other = bench.folder / "reference"
    shutil.copytree(bench.model, other)
    changed = AutoTokenizer.from_pretrained(other)
    changed.add_tokens(["new"])
    changed.save_pretrained(other)
    size = LlamaConfig.from_pretrained(other)
    size.vocab_size += 1
    LlamaForCausalLM(size).save_pretrained(other)
    bench.data["reference"] = {"name_or_path": str(other)}


def saving(bench: Bench) -> None:
    bench.patch.setattr("tempfile.tempdir", str(bench.folder / "nowhere"))


def architecture(bench: Bench) -> None:
    bench.data["lora"] = {"target_modules": ["query"]}


def published_ranges(bench: Bench) -> None:
    bench.patch.setattr("prefcli.recipe.published_ranges._FEWEST_PARAMETERS", 0)
    bench.data["training"]["learning_rate"] = 1.0


def rows(bench: Bench) -> None:
    bench.data["data"]["train"]["path"] = str(bench.folder / "nowhere.jsonl")


def rows_fit(bench: Bench) -> None:
    changed = AutoTokenizer.from_pretrained(bench.model)
    changed.add_tokens(["say "])  # in every prompt, and one past the embedding
    changed.save_pretrained(bench.model)


def data_checks(bench: Bench) -> None:
    bench.data["data"]["checks"] = {"duplicates": {"error": 0.0}}
    repeated = pairs(2) * 12
    bench.data["data"]["train"]["path"] = str(write_jsonl(bench.folder / "same.jsonl", repeated))


def resumed_rows(bench: Bench) -> None:
    rows = write_jsonl(bench.folder / "changing.jsonl", pairs(24))
    bench.data["data"]["train"]["path"] = str(rows)
    bench.data["training"] |= {"max_steps": 4, "save_steps": 2}
    bench.train()
    interrupt(bench.data["output_dir"], "checkpoint-4")
    write_jsonl(rows, pairs(30)[6:])


def plan(bench: Bench) -> None:
    bench.data["training"] |= {"max_steps": 2, "warmup_steps": 5}


def disk_space(bench: Bench) -> None:
    usage = namedtuple("usage", "total used free")
    bench.patch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))


PLANTED = {
    check: plant
    for plant in (
        output_dir,
        launch,
        push_to_hub,
        packages,
        global_batch,
        settings,
        base_model,
        weights,
        reference_weights,
        tokenizer,
        config,
        fit,
        reference,
        saving,
        architecture,
        published_ranges,
        rows,
        data_checks,
        rows_fit,
        resumed_rows,
        plan,
        disk_space,
    )
    for check in [plant.__name__]
}


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """`prefcli dpo recipe.yaml ...`; (exit code, standard output, standard error)."""

    def run(data: dict, *options: str) -> tuple[int, str, str]:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["prefcli", "dpo", str(path), *options])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


ONLY_WARN = {"stop_tokens", "processor"}
NEEDS_A_GPU = {"automatic"}
"""Checks of the memory of a GPU: tests/train/test_automatic.py."""


def test_every_check_that_can_fail_has_a_planted_failure():
    assert PLANTED.keys() | ONLY_WARN | NEEDS_A_GPU == {check.name for check in CHECKS}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_failure_stops_run_and_dry_run_with_the_same_code(
    name, recipe_data, tiny_model, tmp_path, command, monkeypatch
):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    recipe_data["model"]["name_or_path"] = str(model)
    bench = Bench(recipe_data, model, tmp_path, monkeypatch, lambda: command(recipe_data))
    PLANTED[name](bench)
    monkeypatch.setattr("prefcli.training.run.start_policy", _no_weights)

    dry_code, out, printed = command(recipe_data, "--dry-run", "--json")
    assert dry_code not in (0, 1), printed
    document = json.loads(out)
    problem = (document["problems"] or document["unchecked"])[0]

    run_code, _, error = command(recipe_data)
    assert run_code == dry_code, error
    assert problem["message"] in error
    if problem["code"] is not None:
        assert f"[{problem['code']}]" in error


def _no_weights(*args, **kwargs):
    raise AssertionError("a planted failure was found only after the weights were loaded")


def test_checks_are_listed_after_those_that_they_need():
    names = [check.name for check in CHECKS]
    for at, check in enumerate(CHECKS):
        assert set(check.needs) <= set(names[:at]), check.name


def test_checks_for_selects_all_that_a_check_needs_and_no_more():
    assert [check.name for check in checks_for("rows")] == ["tokenizer", "rows"]
    assert [check.name for check in checks_for("fit", "data_checks")] == [
        "base_model",
        "tokenizer",
        "config",
        "fit",
        "rows",
        "data_checks",
    ]


def test_run_after_a_green_dry_run_starts(recipe_data, command):
    code, out, _ = command(recipe_data, "--dry-run", "--json")
    assert (code, json.loads(out)["will_run"]) == (0, True)
    code, out, _ = command(recipe_data, "--json")
    assert code == 0
    assert Outcome(**json.loads(out)).metrics["eval_loss"] > 0
