"""Folders and files that appear complete or not at all, and survive a power cut."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import xxhash

WORK = ".saving"
"""In a run directory: what is being written, and what is being deleted."""
WRITING = "while writing "
"""Beginning of the note that an exception gets while a file is written."""
_LIST = "files.json"
_SUM = "xxh3_128"
_BLOCK = 2**22

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
        if partial.is_dir():
            shutil.rmtree(partial)
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
    """Write the names, sizes and checksums of the folder's files into the folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != _LIST)
    listed = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, _SUM: _checksum(path)}
        for path in files
    }
    (folder / _LIST).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


def has_list(folder: Path) -> bool:
    """Check whether the folder lists its files; old versions and copies may not."""
    return (folder / _LIST).is_file()


def damage_of(folder: Path) -> str | None:
    """Compare the files with the folder's list; return what is wrong with one of them, or None.

    Lists of earlier versions have sizes only.
    """
    try:
        listed = json.loads((folder / _LIST).read_text("utf-8"))
        entries = [
            (folder / name, *((entry, None) if isinstance(entry, int) else _pair(entry)))
            for name, entry in listed.items()
        ]
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return f"{_LIST} can't be read"
    for path, size, _ in entries:
        if not path.is_file():
            return f"{path.name} is missing"
        if path.stat().st_size != size:
            return f"{path.name} has another size than when it was written"
    for path, _, checksum in entries:
        if checksum is not None and _checksum(path) != checksum:
            return f"{path.name} has changed since it was written"
    return None


def _pair(entry: dict[str, Any]) -> tuple[int, str]:
    return entry["size"], entry[_SUM]


def _checksum(path: Path) -> str:
    info = path.stat()
    return _checksum_of(path, info.st_size, info.st_mtime_ns)


@lru_cache(maxsize=1024)
def _checksum_of(path: Path, size: int, changed: int) -> str:
    """Hash a file. size, changed: a file that has both still has the same content."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


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
