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

from prefcli.checkpoints.completeness import is_complete
from prefcli.checkpoints.run_dir import RunDir
from prefcli.recipe import load
from prefcli.training.run import train
from tests.support.problems import stops_with
from tests.support.tiny_runs import metric_rows, small_recipe

# Processes die by their own hand after a step beyond the first checkpoint, as the out-of-memory
# killer would end them: no handler runs. They are forked from one that has imported the libraries.
PROCESSES = """
import functools, os, signal, sys
from transformers import TrainerCallback
import prefcli.training.run as run
from prefcli.cli import main

kill_at, *recipes = sys.argv[1:]

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)

run.train = functools.partial(run.train, callbacks=[Kill()])
for recipe in recipes:
    if not (child := os.fork()):
        said = os.open(f"{recipe}.said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        method = os.path.basename(recipe).partition("-")[0]
        sys.argv = ["prefcli", method, recipe]
        main()
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status))
"""
NEVER = 0

CASES = {
    "dpo-full": {},
    "dpo-lora-dropout": {"lora": {"rank": 4, "dropout": 0.1}},
    "kto-full": {},
    "sft-full": {},
}


def processes(recipes: list[Path], kill_at: int) -> list[tuple[int, str]]:
    """(exit code, what it said) of a process a recipe, one after the other."""
    parent = subprocess.run(
        [sys.executable, "-c", PROCESSES, str(kill_at), *map(str, recipes)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert parent.returncode == 0, parent.stderr
    said = [Path(f"{recipe}.said").read_text("utf-8") for recipe in recipes]
    return list(zip(map(int, parent.stdout.split()), said, strict=True))


@pytest.fixture(scope="module")
def killed_and_resumed(tiny_model, tmp_path_factory):
    """Runs of eight steps with a checkpoint every three: {case: (recipe, the second process)}."""
    folder = tmp_path_factory.mktemp("killed")
    recipes = [folder / f"{case}.yaml" for case in CASES]
    for recipe, sections in zip(recipes, CASES.values(), strict=True):
        data = small_recipe(tiny_model, folder) | sections
        data["output_dir"] = str(folder / recipe.stem)
        data["training"] |= {"max_steps": 8, "save_steps": 3, "num_train_epochs": 5}
        recipe.write_text(yaml.safe_dump(data), encoding="utf-8")
    for code, said in processes(recipes, kill_at=5):
        assert code == -signal.SIGKILL, said
    for case in CASES:
        assert RunDir(str(folder / case)).read_run()["status"] == "running"
        assert not (folder / case / "model").exists()
    again = processes(recipes, kill_at=NEVER)
    return dict(zip(CASES, zip(recipes, again, strict=True), strict=True))


def weights(run: str | Path) -> dict[str, torch.Tensor]:
    folder = Path(run) / "model"
    return load_file(next(folder.glob("*.safetensors")))


@pytest.mark.parametrize("case", CASES)
def test_kill_9_then_the_same_command(killed_and_resumed, case, tmp_path):
    recipe, (code, said) = killed_and_resumed[case]
    assert code == 0, said
    assert "resuming from" in said
    assert "checkpoint-3" in said

    undisturbed = load(str(recipe), [f"output_dir={tmp_path / 'undisturbed'}"]).recipe
    train(undisturbed, undisturbed.methods[case.partition("-")[0]])
    one, other = weights(undisturbed.output_dir), weights(recipe.with_suffix(""))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)

    # The metrics, too, tell one story: every step once, with the same loss.
    def losses(run):
        return [(r["step"], r["loss"]) for r in metric_rows(run) if "loss" in r]

    assert losses(recipe.with_suffix("")) == losses(undisturbed.output_dir)


def test_a_finished_run_is_left_alone(recipe_data, make_recipe, capsys):
    loaded = make_recipe(recipe_data)
    train(loaded.recipe, loaded.recipe.methods["dpo"])
    before = (Path(loaded.recipe.output_dir) / "model" / "model.safetensors").stat().st_mtime_ns
    outcome = train(loaded.recipe, loaded.recipe.methods["dpo"])
    assert outcome.already_finished
    assert "is already finished" in capsys.readouterr().out
    after = (Path(loaded.recipe.output_dir) / "model" / "model.safetensors").stat().st_mtime_ns
    assert before == after


def test_another_run_is_never_written_over(recipe_data, make_recipe):
    loaded = make_recipe(recipe_data)
    train(loaded.recipe, loaded.recipe.methods["dpo"])
    changed = make_recipe(recipe_data, "dpo.beta=0.2")
    with stops_with("RUN007") as caught:
        train(changed.recipe, changed.recipe.methods["dpo"])
    assert "dpo.beta was 0.1 there and is 0.2 now" in str(caught.value)
    with stops_with("RUN007") as caught:
        train(loaded.recipe, loaded.recipe.methods["ipo"])
    assert "method was 'dpo' there and is 'ipo' now" in str(caught.value)
    with stops_with("RUN003"):
        train(loaded.recipe, loaded.recipe.methods["dpo"], resume="never")


def test_resume_takes_whole_checkpoints_of_this_run_only(recipe_data, make_recipe, tmp_path):
    recipe_data["training"] |= {"max_steps": 4, "save_steps": 2}
    other = make_recipe(recipe_data, f"output_dir={tmp_path / 'other'}").recipe
    train(other, other.sft)
    recipe = make_recipe(recipe_data).recipe
    foreign = tmp_path / "other" / "checkpoint-2"
    with stops_with("RUN014"):
        train(recipe, recipe.dpo, resume=str(foreign))
    train(recipe, recipe.dpo)
    run = RunDir(recipe.output_dir)
    with stops_with("RUN004"):
        train(recipe, recipe.dpo, resume=str(run.path / "checkpoint-2"))

    # As if it had been killed after its last checkpoint.
    run.write_run({**run.read_run(), "status": "running"})
    whole = weights(run.path)
    (run.path / "checkpoint-4" / "model.safetensors").write_bytes(b"torn")
    with stops_with("RUN015"):
        train(recipe, recipe.dpo, resume=str(run.path / "checkpoint-4"))
    train(recipe, recipe.dpo, resume=str(run.path / "checkpoint-2"))
    again = weights(run.path)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert run.read_run()["resumed"][0]["checkpoint"] == "checkpoint-2"


def test_a_run_that_crashed_before_its_first_checkpoint_frees_its_folder(recipe_data, make_recipe):
    """The cure of most early crashes is a changed key; the folder must not stand in its way."""
    recipe = make_recipe(recipe_data).recipe
    run = RunDir(recipe.output_dir)
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
    assert load(str(RunDir(recipe.output_dir).recipe)).recipe == recipe
    assert train(recipe, recipe.dpo).already_finished


def test_two_processes_never_share_a_folder(recipe_data, make_recipe):
    recipe = make_recipe(recipe_data).recipe
    run = RunDir(recipe.output_dir)
    with run.lock(), stops_with("RUN012"):
        train(recipe, recipe.dpo)
    train(recipe, recipe.dpo)


def test_a_resumed_run_keeps_its_gate_and_its_start(recipe_data, make_recipe, capsys):
    recipe_data["training"] |= {"max_steps": 4, "save_steps": 2}
    recipe_data["check_sft"] = {"max_perplexity": 1000}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    run = RunDir(recipe.output_dir)
    first = run.read_run()
    run.write_run({**first, "status": "running"})
    capsys.readouterr()
    train(recipe, recipe.dpo, resume=str(run.path / "checkpoint-2"))
    said = capsys.readouterr().out
    assert run.read_run()["check_sft"] == first["check_sft"]
    assert run.read_run()["started"] == first["started"]
    assert "policy and reference agree" not in said
    assert "the reference is the one this run started with" in said
    assert "done: 4 steps of dpo, 2 of them before this resume, in" in said
    assert "saved checkpoint-4" in said


def test_a_strange_folder_is_never_written_into(recipe_data, make_recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("important")
    loaded = make_recipe(recipe_data)
    with stops_with("RUN011"):
        train(loaded.recipe, loaded.recipe.methods["dpo"])


def test_a_torn_checkpoint_is_recognised(recipe_data, make_recipe, tmp_path):
    recipe_data["training"] |= {"max_steps": 4, "save_steps": 2}
    loaded = make_recipe(recipe_data)
    train(loaded.recipe, loaded.recipe.methods["dpo"])
    run = RunDir(loaded.recipe.output_dir)
    assert run.last_checkpoint() == (run.path / "checkpoint-4", [])

    weights_file = run.path / "checkpoint-4" / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-100])
    assert not is_complete(run.path / "checkpoint-4")
    assert run.last_checkpoint() == (run.path / "checkpoint-2", [run.path / "checkpoint-4"])

    (run.path / "checkpoint-2" / "trainer_state.json").unlink()
    assert run.last_checkpoint()[0] is None


def test_a_run_killed_before_its_first_checkpoint_starts_over(recipe_data, make_recipe):
    loaded = make_recipe(recipe_data)
    run = RunDir(loaded.recipe.output_dir)
    run.start(loaded.recipe, "dpo")
    run.write_run({"status": "running", "method": "dpo"})
    run.metrics.write_text('{"step": 1, "loss": 9.0}\n')
    started = time.monotonic()
    train(loaded.recipe, loaded.recipe.methods["dpo"])
    assert time.monotonic() > started
    assert 9.0 not in [row.get("loss") for row in metric_rows(run.path)]
