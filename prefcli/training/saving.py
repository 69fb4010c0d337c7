"""Writing that leaves no half-made model, and says so when the disk is full."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError
from transformers import Trainer

from prefcli.console import is_main_process
from prefcli.errors import Problem, RecipeError
from prefcli.model.stacking import stack
from prefcli.training.folder import RunFolder

_NO_ROOM = 2**20
"""Bytes below which an error while writing is taken for a full disk."""


@contextmanager
def room_on_disk(folder: RunFolder) -> Iterator[None]:
    """A full disk shows itself as any of a dozen errors, deep in torch or safetensors."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(folder.path).free
        if free > _NO_ROOM and getattr(error, "errno", None) != errno.ENOSPC:
            raise
        raise RecipeError(
            Problem(
                f"the disk of {folder.path} is full ({free / 1e6:.0f} MB left)",
                path="output_dir",
                hint="free some space; the same command goes on from the last complete checkpoint",
            )
        ) from None


def save_model(trainer: Trainer, folder: RunFolder, *, stacked: bool) -> None:
    """model/ appears whole: it is written beside its place and moved there.

    An adapter in it lies on plain weights: one `stacked` on another becomes the sum of both.
    """
    partial = folder.path / "model.partial"
    if is_main_process():
        shutil.rmtree(partial, ignore_errors=True)
    trainer.save_model(str(partial))
    if is_main_process():
        (partial / "training_args.bin").unlink(missing_ok=True)
        shutil.rmtree(partial / "ref", ignore_errors=True)  # the reference's copy of an adapter
        if stacked:
            stack(folder.below, partial)
        shutil.rmtree(folder.model, ignore_errors=True)
        partial.rename(folder.model)
