"""Checkpoints that are complete before anyone can see them."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import Trainer as TransformersTrainer
from transformers.trainer import TRAINER_STATE_NAME

from prefcli.checkpoints.atomic import WORK, list_files, place, remove, writing
from prefcli.checkpoints.run_dir import RunDir
from prefcli.console import warn

_NAME = re.compile(r"checkpoint-(\d+)")


class AtomicCheckpointsMixin(TransformersTrainer):  # type: ignore[misc]  # transformers is untyped
    """trl's trainer, which writes a checkpoint beside its place, and moves it there when all
    processes have written their part. Older ones go after that."""

    _hidden = False
    """Is a checkpoint being written?"""

    def _get_output_dir(self, trial: Any) -> str:
        """All that transformers and the sharding engines write of a checkpoint goes below this."""
        folder: str = super()._get_output_dir(trial)
        return os.path.join(folder, WORK) if self._hidden else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        try:
            with writing(name):
                self._hidden = True
                try:
                    super()._save_checkpoint(model, trial)
                finally:
                    self._hidden = False
                self.accelerator.wait_for_everyone()
                self._name_the_best(run)
                if self.args.should_save:
                    self._show(run, name)
        except Exception:
            if self.args.should_save:  # it gives its room on the disk back
                shutil.rmtree(run / WORK, ignore_errors=True)
            raise
        # No process counts on it before it is there.
        self.accelerator.wait_for_everyone()

    def _name_the_best(self, run: Path) -> None:
        """By its final place; transformers looked for it where this one was written."""
        step = self.state.best_global_step
        if not step or self.state.best_model_checkpoint is None:
            return
        best = run / f"checkpoint-{step}"
        if step == self.state.global_step or best.is_dir():
            self.state.best_model_checkpoint = str(best)

    def _show(self, run: Path, name: str) -> None:
        written = run / WORK / name
        self.state.save_to_json(str(written / TRAINER_STATE_NAME))
        list_files(written)
        place(written, run / name)
        self._forget_old(run, run / name)
        with suppress(OSError):
            (run / WORK).rmdir()

    def _forget_old(self, run: Path, newest: Path) -> None:
        """Down to save_total_limit, without the newest and the best."""
        limit = self.args.save_total_limit
        if not limit:
            return
        best = self.state.best_model_checkpoint
        kept = {newest} | ({Path(best)} if best else set())
        steps = {p: int(m[1]) for p in run.iterdir() if (m := _NAME.fullmatch(p.name))}
        old = sorted(steps.keys() - kept, key=lambda path: steps[path])
        for path in old[: max(0, len(steps) - max(limit, len(kept)))]:
            remove(path)


def clear_leftovers(folder: RunDir) -> None:
    """What a kill left half written, or half deleted. For the main process, before it writes."""
    work = folder.path / WORK
    for path in sorted(work.glob("checkpoint-*")):
        warn(f"{path.name} was cut short while it was written; it is removed")
    shutil.rmtree(work, ignore_errors=True)
