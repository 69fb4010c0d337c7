"""The disk of a run: the space it needs, and clear errors when writing to it fails."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from prefcli.checkpoints.atomic import WRITING
from prefcli.checkpoints.run_dir import RunDir
from prefcli.errors import PrefcliError, Problem, RecipeError
from prefcli.recipe.schema import Recipe
from prefcli.slurm import DEFAULT_GRACE
from prefcli.text import counted, first_line, format_bytes

_FREE_SPACE = "free some space"
_WRONG_KIND = ("a folder is where a file belongs, or a file where a folder does", "move it away")
_RECONNECT = "check that it is mounted, e.g. with `ls`, or name another folder"
_FAILURES = {
    errno.ENOSPC: ("the disk is full", _FREE_SPACE),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or ask for a larger quota"),
    errno.EFBIG: ("a file exceeds the allowed size", "raise the limit, e.g. with `ulimit -f`"),
    errno.EROFS: ("the file system is read-only", "mount it writable, or name another folder"),
    errno.EACCES: ("permission denied", "let this user write there, or name another folder"),
    errno.EPERM: ("permission denied", "let this user write there, or name another folder"),
    errno.EIO: ("the disk or its network file system failed", _RECONNECT),
    errno.ESTALE: ("the network file system is lost", _RECONNECT),
    errno.ETIMEDOUT: ("the network file system does not answer", _RECONNECT),
    errno.EHOSTDOWN: ("the network file system does not answer", _RECONNECT),
    errno.ENOTCONN: ("the network file system is no longer connected", _RECONNECT),
    errno.ENODEV: ("the disk is gone", _RECONNECT),
    errno.ENXIO: ("the disk is gone", _RECONNECT),
    errno.EISDIR: _WRONG_KIND,
    errno.ENOTDIR: _WRONG_KIND,
    errno.EEXIST: _WRONG_KIND,
}
"""Error numbers of a failed write: the cause as text, and the cure."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TORCH_WRITER = "PytorchStreamWriter"
_RUST_ERRNO = re.compile(r"os error (\d+)")
_PROBE_BYTES = 2**20
_SLOW_CHECKPOINT = 10 * 2**30
"""Bytes above which the time to save a checkpoint matters at a preemption."""


@dataclass(frozen=True)
class DiskSpace:
    """The space that a run needs at most, and the space it has. All numbers are bytes."""

    checkpoint: int
    """One checkpoint."""
    checkpoints_kept: int
    """Checkpoints that exist at once: the limit, and the new one before the oldest is deleted."""
    model: int
    """model/."""
    free: int

    @property
    def needed(self) -> int:
        return self.checkpoint * self.checkpoints_kept + self.model

    def lines(self) -> list[str]:
        """Describe the space for the log."""
        checkpoints = counted(self.checkpoints_kept, "checkpoint")
        lines = [
            f"disk: needs at most {format_bytes(self.needed)} ({checkpoints} "
            f"of {format_bytes(self.checkpoint)}, model/ of {format_bytes(self.model)}); "
            f"{format_bytes(self.free)} are free"
        ]
        if self.checkpoint >= _SLOW_CHECKPOINT:
            lines.append(
                f"disk: {format_bytes(self.checkpoint / DEFAULT_GRACE)} per second save a "
                f"checkpoint within {DEFAULT_GRACE} s, the default --grace of prefcli slurm"
            )
        return lines

    def as_dict(self) -> dict[str, int]:
        return {
            "checkpoint": self.checkpoint,
            "checkpoints_kept": self.checkpoints_kept,
            "model": self.model,
            "needed": self.needed,
            "free": self.free,
        }


def required_disk_space(
    recipe: Recipe, trainable: int, *, optimizer: int, checkpoints: int
) -> DiskSpace:
    """Compare a whole run with its disk; the run's own old checkpoints count as free space.

    trainable: parameters. optimizer: bytes of its saved states. checkpoints: saves in the run.
    """
    weight_bytes = 2 if recipe.model.dtype == "bfloat16" and not recipe.trains_adapter else 4
    limit = recipe.training.save_total_limit
    folder = Path(recipe.output_dir).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return DiskSpace(
        checkpoint=weight_bytes * trainable + optimizer,
        checkpoints_kept=checkpoints if limit is None else min(checkpoints, limit + 1),
        model=weight_bytes * trainable,
        free=shutil.disk_usage(existing).free + _checkpoint_bytes(folder),
    )


