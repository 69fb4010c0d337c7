"""Names in a recipe: local files and folders, and hub ids."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from prefcli.config_base import RuleError
from prefcli.text import closest

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
"""Suffixes of data files."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Characters that end a line, move a terminal's cursor or change the writing direction."""
_LONGEST, _LONGEST_PART = 4000, 255
"""Linux' limits for a path and for a name in it, in bytes."""
_HUB_ID = re.compile(r"(?=.{1,96}$)(?:[\w-][\w.-]*/)?(?![-.])[\w.-]+(?<![-.])", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def looks_like_path(name: str) -> bool:
    """True if the name can't be a hub id, which has one slash at most."""
    return name.startswith(("/", "./", "../", "~")) or name.count("/") > 1


def is_local(name: str) -> bool:
    """True for a local file or folder, existing or not, rather than a hub id."""
    path = Path(name).expanduser()
    return (
        (looks_like_path(name) and "://" not in name)
        or path.suffix.lower() in SUFFIXES
        or path.exists()
    )


def neighbour(path: Path, suffixes: tuple[str, ...] = ()) -> Path | None:
    """Return the file or folder next to a path whose name is close to it.

    suffixes: consider names with one of these, which the path may lack.
    """
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except (OSError, ValueError):
        return None
    if suffixes:
        names = [name for name in names if name.lower().endswith(suffixes)]
    complete = (closest(path.name + suffix, names, 0.95) for suffix in suffixes)
    name = closest(path.name, names) or next(filter(None, complete), None)
    return path.parent / name if name else None


def is_commit(revision: str | None) -> bool:
    """True for a full commit hash; a branch or a tag can change."""
    return revision is not None and bool(_COMMIT.fullmatch(revision))


def is_hub_id(name: str) -> bool:
    """Apply the hub's own rule (huggingface_hub.utils.validate_repo_id)."""
    valid = _HUB_ID.fullmatch(name) is not None
    return valid and not ("--" in name or ".." in name or name.endswith(".git"))


def _path(text: str) -> str:
    if match := _CONTROL.search(text):
        raise RuleError(
            f"the character U+{ord(match[0]):04X} is not allowed in a path or a name", code="RCP017"
        )
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise RuleError(
            f"there is no home folder {path.partition('/')[0]}; write ~/ for your own",
            code="RCP017",
        )
    parts = os.fsencode(path).split(b"/")
    if len(os.fsencode(path)) > _LONGEST or max(map(len, parts)) > _LONGEST_PART:
        raise RuleError(
            f"too long for a path: {len(os.fsencode(path))} bytes (at most {_LONGEST}, and "
            f"{_LONGEST_PART} for each name in it)",
            code="RCP017",
        )
    return path


_ADDRESS = re.compile(r"(?i)([a-z][a-z0-9+.-]*)://(.*)")
_HUB_ADDRESS = re.compile(r"(?i)(?:hf://|https?://(?:huggingface\.co|hf\.co)/)")


def _refuse_address(text: str) -> None:
    match = _ADDRESS.match(text)
    if match is None:
        return
    cure = "download the file and write its local path"
    if match[1].lower() == "file":
        cure = f"write the path, {match[2]}"
    elif _HUB_ADDRESS.match(text):
        cure = "write the hub id, OWNER/NAME, and a file of a dataset in data_files"
    raise RuleError(
        f"an address is neither a local path nor a hub id ({match[1]}://); {cure}", code="RCP017"
    )


def _name(text: str) -> str:
    path = _path(text)
    _refuse_address(path)
    if not is_local(path) and not is_hub_id(path):
        raise RuleError(
            f"{text!r} is neither a hub id nor an existing file or folder; write a hub id as NAME "
            "or OWNER/NAME with letters, digits, - _ and ., or start a future folder with ./",
            code="RCP017",
        )
    return path


PathText = Annotated[str, Field(min_length=1), AfterValidator(_path)]
"""A local path, in which ~ is the home folder."""
PathOrName = Annotated[str, Field(min_length=1), AfterValidator(_name)]
"""A local path, or a hub id."""
