"""What a run does when it is asked to make room: a checkpoint at the end of this step, and out.

transformers' own (`enable_jit_checkpoint`) ends the loop instead, so that what follows takes the
part that was trained for the whole, and saves it as the final model.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from transformers import EarlyStoppingCallback
from transformers import Trainer as TransformersTrainer

from prefcli import preemption
from prefcli.checkpoints.run_dir import owes_evaluation
from prefcli.console import say
from prefcli.errors import PreemptedError
from prefcli.model.inference import eval_mode_preserving_rng

_OTHERS_MAY_WRITE = 0o022


class PreemptionMixin(TransformersTrainer):  # type: ignore[misc]  # transformers is untyped
    """Any of trl's trainers, that can be stopped at every step and go on as if it had not been.

    All processes stop at the same step, whichever of them was asked. An evaluation that was
    broken off is owed: the trainer's record in the checkpoint says that it was due.
    """

    recipe_goes_first: bool = False
    """On a resume, take the optimizer's settings from the recipe and not from the checkpoint."""
    _saved: int = -1
    """Step of the newest checkpoint."""
    _resumed_from: str | None = None

    def _init_training_state(
        self, max_steps: int, an_epoch: int, epochs: int, checkpoint: str | None, trial: Any
    ) -> Any:
        where = super()._init_training_state(max_steps, an_epoch, epochs, checkpoint, trial)
        # The checkpoint's state has brought its own logging_steps, eval_steps and save_steps.
        self.state.compute_steps(self.args, max_steps)
        if checkpoint is not None:
            self._resumed_from, self._saved = checkpoint, self.state.global_step
        return where

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._listen_between_steps()
        if self._is_over or self.control.should_training_stop:
            # transformers would train one step more than there are.
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # Resumed at the end of its last epoch, a run has come through none.
        self._listen_between_steps()
        return super()._finalize_training(*args, **kwargs)

    def _listen_between_steps(self) -> None:
        """From here on; and first what the last process owes."""
        if preemption.are_deferred():
            return
        # Together: whoever trains already would wait for a step of one that has left.
        if self._agreed():
            raise preemption.Stop
        preemption.defer_signals()
        self._catch_up()

    def _catch_up(self) -> None:
        """The evaluation that the last process was kept from, at the step it belongs to."""
        if self._resumed_from is None or not owes_evaluation(self._resumed_from):
            return
        say(f"evaluating step {self.state.global_step}, which the last process did not come to")
        metrics = self.evaluate()
        if self._determine_best_metric(metrics, trial=None):
            self.state.best_model_checkpoint = self._resumed_from

    @property
    def _is_over(self) -> bool:
        """Was the last step trained before this process began?"""
        stopped = any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )
        return stopped or self.state.global_step >= self.state.max_steps

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        control, due = self.control, self.control.should_evaluate
        pauses = due or control.should_save
        if self._agreed():
            control.should_evaluate = control.should_save = False
            # Sums since the last row are in no checkpoint.
            control.should_log = True
            super()._maybe_log_save_evaluate(*args, **kwargs)
            self.control.should_evaluate = due
            self._make_room()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if pauses and self._agreed():
            # At this step and not the next: samples may have been broken off.
            self._make_room()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Training goes on with the random numbers that it would have drawn without it."""
        try:
            with eval_mode_preserving_rng(self.model):
                metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        except preemption.BreakOff:
            self.control.should_evaluate = True
            self._make_room()
        return metrics

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        if preemption.are_deferred() and self._agreed():
            raise preemption.BreakOff
        return super().prediction_step(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with _for_oneself():
            super()._save_checkpoint(*args, **kwargs)
        self._saved = self.state.global_step

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.recipe_goes_first:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        fresh = [
            {key: value for key, value in group.items() if key not in ("params", "lr")}
            for group in self.optimizer.param_groups
        ]
        rates = list(self.lr_scheduler.base_lrs)
        super()._load_optimizer_and_scheduler(checkpoint)
        # The states of the weights are the checkpoint's; what is done with them is the recipe's.
        scheduler = self.lr_scheduler
        scheduler.base_lrs = rates
        for group, own, rate, share in zip(
            self.optimizer.param_groups, fresh, rates, scheduler.lr_lambdas, strict=True
        ):
            group.update(own, lr=rate * share(scheduler.last_epoch))
        scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def make_room_if_asked(self) -> None:
        """Between training and the final model; raises PreemptedError on every process or none."""
        if self._agreed():
            self._make_room()

    def _agreed(self) -> bool:
        """Was any process asked to stop?"""
        asked = preemption.received_signal() is not None
        if self.args.world_size > 1:
            # As small as an exchange can be, beside those that each step has anyway.
            flags = torch.tensor([float(asked)], device=self.args.device)
            asked = bool(self.accelerator.reduce(flags, reduction="sum").item())
        if asked:
            preemption.mark_received()
        return asked

    def _make_room(self) -> NoReturn:
        step = self.state.global_step
        how = f"checkpoint-{step} was there already"
        if self._saved != step:
            began = time.monotonic()
            self._save_checkpoint(self.model, trial=None)
            # Who leaves early takes the launcher along, while another still writes.
            self.accelerator.wait_for_everyone()
            how = f"saved checkpoint-{step} in {time.monotonic() - began:.1f} s"
        raise PreemptedError(
            f"pre-empted ({preemption.received_signal()}) at step {step}: {how}; "
            "the same command goes on from there"
        )


@contextmanager
def _for_oneself() -> Iterator[None]:
    """What a resume trusts, nobody else may have written; see trust.py."""
    before = os.umask(_OTHERS_MAY_WRITE)
    os.umask(before | _OTHERS_MAY_WRITE)
    try:
        yield
    finally:
        os.umask(before)
