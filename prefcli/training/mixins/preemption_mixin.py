"""Preemption: save a checkpoint at the end of the current step, then exit.

transformers' `enable_jit_checkpoint` only ends the training loop, so the code after it would save
the partly trained model as the final one.
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
from prefcli.checkpoints.completeness import owes_evaluation
from prefcli.console import say
from prefcli.errors import InterruptedRunError, PreemptedError
from prefcli.model.inference import eval_mode_preserving_rng
from prefcli.training.mixins.context import TrainerContext

_OTHERS_MAY_WRITE = 0o022


class PreemptionMixin(TransformersTrainer):  # type: ignore[misc]  # transformers is untyped
    """A trl trainer that can stop after any step and resume bit for bit.

    All processes stop at the same step, whichever of them received the signal. An interrupted
    evaluation is made up on resume: the trainer state in the checkpoint records it.

    Not a callback: a callback cannot leave the loop without transformers' final evaluation, nor
    interrupt an evaluation, nor act before the first step of a resumed epoch.
    """

    context: TrainerContext
    _saved: int = -1
    """Step of the newest checkpoint."""
    _resumed_from: str | None = None

    def _init_training_state(
        self, max_steps: int, an_epoch: int, epochs: int, checkpoint: str | None, trial: Any
    ) -> Any:
        where = super()._init_training_state(max_steps, an_epoch, epochs, checkpoint, trial)
        # The checkpoint's state holds its own logging_steps, eval_steps and save_steps.
        self.state.compute_steps(self.args, max_steps)
        if checkpoint is not None:
            self._resumed_from, self._saved = checkpoint, self.state.global_step
        return where

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._defer_signals()
        if self._is_over or self.control.should_training_stop:
            # transformers would train one step too many.
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # A run resumed at the end of its last epoch runs no epoch.
        self._defer_signals()
        return super()._finalize_training(*args, **kwargs)

    def _defer_signals(self) -> None:
        """Handle signals between steps from here on, after an interrupted evaluation."""
        if preemption.are_deferred():
            return
        # On all processes: one that trains would wait for one that has exited.
        if self._any_received():
            raise preemption.Stop
        preemption.defer_signals()
        self._run_interrupted_evaluation()

    def _run_interrupted_evaluation(self) -> None:
        """Run the evaluation that preemption interrupted, at its own step."""
        if self._resumed_from is None or not owes_evaluation(self._resumed_from):
            return
        say(f"running the evaluation of step {self.state.global_step} that was interrupted")
        metrics = self.evaluate()
        if self._determine_best_metric(metrics, trial=None):
            self.state.best_model_checkpoint = self._resumed_from

    @property
    def _is_over(self) -> bool:
        """Return whether the last step was trained before this process started."""
        stopped = any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )
        return stopped or self.state.global_step >= self.state.max_steps

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        control, due = self.control, self.control.should_evaluate
        pauses = due or control.should_save
        if self._any_received():
            control.should_evaluate = control.should_save = False
            # No checkpoint holds the sums since the last row of metrics.
            control.should_log = True
            super()._maybe_log_save_evaluate(*args, **kwargs)
            self.control.should_evaluate = due
            self._save_and_exit()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if pauses and self._any_received():
            # At this step, not the next one: sampling may have been interrupted.
            self._save_and_exit()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate without changing the random numbers that training draws afterwards."""
        try:
            with eval_mode_preserving_rng(self.model):
                metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        except preemption.BreakOff:
            self.control.should_evaluate = True
            self._save_and_exit()
        return metrics

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        if preemption.are_deferred() and self._any_received():
            raise preemption.BreakOff
        return super().prediction_step(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with _not_writable_by_others():
            super()._save_checkpoint(*args, **kwargs)
        self._saved = self.state.global_step

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.context.recipe_overrides_checkpoint:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        fresh = [
            {key: value for key, value in group.items() if key not in ("params", "lr")}
            for group in self.optimizer.param_groups
        ]
        rates = list(self.lr_scheduler.base_lrs)
        super()._load_optimizer_and_scheduler(checkpoint)
        # States come from the checkpoint, settings from the recipe.
        scheduler = self.lr_scheduler
        scheduler.base_lrs = rates
        for group, own, rate, share in zip(
            self.optimizer.param_groups, fresh, rates, scheduler.lr_lambdas, strict=True
        ):
            group.update(own, lr=rate * share(scheduler.last_epoch))
        scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def exit_if_preempted(self) -> None:
        """Raise PreemptedError on every process if one received a signal; for after training."""
        if self._any_received():
            self._save_and_exit()

    def _any_received(self) -> bool:
        """Return whether any process received a signal."""
        received = preemption.received_signal() is not None
        if self.args.world_size > 1:
            # One number; each step exchanges far more.
            flags = torch.tensor([float(received)], device=self.args.device)
            received = bool(self.accelerator.reduce(flags, reduction="sum").item())
        if received:
            preemption.mark_received()
        return received

    def save_here(self) -> str:
        """Save a checkpoint of the last step unless there is one, and report which on a line."""
        step = self.state.global_step
        if self._saved == step:
            return f"checkpoint-{step} already existed"
        began = time.monotonic()
        self._save_checkpoint(self.model, trial=None)
        # A process that exits early may end the launcher while another still writes.
        self.accelerator.wait_for_everyone()
        return f"saved checkpoint-{step} in {time.monotonic() - began:.1f} s"

    def _save_and_exit(self) -> NoReturn:
        step, how = self.state.global_step, self.save_here()
        if preemption.received_signal() == preemption.INTERRUPT:
            raise InterruptedRunError(
                f"interrupted at step {step}: {how}",
                hint="rerun the same command to resume from it",
                code="TRN069",
            )
        raise PreemptedError(
            f"preempted ({preemption.received_signal()}) at step {step}: {how}",
            hint="rerun the same command to resume from it",
            code="TRN064",
        )


@contextmanager
def _not_writable_by_others() -> Iterator[None]:
    """Save checkpoints without write permission for others, which a resume requires."""
    before = os.umask(_OTHERS_MAY_WRITE)
    os.umask(before | _OTHERS_MAY_WRITE)
    try:
        yield
    finally:
        os.umask(before)
