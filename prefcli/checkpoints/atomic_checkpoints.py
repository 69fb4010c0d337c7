"""Checkpoints that are complete before they appear in the run directory."""

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
    """Writes a checkpoint to a hidden folder and moves it once all processes have written theirs.

    Older checkpoints are deleted after that.
    """

    _hidden = False
    """Whether a checkpoint is being written."""

    def _get_output_dir(self, trial: Any) -> str:
        """Return the folder below which transformers and the sharding engines write checkpoints."""
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
                self._rename_best(run)
                if self.args.should_save:
                    self._publish(run, name)
        except Exception:
            if self.args.should_save:  # free the disk
                shutil.rmtree(run / WORK, ignore_errors=True)
            raise
        # No process may rely on it before it is in place.
        self.accelerator.wait_for_everyone()

    def _rename_best(self, run: Path) -> None:
        """Name the best checkpoint by its final place instead of the hidden one."""
        step = self.state.best_global_step
        if not step or self.state.best_model_checkpoint is None:
            return
        best = run / f"checkpoint-{step}"
        if step == self.state.global_step or best.is_dir():
            self.state.best_model_checkpoint = str(best)

    def _publish(self, run: Path, name: str) -> None:
        written = run / WORK / name
        self.state.save_to_json(str(written / TRAINER_STATE_NAME))
        list_files(written)
        place(written, run / name)
        self._delete_old(run, run / name)
        with suppress(OSError):
            (run / WORK).rmdir()

    def _delete_old(self, run: Path, newest: Path) -> None:
        """Delete old checkpoints down to save_total_limit, but never the newest or the best."""
        limit = self.args.save_total_limit
        if not limit:
            return
        best = self.state.best_model_checkpoint
        protected = {newest} | ({Path(best)} if best else set())
        steps = {p: int(m[1]) for p in run.iterdir() if (m := _NAME.fullmatch(p.name))}
        old = sorted(steps.keys() - protected, key=lambda path: steps[path])
        for path in old[: max(0, len(steps) - max(limit, len(protected)))]:
            remove(path)


def clear_leftovers(folder: RunDir) -> None:
    """Remove what a kill left half written or half deleted. For the main process."""
    work = folder.path / WORK
    for path in sorted(work.glob("checkpoint-*")):
        warn(f"{path.name} was cut short while it was written; it is removed")
    if work.is_file():
        work.unlink()
    shutil.rmtree(work, ignore_errors=True)
