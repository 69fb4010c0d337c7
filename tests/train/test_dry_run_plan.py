"""A dry-run for another machine: devices, GPU memory, strategies and samples."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prefcli import cli
from prefcli.errors import RecipeError
from prefcli.memory.hardware import target_of
from prefcli.preflight.training_plan import make_plan
from prefcli.recipe.sections import Training
from prefcli.text import counted
from tests.support.tiny_runs import pairs, write_jsonl

GIB = 2**30


def test_dry_run_for_other_devices_changes_the_accumulation(recipe_data, dry_run):
    recipe_data["training"] |= {"global_batch_size": 24, "per_device_train_batch_size": 4}
    del recipe_data["training"]["max_steps"]
    for devices, accumulation in ((1, 6), (2, 3), (6, 1)):
        code, document, printed = dry_run(recipe_data, "dpo", "--devices", str(devices))
        assert (code, document["accumulation"], document["steps"]) == (0, accumulation, 1)
        assert (
            f"(4 per device x {counted(devices, 'device')} x {accumulation} accumulated)" in printed
        )
        memory = document["memory"]
        assert (memory["devices"], memory["rows"]) == (devices, 4)
        assert memory["strategy"] == ("single" if devices == 1 else "ddp")


def test_dry_run_for_too_many_devices_fails(recipe_data, dry_run):
    recipe_data["training"] |= {"global_batch_size": 16, "per_device_train_batch_size": 4}
    code, document, _ = dry_run(recipe_data, "dpo", "--devices", "8")
    assert code == 2
    (problem,) = document["problems"]
    assert problem["path"] == "training.global_batch_size"
    assert problem["message"] == "16 is not a multiple of 4 rows per device on 8 devices"
    assert problem["hint"].endswith("to 1 (accumulating 2), 2 (accumulating 1)")
    assert document["memory"]["rows"] == 4  # the other checks run as well


@pytest.mark.parametrize(
    ("rows", "steps", "warnings"),
    [
        (100, None, []),
        (20, 10, ["so each step has 20;"]),
        (32, None, ["the learning rate is 0 in the only step"]),
        (20, None, ["so each step has 20;", "the learning rate is 0 in the only step"]),
    ],
)
def test_plan_of_a_run_that_can_teach_little_warns(rows, steps, warnings):
    training = Training(global_batch_size=32, per_device_train_batch_size=4, max_steps=steps)
    plan = make_plan(training, rows, has_eval=False, world=1)
    given = plan.warnings(training)
    assert len(given) == len(warnings)
    assert all(text in line for text, line in zip(warnings, given, strict=True))


@pytest.mark.parametrize(
    ("typed", "size"),
    [
        ("80GiB", 80 * GIB),
        ("80gib", 80 * GIB),
        ("80", 80 * GIB),
        ("80G", 80 * GIB),
        ("80 GB", 80 * 10**9),
        ("1.5GiB", 3 * GIB // 2),
        ("81559MiB", 81559 * 2**20),
        ("24000mb", 24 * 10**9),
    ],
)
def test_target_of_reads_a_memory_size(typed, size):
    assert target_of(gpu_memory=typed).gpu_memory == size


@pytest.mark.parametrize("typed", ["", "much", "-80GiB", "0", "0.0GiB", "80TiBs", "80,5GiB", "GiB"])
def test_target_of_an_invalid_memory_size_raises(typed):
    with pytest.raises(RecipeError, match="--gpu-memory 80GiB"):
        target_of(gpu_memory=typed)


def test_target_of_resolves_the_strategy():
    assert target_of().strategy == "single"
    assert target_of(8).strategy == "ddp"
    assert target_of(8, "zero3").strategy == "zero3"
    with pytest.raises(RecipeError, match="--devices 8"):
        target_of(strategy="fsdp2")
    with pytest.raises(RecipeError, match="write one of single, ddp, fsdp1, fsdp2, zero2, zero3"):
        target_of(8, "fsdp")
    with pytest.raises(RecipeError, match="8 devices need ddp"):
        target_of(8, "single")


def test_target_of_one_device_ignores_the_launcher(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (target_of().devices, target_of().strategy) == (8, "ddp")
    assert (target_of(1).devices, target_of(1).strategy) == (1, "single")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--sample", "5"], "--sample"),
        (["--gpu-memory", "80GiB"], "--gpu-memory"),
        (["--devices", "8", "--strategy", "fsdp2"], "--devices, --strategy"),
    ],
)
def test_dry_run_options_without_dry_run_fail(
    recipe_data, make_recipe, monkeypatch, capsys, options, named
):
    make_recipe(recipe_data)
    path = str(Path(recipe_data["output_dir"]).parent / "recipe.yaml")
    monkeypatch.setattr(sys, "argv", ["prefcli", "dpo", path, *options])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert f"{named} has no effect on a run" in printed
    assert "add --dry-run" in printed
    assert not Path(recipe_data["output_dir"]).exists()


@pytest.mark.slow
@pytest.mark.memory
def test_dry_run_for_a_gpu_smaller_than_the_driver_advises_nothing(recipe_data, dry_run):
    """Check that no change is advised, since none of a tiny recipe saves enough."""
    recipe_data["lora"] = {}
    recipe_data["training"] |= {"optim": "adamw_torch_fused", "gradient_checkpointing": True}
    code, document, _ = dry_run(recipe_data, "sft", "--gpu-memory", "1GiB")
    assert (code, document["memory"]["fits"], document["remedies"]) == (3, False, [])
    (problem,) = document["problems"]
    assert "which has 1.0 GiB" in problem["message"]
    assert problem["hint"].startswith("no known change makes it fit")


def test_dry_run_of_a_sample_estimates_the_steps(recipe_data, dry_run):
    del recipe_data["training"]["max_steps"]
    _, document, printed = dry_run(recipe_data, "dpo", "--sample", "10")
    train = document["train"]
    assert (train["read"], train["available"]) == (10, 24)
    # 24 rows make 3 steps of 8, assuming that the rows not read are valid.
    assert document["steps"] == 3
    assert "plan: about 3 steps" in printed
    assert "10 of 24 rows" in printed


def test_dry_run_after_a_failed_check_reads_a_part_of_the_data(
    recipe_data,
    dry_run,
    tmp_path,
):
    recipe_data["data"]["train"]["path"] = str(write_jsonl(tmp_path / "many.jsonl", pairs(1200)))
    recipe_data["lora"] = {"target_modules": ["query"]}
    code, document, printed = dry_run(recipe_data)
    assert code == 2
    assert (document["train"]["read"], document["train"]["available"]) == (1000, 1200)
    assert "reading at most 1000 rows of each source, as a check failed" in printed
    assert "memory" not in document
    assert "memory:" not in printed
    _, document, _ = dry_run(recipe_data, "dpo", "--sample", "7")
    assert document["train"]["read"] == 7


def test_dry_run_reports_problems_of_every_kind(recipe_data, dry_run, tmp_path):
    """Check problems of packages, model, data and plan; the first decides the exit code."""
    recipe_data["logging"] = {"report_to": ["mlflow"]}
    recipe_data["lora"] = {"target_modules": ["query"]}
    recipe_data["data"]["max_length"] = 4096
    recipe_data["training"] |= {"global_batch_size": 12, "per_device_train_batch_size": 4}
    rows = [*pairs(3), {"prompt": "a", "chosen": None, "rejected": "b"}]
    recipe_data["data"]["train"]["path"] = str(write_jsonl(tmp_path / "bad.jsonl", rows))
    code, document, printed = dry_run(recipe_data, "dpo", "--devices", "5")
    assert (code, document["will_run"]) == (2, False)
    assert [problem["path"] for problem in document["problems"]] == [
        "logging.report_to",
        "training.global_batch_size",
        "data.max_length",
        "lora.target_modules",
        None,
    ]
    assert document["problems"][4]["place"].endswith("bad.jsonl: row 4")
    assert printed.splitlines()[-1] == "will not run: 5 problems above"
    assert "memory" not in document
