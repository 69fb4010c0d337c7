"""Killed in the middle, started again: the same weights as a run nobody disturbed, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from prefcli.errors import RecipeError
from prefcli.recipe import load
from prefcli.training.folder import RunFolder, is_complete
from prefcli.training.run import train
from tests.train.conftest import metric_rows

# The process dies by its own hand after a step beyond the first checkpoint, as the out-of-memory
# killer would end it: no handler runs.
KILL_AT_STEP = """
import os, signal, sys
from transformers import TrainerCallback
import prefcli.training.run as run

class Kill(run.Watch):
    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == {step}:
            os.kill(os.getpid(), signal.SIGKILL)

run.Watch = Kill
from prefcli.cli import main
sys.argv = ["prefcli", {method!r}, {recipe!r}]
main()
"""


def weights(run: str | Path) -> dict[str, torch.Tensor]:
    folder = Path(run) / "model"
    return load_file(next(folder.glob("*.safetensors")))


def command(recipe: Path, method: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "prefcli", method, str(recipe)],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def long_run(recipe_data, tmp_path):
    """Write a recipe of eight steps with a checkpoint every three."""
    recipe_data["training"] |= {"max_steps": 8, "save_steps": 3, "num_train_epochs": 5}

    def write(name: str, **sections) -> Path:
        data = {**recipe_data, **sections, "output_dir": str(tmp_path / name)}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("method", "sections"),
    [
        ("dpo", {}),
        ("dpo", {"lora": {"rank": 4, "dropout": 0.1}}),
        ("kto", {}),
        ("sft", {}),
    ],
    ids=["dpo-full", "dpo-lora-dropout", "kto", "sft"],
)
def test_kill_9_then_the_same_command(long_run, method, sections, tmp_path, make_recipe):
    undisturbed = long_run("undisturbed", **sections)
    disturbed = long_run("disturbed", **sections)
    loaded = make_recipe(yaml.safe_load(undisturbed.read_text()))
    train(loaded.recipe, loaded.recipe.methods[method])

    killer = KILL_AT_STEP.format(step=5, method=method, recipe=str(disturbed))
    killed = subprocess.run(
        [sys.executable, "-c", killer],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert RunFolder(str(tmp_path / "disturbed")).read_run()["status"] == "running"
    assert not (tmp_path / "disturbed" / "model").exists()

    again = command(disturbed, method)
    assert again.returncode == 0, again.stderr
    assert "resuming from" in again.stdout
    assert "checkpoint-3" in again.stdout

    one, other = weights(tmp_path / "undisturbed"), weights(tmp_path / "disturbed")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)

    # The metrics, too, tell one story: every step once, with the same loss.
    def losses(run):
        return [(r["step"], r["loss"]) for r in metric_rows(run) if "loss" in r]

    assert losses(tmp_path / "disturbed") == losses(tmp_path / "undisturbed")


def test_a_finished_run_is_left_alone(recipe_data, make_recipe, capsys):
    loaded = make_recipe(recipe_data)
    train(loaded.recipe, loaded.recipe.methods["dpo"])
    before = (Path(loaded.recipe.output_dir) / "model" / "model.safetensors").stat().st_mtime_ns
    outcome = train(loaded.recipe, loaded.recipe.methods["dpo"])
    assert outcome.already_finished
    assert "finished already" in capsys.readouterr().out
    after = (Path(loaded.recipe.output_dir) / "model" / "model.safetensors").stat().st_mtime_ns
    assert before == after


def test_another_run_is_never_written_over(recipe_data, make_recipe):
    loaded = make_recipe(recipe_data)
    train(loaded.recipe, loaded.recipe.methods["dpo"])
    changed = make_recipe(recipe_data, "dpo.beta=0.2")
    with pytest.raises(RecipeError, match=r"dpo\.beta was 0\.1 there and is 0\.2 now"):
        train(changed.recipe, changed.recipe.methods["dpo"])
    with pytest.raises(RecipeError, match="method was 'dpo' there and is 'ipo' now"):
        train(loaded.recipe, loaded.recipe.methods["ipo"])
    with pytest.raises(RecipeError, match="holds a run already"):
        train(loaded.recipe, loaded.recipe.methods["dpo"], resume="never")


def test_resume_takes_whole_checkpoints_of_this_run_only(recipe_data, make_recipe, tmp_path):
    recipe_data["training"] |= {"max_steps": 4, "save_steps": 2}
    other = make_recipe(recipe_data, f"output_dir={tmp_path / 'other'}").recipe
    train(other, other.sft)
    recipe = make_recipe(recipe_data).recipe
    foreign = tmp_path / "other" / "checkpoint-2"
    with pytest.raises(RecipeError, match="no checkpoint of the run in"):
        train(recipe, recipe.dpo, resume=str(foreign))
    train(recipe, recipe.dpo)
    run = RunFolder(recipe.output_dir)
    with pytest.raises(RecipeError, match="is finished"):
        train(recipe, recipe.dpo, resume=str(run.path / "checkpoint-2"))

    # As if it had been killed after its last checkpoint.
    run.write_run({**run.read_run(), "status": "running"})
    whole = weights(run.path)
    (run.path / "checkpoint-4" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(RecipeError, match="not complete"):
        train(recipe, recipe.dpo, resume=str(run.path / "checkpoint-4"))
    train(recipe, recipe.dpo, resume=str(run.path / "checkpoint-2"))
    again = weights(run.path)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert run.read_run()["resumed"][0]["checkpoint"] == "checkpoint-2"


def test_a_run_that_crashed_before_its_first_checkpoint_frees_its_folder(recipe_data, make_recipe):
    """The cure of most early crashes is a changed key; the folder must not stand in its way."""
    recipe = make_recipe(recipe_data).recipe
    run = RunFolder(recipe.output_dir)
    run.path.mkdir()
    run.start(recipe, "dpo")
    changed = make_recipe(recipe_data, "dpo.beta=0.2").recipe
    assert run.check(changed, "dpo") is None  # killed before run.json was written
    run.write_run({"status": "running", "method": "dpo"})
    train(changed, changed.dpo)
    assert run.read_run()["effective"]["beta"] == 0.2


def test_a_template_with_its_own_interpolation_survives_saving(recipe_data, make_recipe):
    recipe_data["model"]["chat_template"] = r"{{ '\${x}' }}{{ eos_token }}"
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    assert load(str(RunFolder(recipe.output_dir).recipe)).recipe == recipe
    assert train(recipe, recipe.dpo).already_finished


def test_two_processes_never_share_a_folder(recipe_data, make_recipe):
    recipe = make_recipe(recipe_data).recipe
    run = RunFolder(recipe.output_dir)
    with run.lock(), pytest.raises(RecipeError, match="another prefcli is writing"):
        train(recipe, recipe.dpo)
    train(recipe, recipe.dpo)


def test_a_resumed_run_keeps_its_gate_and_its_start(recipe_data, make_recipe, capsys):
    recipe_data["training"] |= {"max_steps": 4, "save_steps": 2}
    recipe_data["check_sft"] = {"max_perplexity": 1000}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    run = RunFolder(recipe.output_dir)
    first = run.read_run()
    run.write_run({**first, "status": "running"})
    capsys.readouterr()
    train(recipe, recipe.dpo, resume=str(run.path / "checkpoint-2"))
    said = capsys.readouterr().out
    assert run.read_run()["check_sft"] == first["check_sft"]
    assert run.read_run()["started"] == first["started"]
    assert "policy and reference agree" not in said
    assert "the reference is the one this run began with" in said
    assert "done: 4 steps of dpo, 2 of them before this resume, in" in said
    assert "saved checkpoint-4" in said


def test_a_strange_folder_is_never_written_into(recipe_data, make_recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("important")
    loaded = make_recipe(recipe_data)
    with pytest.raises(RecipeError, match="no prefcli run"):
        train(loaded.recipe, loaded.recipe.methods["dpo"])


def test_a_torn_checkpoint_is_recognised(recipe_data, make_recipe, tmp_path):
    recipe_data["training"] |= {"max_steps": 4, "save_steps": 2}
    loaded = make_recipe(recipe_data)
    train(loaded.recipe, loaded.recipe.methods["dpo"])
    run = RunFolder(loaded.recipe.output_dir)
    assert run.last_checkpoint() == (run.path / "checkpoint-4", [])

    weights_file = run.path / "checkpoint-4" / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-100])
    assert not is_complete(run.path / "checkpoint-4")
    assert run.last_checkpoint() == (run.path / "checkpoint-2", [run.path / "checkpoint-4"])

    (run.path / "checkpoint-2" / "trainer_state.json").unlink()
    assert run.last_checkpoint()[0] is None


def test_a_run_killed_before_its_first_checkpoint_starts_over(recipe_data, make_recipe):
    loaded = make_recipe(recipe_data)
    run = RunFolder(loaded.recipe.output_dir)
    run.start(loaded.recipe, "dpo")
    run.write_run({"status": "running", "method": "dpo"})
    run.metrics.write_text('{"step": 1, "loss": 9.0}\n')
    started = time.monotonic()
    train(loaded.recipe, loaded.recipe.methods["dpo"])
    assert time.monotonic() > started
    assert 9.0 not in [row.get("loss") for row in metric_rows(run.path)]
