"""A dry-run reports every problem that would stop the run, and writes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefcli.methods import METHODS
from prefcli.training.dry_run import dry_run as simulate
from tests.support.tiny_runs import pairs, write_jsonl


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
def test_dry_run_of_a_valid_recipe_will_run(recipe_data, dry_run, method, lora):
    if lora:
        recipe_data["lora"] = lora
    code, document, printed = dry_run(recipe_data, method)
    assert code == 0
    assert document["will_run"]
    assert document["problems"] == []
    assert document["steps"] == 2
    assert document["effective"]["learning_rate"] == 1e-3
    assert printed.splitlines()[-1].startswith(f"will run: prefcli {method}")
    assert not Path(recipe_data["output_dir"]).exists()


def test_dry_run_numbers_match_a_count_by_hand(recipe_data, dry_run):
    """Compare steps, parameters and adapted layers with numbers counted by hand."""
    del recipe_data["training"]["max_steps"]
    recipe_data["training"]["num_train_epochs"] = 2
    recipe_data["lora"] = {"target_modules": ["q_proj", "v_proj"]}
    _, document, _ = dry_run(recipe_data)
    assert document["steps"] == 2 * (24 // 8)
    assert document["lora_layers"] == 2 * 2
    hidden, mlp, vocab = 32, 64, document["parameters"]
    layer = 2 * hidden * hidden + 2 * hidden * hidden // 2 + 3 * hidden * mlp + 2 * hidden
    assert (vocab - 2 * layer - hidden) % (2 * hidden) == 0  # the rest: two embeddings


def test_dry_run_reports_every_problem_with_its_place(recipe_data, dry_run, tmp_path):
    recipe_data["lora"] = {"target_modules": ["query"]}
    recipe_data["data"]["max_length"] = 4096
    rows = pairs(3)
    rows[1]["chosen"] = None
    recipe_data["data"]["train"]["path"] = str(write_jsonl(tmp_path / "bad.jsonl", rows))
    code, document, printed = dry_run(recipe_data)
    assert code == 2
    messages = {p["path"] or p["place"]: p for p in document["problems"]}
    assert "q_proj" in messages["lora.target_modules"]["hint"]
    assert "context of 128" in messages["data.max_length"]["message"]
    assert "row 2" in document["problems"][-1]["place"]
    assert all("recipe.yaml:" in p["place"] for p in document["problems"] if p["path"])
    assert printed.splitlines()[-1] == "will not run: 3 problems above"


def test_dry_run_of_invalid_rows_exits_with_4(recipe_data, dry_run, tmp_path):
    recipe_data["data"]["train"]["path"] = str(
        write_jsonl(tmp_path / "q.jsonl", [{"question": "a", "chosen": "b", "rejected": "c"}])
    )
    code, document, _ = dry_run(recipe_data)
    assert code == 4
    assert document["problems"][0]["code"].startswith("DAT")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.dtype", "bfloat16"),
        ("model.attn_implementation", "flash_attention_2"),
        ("training.optim", "paged_adamw_32bit"),
    ],
)
def test_dry_run_without_gpu_lists_what_it_did_not_test(recipe_data, dry_run, path, value):
    code, document, printed = dry_run(recipe_data, "dpo", f"{path}={value}")
    assert (code, document["problems"]) == (0, [])
    assert f"not tested, as there is no GPU here: {path}: {value}" in printed


def test_dry_run_of_a_model_without_weights_fails(recipe_data, dry_run, tiny_model, tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    recipe_data["model"]["name_or_path"] = str(folder)
    code, document, _ = dry_run(recipe_data)
    assert code == 2
    assert "neither model.safetensors nor an index" in document["problems"][0]["message"]
    assert "model.init: random" in document["problems"][0]["hint"]
    assert dry_run(recipe_data, "sft", "model.init=random")[0] == 0

    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    _, document, _ = dry_run(recipe_data)
    assert "pickled weights, which can run code" in document["problems"][0]["message"]


def test_dry_run_of_a_reference_without_weights_fails(recipe_data, dry_run, tiny_model, tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    recipe_data["reference"] = {"name_or_path": str(folder)}
    code, document, _ = dry_run(recipe_data)
    assert code == 2
    (problem,) = document["problems"]
    assert problem["path"] == "reference.name_or_path"
    assert problem["code"] == "MDL001"
    assert "init" not in problem["hint"]
    # SimPO has no reference, so that none is loaded.
    assert dry_run(recipe_data, "simpo")[0] == 0


@pytest.mark.parametrize("world", [3, 5])
def test_dry_run_of_an_impossible_global_batch_lists_possible_ones(
    recipe_data, dry_run, monkeypatch, world
):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    recipe_data["training"] |= {"global_batch_size": 12, "per_device_train_batch_size": 4}
    if world == 3:
        recipe_data["training"]["per_device_train_batch_size"] = 3
    code, document, _ = dry_run(recipe_data)
    assert code == 2
    (problem,) = document["problems"]
    assert problem["path"] == "training.global_batch_size"
    possible = "1 (accumulating 4), 2 (accumulating 2), 4 (accumulating 1)"
    assert (possible if world == 3 else "set a multiple of 5") in problem["hint"]
    assert "memory" not in document  # the processes of a launcher would wait for each other


def test_dry_run_of_an_adapter_without_model_adapter_fails(recipe_data, dry_run, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    recipe_data["model"]["name_or_path"] = str(folder)
    code, document, _ = dry_run(recipe_data)
    assert code == 2
    assert document["problems"][0]["code"] == "MDL006"
    assert "merge" in document["problems"][0]["hint"]


def test_dry_run_with_an_unwritable_output_folder_fails(
    recipe_data, dry_run, tmp_path, monkeypatch
):
    import os

    real = os.access
    monkeypatch.setattr("os.access", lambda p, mode: mode & os.W_OK == 0 and real(p, mode))
    code, document, _ = dry_run(recipe_data)
    assert code == 2
    assert document["problems"][0]["path"] == "output_dir"
    assert "not writable" in document["problems"][0]["message"]


def test_dry_run_with_a_missing_tracker_fails(recipe_data, dry_run):
    code, document, _ = dry_run(recipe_data, "dpo", "logging.report_to=[mlflow]")
    assert code == 2
    assert document["problems"][0]["path"] == "logging.report_to"
    assert "prefcli[trackers]" in document["problems"][0]["hint"]


def test_dry_run_of_kto_with_missing_data_reports_only_that(recipe_data, make_recipe):
    """Check the auto weights, which come from labels that do not exist here."""
    recipe_data["data"]["train"]["path"] = "nowhere.jsonl"
    recipe = make_recipe(recipe_data).recipe
    (problem,) = simulate(recipe, recipe.kto).problems
    assert "nowhere.jsonl" in str(problem)
