"""A disk that fails while a run writes to it, told in a sentence."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from prefcli.checkpoints.atomic import WRITING
from prefcli.checkpoints.run_dir import RunDir
from prefcli.errors import PrefcliError, Problem, RecipeError

_FREE = "free some space"
_LOST = "see that it is there again, as by `ls`, or name another folder"
_FAILURES = {
    errno.ENOSPC: ("the disk is full", _FREE),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or ask for more"),
    errno.EFBIG: ("a file grew larger than is allowed", "raise the limit, as by `ulimit -f`"),
    errno.EROFS: ("the file system is read-only", "mount it writable, or name another folder"),
    errno.EACCES: ("permission denied", "let this user write there, or name another folder"),
    errno.EPERM: ("permission denied", "let this user write there, or name another folder"),
    errno.EIO: ("the disk or its network file system failed", _LOST),
    errno.ESTALE: ("the network file system is lost", _LOST),
    errno.ETIMEDOUT: ("the network file system does not answer", _LOST),
    errno.EHOSTDOWN: ("the network file system does not answer", _LOST),
    errno.ENOTCONN: ("the network file system is no longer connected", _LOST),
    errno.ENODEV: ("the disk is gone", _LOST),
    errno.ENXIO: ("the disk is gone", _LOST),
}
"""What an error number means to the owner of the disk, and what to do."""
_ELSEWHERE = (errno.ENOSPC, errno.EDQUOT)
_IN_TORCH = "PytorchStreamWriter"
_IN_RUST = re.compile(r"os error (\d+)")
_PROBE = 2**20
"""Bytes. Where they can't be written, nothing can that is worth it."""


@contextmanager
def disk_errors_reported(folder: RunDir) -> Iterator[None]:
    """RecipeError for a disk that can't be written to, as any of a dozen errors, deep in torch,
    safetensors or tokenizers, tells it."""
    try:
        yield
    except PrefcliError:
        raise
    except Exception as error:  # tokenizers raise nothing better
        problem = _problem(error, folder)
        if problem is None:
            raise
        raise RecipeError(problem) from None


def _problem(error: Exception, folder: RunDir) -> Problem | None:
    """None where it was not the disk."""
    notes = getattr(error, "__notes__", [])
    what = next((note for note in notes if note.startswith(WRITING)), None)
    number = _number(error)
    if number is None and not isinstance(error, (OSError, RuntimeError, SafetensorError)):
        return None
    tried = _tried(folder.path)
    # A disk may have got its room back since then, and torch gives no number.
    if tried or (what and (number in _FAILURES or _IN_TORCH in str(error))):
        cause, hint = _FAILURES.get(tried or number or 0, (str(error).partition("\n")[0], _FREE))
        return Problem(
            f"{folder.path} can't be written to{f' {what}' if what else ''}: {cause}",
            path="output_dir",
            hint=f"{hint}; {_kept(folder)}",
        )
    if number in _ELSEWHERE:
        return Problem(
            f"a disk is full, other than that of {folder.path}: {error}",
            hint="perhaps a cache's: see TMPDIR, HF_HOME and HF_DATASETS_CACHE",
        )
    return None


def _number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    in_rust = _IN_RUST.search(str(error))
    return int(in_rust[1]) if in_rust else None


def _tried(folder: Path) -> int | None:
    """The number of the error that writing into the folder gives now."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno if error.errno in _FAILURES else None
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


def _kept(folder: RunDir) -> str:
    """What is safe, and what the same command will do."""
    try:
        checkpoint, _ = folder.last_checkpoint()
    except OSError:
        checkpoint = None
    if checkpoint is None:
        return "no checkpoint was complete yet: the same command starts over"
    return f"{checkpoint.name} is whole, and the same command goes on from it"
