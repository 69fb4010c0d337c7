"""A checkpoint holds pickles (optimizer, random states), and a pickle can run what it likes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from prefcli.errors import Problem, RecipeError


def refuse_foreign(checkpoint: Path) -> None:
    """RecipeError unless its folders and files are this user's, and nobody else may write them.

    A group may where it is the user's own (its number is the user's, as where each user has one):
    prefcli's own checkpoints are written for their owner alone, whatever the umask is.
    """
    me = os.geteuid()
    for path in _all_of(checkpoint):
        found = path.stat()
        if found.st_uid != me:
            _refuse(
                checkpoint,
                f"{path} belongs to user {found.st_uid}",
                "a copy that you make of it (cp -r) is yours: only if you trust that user",
            )
        anyone = found.st_mode & stat.S_IWOTH
        group = found.st_mode & stat.S_IWGRP and found.st_gid != me
        if anyone or group:
            who = "anyone" if anyone else f"group {found.st_gid}"
            _refuse(checkpoint, f"{who} may write {path}", f"chmod -R go-w {checkpoint}")


def _all_of(folder: Path) -> Iterator[Path]:
    yield folder
    for root, folders, files in os.walk(folder, followlinks=True):
        yield from (Path(root, name) for name in (*folders, *files))


def _refuse(checkpoint: Path, why: str, cure: str) -> None:
    raise RecipeError(
        Problem(
            f"{checkpoint} may have been written by others, and to load it is to run what they "
            f"wrote: {why}",
            path="output_dir",
            hint=cure,
        )
    )
