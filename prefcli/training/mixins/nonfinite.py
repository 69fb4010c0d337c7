"""Stop at the first non-finite number, before it reaches the weights, and name its rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer as TransformersTrainer

from prefcli.data import Split
from prefcli.errors import DivergedError, Problem

_ROWS_SHOWN = 8
_MOST_SKIPPED = 30
_LOG_PROBABILITIES = ("logps/", "rewards/")


class NonfiniteMixin(TransformersTrainer):  # type: ignore[misc]  # transformers is untyped
    """trl's trainer, with every micro-batch and every gradient checked.

    trl's own figures go through `.item()` in each micro-batch, so one more look costs nothing.
    """

    rows_of: Split
    """Where the rows of the train dataset came from, in its order."""
    _watched: bool = False
    _log_probability: torch.Tensor = torch.tensor(0.0)
    """Sum of the last batch's, as trl's forward gave them."""
    _skipped: int = 0
    """Steps in a row that float16's scaling has skipped."""
    _recent: tuple[int, list[Mapping[str, torch.Tensor]]] = (-1, [])

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        self._remember(inputs)
        if not self._watched:
            self._watched = True
            self.model.register_forward_hook(self._see)
        result = super().compute_loss(model, inputs, return_outputs, **kwargs)
        loss = result[0] if return_outputs else result
        looked_at = {"the loss": loss, "a log-probability": self._log_probability}
        self.must_be_finite(looked_at, lambda: self._places([inputs]))
        for name, value in self._last_figures():
            # A loss can stay finite where a log-probability does not: sigmoid(inf) is 1.
            if not math.isfinite(value):
                self._stop(f"{name} is {value}", self._places([inputs]))
        return result

    def must_be_finite(
        self, values: Mapping[str, torch.Tensor], places: Callable[[], list[str]]
    ) -> None:
        """Raise DivergedError on every process if a value of any of them is not."""
        mine = [float(value.detach()) for value in values.values()]
        of_all = self.accelerator.gather(torch.tensor([mine], device=self.args.device))
        for what, own, column in zip(values, mine, of_all.T.tolist(), strict=True):
            lost = [value for value in column if not math.isfinite(value)]
            if lost:
                self._stop(f"{what} is {lost[0]}", [] if math.isfinite(own) else places())

    def _see(self, module: Any, args: Any, output: Any) -> None:
        """KTO's figures leave out what is not a number, so it is looked for where it arises."""
        scores = getattr(output, "log_probs", None)
        if scores is not None and torch.is_grad_enabled():
            self._log_probability = scores.detach().sum()

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Before the optimizer's step; under DeepSpeed, whose engine steps by itself, after it."""
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is None or math.isfinite(float(norm)):
            self._skipped = 0
            return norm
        self._skipped += 1
        # float16's loss scaling overflows now and then by design, and skips that step.
        if not self.args.fp16 or self._skipped > _MOST_SKIPPED:
            self._stop(f"the gradient's norm is {float(norm)}", self._places(self._recent[1]))
        return norm

    def _remember(self, inputs: Mapping[str, Any]) -> None:
        step, batches = self._recent
        if step != self.state.global_step:
            step, batches = self.state.global_step, []
        batches.append({k: v for k, v in inputs.items() if k in _IDS or k in _MASKS})
        self._recent = (step, batches)

    def _last_figures(self) -> list[tuple[str, float]]:
        """What trl has just added to its metrics; gathered, so the same on every process."""
        stored = getattr(self, "_metrics", None) or getattr(self, "_stored_metrics", {})
        return [
            (name, float(values[-1]))
            for name, values in stored.get("train", {}).items()
            if name.startswith(_LOG_PROBABILITIES) and values
        ]

    def _stop(self, what: str, places: list[str]) -> None:
        """Raise on every process at once, with the rows that any of them saw."""
        places = list(dict.fromkeys(gather_object(places)))
        shown = ", ".join(places[:_ROWS_SHOWN])
        more = f" and {len(places) - _ROWS_SHOWN} more" if len(places) > _ROWS_SHOWN else ""
        rows = f"; rows of the batch: {shown}{more}" if places else ""
        raise DivergedError(
            Problem(
                f"{what} at step {self.state.global_step + 1}{rows}",
                path="training.learning_rate",
                hint="lower it, or look for broken rows among these; no final model was written",
            )
        )

    def _places(self, batches: list[Mapping[str, torch.Tensor]]) -> list[str]:
        """File and row of each row in the batches, found again by its tokens."""
        wanted: Counter[tuple[int, ...]] = Counter()
        for batch in batches:
            sequences = _sequences(batch)
            # DPO's collator puts all chosen sides before all rejected ones.
            paired = "chosen_ids" in self.train_dataset.column_names
            wanted.update(sequences[: len(sequences) // 2] if paired else sequences)
        found = []
        for i, row in enumerate(self.train_dataset):
            sequence = tuple(sequence_of(row)[: self.args.max_length])
            if wanted[sequence] > 0:
                wanted[sequence] -= 1
                found.append(self.rows_of.place(i))
        return found


# Of DPO, KTO and SFT, and of ORPO and CPO.
_IDS = ("input_ids", "chosen_input_ids")
_MASKS = ("attention_mask", "chosen_attention_mask")


def _sequences(batch: Mapping[str, torch.Tensor]) -> list[tuple[int, ...]]:
    """Token ids of a batch without padding."""
    for ids, mask in zip(_IDS, _MASKS, strict=True):
        if ids in batch and mask in batch:
            rows = zip(batch[ids], batch[mask], strict=True)
            return [tuple(row[keep.bool()].tolist()) for row, keep in rows]
    return []  # packed: no row is left to be told from another


def sequence_of(row: Mapping[str, Any]) -> list[int]:
    """The (chosen) sequence of a row as trl has prepared it."""
    for whole in ("chosen_input_ids", "input_ids"):
        if whole in row:
            sequence: list[int] = row[whole]
            return sequence
    response: list[int] = row["chosen_ids"] if "chosen_ids" in row else row["completion_ids"]
    return list(row["prompt_ids"]) + response
