"""SFT demonstrations mixed into the preference rows of each optimizer step.

With P preference rows and S demonstrations in a step, the loss is

    L = L_preference + weight * (S / P) * NLL,

where NLL is the mean over all response tokens of the step's demonstrations. At weight 1 a
demonstration counts as much as a preference row. The preference rows, their order and their batches
are those of a run without sft_mix.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from prefcli.data import Split, tokenize
from prefcli.methods.trainers.base import IGNORED
from prefcli.training.mixins.nonfinite import NonfiniteMixin
from prefcli.trl_integration.trl_args import repeated_rows

_ZERO = torch.zeros((), dtype=torch.float64)

_Row = tuple[list[int], int]
"""Token ids, and the position of the response's first token."""


@dataclass(frozen=True)
class Schedule:
    """The demonstrations of each micro-batch. It depends on the step only, so a resumed run, or one
    with more processes and less accumulation, sees the same ones."""

    fraction: float
    rows: int
    """Preference rows per epoch."""
    micro_batch: int
    """Preference rows of a micro-batch, over all processes."""
    accumulation: int

    @property
    def _batches(self) -> int:
        return math.ceil(self.rows / self.micro_batch)

    @property
    def _steps(self) -> int:
        return math.ceil(self._batches / self.accumulation)

    def first_batch(self, step: int) -> int:
        """Return the number of a step's first micro-batch, counted from the start of the run."""
        epoch, inside = divmod(step, self._steps)
        return epoch * self._batches + inside * self.accumulation

    def end_batch(self, step: int) -> int:
        """Return the number of the first micro-batch after those of a step."""
        epoch, inside = divmod(step, self._steps)
        return epoch * self._batches + min((inside + 1) * self.accumulation, self._batches)

    def preference_rows(self, batch: int) -> int:
        """Count the preference rows before a micro-batch."""
        epoch, inside = divmod(batch, self._batches)
        return epoch * self.rows + min(inside * self.micro_batch, self.rows)

    def demonstrations(self, batch: int) -> int:
        """Count the demonstrations before a micro-batch: fraction / (1 - fraction) per row."""
        return int(self.preference_rows(batch) * self.fraction / (1 - self.fraction))


@dataclass
class Demonstrations:
    """An endless stream of demonstrations, shuffled again for each pass."""

    split: Split
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    seed: int
    _orders: dict[int, list[int]] = field(default_factory=dict)

    def index(self, position: int) -> int:
        """Return the row of the split at a position of the stream."""
        epoch, offset = divmod(position, len(self.split.rows))
        if epoch not in self._orders:
            self._orders.clear()
            order = list(range(len(self.split.rows)))
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            self._orders[epoch] = order
        return self._orders[epoch][offset]

    def take(self, positions: Iterable[int]) -> list[_Row]:
        """Tokenize the rows at these positions, cut at max_length."""
        rows = []
        for position in positions:
            ids = tokenize(self.split.rows[self.index(position)], self.tokenizer)
            text = (ids["prompt_ids"] + ids["completion_ids"])[: self.max_length]
            # The first token of a text has no context to be predicted from.
            rows.append((text, max(len(ids["prompt_ids"]), 1)))
        return rows

    def place(self, position: int) -> str:
        return self.split.place(self.index(position))


@dataclass
class _Step:
    """One optimizer step; equal on every process."""

    number: int
    first_batch: int
    micro_batches: int
    rows: dict[int, _Row]
    """Demonstrations by their position in the stream."""
    preference_rows: int
    done: int = 0
    """Micro-batches that this process has finished."""

    @property
    def tokens(self) -> int:
        """Count the response tokens of all demonstrations."""
        return sum(len(ids) - start for ids, start in self.rows.values())


@dataclass(frozen=True)
class SftMixture:
    """Demonstrations to mix in, their share of the rows and their weight in the loss."""

    stream: Demonstrations
    fraction: float
    weight: float


