"""What a text in a recipe can name: a file or folder here, or something on the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
"""Of data files."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Characters that end a line, move a terminal's cursor or turn the direction of writing."""
_LONGEST, _LONGEST_PART = 4000, 255
"""Bytes of a path and of a name in it, where Linux ends."""
_HUB_ID = re.compile(r"(?=.{1,96}$)(?:[\w-][\w.-]*/)?(?![-.])[\w.-]+(?<![-.])", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def looks_like_path(name: str) -> bool:
    """Can it be no hub id? An id has one slash at most."""
    return name.startswith(("/", "./", "../", "~")) or name.count("/") > 1


def is_local(name: str) -> bool:
    """A file or folder here, or meant to be here, rather than a hub id."""
    path = Path(name).expanduser()
    return (
        (looks_like_path(name) and "://" not in name)
        or path.suffix.lower() in SUFFIXES
        or path.exists()
    )


def is_commit(revision: str | None) -> bool:
    """A full commit hash, which always means the same files; a branch or a tag may move."""
    return revision is not None and bool(_COMMIT.fullmatch(revision))


def is_hub_id(name: str) -> bool:
    """By the hub's own rule (huggingface_hub.utils.validate_repo_id)."""
    known = _HUB_ID.fullmatch(name) is not None
    return known and not ("--" in name or ".." in name or name.endswith(".git"))


def _path(text: str) -> str:
    if found := _CONTROL.search(text):
        raise ValueError(f"the character U+{ord(found[0]):04X} can't stand in a path or a name")
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise ValueError(f"there is no home folder {path.partition('/')[0]}; ~/ is your own")
    parts = os.fsencode(path).split(b"/")
    if len(os.fsencode(path)) > _LONGEST or max(map(len, parts)) > _LONGEST_PART:
        raise ValueError(
            f"too long for a path: {len(os.fsencode(path))} bytes (a name in it has up to "
            f"{_LONGEST_PART}, all of it up to {_LONGEST})"
        )
    return path


def _name(text: str) -> str:
    path = _path(text)
    if not is_local(path) and "://" not in path and not is_hub_id(path):
        raise ValueError(
            f"{text!r} is no hub id, and nothing here has that name; an id is NAME or OWNER/NAME "
            "of letters, digits, - _ and . (a folder that is yet to come is written with ./ before "
            "it)"
        )
    return path


PathText = Annotated[str, Field(min_length=1), AfterValidator(_path)]
"""A path here, in which ~ is the home folder."""
PathOrName = Annotated[str, Field(min_length=1), AfterValidator(_name)]
"""The same, or a hub id."""
