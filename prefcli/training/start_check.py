"""Before the first step: is the reference the one that was meant, and the loss the one asked for?

While the policy still equals the reference, every log-ratio is zero and each loss has a value of
its own (`Method.start_loss`). A wrong reference, a stale file of its log-probabilities or a loss
that was swapped on the way shows here, and nowhere else: training goes on with either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefcli.console import say
from prefcli.errors import GateError, Problem
from prefcli.methods import Method
from prefcli.model.inference import eval_mode

_ROWS = 8
_OF_THE_LOSS = 0.01


@dataclass(frozen=True)
class Tolerance:
    """How far two passes over the same weights may be apart, in nats a token."""

    half: bool
    """Is anything computed in 16 bits? In float32 only the order of additions differs."""

    @classmethod
    def of_run(cls, model: torch.nn.Module, args: TrainingArguments) -> Tolerance:
        whole = all(p.element_size() >= 4 for p in model.parameters() if p.is_floating_point())
        return cls(not whole or args.bf16 or args.fp16)

    @property
    def least(self) -> float:
        return 1e-2 if self.half else 1e-4

    def of(self, tokens: int) -> float:
        """For one response: in 16 bits single tokens are off, and many of them even out."""
        return max(self.least, 0.1 / math.sqrt(max(tokens, 1))) if self.half else self.least

    def allows(self, off: Sequence[float], tokens: Sequence[int]) -> bool:
        """Of several responses each is judged, and their mean, which is off where all are.

        off: in nats a token; not a number is allowed nowhere.
        """
        most = [self.of(count) for count in tokens]
        each = all(a <= b for a, b in zip(off, most, strict=True))
        return each and sum(off) / len(off) <= max(self.least, sum(most) / len(most) / 2)


@dataclass(frozen=True)
class Figure:
    """One row, before training."""

    loss: float
    expected: float | None
    drifts: list[float]
    """|policy - reference| of each side, in nats a token."""
    tokens: list[int]
    """Of each side."""
    nats: float
    """Sum over its sides of |policy - reference|."""
    reference: list[float]
    """Log-probability of each side under the reference."""

    @property
    def drift(self) -> float:
        return max(self.drifts)


class StartCheckCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Looks at a few rows when training begins; on a resume, whether the reference is the same.

    other: the model that the recipe names as reference, if it does.
    known: what the reference said of these rows when the run began, if it did.
    on_done: told what it says of them in a new run.
    trainer: to be set once it is built.
    """

    def __init__(
        self,
        method: Method,
        *,
        other: str | None,
        known: Sequence[Sequence[float]] | None,
        on_done: Callable[[list[list[float]]], None],
    ) -> None:
        self._method = method
        self._other = other
        self._known = known
        self._on_done = on_done
        self.trainer: Trainer = None
        self.figures: list[Figure] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        trainer = self.trainer
        tolerance = Tolerance.of_run(trainer.model, args)
        fault = None
        try:
            self.figures = [self._look(row) for row in _spread(trainer.train_dataset)]
            said = self._judge(state.global_step, tolerance)
        except GateError as error:
            fault = error
        # The weights of one process may be broken: then none of them goes on, or waits.
        faults = [each for each in gather_object([fault]) if each is not None]
        if faults:
            raise faults[0]
        say(*said)
        if not self._known and state.is_world_process_zero:
            self._on_done([f.reference for f in self.figures])

    def _judge(self, step: int, tolerance: Tolerance) -> list[str]:
        """What there is to say. Raises GateError."""
        said = []
        if step == 0 and self._other is None:
            said.append(self._prove_start(tolerance))
        elif step == 0:
            mean = sum(f.drift for f in self.figures) / len(self.figures)
            alike = mean < tolerance.least
            same = " (the same model: leave reference.name_or_path out)" if alike else ""
            said.append(
                f"step 0: the policy is {mean:.3g} nats a token from its reference, "
                f"{self._other}{same}"
            )
        if self._known:
            said.append(self._prove_same(self._known, tolerance))
        return said

    def _look(self, row: dict[str, Any]) -> Figure:
        """Through the very code that trains, one row at a time, so that nothing averages out."""
        trainer, method = self.trainer, self._method
        inputs = trainer.data_collator([row])
        logged = method.trainer.logged_metrics(trainer)
        with eval_mode(trainer.model), _in_float32(self._models):
            loss, _, _ = trainer.prediction_step(trainer.model_wrapped, inputs, True)
        told = {name: values[-1] for name, values in logged["eval"].items()}
        logged["eval"].clear()
        tokens = inputs["completion_mask"].sum(1).tolist()
        sides = [s for s in ("chosen", "rejected") if f"logps/{s}" in told]
        ratios = [told[f"rewards/{s}"] / self._method.reward_scale for s in sides]
        labels = [bool(row["label"])] if "label" in row else []
        chosen_nll = -told["logps/chosen"] / tokens[0] if "logps/chosen" in told else None
        return Figure(
            loss=float(loss),
            expected=method.start_loss(labels, chosen_nll),
            drifts=[abs(r) / n for r, n in zip(ratios, tokens, strict=True)],
            tokens=tokens,
            nats=sum(map(abs, ratios)),
            reference=[told[f"logps/{s}"] - r for s, r in zip(sides, ratios, strict=True)],
        )

    @property
    def _models(self) -> list[torch.nn.Module]:
        every = (self.trainer.model, getattr(self.trainer, "ref_model", None))
        return [model for model in every if model is not None]

    def _prove_start(self, tolerance: Tolerance) -> str:
        drift = max(f.drift for f in self.figures)
        drifts = [each for f in self.figures for each in f.drifts]
        if not tolerance.allows(drifts, [count for f in self.figures for count in f.tokens]):
            raise GateError(
                Problem(
                    f"step 0: the reference is not the starting policy: they differ by {drift:.3g} "
                    f"nats a token on {len(self.figures)} rows, where 0 is due",
                    path="reference",
                    hint="if another model was meant, name it in reference.name_or_path; else the "
                    "weights on disk changed while the run was loading, or this is a bug of ours",
                )
            )
        for figure in self.figures:
            if figure.expected is None:
                continue
            if not abs(figure.loss - figure.expected) <= self._room(figure):
                raise GateError(
                    Problem(
                        f"step 0: the loss is {figure.loss:.5g} where policy and reference agree; "
                        f"by its formula it is {figure.expected:.5g}",
                        path=self._method.name,
                        hint="the trainer computes another loss than the recipe asks for: this "
                        "version of trl is not the one that prefcli was tested with",
                    )
                )
        loss = self.figures[0]
        formula = f", loss {loss.loss:.4f} as by its formula" if loss.expected is not None else ""
        return (
            f"step 0: policy and reference agree on {len(self.figures)} rows "
            f"(within {drift:.1g} nats a token){formula}"
        )

    def _room(self, figure: Figure) -> float:
        """How far the loss may be off its formula: what rounding moved the log-ratios by, times
        the slope of the loss at 0."""
        slack = self._method.start_loss_slack(figure.nats, figure.drift)
        return _OF_THE_LOSS * (figure.expected or 0.0) + slack

    def _prove_same(self, known: Sequence[Sequence[float]], tolerance: Tolerance) -> str:
        for before, figure in zip(known, self.figures, strict=True):
            for old, new, tokens in zip(before, figure.reference, figure.tokens, strict=True):
                if not abs(old - new) <= tolerance.of(tokens) * max(abs(old), 1.0):
                    raise GateError(
                        Problem(
                            "the reference is not the one this run began with: it gives a response "
                            f"{new:.5g} nats where it gave {old:.5g}",
                            path="reference.name_or_path" if self._other else "model.name_or_path",
                            hint="its weights have changed on disk since then; put "
                            "them back, or start a new run in another output_dir",
                        )
                    )
        return f"resume: the reference is the one this run began with, on {len(known)} rows"


@contextmanager
def _in_float32(models: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Refuse log-probabilities in 16 bits: the sum over a response would be rounded to whole nats
    from 256 on, alike in policy and reference, so that nothing else shows it. Raises GateError."""

    def look(module: torch.nn.Module, args: Any, output: Any) -> None:
        found = getattr(output, "log_probs", None)
        if found is not None and found.dtype != torch.float32:
            name = str(found.dtype).removeprefix("torch.")
            raise GateError(
                Problem(
                    f"step 0: log-probabilities are in {name}, in which their sum over a response "
                    "is rounded to half a nat or more",
                    path="launch.strategy",
                    hint="train under another strategy, and please report this: an engine casts "
                    "what the model returns",
                )
            )

    handles = [model.register_forward_hook(look) for model in models]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _spread(dataset: Any) -> list[dict[str, Any]]:
    """A few rows from all over the data."""
    count = min(_ROWS, len(dataset))
    return [dataset[i * len(dataset) // count] for i in range(count)]
