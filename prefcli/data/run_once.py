"""Work that one process does while the others wait for its result, with a lock on a file.

A collective would time out during long work (huggingface/trl issue 7223), and serves the processes
of one run only; a file lock also serves several nodes and runs that start at the same time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from prefcli.console import say
from prefcli.errors import DataError, Problem, RecipeError

T = TypeVar("T")

_QUIET_SECONDS = 10.0
"""Wait this long before printing that another process holds the lock."""


@contextmanager
def file_lock(path: Path, what: str) -> Iterator[bool]:
    """Admit one process at a time; yields whether this one had to wait.

    On a file system without locks, all processes enter at once and each does the work.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        waited = _acquire(lock, what)
    except (OSError, NotImplementedError):
        yield False
        return
    try:
        yield waited
    finally:
        lock.release()


def _acquire(lock: FileLock, what: str) -> bool:
    """Acquire the lock and return whether another process held it."""
    try:
        lock.acquire(timeout=0)
        return False
    except Timeout:
        pass
    try:
        lock.acquire(timeout=_QUIET_SECONDS)
    except Timeout:
        say(f"{what}: another process is preparing the same rows; waiting for it to finish")
        lock.acquire()
    return True


def run_once(path: Path, what: str, read: Callable[[], T | None], make: Callable[[], T]) -> T:
    """Return what `read` finds, or else what `make` makes, in one process at a time.

    A process that waited for another one raises the other's error.
    """
    if (result := read()) is not None:
        return result
    failure = path.with_suffix(".failed")
    with file_lock(path.with_suffix(".lock"), what) as waited:
        if (result := read()) is not None:
            return result
        if waited:
            _raise_saved(failure)
        try:
            with suppress(OSError):  # a cache that is not writable
                failure.unlink(missing_ok=True)
            return make()
        except (DataError, RecipeError) as error:
            _save_error(failure, error)
            raise


def _save_error(path: Path, error: DataError | RecipeError) -> None:
    saved = {
        "data": isinstance(error, DataError),
        "problems": [problem.as_dict() for problem in error.problems],
    }
    try:
        path.write_text(json.dumps(saved), encoding="utf-8")
    except OSError:
        return  # the other processes will run into the same error


def _raise_saved(path: Path) -> None:
    try:
        saved = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return
    problems = [Problem(**problem) for problem in saved["problems"]]
    raise (DataError if saved["data"] else RecipeError)(problems)
