"""Folders and files that appear complete or not at all, and survive a power cut."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WORK = ".saving"
"""In a run directory: what is being written, and what is being deleted."""
WRITING = "while writing "
"""Beginning of the note that an exception gets while a file is written."""
_LIST = "files.json"

fsync = os.fsync
"""Replaced in tests: only a power cut shows the difference, and it is slow on a busy disk."""


@contextmanager
def writing(target: str) -> Iterator[None]:
    """Add the target to any exception: the libraries' own messages name no file."""
    try:
        yield
    except Exception as error:
        error.add_note(f"{WRITING}{target}")
        raise


def write_text(path: Path, text: str) -> None:
    """Write the file completely or not at all, also if the process is killed."""
    partial = path.with_name(path.name + ".partial")
    with writing(path.name):
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


def place(written: Path, final: Path) -> None:
    """Move a complete folder to its final place, once the disk has all of it.

    An existing folder is replaced. A network file system reports a failed write or a full quota
    only at fsync.
    """
    for path in (*written.rglob("*"), written):
        _sync(path)
    if final.exists():
        remove(final)
    written.rename(final)
    _sync(final.parent)


def remove(folder: Path) -> None:
    """Rename the folder, then delete it: a kill must not leave half of it in place."""
    aside = folder.parent / WORK / f"removed-{folder.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(exist_ok=True)
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def list_files(folder: Path) -> None:
    """Write the names and sizes of the folder's files into the folder."""
    (folder / _LIST).write_text(json.dumps(_sizes(folder), indent=1) + "\n", encoding="utf-8")


def has_its_files(folder: Path) -> bool | None:
    """Return whether all listed files exist in full size; None if the folder has no list."""
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
        fsync(handle)
    except OSError as error:
        # Some network file systems support fsync of files only.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(handle)
