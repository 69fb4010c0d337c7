"""A preempted and resumed run equals an uninterrupted one, wherever the signal arrives.

scripts/fault_drill.py sends signals to processes at random moments; here the moments are chosen.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prefcli import preemption
from prefcli.checkpoints.completeness import owes_evaluation
from prefcli.checkpoints.run_dir import RunDir
from prefcli.errors import ExitCode, InterruptedRunError, PreemptedError
from prefcli.report.run_data import read_run
from prefcli.report.verdict import verdict
from prefcli.training.callbacks import sampling_callback as samples_module
from prefcli.training.mixins.preemption_mixin import PreemptionMixin
from prefcli.training.run import train
from tests.support.problems import stops_with
from tests.support.tiny_runs import interrupt, metric_rows

DRILL = Path(__file__).parents[2] / "scripts" / "fault_drill.py"


@pytest.fixture(autouse=True)
def _handlers():
    preemption.install_handlers()
    yield
    preemption.ignore_signals()


@pytest.fixture
def longer(recipe_data) -> dict:
    """Six steps, evaluated at 0, 2, 4 and 6, saved at 3 and 6; dropout depends on random states."""
    recipe_data["lora"] = {"rank": 4, "dropout": 0.2}
    recipe_data["samples"] = {"prompts": 1, "max_new_tokens": 4}
    recipe_data["training"] |= {"max_steps": 6, "eval_steps": 2, "save_steps": 3}
    return recipe_data


def weights(run: str | Path) -> dict[str, torch.Tensor]:
    return load_file(next((Path(run) / "model").glob("*.safetensors")))


def same(one: str | Path, other: str | Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def send_at(monkeypatch, owner, name: str, step: int, *, number: int = signal.SIGTERM) -> None:
    """Send a signal when `name` is called after so many steps."""
    inner = getattr(owner, name)
    left = [number]

    def called(self, *args, **kwargs):
        state = self.state if isinstance(self, PreemptionMixin) else self._trainer.state
        if left and preemption.are_deferred() and state.global_step == step:
            os.kill(os.getpid(), left.pop())
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, called)


PLACES = {
    # The method during which the signal arrives, the step, and the message of the run.
    "training": (PreemptionMixin, "training_step", 1, "at step 2: saved checkpoint-2 in"),
    "evaluation": (PreemptionMixin, "prediction_step", 4, "at step 4: saved checkpoint-4 in"),
    "samples": (samples_module.SamplingCallback, "_answers", 2, "at step 2: saved checkpoint-2 in"),
    "saving": (PreemptionMixin, "_save_checkpoint", 3, "at step 3: checkpoint-3 already existed"),
    "the last evaluation": (
        PreemptionMixin,
        "prediction_step",
        6,
        "at step 6: saved checkpoint-6 in",
    ),
    "the last save": (PreemptionMixin, "_save_checkpoint", 6, "at step 6: checkpoint-6 already"),
}
SLOW = ("saving", "samples", "the last evaluation")
"""For the last evaluation, there is another test below."""


@pytest.fixture(scope="module")
def _ended() -> list[Path]:
    return []


@pytest.fixture
def uninterrupted(_ended, longer, make_recipe, tmp_path) -> Path:
    """An uninterrupted run, which is the same for every place and signal."""
    if not _ended:
        recipe = make_recipe(longer, f"output_dir={tmp_path / 'uninterrupted'}").recipe
        train(recipe, recipe.dpo)
        _ended.append(Path(recipe.output_dir))
    return _ended[0]


def test_ctrl_c_saves_a_checkpoint_and_the_run_resumes_to_the_same_weights(
    longer, make_recipe, monkeypatch, capsys, uninterrupted
):
    preemption.install_handlers()  # forgets the uninterrupted run
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    recipe = make_recipe(longer).recipe
    send_at(monkeypatch, PreemptionMixin, "training_step", 1, number=signal.SIGINT)
    with pytest.raises(InterruptedRunError, match="interrupted at step 2: saved checkpoint-2"):
        train(recipe, recipe.dpo)
    assert InterruptedRunError.exit_code == 130
    assert "press Ctrl-C again" in capsys.readouterr().err
    run = RunDir(recipe.output_dir).read_run()
    assert run["status"] == "interrupted"
    assert verdict(read_run(recipe.output_dir)).state == "interrupted"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "the second stops at once"
    preemption.install_handlers()
    train(recipe, recipe.dpo)
    assert same(recipe.output_dir, uninterrupted)


@pytest.mark.parametrize(
    "place",
    [pytest.param(p, marks=[pytest.mark.slow] * (p in SLOW)) for p in PLACES],
)
def test_run_preempted_at_any_place_equals_an_uninterrupted_run(
    place, longer, make_recipe, monkeypatch, uninterrupted
):
    owner, name, step, message = PLACES[place]
    recipe = make_recipe(longer).recipe
    folder = RunDir(recipe.output_dir)
    with monkeypatch.context() as patch:
        send_at(patch, owner, name, step)
        with pytest.raises(PreemptedError) as error:
            train(recipe, recipe.dpo)
    assert str(error.value).startswith(f"preempted (SIGTERM) {message}")
    assert error.value.exit_code == ExitCode.REQUEUE
    assert not folder.model.exists()
    run = folder.read_run()
    assert (run["status"], run["why"]) == ("preempted", str(error.value))
    rating = verdict(read_run(folder.path))
    assert (rating.state, rating.level) == ("preempted", "note")
    assert rating.title.startswith("Preempted at step")
    last, torn = folder.last_checkpoint()
    assert last is not None
    assert not torn
    assert owes_evaluation(last) == (place in ("training", "evaluation", "the last evaluation"))

    preemption.install_handlers()
    train(recipe, recipe.dpo)
    assert folder.read_run()["status"] == "finished"
    assert folder.read_run()["resumed"][0]["checkpoint"] == last.name
    rows = metric_rows(folder.path)
    assert [r["step"] for r in rows if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in rows if "eval_loss" in r] == [0, 2, 4, 6]
    assert [row["step"] for row in read_run(folder.path).samples] == [0, 2, 4, 6]

    assert same(folder.path, uninterrupted)


@pytest.mark.parametrize(
    "patience",
    [pytest.param(1, marks=pytest.mark.slow), 6],
    ids=["stopped early", "in its last epoch"],
)
def test_run_preempted_in_its_last_evaluation_repeats_it(
    recipe_data, make_recipe, monkeypatch, tmp_path, patience
):
    recipe_data["training"] |= {
        "max_steps": 6,
        "learning_rate": 0.2,
        "lr_scheduler_type": "constant",
        "eval_steps": 1,
        "save_steps": 1,
        "early_stopping": {"patience": patience},
    }
    other = make_recipe(recipe_data, f"output_dir={tmp_path / 'uninterrupted'}").recipe
    train(other, other.dpo)
    end = RunDir(other.output_dir).read_run()
    assert (end["steps"] < 6) == (patience == 1)
    recipe = make_recipe(recipe_data).recipe
    with monkeypatch.context() as patch:
        send_at(patch, PreemptionMixin, "prediction_step", end["steps"])
        with pytest.raises(PreemptedError, match=f"saved checkpoint-{end['steps']}"):
            train(recipe, recipe.dpo)
    preemption.install_handlers()
    train(recipe, recipe.dpo)
    record = RunDir(recipe.output_dir).read_run()
    assert (record["steps"], record["best_step"]) == (end["steps"], end["best_step"])
    assert same(recipe.output_dir, other.output_dir)
    losses = [
        [row.get("eval_loss") for row in metric_rows(folder) if row["step"] == end["steps"]]
        for folder in (recipe.output_dir, other.output_dir)
    ]
    assert losses[0] == losses[1]


def test_run_killed_after_its_last_step_trains_no_further(longer, make_recipe):
    recipe = make_recipe(longer, "training.max_steps=4", "training.save_steps=2").recipe
    train(recipe, recipe.dpo)
    before = weights(recipe.output_dir)
    interrupt(recipe.output_dir, "checkpoint-2")  # leaves the last
    train(recipe, recipe.dpo)
    after = weights(recipe.output_dir)
    assert all(torch.equal(before[name], after[name]) for name in before)
    rows = metric_rows(recipe.output_dir)
    assert [r["step"] for r in rows if "eval_loss" in r] == [0, 2, 4]
    assert RunDir(recipe.output_dir).read_run()["steps"] == 4


def test_checkpoint_that_others_may_write_is_refused(recipe_data, make_recipe):
    before = os.umask(0)
    try:
        recipe = make_recipe(recipe_data).recipe
        train(recipe, recipe.dpo)
    finally:
        os.umask(before)
    checkpoint = Path(recipe.output_dir) / "checkpoint-2"
    modes = {p.name: p.stat().st_mode & 0o022 for p in (checkpoint, *checkpoint.iterdir())}
    assert not any(modes.values()), modes
    (checkpoint / "optimizer.pt").chmod(0o646)
    folder = RunDir(recipe.output_dir)
    folder.write_run({**folder.read_run(), "status": "running"})
    with stops_with("RUN006") as error:
        train(recipe, recipe.dpo)
    assert error.value.exit_code == ExitCode.RECIPE


@pytest.mark.slow
def test_fault_drill_on_one_and_two_processes_passes(tmp_path):
    """Run a few random moments of scripts/fault_drill.py, with sft_mix and samples."""
    ended = subprocess.run(
        [
            sys.executable,
            str(DRILL),
            *("--moments", "2", "--processes", "1,2", "--signals", "TERM"),
            *("--steps", "5", "--seed", "3", "--no-report"),
            *("--folder", str(tmp_path / "drill")),
        ],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("| weights equal, bit for bit | 2 |") == 2
    assert ended.stdout.count("| processes left behind | 0 |") == 2
