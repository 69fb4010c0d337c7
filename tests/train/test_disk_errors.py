"""A disk that fails in the middle of a run: one clear error, and nothing lost that was saved."""

from __future__ import annotations

import errno
import resource
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import TrainerCallback

from prefcli.checkpoints.atomic import writing
from prefcli.checkpoints.completeness import is_complete
from prefcli.checkpoints.disk import DiskSpace, disk_errors_reported
from prefcli.checkpoints.run_dir import RunDir
from prefcli.data.run_once import run_once
from prefcli.training.run import train
from tests.support.problems import stops_with


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


class AtStep(TrainerCallback):
    """Calls a function after a step."""

    def __init__(self, step, function):
        self.step, self.function = step, function

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.function()


@pytest.fixture
def long(recipe_data):
    """A checkpoint every second step, of 0.5 MB."""
    recipe_data["training"] |= {"max_steps": 8, "save_steps": 2, "save_total_limit": None}
    return recipe_data


def stopped(recipe, *callbacks) -> str:
    with stops_with("ENV051") as error:
        train(recipe, recipe.dpo, callbacks=callbacks)
    assert error.value.exit_code == 2
    assert recipe.output_dir in str(error.value)
    return str(error.value)


def fill(disk: Path) -> None:
    """Leave 300 kB of a disk: less than a checkpoint."""
    (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - 300_000))


def test_run_whose_disk_fills_up_stops_and_resumes(long, make_recipe, disk, tmp_path, capsys):
    long["training"]["save_total_limit"] = 1
    recipe = make_recipe(long, f"output_dir={disk / 'run'}").recipe
    message = stopped(recipe, AtStep(5, lambda: fill(disk)))
    run = RunDir(recipe.output_dir)
    last, incomplete = run.last_checkpoint()
    assert last == run.path / "checkpoint-4"
    assert not incomplete
    assert "while writing checkpoint-6: the disk is full" in message
    assert "checkpoint-4 is complete: the same command resumes from it" in message
    assert run.read_run()["status"] == "failed"

    (disk / "other").unlink()
    train(recipe, recipe.dpo)
    assert f"resuming from {last}" in capsys.readouterr().out
    other = make_recipe(long, f"output_dir={tmp_path / 'uninterrupted'}").recipe
    train(other, other.dpo)
    one, two = (
        load_file(Path(r.output_dir) / "model" / "model.safetensors") for r in (recipe, other)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_run_on_disk_that_becomes_read_only_stops(long, make_recipe, disk, monkeypatch):
    # mount refuses while a file is open for writing, as the lock is.
    monkeypatch.setattr(RunDir, "lock", lambda self: nullcontext())
    long["training"]["save_total_limit"] = 1
    recipe = make_recipe(long, f"output_dir={disk / 'run'}").recipe
    run = RunDir(recipe.output_dir)
    remount = ["mount", "-o", "remount,ro", str(disk)]
    # The first write after it is a line of metrics, which is never dropped.
    message = stopped(recipe, AtStep(5, lambda: subprocess.run(remount, check=True)))
    assert "while writing metrics.jsonl: the file system is read-only" in message
    assert "checkpoint-4 is complete" in message
    assert run.read_run()["status"] == "running"
    assert is_complete(run.path / "checkpoint-4")


def test_run_with_limited_file_size_stops(long, make_recipe):
    """A full disk, for machines that do not allow mounting."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = AtStep(5, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard)))
    recipe = make_recipe(long).recipe
    try:
        message = stopped(recipe, limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    run = RunDir(recipe.output_dir)
    assert "while writing checkpoint-6: a file exceeds the allowed size" in message
    assert "checkpoint-4 is complete: the same command resumes from it" in message
    assert sorted(path.name for path in run.path.glob("*-*")) == ["checkpoint-2", "checkpoint-4"]
    assert not (run.path / ".saving").exists()


def fail(tmp_path: Path, error: Exception, target: str | None) -> None:
    with disk_errors_reported(RunDir(str(tmp_path))), writing(target) if target else nullcontext():
        raise error


def message_of(
    tmp_path: Path, error: Exception, code: str, target: str | None = "checkpoint-2"
) -> str:
    with stops_with(code) as caught:
        fail(tmp_path, error, target)
    return str(caught.value)


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.ESTALE, "the network file system is lost"),
        (errno.EIO, "the disk or its network file system failed"),
        (errno.ETIMEDOUT, "the network file system does not answer"),
        (errno.ENOTCONN, "the network file system is no longer connected"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EACCES, "permission denied"),
        (errno.EISDIR, "a folder is where a file belongs"),
    ],
)
def test_disk_error_names_its_cause(tmp_path, number, cause):
    message = message_of(tmp_path, OSError(number, "as the kernel says"), "ENV051")
    assert f"cannot write to {tmp_path} while writing checkpoint-2: {cause}" in message
    assert "there is no complete checkpoint yet" in message


def test_disk_error_inside_a_library_names_its_cause(tmp_path):
    safetensors = SafetensorError("I/O error: Stale file handle (os error 116)")
    assert "network file system is lost" in message_of(tmp_path, safetensors, "ENV051")
    torch_error = RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/3")
    assert "failed writing file data/3" in message_of(tmp_path, torch_error, "ENV051")
    tokenizers = Exception("No space left on device (os error 28)")
    assert "the disk is full" in message_of(tmp_path, tokenizers, "ENV051")


def test_full_disk_of_another_folder_is_reported_as_such(tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device")
    assert "HF_HOME" in message_of(tmp_path, error, "ENV052", None)
    later = ValueError("I/O operation on closed file")
    later.__context__ = error
    assert "HF_HOME" in message_of(tmp_path, later, "ENV052", None)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), OSError(errno.ETIMEDOUT, "a tracker's"), OSError("?")]
)
def test_error_that_is_not_the_disks_is_raised_unchanged(tmp_path, error):
    with pytest.raises(type(error)) as caught:
        fail(tmp_path, error, None)
    assert caught.value is error


@pytest.mark.parametrize(("checkpoint", "lines"), [(87 * 10**9, 2), (10**9, 1)])
def test_disk_space_of_a_large_checkpoint_names_the_rate_for_a_preemption(checkpoint, lines):
    space = DiskSpace(checkpoint, checkpoints_kept=1, model=0, free=0)
    assert len(space.lines()) == lines
    assert ("276.6 MiB per second" in space.lines()[-1]) == (lines == 2)


def test_run_whose_folder_is_moved_away_stops_and_resumes_when_it_is_back(
    long, make_recipe, tmp_path
):
    recipe = make_recipe(long).recipe
    run, aside = Path(recipe.output_dir), tmp_path / "aside"
    with stops_with("ENV062"):
        train(recipe, recipe.dpo, callbacks=[AtStep(3, lambda: run.rename(aside))])
    aside.rename(run)
    assert train(recipe, recipe.dpo).metrics


def test_run_once_in_a_read_only_cache_does_the_work(tmp_path):
    if not mount(tmp_path, "ro"):
        pytest.skip("mounting is not allowed here")
    try:
        assert run_once(tmp_path / "rows.json", "data", lambda: None, lambda: 3) == 3
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
