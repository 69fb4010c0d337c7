"""What trl's figures lack: log-probabilities per token, counts of tokens, and pairs apart by which
side is longer; and evaluations that are means over rows, however these are batched."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer as TransformersTrainer

from prefcli.errors import Problem, RecipeError
from prefcli.model.device import peak_memory
from prefcli.training.eval_sampler import Batch, EvalBatches
from prefcli.training.mixins.metric_sums import (
    SIDES,
    Sums,
    exact,
    figures,
    ld_weights,
    of_labelled,
    of_pairs,
    of_text,
    per_row,
)
from prefcli.training.mixins.reference_kl import reference_kl

_MASKS = ("attention_mask", "chosen_attention_mask", "rejected_attention_mask")


@dataclass
class _Evaluation:
    """One that goes on, on this process."""

    batches: list[Batch]
    losses: list[torch.Tensor] = field(default_factory=list)
    at: int = -1

    def is_told_elsewhere(self, process: int) -> bool:
        """Are the rows at hand in the sums of the main process?"""
        return self.batches[self.at].shared and process != 0


class MetricsMixin(TransformersTrainer):  # type: ignore[misc]  # transformers is untyped
    """Any of trl's trainers, with its rows added up on the device and read where they are logged.

    The sums of an evaluation are kept apart from those of the logging step it falls into.
    """

    reference_within: bool = False
    """Is the reference the policy itself with its adapter off, and so at hand whatever is
    precomputed?"""
    clock: Callable[[], float] = staticmethod(time.perf_counter)
    """Seconds, from wherever."""
    _passes: list[Any] | None = None
    """What the model and the reference gave for the batch at hand, in trl's order."""
    _hooked: bool = False
    _trained: Sums | None = None
    _evaluated: Sums | None = None
    _since: float | None = None
    """Time of the last logging step, or of the first step, moved on by whatever was no step."""
    _eval: _Evaluation | None = None
    """The evaluation that goes on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # trl gathers sums, one a process; in the last batch of an epoch accelerate would take them
        # for rows, and leave those of the last processes out.
        self.accelerator.gather_for_metrics = self.accelerator.gather

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._since is None:
            self._since = self.clock()
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        return loss

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """An evaluation and a checkpoint take no time from the steps."""
        pauses = self.control.should_evaluate or self.control.should_save
        if pauses and self.args.device.type == "cuda":
            torch.cuda.synchronize()  # what is queued belongs to the steps
        began = self.clock()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if pauses and self._since is not None:
            self._since += self.clock() - max(self._since, began)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        self._hook()
        self._passes = []
        result = super().compute_loss(model, inputs, return_outputs, **kwargs)
        if self._passes:
            self._add(self._of_batch(inputs, self._passes))
        self._passes = None
        if self.model.training:
            self._add({"seen_tokens": _seen(inputs)})
        return result

    def concatenated_forward(self, model: Any, batch: Any) -> tuple[Any, ...]:
        """ORPO's and CPO's own way to score; the first two results are means over tokens."""
        results: tuple[Any, ...] = super().concatenated_forward(model, batch)
        means = [scores.detach().float() for scores in results[:2]]
        tokens = [(batch[f"{side}_labels"][:, 1:] != -100).sum(1) for side in SIDES]
        logps = [mean * count for mean, count in zip(means, tokens, strict=True)]
        rewards = [self.beta * mean for mean in means]
        self._add(of_pairs(logps, tokens, rewards))
        self._passes = None  # added up by this
        return results

    def _of_batch(self, inputs: Mapping[str, torch.Tensor], passes: list[Any]) -> Sums:
        if "completion_mask" not in inputs or not hasattr(self, "beta"):
            return of_text(passes[0])
        scored = inputs["completion_mask"][:, 1:]
        length, tokens = scored.size(1), scored.sum(1)
        if "label" in inputs:
            # trl scores the mismatched completions of the KL term before the rows themselves.
            passes = passes[1::2] if self.calculate_KL else passes
        policy = per_row(passes[0], length)
        weights = ld_weights(scored, ld) if (ld := getattr(self, "ld_alpha", None)) else None
        weighed = per_row(passes[0], length, weights)
        reference = per_row(passes[1], length, weights) if len(passes) > 1 else _precomputed(inputs)
        rewards = self.beta * (weighed - reference)
        if "label" in inputs:
            return of_labelled(policy, tokens, rewards, inputs["label"])
        return of_pairs(policy.chunk(2), tokens.chunk(2), rewards.chunk(2))

    def _hook(self) -> None:
        """Listen to the models that are there when the first batch comes."""
        if not self._hooked:
            self._hooked = True
            for module in (self.model, getattr(self, "ref_model", None)):
                if module is not None:
                    module.register_forward_hook(self._keep_pass)

    def _keep_pass(self, module: Any, args: Any, output: Any) -> None:
        if self._passes is not None and getattr(output, "log_probs", None) is not None:
            self._passes.append(output)

    def _add(self, sums: Sums) -> None:
        if self._eval is not None and self._eval.is_told_elsewhere(self.args.process_index):
            sums = {name: 0 * value for name, value in sums.items()}
        into = self._trained if self.model.training else self._evaluated
        into = into or {}
        for name, value in sums.items():
            into[name] = into[name] + value if name in into else value.detach()
        if self.model.training:
            self._trained = into
        else:
            self._evaluated = into

    def _over_all(self, sums: Sums | None) -> dict[str, float]:
        """Of all processes."""
        if not sums:
            return {}
        stacked = torch.stack([value.double().to(self.args.device) for value in sums.values()])
        total = self.accelerator.reduce(stacked, reduction="sum")
        return dict(zip(sums, total.tolist(), strict=True))

    def _over_all_mean(self, value: float) -> float:
        mine = torch.tensor(value, dtype=torch.float64, device=self.args.device)
        return float(self.accelerator.reduce(mine, reduction="mean"))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._trained:
            sums = self._over_all(self._trained)
            logs |= figures(sums) | self._exact(sums)
            # The sums have come from the device, so what is queued there is done.
            now = self.clock()
            if self._since is not None and now > self._since:
                logs["tokens_per_second"] = sums["seen_tokens"] / (now - self._since)
            logs["memory_gib"] = peak_memory(self.args.device) / 2**30
            self._trained, self._since = None, now
        super().log(logs, *args, **kwargs)

    def _exact(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Of training rows, and trl's own figures of that name out of its hands."""
        found = exact(sums)
        found.pop("loss", None)  # of a step it is exact as it is
        for name in found:
            self._theirs["train"].pop(name, None)
        return found

    @property
    def _theirs(self) -> Any:
        """What trl has noted: by train and eval, then by name."""
        return getattr(self, "_metrics", None) or getattr(self, "_stored_metrics", {})

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """For this process; see eval_batches.py."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        args = self.args
        batches = EvalBatches(
            len(dataset), args.eval_batch_size, args.process_index, args.world_size
        )
        return DataLoader(
            self._remove_unused_columns(dataset, description="Evaluation"),
            batch_sampler=batches,
            collate_fn=self.data_collator,
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
        """trl adds its figures where they are logged; here they join those that callbacks, early
        stopping and whoever calls evaluate() are given."""
        self._evaluated = None
        self._eval = _Evaluation(dataloader.batch_sampler.batches)
        output = super().evaluation_loop(
            dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs
        )
        sums = self._over_all(self._evaluated)
        rows = [batch.rows for batch in self._eval.batches]
        loss = _mean(torch.stack(self._eval.losses).double().tolist(), rows)
        found = {"loss": self._over_all_mean(loss)} | self._weighted(rows)
        found |= figures(sums) | exact(sums)
        if (divergence := reference_kl(self)) is not None:
            # The same number on all, as early stopping may go by it.
            found["reference_kl"] = self._over_all_mean(divergence)
        output.metrics.update({f"{metric_key_prefix}_{k}": value for k, value in found.items()})
        self._evaluated = self._eval = None
        wanted = self.args.metric_for_best_model
        if self.args.load_best_model_at_end and wanted not in output.metrics:
            raise RecipeError(
                Problem(
                    f"this evaluation could not measure {wanted}",
                    path="training.early_stopping.metric",
                    hint=f"one of {', '.join(k for k in output.metrics if k.startswith('eval_'))}",
                )
            )
        return output

    def _weighted(self, rows: list[int]) -> dict[str, float]:
        """trl's figures of the batches, weighted by their rows, and taken from its hands."""
        stored = self._theirs
        found = {}
        for name, values in stored["eval"].items():
            weights = rows if len(values) == len(rows) else [1] * len(values)
            found[name.removeprefix("eval_")] = _mean(values, weights)
        stored["eval"].clear()
        return found


def _seen(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Tokens of a batch without padding."""
    masks = [inputs[name].sum() for name in _MASKS if name in inputs]
    return torch.stack(masks).sum() if masks else torch.tensor(inputs["input_ids"].numel())


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)


def _precomputed(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if "ref_logps" in inputs:
        return inputs["ref_logps"]
    return torch.cat([inputs[f"ref_{side}_logps"] for side in SIDES])
