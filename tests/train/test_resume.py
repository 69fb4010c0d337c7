"""Resuming: the weights of a killed and resumed run equal those of a run without a stop."""

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
from tests.support.judge import RLOO
from tests.support.problems import stops_with
from tests.support.tiny_runs import metric_rows, small_recipe

# Each process kills itself after the first checkpoint with SIGKILL, so that no handler runs. The
# processes are forked from one that has imported the libraries.
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
        log = os.open(f"{recipe}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        method = os.path.basename(recipe).partition("-")[0]
        sys.argv = ["prefcli", method, recipe]
        main()
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status))
"""
NEVER = 0

CASES = {
    "dpo-lora-dropout": {"lora": {"rank": 4, "dropout": 0.1}},
    "kto-full": {},
    "sft-full": {},
    "reward-lora-dropout": {"lora": {"rank": 4, "dropout": 0.1}},
    "rloo-full": RLOO,
}


def processes(recipes: list[Path], kill_at: int) -> list[tuple[int, str]]:
    """Run one process per recipe, one after the other; return (exit code, output) of each."""
    parent = subprocess.run(
        [sys.executable, "-c", PROCESSES, str(kill_at), *map(str, recipes)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert parent.returncode == 0, parent.stderr
    logs = [Path(f"{recipe}.log").read_text("utf-8") for recipe in recipes]
    return list(zip(map(int, parent.stdout.split()), logs, strict=True))


@pytest.fixture(scope="module")
def killed_and_resumed(tiny_model, tmp_path_factory):
    """Run eight steps with a checkpoint every three; return {case: (recipe, second process)}."""
    folder = tmp_path_factory.mktemp("killed")
    recipes = [folder / f"{case}.yaml" for case in CASES]
    for recipe, sections in zip(recipes, CASES.values(), strict=True):
        data = small_recipe(tiny_model, folder) | sections
        data["output_dir"] = str(folder / recipe.stem)
        data["training"] |= {"max_steps": 8, "save_steps": 3, "num_train_epochs": 5}
        recipe.write_text(yaml.safe_dump(data), encoding="utf-8")
    for code, output in processes(recipes, kill_at=5):
        assert code == -signal.SIGKILL, output
    for case in CASES:
        assert RunDir(str(folder / case)).read_run()["status"] == "running"
        assert not (folder / case / "model").exists()
    again = processes(recipes, kill_at=NEVER)
    return dict(zip(CASES, zip(recipes, again, strict=True), strict=True))


def weights(run: str | Path) -> dict[str, torch.Tensor]:
    folder = Path(run) / "model"
    return load_file(next(folder.glob("*.safetensors")))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_run_after_sigkill_equals_an_uninterrupted_run(killed_and_resumed, case, tmp_path):
    recipe, (code, output) = killed_and_resumed[case]
    assert code == 0, output
    assert "resuming from" in output
    assert "checkpoint-3" in output

    uninterrupted = load(str(recipe), [f"output_dir={tmp_path / 'uninterrupted'}"]).recipe
    train(uninterrupted, uninterrupted.methods[case.partition("-")[0]])
    one, other = weights(uninterrupted.output_dir), weights(recipe.with_suffix(""))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)

    # The metrics contain every step once, with the same loss.
    def losses(run):
        return [(r["step"], r["loss"]) for r in metric_rows(run) if "loss" in r]

    assert losses(recipe.with_suffix("")) == losses(uninterrupted.output_dir)


def test_train_finished_run_changes_nothing(recipe_data, make_recipe, capsys):
    loaded = make_recipe(recipe_data)
    train(loaded.recipe, loaded.recipe.methods["dpo"])
    before = (Path(loaded.recipe.output_dir) / "model" / "model.safetensors").stat().st_mtime_ns
    outcome = train(loaded.recipe, loaded.recipe.methods["dpo"])
    assert outcome.already_finished
    assert "is already finished" in capsys.readouterr().out
    after = (Path(loaded.recipe.output_dir) / "model" / "model.safetensors").stat().st_mtime_ns
    assert before == after


def test_train_with_another_recipe_in_the_folder_raises(recipe_data, make_recipe):
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


def test_resume_accepts_complete_checkpoints_of_this_run_only(recipe_data, make_recipe, tmp_path):
    recipe_data["training"] |= {"max_steps": 4, "save_steps": 2}
    other = make_recipe(recipe_data, f"output_dir={tmp_path / 'other'}").recipe
    train(other, other.sft)
    recipe = make_recipe(recipe_data).recipe
    of_another_run = tmp_path / "other" / "checkpoint-2"
    with stops_with("RUN014"):
        train(recipe, recipe.dpo, resume=str(of_another_run))
    train(recipe, recipe.dpo)
    run = RunDir(recipe.output_dir)
    with stops_with("RUN004"):
        train(recipe, recipe.dpo, resume=str(run.path / "checkpoint-2"))

    # The state of a run that was killed after its last checkpoint.
    run.write_run({**run.read_run(), "status": "running"})
    expected = weights(run.path)
    (run.path / "checkpoint-4" / "model.safetensors").write_bytes(b"torn")
    with stops_with("RUN015"):
        train(recipe, recipe.dpo, resume=str(run.path / "checkpoint-4"))
    train(recipe, recipe.dpo, resume=str(run.path / "checkpoint-2"))
    again = weights(run.path)
    assert all(torch.equal(expected[name], again[name]) for name in expected)
    assert run.read_run()["resumed"][0]["checkpoint"] == "checkpoint-2"


def test_train_after_a_crash_before_the_first_checkpoint_reuses_the_folder(
    recipe_data, make_recipe
):
    """Change a key after an early crash, as its message advises, and use the same folder."""
    recipe = make_recipe(recipe_data).recipe
    run = RunDir(recipe.output_dir)
    run.path.mkdir()
    run.start(recipe, "dpo")
    changed = make_recipe(recipe_data, "dpo.beta=0.2").recipe
    assert run.check(changed, "dpo") is None  # killed before run.json was written
    run.write_run({"status": "running", "method": "dpo"})
    train(changed, changed.dpo)
    assert run.read_run()["effective"]["beta"] == 0.2


def test_saved_recipe_with_interpolation_in_the_template_loads(recipe_data, make_recipe):
    recipe_data["model"]["chat_template"] = r"{{ '\${x}' }}{{ eos_token }}"
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    saved = load(str(RunDir(recipe.output_dir).recipe)).recipe
    assert saved.model == recipe.model
    assert train(recipe, recipe.dpo).already_finished


def test_train_in_a_locked_folder_raises(recipe_data, make_recipe):
    recipe = make_recipe(recipe_data).recipe
    run = RunDir(recipe.output_dir)
    with run.lock(), stops_with("RUN012"):
        train(recipe, recipe.dpo)
    train(recipe, recipe.dpo)


def test_resumed_run_keeps_check_sft_and_start_of_the_first(recipe_data, make_recipe, capsys):
    recipe_data["training"] |= {"max_steps": 4, "save_steps": 2}
    recipe_data["check_sft"] = {"max_perplexity": 1000}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.dpo)
    run = RunDir(recipe.output_dir)
    first = run.read_run()
    run.write_run({**first, "status": "running"})
    capsys.readouterr()
    train(recipe, recipe.dpo, resume=str(run.path / "checkpoint-2"))
    output = capsys.readouterr().out
    assert run.read_run()["check_sft"] == first["check_sft"]
    assert run.read_run()["started"] == first["started"]
    assert "policy and reference agree" not in output
    assert "the reference is the one this run started with" in output
    assert "done: 4 steps of dpo, 2 of them before this resume, in" in output
    assert "saved checkpoint-4" in output


def test_train_in_a_folder_with_other_files_raises(recipe_data, make_recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("important")
    loaded = make_recipe(recipe_data)
    with stops_with("RUN011"):
        train(loaded.recipe, loaded.recipe.methods["dpo"])


def test_last_checkpoint_skips_incomplete_ones(recipe_data, make_recipe, tmp_path):
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


def test_train_after_a_kill_before_the_first_checkpoint_starts_again(recipe_data, make_recipe):
    loaded = make_recipe(recipe_data)
    run = RunDir(loaded.recipe.output_dir)
    run.start(loaded.recipe, "dpo")
    run.write_run({"status": "running", "method": "dpo"})
    run.metrics.write_text('{"step": 1, "loss": 9.0}\n')
    started = time.monotonic()
    train(loaded.recipe, loaded.recipe.methods["dpo"])
    assert time.monotonic() > started
    assert 9.0 not in [row.get("loss") for row in metric_rows(run.path)]
