"""The cache of reference log-probabilities: its key, its checks and what it saves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset, config
from safetensors.torch import load_file

from prefcli.checkpoints.run_dir import RunDir
from prefcli.errors import RecipeError
from prefcli.training.run import train
from tests.support.tiny_runs import metric_rows, trainer_of

LORA = {"rank": 2, "alpha": 4, "dropout": 0.1}
COMPUTED = "computed and cached for later runs"
READ = "read from an earlier run and checked"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("PYTEST_ELSEWHERE", str(tmp_path / "elsewhere"))


@pytest.fixture
def build(make_recipe, capsys):
    """Build a trainer; return it, whether each split was computed or read, and the output."""

    def make(data: dict, name: str = "dpo", *overrides: str):
        recipe = make_recipe(data, *overrides).recipe
        capsys.readouterr()
        trainer, _ = trainer_of(recipe, name)
        out = capsys.readouterr()
        lines = [line for line in out.out.splitlines() if line.startswith("reference: log-prob")]
        return trainer, [COMPUTED if COMPUTED in line else READ for line in lines], out.out

    return make


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param("dpo", "full", marks=pytest.mark.slow),
        ("dpo", "lora"),
        pytest.param("ipo", "continue", marks=pytest.mark.slow),
        pytest.param("kto", "lora", marks=pytest.mark.slow),
    ],
)
def test_run_with_precompute_equals_run_without(
    recipe_data,
    make_recipe,
    sft_adapter,
    name,
    kind,
):
    if kind == "lora":
        recipe_data["lora"] = {**LORA, "dropout": 0.0}
    if kind == "continue":
        recipe_data["model"] = {"name_or_path": str(sft_adapter), "adapter": "continue"}
    recipe_data["training"]["max_steps"] = 4
    if kind == "continue":  # dropout draws in the reference pass, too, without effect there
        recipe_data["training"]["max_steps"] = 1
    curves = []
    for precompute in (True, False):
        data = {**recipe_data, "reference": {"precompute": precompute}}
        data["output_dir"] = f"{recipe_data['output_dir']}-{precompute}"
        recipe = make_recipe(data).recipe
        train(recipe, recipe.methods[name])
        keys = ("eval_loss", "loss", "rewards/chosen", "eval_rewards/chosen")
        rows = metric_rows(recipe.output_dir)
        if kind == "continue":
            rows = rows[:1]
        curves.append([row[key] for row in rows for key in keys if key in row])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4, abs=2e-5)


@pytest.mark.slow
def test_cached_scores_do_not_change_the_dropout_of_a_run(recipe_data, make_recipe):
    """The first run of a sweep must be comparable with the others."""
    recipe_data["lora"] = {**LORA, "dropout": 0.3}
    weights = []
    for name, precompute in (("scored", True), ("read", True), ("live", False)):
        data = {**recipe_data, "reference": {"precompute": precompute}}
        data["output_dir"] = f"{recipe_data['output_dir']}-{name}"
        recipe = make_recipe(data, "training.max_steps=3").recipe
        outcome = train(recipe, recipe.dpo)
        weights.append(load_file(Path(outcome.model) / "adapter_model.safetensors"))
    for weight, value in weights[0].items():
        assert torch.equal(value, weights[1][weight])
        torch.testing.assert_close(value, weights[2][weight], rtol=1e-3, atol=1e-5)


def test_full_and_lora_runs_share_a_cache_entry(recipe_data, build):
    recipe_data["reference"] = {"precompute": True}
    build(recipe_data)
    assert build({**recipe_data, "lora": LORA})[1] == [READ, READ]
    modules = {**LORA, "target_modules": ["q_proj"]}
    assert build({**recipe_data, "lora": modules})[1] == [READ, READ]


def test_precomputed_reference_is_not_in_memory(recipe_data, build):
    recipe_data["reference"] = {"precompute": True}
    trainer, origins, _ = build(recipe_data)
    assert trainer.ref_model is None
    assert origins == [COMPUTED, COMPUTED]
    assert {"ref_chosen_logps", "ref_rejected_logps"} <= set(trainer.eval_dataset.column_names)


@pytest.mark.parametrize(
    "change",
    [
        "dpo.beta=0.7",
        "dpo.loss_type=hinge",
        "training.learning_rate=3e-5",
        "training.per_device_train_batch_size=2",
        "output_dir=${oc.env:PYTEST_ELSEWHERE}",
        "training.max_steps=7",
    ],
)
def test_changes_that_do_not_affect_scores_reuse_the_cache(recipe_data, build, change):
    recipe_data["reference"] = {"precompute": True}
    assert build(recipe_data)[1] == [COMPUTED, COMPUTED]
    assert build(recipe_data, "dpo", change)[1] == [READ, READ]
    assert build(recipe_data, "ipo")[1] == [READ, READ]


def test_sweep_calls_the_reference_in_its_first_run_only(recipe_data, make_recipe):
    """Count the calls for 24 train rows and 10 eval rows in batches of 4."""
    recipe_data["reference"] = {"precompute": True}
    calls = []
    for beta in (0.05, 0.1, 0.3, 0.5):
        data = {**recipe_data, "output_dir": f"{recipe_data['output_dir']}-{beta}"}
        recipe = make_recipe(data, f"dpo.beta={beta}", "performance.shared_prefix=on").recipe
        train(recipe, recipe.dpo)
        run = RunDir(recipe.output_dir).read_run()
        assert run["speed"]["stock_calls"] == 0
        calls.append(run["speed"]["fast_calls"])
    spot_checks, step_zero, steps, evaluations = 2, 8, 2 * 2, 2 * 3
    every_run = spot_checks + step_zero + steps + evaluations
    assert calls == [6 + 3 + every_run, every_run, every_run, every_run]


def test_packed_and_stock_forward_share_a_cache_entry(recipe_data, build):
    recipe_data["reference"] = {"precompute": True}
    assert build(recipe_data, "dpo", "performance.shared_prefix=on")[1] == [COMPUTED, COMPUTED]
    assert build(recipe_data, "dpo", "performance.shared_prefix=off")[1] == [READ, READ]


def test_cache_key_does_not_contain_the_trained_adapter(recipe_data, build):
    recipe_data["reference"] = {"precompute": True}
    build({**recipe_data, "lora": LORA})
    origins = build({**recipe_data, "lora": {**LORA, "rank": 3}}, "dpo", "lora.alpha=9")[1]
    assert origins == [READ, READ]


@pytest.mark.parametrize("change", ["data.max_length=20", "dpo.ld_alpha=0.5"])
def test_cache_key_contains_what_scores_depend_on(recipe_data, build, change):
    recipe_data["reference"] = {"precompute": True}
    build(recipe_data)
    assert build(recipe_data, "dpo", change)[1] == [COMPUTED, COMPUTED]
    assert build(recipe_data)[1] == [READ, READ]


def test_cache_key_differs_for_other_reference_weights(recipe_data, build, sft_adapter):
    recipe_data["reference"] = {"precompute": True}
    build(recipe_data)
    recipe_data["model"] = {"name_or_path": str(sft_adapter), "adapter": "continue"}
    trainer, origins, _ = build(recipe_data)
    assert origins == [COMPUTED, COMPUTED]
    recipe_data["reference"] = {"precompute": True, "name_or_path": str(sft_adapter)}
    del recipe_data["model"]["adapter"]
    recipe_data["model"]["adapter"] = "merge"
    other, origins, _ = build(recipe_data)
    assert origins == [COMPUTED, COMPUTED]
    for column in ("ref_chosen_logps", "ref_rejected_logps"):
        assert trainer.train_dataset[column] == pytest.approx(
            list(other.train_dataset[column]), abs=1e-3
        )


def test_cache_of_kto_differs_for_another_batch_size(recipe_data, build):
    recipe_data["reference"] = {"precompute": True}
    assert build(recipe_data, "kto")[1] == [COMPUTED, COMPUTED]
    assert build(recipe_data, "kto", "kto.beta=0.3")[1] == [READ, READ]
    changed = "training.per_device_train_batch_size=8"
    assert build(recipe_data, "kto", changed)[1] == [COMPUTED, COMPUTED]


def test_stale_cache_is_detected_and_recomputed(recipe_data, build, monkeypatch):
    """Change the content of a cache file without changing its name."""
    recipe_data["reference"] = {"precompute": True}
    trainer, _, _ = build(recipe_data)
    right = list(trainer.train_dataset["ref_chosen_logps"])
    files = [Path(f["filename"]) for f in trainer.train_dataset.cache_files]
    (file,) = (f for f in files if "ref_chosen_logps" in Dataset.from_file(str(f)).column_names)
    wrong = Dataset.from_file(str(file)).map(
        lambda row: {"ref_chosen_logps": row["ref_chosen_logps"] - 5.0},
        cache_file_name=str(file) + ".wrong",
    )
    assert len(wrong) == len(right)
    Path(str(file) + ".wrong").replace(file)
    trainer, origins, out = build(recipe_data)
    assert "stale" in out
    assert origins == [COMPUTED, READ]
    assert list(trainer.train_dataset["ref_chosen_logps"]) == right


def test_precompute_without_a_reference_is_rejected(recipe_data, make_recipe):
    for name in ("dpo", "ipo", "kto"):
        del recipe_data[name]
    recipe_data["reference"] = {"precompute": True}
    with pytest.raises(RecipeError, match="precompute has no effect on rloo: completions are new"):
        make_recipe(recipe_data)
    del recipe_data["rloo"]
    with pytest.raises(RecipeError, match="reference has no effect"):
        make_recipe(recipe_data)


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_precompute_does_not_hash_the_reference_twice(recipe_data, make_recipe, monkeypatch, name):
    def hashed(module):
        raise AssertionError("trl's hash of all weights, on every process")

    for trainer in ("dpo", "kto"):
        monkeypatch.setattr(f"trl.trainer.{trainer}_trainer.hash_module", hashed)
    recipe_data["reference"] = {"precompute": True}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.methods[name])
