"""Metrics that trl lacks: log-probabilities per token, token counts, and pairs split by which side
is longer. Metrics of an evaluation are means over rows, however rows are batched."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader

from prefcli.errors import Problem, RecipeError
from prefcli.methods.trainers.base import IGNORED
from prefcli.metrics import EVAL_PREFIX, is_eval
from prefcli.model.device import peak_memory
from prefcli.training.eval_sampler import Batch, EvalBatches
from prefcli.training.mixins.deferred_metrics import read_metrics, reads_deferred
from prefcli.training.mixins.metric_sums import (
    SIDES,
    RowScores,
    Sums,
    count_responses,
    exact_metrics,
    labelled_scores,
    ld_weights,
    pair_scores,
    per_row,
    per_token_metrics,
    read_scores,
    sum_ends,
    sum_entropy,
    sum_labelled,
    sum_pairs,
    sum_text,
)
from prefcli.training.mixins.packed_collation import PackedCollationMixin
from prefcli.training.mixins.reference_kl import reference_kl

_BALANCING = 5
"""Place of the term that balances experts in the results of ORPO's and CPO's forward pass."""


@dataclass
class _Evaluation:
    """The current evaluation on this process."""

    batches: list[Batch]
    losses: list[torch.Tensor] = field(default_factory=list)
    at: int = -1
    rows: list[int] = field(default_factory=list)
    """Indices of the rows in `scores`."""
    scores: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    """Values of the rows that this process counts, by name."""

    def is_counted_elsewhere(self, process: int) -> bool:
        """Return whether the main process counts the rows of the current batch."""
        return self.batches[self.at].shared and process != 0


class MetricsMixin(PackedCollationMixin):
    """A trl trainer that sums its rows on the device and reads the sums when it logs.

    The sums of an evaluation are separate.
    """

    clock: Callable[[], float] = staticmethod(time.perf_counter)
    """Seconds from an arbitrary start."""
    _passes: list[Any] | None = None
    """Outputs of the model and the reference for the current batch, in trl's order."""
    _hooked: bool = False
    _trained: Sums | None = None
    _evaluated: Sums | None = None
    _eval_sources: Sequence[Callable[[], Mapping[str, float]]] = ()
    _row_readers: Sequence[Callable[[int, list[RowScores]], None]] = ()
    _stop_ids: torch.Tensor | None = None
    """Ids of the stop tokens, on the device."""
    _since: float | None = None
    """Time of the last logging step, or of the first step, plus the time spent outside steps."""
    _eval: _Evaluation | None = None
    """The current evaluation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # trl gathers one sum per process. In the last batch of an epoch accelerate would take these
        # for rows, and drop those of the last processes.
        self.accelerator.gather_for_metrics = self.accelerator.gather

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._since is None:
            self._since = self.clock()
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        return loss

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Exclude evaluations and checkpoints from the time of the steps."""
        pauses = self.control.should_evaluate or self.control.should_save
        if pauses and self.args.device.type == "cuda":
            torch.cuda.synchronize()  # queued work belongs to the steps
        began = self.clock()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if pauses and self._since is not None:
            self._since += self.clock() - max(self._since, began)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        self._register_hooks()
        self._passes = []
        deferred = self.model.training and self.context.defers_reads
        with reads_deferred(self.accelerator) if deferred else nullcontext():
            result = super().compute_loss(model, inputs, return_outputs, **kwargs)
        if deferred:
            result = result.as_subclass(torch.Tensor)  # kto's loss has a gathered term
        if self._passes:
            self._add(self._sum_batch(inputs, self._passes))
        self._passes = None
        if self.model.training:
            self._add({"seen_tokens": self._count_tokens(inputs)})
        return result

    def concatenated_forward(self, model: Any, batch: Any) -> tuple[Any, ...]:
        """Sum the pairs that ORPO and CPO score here; the first two results are log-probs."""
        self._register_hooks()
        self._passes = []
        results: tuple[Any, ...] = super().concatenated_forward(model, batch)
        for output in self._passes[:1]:
            labels = batch["chosen_labels"]
            self._add_ends(_label_log_probs(output, labels), labels)
        method = self.context.method
        scores = [side.detach().float() for side in results[:2]]
        tokens = [(batch[f"{side}_labels"][:, 1:] != IGNORED).sum(1) for side in SIDES]
        logps = scores
        if not method.reward_is_sum:
            logps = [mean * count for mean, count in zip(scores, tokens, strict=True)]
        rewards = [method.reward_scale * method.transform_scores(side) for side in scores]
        self._keep_rows(pair_scores(tokens, rewards))
        self._add(sum_pairs(logps, tokens, rewards))
        if len(results) > _BALANCING:
            mode = "train" if self.model.training else "eval"
            self._logged[mode]["aux_loss"].append(float(results[_BALANCING]))
        self._passes = None  # these are summed now
        return results

    def _add_ends(
        self,
        log_probs: torch.Tensor,
        labels: torch.Tensor,
        rows: torch.Tensor | slice = slice(None),
        *,
        packs: bool = False,
    ) -> None:
        """Add up the ends of chosen or demonstrated responses of held-out rows."""
        if self.model.training or not self.context.stop_ids:
            return
        if self._stop_ids is None:
            self._stop_ids = torch.tensor(sorted(self.context.stop_ids), device=labels.device)
        length = labels.size(1) - 1
        self._add(sum_ends(log_probs[rows, :length], labels[rows], self._stop_ids, packs=packs))

    def _sum_batch(self, inputs: Mapping[str, torch.Tensor], passes: list[Any]) -> Sums:
        kind = self.context.method.trainer.batches
        if kind == "completions":
            return sum_entropy(passes[0])  # RolloutsMixin measures them when they are sampled
        if kind == "scored_pairs":
            scores = passes[0].logits.detach()[:, 0].float().chunk(2)
            counts = count_responses(inputs["input_ids"], inputs["attention_mask"])
            self._keep_rows(pair_scores(counts, scores))
            return sum_pairs(None, counts, scores)
        if kind == "text":
            packs = "attention_mask" not in inputs
            self._add_ends(passes[0].log_probs, inputs["labels"], packs=packs)
            return sum_text(passes[0])
        mask = inputs["completion_mask"]
        answers = inputs["label"].bool() if kind == "labelled" else slice(mask.size(0) // 2)
        labels = inputs["input_ids"].where(mask == 1, IGNORED)
        scored = mask[:, 1:]
        length, tokens = scored.size(1), scored.sum(1)
        if kind == "labelled":
            # trl scores the mismatched completions of the KL term before the rows themselves.
            passes = passes[1::2] if self.calculate_KL else passes
        self._add_ends(passes[0].log_probs[:, -length:], labels, answers)
        policy = per_row(passes[0], length)
        weights = ld_weights(scored, ld) if (ld := getattr(self, "ld_alpha", None)) else None
        weighted = per_row(passes[0], length, weights)
        reference = per_row(passes[1], length, weights) if len(passes) > 1 else _precomputed(inputs)
        rewards = self.context.method.reward_scale * (weighted - reference)
        if kind == "labelled":
            self._keep_rows(labelled_scores(tokens, rewards, inputs["label"]))
            return sum_labelled(policy, tokens, rewards, inputs["label"])
        self._keep_rows(pair_scores(tokens.chunk(2), rewards.chunk(2)))
        return sum_pairs(policy.chunk(2), tokens.chunk(2), rewards.chunk(2))

    def _register_hooks(self) -> None:
        """Keep the outputs of the models that exist at the first batch."""
        if not self._hooked:
            self._hooked = True
            for module in (self.model, getattr(self, "ref_model", None)):
                if module is not None:
                    module.register_forward_hook(self._keep_pass)

    def _keep_pass(self, module: Any, args: Any, output: Any) -> None:
        if self._passes is None:
            return
        # trl's own forward for ORPO and CPO returns logits, from which an evaluation takes some;
        # those of a reward model are the rewards.
        trainer = self.context.method.trainer
        takes_logits = (
            trainer.concatenates_forward and not self.model.training
        ) or trainer.batches == "scored_pairs"
        if takes_logits or getattr(output, "log_probs", None) is not None:
            self._passes.append(output)

    def _add(self, sums: Sums) -> None:
        if self._eval is not None and self._eval.is_counted_elsewhere(self.args.process_index):
            sums = {name: 0 * value for name, value in sums.items()}
        into = self._trained if self.model.training else self._evaluated
        into = into or {}
        for name, value in sums.items():
            into[name] = into[name] + value if name in into else value.detach()
        if self.model.training:
            self._trained = into
        else:
            self._evaluated = into

    def _keep_rows(self, scores: Mapping[str, torch.Tensor]) -> None:
        """Keep the values of the rows of an evaluation's batch on the device, if they are read."""
        evaluation, process = self._eval, self.args.process_index
        if evaluation is None or not self._row_readers or evaluation.is_counted_elsewhere(process):
            return
        evaluation.rows += evaluation.batches[evaluation.at].indices
        for name, values in scores.items():
            evaluation.scores.setdefault(name, []).append(values.detach())

    def _reduce(self, sums: Sums | None) -> dict[str, float]:
        """Add up the sums of all processes."""
        if not sums:
            return {}
        stacked = torch.stack([value.double().to(self.args.device) for value in sums.values()])
        total = self.accelerator.reduce(stacked, reduction="sum")
        return dict(zip(sums, total.tolist(), strict=True))

    def _reduce_mean(self, value: float) -> float:
        mine = torch.tensor(value, dtype=torch.float64, device=self.args.device)
        return float(self.accelerator.reduce(mine, reduction="mean"))

    def add_eval_metrics(self, source: Callable[[], Mapping[str, float]]) -> None:
        """Add a source of further metrics of evaluations.

        It is called on every process after an evaluation, before the metrics are logged.
        """
        self._eval_sources = [*self._eval_sources, source]

    def add_row_reader(self, reader: Callable[[int, list[RowScores]], None]) -> None:
        """Add a reader of the rows of evaluations.

        It is called on every process after an evaluation, with the step and the rows that this
        process counts.
        """
        self._row_readers = [*self._row_readers, reader]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        read_metrics(self._logged["train"])
        if is_eval(logs):
            for source in self._eval_sources:
                logs |= {f"{EVAL_PREFIX}{name}": value for name, value in source().items()}
        if "loss" in logs and self._trained:
            sums = self._reduce(self._trained)
            logs |= per_token_metrics(sums) | self._exact_metrics(sums)
            # Reading the sums has waited for all queued work on the device.
            now = self.clock()
            if self._since is not None and now > self._since:
                logs["tokens_per_second"] = sums["seen_tokens"] / (now - self._since)
            logs["memory_gib"] = peak_memory(self.args.device) / 2**30
            self._trained, self._since = None, now
        super().log(logs, *args, **kwargs)

    def _exact_metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Compute exact metrics of training rows, and remove trl's own of the same name."""
        metrics = exact_metrics(sums)
        metrics.pop("loss", None)  # the loss of a step is exact already
        for name in (*metrics, *self.context.method.trainer.duplicate_metrics):
            self._logged["train"].pop(name, None)
        return metrics

    @property
    def _logged(self) -> Any:
        return self.context.method.trainer.logged_metrics(self)

    def _count_tokens(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Count the tokens of a batch without padding."""
        masks = self.context.method.trainer.attention_masks(inputs)
        if not masks:
            return torch.tensor(inputs["input_ids"].numel())
        return torch.stack([mask.sum() for mask in masks]).sum()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return this process's batches, in which each row counts once; see eval_sampler.py."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        args = self.args
        batches = EvalBatches(
            len(dataset), args.eval_batch_size, args.process_index, args.world_size
        )
        return DataLoader(
            self._remove_unused_columns(dataset, description="Evaluation"),
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
        )

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self._eval is None:
            return super().prediction_step(model, inputs, *args, **kwargs)
        self._eval.at += 1
        result = super().prediction_step(model, self._prepare_inputs(inputs), *args, **kwargs)
        self._eval.losses.append(result[0].detach())
        return result

    def evaluation_loop(
        self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> Any:
        """Add trl's metrics, which it only logs, to those that `evaluate` returns."""
        self._evaluated = None
        self._eval = _Evaluation(dataloader.batch_sampler.batches)
        output = super().evaluation_loop(
            dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs
        )
        sums = self._reduce(self._evaluated)
        rows = [batch.rows for batch in self._eval.batches]
        loss = _mean(torch.stack(self._eval.losses).double().tolist(), rows)
        metrics = {"loss": self._reduce_mean(loss)} | self._weighted_metrics(rows)
        metrics |= per_token_metrics(sums) | exact_metrics(sums)
        if (divergence := reference_kl(self)) is not None:
            # The same number on all processes, since early stopping may use it.
            metrics["reference_kl"] = self._reduce_mean(divergence)
        output.metrics.update({f"{metric_key_prefix}_{k}": value for k, value in metrics.items()})
        if self._row_readers:
            scores = read_scores(self._eval.rows, self._eval.scores)
            for reader in self._row_readers:
                reader(self.state.global_step, scores)
        self._evaluated = self._eval = None
        best_by = self.args.metric_for_best_model
        if self.args.load_best_model_at_end and best_by not in output.metrics:
            measured = (name for name in output.metrics if name.startswith("eval_"))
            raise RecipeError(
                Problem(
                    f"this evaluation does not measure {best_by}",
                    path="training.early_stopping.metric",
                    hint=f"choose one of {', '.join(measured)}",
                    code="TRN061",
                )
            )
        return output

    def _weighted_metrics(self, rows: list[int]) -> dict[str, float]:
        """Average trl's metrics of batches, weighted by their rows, and remove them from trl."""
        logged = self._logged["eval"]
        metrics = {}
        for name in self.context.method.trainer.duplicate_metrics:
            logged.pop(name, None)
        for name, values in logged.items():
            weights = rows if len(values) == len(rows) else [1] * len(values)
            metrics[name.removeprefix("eval_")] = _mean(values, weights)
        logged.clear()
        return metrics


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)


def _label_log_probs(output: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return the log-probabilities of all labels but the first; output has at least their rows."""
    rows, length = labels.size(0), labels.size(1) - 1
    log_probs: torch.Tensor | None = getattr(output, "log_probs", None)
    if log_probs is not None:
        return log_probs[:rows, :length]
    targets = labels[:, 1:].clamp(min=0)
    logits: torch.Tensor = output.logits[:rows, :length]
    return logits.gather(2, targets[..., None]).squeeze(2) - logits.logsumexp(2)


def _precomputed(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the reference's log-probabilities from the columns of the batch."""
    if "ref_logps" in inputs:
        return inputs["ref_logps"]
    return torch.cat([inputs[f"ref_{side}_logps"] for side in SIDES])
