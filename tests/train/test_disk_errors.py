"""A disk that fails in the middle of a run: one clear error, and nothing lost that was saved."""

from __future__ import annotations

import errno
import resource
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import prefcli.training.run as story
from prefcli.checkpoints.atomic import writing
from prefcli.checkpoints.disk_errors import disk_errors_reported
from prefcli.checkpoints.run_dir import RunDir, is_complete
from prefcli.errors import RecipeError
from prefcli.training.run import train


def mount(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def disk(tmp_path):
    """A file system of 1.8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount(folder, "size=1800k"):
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def at_step_5(monkeypatch):
    """Have something happen after the fifth step of runs."""
    happens = []

    class MonitorCallback(story.MonitorCallback):
        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == 5:
                [each() for each in happens]

    monkeypatch.setattr(story, "Watch", MonitorCallback)
    return happens


@pytest.fixture
def long(recipe_data):
    """A checkpoint every second step, of 0.5 MB."""
    recipe_data["training"] |= {"max_steps": 8, "save_steps": 2, "save_total_limit": None}
    return recipe_data


def stopped(recipe) -> str:
    with pytest.raises(RecipeError) as error:
        train(recipe, recipe.dpo)
    assert error.value.exit_code == 2
    assert recipe.output_dir in str(error.value)
    return str(error.value)


def test_a_full_disk(long, make_recipe, disk, tmp_path, capsys):
    recipe = make_recipe(long, f"output_dir={disk / 'run'}").recipe
    said = stopped(recipe)
    run = RunDir(recipe.output_dir)
    last, torn = run.last_checkpoint()
    assert last is not None
    assert not torn
    lost = f"checkpoint-{int(last.name.rpartition('-')[2]) + 2}"
    assert f"can't be written to while writing {lost}: the disk is full" in said
    assert f"free some space; {last.name} is whole, and the same command goes on from it" in said
    assert "warning: output_dir: this run writes up to" in capsys.readouterr().out
    assert run.read_run()["status"] == "failed"

    assert subprocess.run(["mount", "-o", "remount,size=9m", str(disk)]).returncode == 0
    train(recipe, recipe.dpo)
    assert f"resuming from {last}" in capsys.readouterr().out
    other = make_recipe(long, f"output_dir={tmp_path / 'undisturbed'}").recipe
    train(other, other.dpo)
    one, two = (
        load_file(Path(r.output_dir) / "model" / "model.safetensors") for r in (recipe, other)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_disk_that_becomes_read_only(long, make_recipe, disk, at_step_5, monkeypatch):
    # A file that is open for writing keeps mount, though no kernel, from making it so.
    monkeypatch.setattr(RunDir, "lock", lambda self: nullcontext())
    recipe = make_recipe(long, f"output_dir={disk / 'run'}").recipe
    run = RunDir(recipe.output_dir)
    at_step_5.append(lambda: subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True))
    # The first thing to be written after it is a line of metrics, and none is ever dropped.
    said = stopped(recipe)
    assert "can't be written to while writing metrics.jsonl: the file system is read-only" in said
    assert "checkpoint-4 is whole" in said
    assert run.read_run()["status"] == "running"
    assert is_complete(run.path / "checkpoint-4")


def test_files_of_limited_size(long, make_recipe, at_step_5):
    """What stands in for a full disk where nothing may be mounted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    at_step_5.append(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard)))
    recipe = make_recipe(long).recipe
    try:
        said = stopped(recipe)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    run = RunDir(recipe.output_dir)
    assert "while writing checkpoint-6: a file grew larger than is allowed" in said
    assert "checkpoint-4 is whole, and the same command goes on from it" in said
    assert sorted(path.name for path in run.path.glob("*-*")) == ["checkpoint-2", "checkpoint-4"]
    assert not (run.path / ".saving").exists()


def fail(tmp_path: Path, error: Exception, what: str | None) -> None:
    with disk_errors_reported(RunDir(str(tmp_path))), writing(what) if what else nullcontext():
        raise error


def told(tmp_path: Path, error: Exception, what: str | None = "checkpoint-2") -> str:
    with pytest.raises(RecipeError) as found:
        fail(tmp_path, error, what)
    return str(found.value)


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.ESTALE, "the network file system is lost"),
        (errno.EIO, "the disk or its network file system failed"),
        (errno.ETIMEDOUT, "the network file system does not answer"),
        (errno.ENOTCONN, "the network file system is no longer connected"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EACCES, "permission denied"),
    ],
)
def test_every_failure_has_a_name(tmp_path, number, cause):
    said = told(tmp_path, OSError(number, "as the kernel has it"))
    assert f"{tmp_path} can't be written to while writing checkpoint-2: {cause}" in said
    assert "no checkpoint was complete yet" in said


def test_libraries_hide_the_number(tmp_path):
    inside = SafetensorError("I/O error: Stale file handle (os error 116)")
    assert "the network file system is lost" in told(tmp_path, inside)
    torch_s = RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/3")
    assert "PytorchStreamWriter failed writing file data/3" in told(tmp_path, torch_s)
    of_tokenizers = Exception("No space left on device (os error 28)")
    assert "the disk is full" in told(tmp_path, of_tokenizers)
    elsewhere = told(tmp_path, OSError(errno.ENOSPC, "No space left on device"), None)
    assert f"a disk is full, other than that of {tmp_path}" in elsewhere


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), OSError(errno.ETIMEDOUT, "a tracker's"), OSError("?")]
)
def test_what_is_no_failure_of_the_disk_stays_what_it_is(tmp_path, error):
    with pytest.raises(type(error)) as found:
        fail(tmp_path, error, None)
    assert found.value is error