class SftMixMixin(NonfiniteMixin):
    """Adds demonstrations to the loss of a trl trainer of preferences."""

    _mix_step: _Step | None = None
    _micro_batches: int = 1
    """Micro-batches of the step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        mixture = self.context.sft_mix
        assert mixture is not None
        self.stream, self.weight = mixture.stream, mixture.weight
        self._window = _Window()
        self.schedule = self._make_schedule(mixture.fraction)

    def _make_schedule(self, fraction: float) -> Schedule:
        args, budget = self.args, self.context.token_budget
        micro_batch = args.per_device_train_batch_size * args.world_size
        rows = len(self.train_dataset)
        return Schedule(
            fraction=fraction,
            rows=rows + repeated_rows(rows, micro_batch, args.world_size),
            micro_batch=micro_batch,
            accumulation=args.gradient_accumulation_steps
            if budget is None
            else budget.accumulation,
        )

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._micro_batches = len(batches)
        return batches, items

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        number = self.state.global_step
        if self._mix_step is None or self._mix_step.number != number:
            self._mix_step = self._begin(number)
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self._mix_step.done += 1
        return loss

    def _begin(self, number: int) -> _Step:
        """Take all rows of the step, since each micro-batch is normalized by all their tokens."""
        schedule = self.schedule
        first = schedule.first_batch(number)
        end = schedule.end_batch(number)
        positions = range(schedule.demonstrations(first), schedule.demonstrations(end))
        step = _Step(
            number=number,
            first_batch=first,
            micro_batches=self._micro_batches,
            rows=dict(zip(positions, self.stream.take(positions), strict=True)),
            preference_rows=schedule.preference_rows(end) - schedule.preference_rows(first),
        )
        self._window.add_step(step)
        return step

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        loss = super().compute_loss(model, inputs, return_outputs, **kwargs)
        step = self._mix_step
        if not self.model.training or step is None or return_outputs:
            return loss  # evaluations have preference rows only
        of_step = loss.detach().double() / self.current_gradient_accumulation_steps
        self._window.preference_loss = self._window.preference_loss + of_step
        positions = self._positions(step)
        if not positions or not step.tokens:
            return loss
        nll = self._nll(model, step, positions)
        self.must_be_finite(
            {"the loss of the demonstrations (sft_mix)": nll},
            lambda: [self.stream.place(position) for position in positions],
        )
        self._window.nll = self._window.nll + nll.detach().double()
        # trl divides by the micro-batches, and gradients are averaged over processes.
        slots = self.current_gradient_accumulation_steps * self.args.world_size
        share = len(step.rows) / step.preference_rows
        return loss + self.weight * share * slots * nll / step.tokens

    def _positions(self, step: _Step) -> range:
        """Return the positions in the stream of the current micro-batch's demonstrations."""
        budget = self.context.token_budget
        if budget is None or budget.tokens is None:
            batch = step.first_batch + step.done
            bounds = (self.schedule.demonstrations(at) for at in (batch, batch + 1))
        else:
            start, count = min(step.rows, default=0), len(step.rows)
            shares = (step.done, step.done + 1)
            bounds = (start + count * share // step.micro_batches for share in shares)
        return range(*bounds)

    def _nll(self, model: Any, step: _Step, positions: range) -> torch.Tensor:
        """Sum over the response tokens of this process's share of the demonstrations."""
        own = positions[self.args.process_index :: self.args.world_size]
        # Every process must run the model equally often: sharded weights wait for all of them.
        rows = [step.rows[position] for position in own or positions[:1]]
        longest = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), longest), self.processing_class.pad_token_id)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORED)
        for i, (tokens, start) in enumerate(rows):
            ids[i, : len(tokens)] = torch.tensor(tokens)
            mask[i, : len(tokens)] = 1
            if own:
                labels[i, start : len(tokens)] = ids[i, start : len(tokens)]
        device, packed = self.args.device, self.context.packed_forward
        layout = {}
        if packed is not None and packed.is_in_use:
            layout = packed.collated(ids, mask, labels)
        output = model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            labels=labels.to(device),
            use_cache=False,
            fused_lm_head=True,
            **layout,
        )
        log_probs: torch.Tensor = output.log_probs
        return -log_probs.sum()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            window = (self._window.nll, self._window.preference_loss)
            sums = torch.stack([value.to(self.args.device) for value in window]).float()
            nll, preference = self.accelerator.reduce(sums, reduction="sum").tolist()
            logs |= self._window.metrics(nll, preference / self.args.world_size)
            self._window = _Window()
        super().log(logs, *args, **kwargs)


@dataclass
class _Window:
    """Sums since the last logging step; `nll` and `preference_loss` are of this process only, and
    on its device."""

    steps: int = 0
    demonstrations: int = 0
    tokens: int = 0
    preference_rows: int = 0
    nll: torch.Tensor = _ZERO
    preference_loss: torch.Tensor = _ZERO

    def add_step(self, step: _Step) -> None:
        self.steps += 1
        self.demonstrations += len(step.rows)
        self.tokens += step.tokens
        self.preference_rows += step.preference_rows

    def metrics(self, nll: float, preference_loss: float) -> dict[str, float]:
        """Compute the metrics to log; the SFT loss only if the window has demonstrations."""
        if not self.steps:
            return {}
        examples = self.demonstrations + self.preference_rows
        metrics = {
            "preference_loss": preference_loss / self.steps,
            "sft_mix/fraction": self.demonstrations / examples,
        }
        if self.tokens:
            mean = nll / self.tokens
            metrics["sft_mix/loss"] = mean
            metrics["sft_mix/perplexity"] = math.exp(mean) if mean < 700 else math.inf
        return metrics
