"""One process makes a thing, the others wait for it: by a lock on a file, not by a collective.

So nobody runs into a collective's time-out however long it takes (huggingface/trl issue 7223), and
it serves processes of one run, of several nodes, and runs that were started at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from prefcli.console import say
from prefcli.errors import DataError, Problem, RecipeError

T = TypeVar("T")

_PATIENCE = 10.0
"""Seconds of waiting before that is said."""


@contextmanager
def file_lock(path: Path, what: str) -> Iterator[bool]:
    """One process at a time is inside; true for one that had to wait.

    Where the file system has no locks, all are inside at once, and each does the work itself.
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
    """Did another process have it?"""
    try:
        lock.acquire(timeout=0)
        return False
    except Timeout:
        pass
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        say(f"{what}: another process is at it; waiting for what it leaves")
        lock.acquire()
    return True


def once(path: Path, what: str, read: Callable[[], T | None], make: Callable[[], T]) -> T:
    """What `read` finds; where it finds nothing, what `make` makes and leaves for it.

    An error of the one that makes is the error of those that have waited for it, too.
    """
    if (found := read()) is not None:
        return found
    failed = path.with_suffix(".failed")
    with file_lock(path.with_suffix(".lock"), what) as waited:
        if (found := read()) is not None:
            return found
        if waited:
            _raise_again(failed)
        try:
            failed.unlink(missing_ok=True)
            return make()
        except (DataError, RecipeError) as error:
            _note(failed, error)
            raise


def _note(path: Path, error: DataError | RecipeError) -> None:
    told = {
        "data": isinstance(error, DataError),
        "problems": [problem.as_dict() for problem in error.problems],
    }
    try:
        path.write_text(json.dumps(told), encoding="utf-8")
    except OSError:
        return  # each of the others finds out by itself


def _raise_again(path: Path) -> None:
    try:
        told = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return
    problems = [Problem(**problem) for problem in told["problems"]]
    raise (DataError if told["data"] else RecipeError)(problems)
