"""Refuses checkpoints that other users may have written, since loading a pickle can run code.

The optimizer and the random states of a checkpoint are pickles.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from prefcli.errors import Problem, RecipeError


def refuse_untrusted(checkpoint: Path) -> None:
    """Raise RecipeError unless this user owns all files and no other user can write them.

    A group may write if it is the user's private group, whose number is the user's. prefcli writes
    its own checkpoints for their owner alone, whatever the umask is.
    """
    user = os.geteuid()
    for path in _all_of(checkpoint):
        info = path.stat()
        if info.st_uid != user:
            _refuse(
                checkpoint,
                f"{path} belongs to user {info.st_uid}",
                "if you trust that user, make a copy (cp -r), which is yours",
            )
        anyone = info.st_mode & stat.S_IWOTH
        group = info.st_mode & stat.S_IWGRP and info.st_gid != user
        if anyone or group:
            who = "anyone" if anyone else f"group {info.st_gid}"
            _refuse(checkpoint, f"{who} can write {path}", f"run `chmod -R go-w {checkpoint}`")


def _all_of(folder: Path) -> Iterator[Path]:
    yield folder
    for root, folders, files in os.walk(folder, followlinks=True):
        yield from (Path(root, name) for name in (*folders, *files))


def _refuse(checkpoint: Path, why: str, cure: str) -> None:
    raise RecipeError(
        Problem(
            f"other users may have written {checkpoint}, and loading its pickle files could run "
            f"their code: {why}",
            path="output_dir",
            hint=cure,
            code="RUN006",
        )
    )
