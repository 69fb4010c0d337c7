"""Folders that appear whole and vanish whole, and are on the disk once they are there."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WORK = ".saving"
"""In a run folder: what is being written, and what is being deleted."""
WRITING = "while writing "
"""Begins the note on an error that tells what was written."""
_LIST = "files.json"


@contextmanager
def writing(what: str) -> Iterator[None]:
    """An error in it will tell what was written: the libraries' own name no file."""
    try:
        yield
    except Exception as error:
        error.add_note(f"{WRITING}{what}")
        raise


def place(written: Path, final: Path) -> None:
    """Move a complete folder to its place, and only there once the disk has all of it.

    What is there already gives way. A network file system tells of a lost write or a full quota
    no sooner than fsync.
    """
    for path in (*written.rglob("*"), written):
        _sync(path)
    if final.exists():
        remove(final)
    written.rename(final)
    _sync(final.parent)


def remove(folder: Path) -> None:
    """Moved away first: a kill in the middle must leave no half of it in its place."""
    aside = folder.parent / WORK / f"removed-{folder.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(exist_ok=True)
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def list_files(folder: Path) -> None:
    """Write down, in the folder, which files it has, of how many bytes."""
    (folder / _LIST).write_text(json.dumps(_sizes(folder), indent=1) + "\n", encoding="utf-8")


def has_its_files(folder: Path) -> bool | None:
    """Are all files there, whole, that the folder lists? None where it has no list."""
    try:
        listed = json.loads((folder / _LIST).read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return False
    try:
        return all((folder / name).stat().st_size == size for name, size in listed.items())
    except (OSError, AttributeError):
        return False


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in files
        if path.name != _LIST
    }


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems know fsync of files alone.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(handle)
