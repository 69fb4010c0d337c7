"""Stop at the first non-finite number, before it reaches the weights, and name its rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer as TransformersTrainer

from prefcli.errors import DivergedError, Problem
from prefcli.training.mixins.context import TrainerContext

_MAX_ROWS_SHOWN = 8
_MAX_SKIPPED_STEPS = 30
_LOG_PROBABILITIES = ("logps/", "rewards/")


@dataclass(frozen=True)
class _Unchecked:
    """Numbers of a micro-batch that are still on the device."""

    names: tuple[str, ...]
    values: torch.Tensor
    places: Callable[[], list[str]]
    """Finds the rows of the micro-batch."""


_Rows = tuple[torch.Tensor, torch.Tensor]
"""input_ids and attention_mask of a micro-batch."""


class NonfiniteMixin(TransformersTrainer):  # type: ignore[misc]  # transformers is untyped
    """Checks the loss of every micro-batch and every gradient of a trl trainer.

    They are read once per step, before the optimizer uses the gradient: a read waits for a GPU.
    Not a callback: callbacks see neither the losses nor the gradient's norm before that step.
    """

    context: TrainerContext
    _log_probability: torch.Tensor = torch.tensor(0.0)
    """Sum of the last batch's log-probabilities, from the model's forward."""
    _has_forward_hook: bool = False
    _unchecked: tuple[_Unchecked, ...] = ()
    _skipped_steps: int = 0
    """Consecutive steps that float16's loss scaling has skipped."""
    _recent: tuple[int, list[_Rows]] = (-1, [])
    """Step, and the rows of its micro-batches."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        rows = self.context.method.trainer.ids_and_mask(inputs)
        batches = [] if rows is None else [rows]
        self._remember(batches)
        if not self._has_forward_hook:
            self._has_forward_hook = True
            self.model.register_forward_hook(self._keep_log_probability)
        result = super().compute_loss(model, inputs, return_outputs, **kwargs)
        loss = result[0] if return_outputs else result
        values = {"the loss": loss, "a log-probability": self._log_probability}
        # A loss can be finite where a log-probability is not: sigmoid(inf) is 1.
        values |= self._last_metrics()
        self.must_be_finite(values, lambda: self._places(batches))
        return result

    def must_be_finite(
        self, values: Mapping[str, torch.Tensor], places: Callable[[], list[str]]
    ) -> None:
        """Have values checked before the optimizer step.

        places: finds the rows that they are from.
        """
        device = self.args.device
        own = torch.stack([value.detach().to(device).float() for value in values.values()])
        own = own.as_subclass(torch.Tensor)
        self._unchecked = (*self._unchecked, _Unchecked(tuple(values), own, places))
        if self.is_deepspeed_enabled:  # it takes the optimizer step in the backward pass
            self.check_values()

    def check_values(self) -> None:
        """Raise DivergedError on every process if a value is not finite on any of them."""
        unchecked, self._unchecked = self._unchecked, ()
        if not unchecked:
            return
        own = torch.cat([batch.values for batch in unchecked])
        of_all = self.accelerator.gather(own[None]).tolist()  # one wait for the device
        origins = [(name, batch.places) for batch in unchecked for name in batch.names]
        for (name, places), *column in zip(origins, *of_all, strict=True):
            bad = [value for value in column if not math.isfinite(value)]
            if bad:
                mine = column[self.args.process_index]
                self._stop(f"{name} is {bad[0]}", [] if math.isfinite(mine) else places())

    def _keep_log_probability(self, module: Any, args: Any, output: Any) -> None:
        """KTO's metrics skip NaN, so the forward's own result is checked."""
        log_probs = getattr(output, "log_probs", None)
        if log_probs is not None and torch.is_grad_enabled():
            self._log_probability = log_probs.detach().sum()

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Check the norm before the optimizer step; DeepSpeed has stepped by then."""
        self.check_values()
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is None or math.isfinite(float(norm)):
            self._skipped_steps = 0
            return norm
        self._skipped_steps += 1
        # float16's loss scaling overflows occasionally by design, and skips that step.
        if not self.args.fp16 or self._skipped_steps > _MAX_SKIPPED_STEPS:
            self._stop(f"the gradient norm is {float(norm)}", self._places(self._recent[1]))
        return norm

    def _cure(self) -> tuple[str, str]:
        """Return the key and the hint that fit what was seen before."""
        if self._skipped_steps > _MAX_SKIPPED_STEPS:
            return "model.dtype", (
                f"write bfloat16 or float32: float16 overflowed in {self._skipped_steps} steps in "
                "a row, although its scale was lowered each time"
            )
        if self.state.global_step == 0:
            return "data.train", (
                "check these rows and the starting weights: no step has changed the weights yet, "
                "so the learning rate is not the cause"
            )
        norms = [row["grad_norm"] for row in self.state.log_history if "grad_norm" in row]
        last = f" (the last gradient norm in the log is {norms[-1]:.3g})" if norms else ""
        return "training.learning_rate", f"lower it{last}, or check these rows"

    def _remember(self, batches: list[_Rows]) -> None:
        step, recent = self._recent
        if step != self.state.global_step:
            step, recent = self.state.global_step, []
        self._recent = (step, [*recent, *batches])

    def _last_metrics(self) -> dict[str, torch.Tensor]:
        """Return what trl has just added to its metrics; gathered, so equal on all processes."""
        logged = self.context.method.trainer.logged_metrics(self)
        return {
            name: torch.as_tensor(values[-1])
            for name, values in logged.get("train", {}).items()
            if name.startswith(_LOG_PROBABILITIES) and values
        }

    def _stop(self, what: str, places: list[str]) -> None:
        """Raise on every process at once, with the rows of all of them."""
        places = list(dict.fromkeys(gather_object(places)))
        shown = ", ".join(places[:_MAX_ROWS_SHOWN])
        hidden = len(places) - _MAX_ROWS_SHOWN
        rows = f"; rows of the batch: {shown}" if places else ""
        rows += f" and {hidden} more" if hidden > 0 else ""
        path, hint = self._cure()
        raise DivergedError(
            Problem(
                f"{what} at step {self.state.global_step + 1}{rows}",
                path=path,
                hint=f"{hint}; no final model was written",
                code="TRN063",
            )
        )

    def _places(self, batches: list[_Rows]) -> list[str]:
        """Find file and row of each row in the batches by its tokens."""
        if self.context.train is None:
            return []
        remaining = Counter(
            tuple(ids[mask.bool()].tolist())
            for batch in batches
            for ids, mask in zip(*batch, strict=True)
        )
        places = []
        for i, row in enumerate(self.train_dataset):
            ids = tuple(self.context.method.trainer.row_ids(row)[: self.args.max_length])
            if remaining[ids] > 0:
                remaining[ids] -= 1
                places.append(self.context.train.place(i))
        return places
