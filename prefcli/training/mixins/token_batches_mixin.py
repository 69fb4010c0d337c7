"""Optimizer steps whose micro-batches are filled up to a number of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from prefcli.training.mixins.deferred_metrics import read_metrics
from prefcli.training.mixins.packed_collation import PackedCollationMixin
from prefcli.training.token_batches import (
    MicroBatchDataset,
    TokenBatchSampler,
    TokenBudget,
    micro_batch_weights,
    packed_lengths,
)


class TokenBatchesMixin(PackedCollationMixin):
    """A trl trainer whose batch is a list: the micro-batches of a step.

    transformers takes each step for one batch, so its count of steps and its resume need no
    change. `training_step` accumulates the gradients.
    """

    _sampler: TokenBatchSampler
    _log_weights: list[int]
    """Weight of each micro-batch in the averages of trl's metrics, since the last logging step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._log_weights = []

    @property
    def _budget(self) -> TokenBudget:
        assert self.context.token_budget is not None
        return self.context.token_budget

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return a loader of steps, over the rows in the order of trl's own loader."""
        rows: Any = super().get_train_dataloader()
        sampler = getattr(rows.batch_sampler, "batch_sampler", rows.batch_sampler).sampler
        adapter = self.context.method.trainer
        self._sampler = TokenBatchSampler(
            sampler,
            packed_lengths(rows.dataset, adapter, self.args.max_length),
            self._budget,
            micro_batch=self.args.per_device_train_batch_size,
            process=self.args.process_index,
            processes=self.args.world_size,
        )
        steps = DataLoader(
            MicroBatchDataset(rows.dataset),
            batch_sampler=self._sampler,
            collate_fn=self._collate,
            num_workers=rows.num_workers,
            pin_memory=rows.pin_memory,
        )
        # The sampler is already that of this process.
        loader: DataLoader[Any] = prepare_data_loader(
            steps,
            device=rows.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            non_blocking=self.accelerator.non_blocking,
        )
        return loader

    def _collate(self, micro_batches: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        return [self.collate(rows) for rows in micro_batches]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        micro_batches = next(epoch_iterator)
        _, items = super().get_batch_samples(iter(micro_batches), len(micro_batches), device)
        return [micro_batches], items

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Accumulate the gradients of a step; return its loss."""
        sizes = [self.context.method.trainer.row_count(batch) for batch in inputs]
        weights = micro_batch_weights(sizes, self.args.per_device_train_batch_size)
        self._log_weights += weights
        losses = []
        for number, (batch, weight) in enumerate(zip(inputs, weights, strict=True), start=1):
            # transformers divides the mean over the rows by this number.
            self.current_gradient_accumulation_steps = sum(weights) / weight
            # As in transformers' own loop: DistributedMixin has FSDP reduce every micro-batch.
            sync_all = self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
            last = number == len(inputs)
            with nullcontext() if sync_all or last else self.accelerator.no_sync(model=model):
                losses.append(super().training_step(model, batch, num_items_in_batch))
        return torch.stack(losses).sum()

    def _maybe_log_save_evaluate(
        self,
        tr_loss: Any,
        grad_norm: Any,
        model: Any,
        trial: Any,
        epoch: int,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Count the epoch in micro-batches with a fixed number of rows, as without this class."""
        total = self._sampler.micro_batches
        trained = self.state.global_step - epoch * len(self._sampler)
        done = trained * self._budget.accumulation
        self.state.epoch = epoch + min(done, total) / total
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, epoch, *args, **kwargs)

    def floating_point_ops(self, inputs: Any) -> int:
        return sum(super(TokenBatchesMixin, self).floating_point_ops(batch) for batch in inputs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Average trl's metrics of micro-batches over rows."""
        if "loss" in logs and self._log_weights:
            logged = self.context.method.trainer.logged_metrics(self)["train"]
            read_metrics(logged)
            weights, self._log_weights = self._log_weights, []
            for name, values in logged.items():
                if len(values) == len(weights):
                    total = sum(float(v) * w for v, w in zip(values, weights, strict=True))
                    logged[name] = [total / sum(weights)]
        super().log(logs, *args, **kwargs)