def _checkpoint_bytes(folder: Path) -> int:
    """Size of the existing checkpoints, which new ones replace."""
    files = (file for path in folder.glob("checkpoint-*") for file in path.rglob("*"))
    return sum(file.stat().st_size for file in files if file.is_file())


def check_disk_space(space: DiskSpace, *, elsewhere: bool) -> list[str]:
    """Raise RecipeError if the run would fill the disk; return a warning if it runs elsewhere."""
    if space.needed <= space.free:
        return []
    problem = Problem(
        f"the run writes up to {format_bytes(space.needed)}, and its disk has "
        f"{format_bytes(space.free)} free",
        path="output_dir",
        hint="free some space, name a folder on another disk, or keep fewer checkpoints with "
        "training.save_total_limit",
        code="ENV050",
    )
    if elsewhere:
        return [f"output_dir: {problem.message}, if the run uses this machine's disk"]
    raise RecipeError(problem)


@contextmanager
def disk_errors_reported(folder: RunDir) -> Iterator[None]:
    """Turn a failed write into a RecipeError.

    torch, safetensors and tokenizers report a full disk as a dozen different exceptions.
    """
    try:
        yield
    except PrefcliError:
        raise
    except Exception as error:  # tokenizers raise nothing more specific
        problem = _disk_problem(error, folder)
        if problem is None:
            raise
        raise RecipeError(problem) from None


@contextmanager
def write_errors_reported(path: Path) -> Iterator[None]:
    """Turn a failed write of the output of a command, a file or a folder, into a RecipeError."""
    try:
        yield
    except PrefcliError:
        raise
    except Exception as error:  # as above
        number = _errno_of(error) or 0
        if number not in _FAILURES:
            raise
        cause, cure = _FAILURES[number]
        raise RecipeError(
            f"cannot write {path}: {cause}",
            code="ENV051",
            hint=f"{cure}; then run the same command again",
        ) from None


def _disk_problem(error: Exception, folder: RunDir) -> Problem | None:
    """Explain the error if the disk caused it."""
    notes = getattr(error, "__notes__", [])
    target = next((note for note in notes if note.startswith(WRITING)), None)
    number = _errno_of(error)
    if number is None and not isinstance(error, (OSError, RuntimeError, SafetensorError)):
        return None
    if number == errno.ENOENT and not folder.path.is_dir():
        return Problem(
            f"{folder.path} was moved or deleted during the run",
            path="output_dir",
            hint="move it back and rerun the same command, which resumes from the last checkpoint",
            code="ENV062",
        )
    probed = _probe(folder.path)
    # The disk may have recovered since the error, and torch gives no error number.
    if probed or (target and (number in _FAILURES or _TORCH_WRITER in str(error))):
        unknown = (first_line(error), _FREE_SPACE)
        cause, cure = _FAILURES.get(probed or number or 0, unknown)
        return Problem(
            f"cannot write to {folder.path}{f' {target}' if target else ''}: {cause}",
            path="output_dir",
            hint=f"{cure}; {_resume_point(folder)}",
            code="ENV051",
        )
    if number in _FULL:
        return Problem(
            f"a disk other than that of {folder.path} is full: {os.strerror(number)}",
            hint="check TMPDIR, HF_HOME and HF_DATASETS_CACHE, which may be on it",
            code="ENV052",
        )
    return None


def _errno_of(error: Exception) -> int | None:
    """Return the number of an error, or that of a full disk which it follows from."""
    if isinstance(error, OSError):
        return error.errno
    if match := _RUST_ERRNO.search(str(error)):
        return int(match[1])
    # datasets fails to close a file that it could not finish.
    earlier = error.__cause__ or error.__context__
    while earlier is not None:
        if isinstance(earlier, OSError) and earlier.errno in _FULL:
            return earlier.errno
        earlier = earlier.__cause__ or earlier.__context__
    return None


def _probe(folder: Path) -> int | None:
    """Return the error number that writing into the folder gives now."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno if error.errno in _FAILURES else None
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


def _resume_point(folder: RunDir) -> str:
    """Say where the same command will continue."""
    try:
        checkpoint, _ = folder.last_checkpoint()
    except OSError:
        checkpoint = None
    if checkpoint is None:
        return "there is no complete checkpoint yet: the same command starts over"
    return f"{checkpoint.name} is complete: the same command resumes from it"
