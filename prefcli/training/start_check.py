"""A check before the first step: is the reference the intended one, and the loss the right one?

While the policy still equals the reference, every log-ratio is zero and each loss has a known value
(`Method.start_loss`). A wrong reference, stale precomputed log-probabilities or a different loss
shows here and nowhere later, since training proceeds with either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefcli.checkpoints.run_record import RunRecord
from prefcli.console import say
from prefcli.data.row_sampling import spread_indices
from prefcli.errors import GateError, Problem
from prefcli.formats.base import MARGIN
from prefcli.methods import Method
from prefcli.model.inference import eval_mode
from prefcli.recipe.schema import Recipe

_ROWS = 8
_LOSS_TOLERANCE = 0.01


@dataclass(frozen=True)
class Tolerance:
    """How much two passes over the same weights may differ, in nats per token."""

    half: bool
    """Whether anything is computed in 16 bits. In float32 only the order of additions differs."""
    dora: bool = False
    """Whether weights pass through DoRA's magnitude and norm, which rounds each of them again."""

    @classmethod
    def of_run(cls, model: torch.nn.Module, args: TrainingArguments) -> Tolerance:
        full = all(p.element_size() >= 4 for p in model.parameters() if p.is_floating_point())
        dora = any("lora_magnitude_vector" in name for name, _ in model.named_parameters())
        return cls(not full or args.bf16 or args.fp16, dora)

    @property
    def least(self) -> float:
        return (1e-2 if self.half else 1e-4) * self._factor

    def of(self, tokens: int) -> float:
        """Return the tolerance of one response: in 16 bits the errors of its tokens average out."""
        if not self.half:
            return self.least
        return max(self.least, self._factor * 0.1 / math.sqrt(max(tokens, 1)))

    @property
    def _factor(self) -> float:
        # Measured on an H100 in bfloat16: DoRA's start is up to 0.1 nats per token off.
        return 5.0 if self.dora and self.half else 1.0

    def allows(self, differences: Sequence[float], tokens: Sequence[int]) -> bool:
        """Judge each response, and their mean, which noise moves less than other weights do.

        differences: in nats per token; NaN is never allowed.
        """
        limits = [self.of(count) for count in tokens]
        all_allowed = all(a <= b for a, b in zip(differences, limits, strict=True))
        mean = sum(differences) / len(differences)
        return all_allowed and mean <= max(self.least, sum(limits) / len(limits) / 2)


@dataclass(frozen=True)
class StartProbe:
    """The measurements of one row before training."""

    loss: float
    """Without the term that balances the experts of a mixture."""
    balancing: float
    """That term: the model's coefficient times its auxiliary loss."""
    expected: float | None
    drifts: list[float]
    """|policy - reference| of each side, in nats per token."""
    tokens: list[int]
    """Tokens of each side."""
    nats: float
    """Sum over its sides of |policy - reference|."""
    reference: list[float]
    """Log-probability of each side under the reference."""

    @property
    def drift(self) -> float:
        return max(self.drifts)


class StartCheckCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Probes a few rows when training begins; on a resume, compares the reference with before.

    A new run records what the reference says of these rows; a resumed run compares with that.
    """

    def __init__(self, trainer: Trainer, recipe: Recipe, method: Method, record: RunRecord) -> None:
        self._trainer = trainer
        self._method = method
        self._other = recipe.reference.name_or_path
        """The model that the recipe names as reference."""
        self._record = record
        self._known = record.step_zero
        self.probes: list[StartProbe] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        trainer = self._trainer
        tolerance = Tolerance.of_run(trainer.model, args)
        error, lines = None, []
        try:
            rows = trainer.train_dataset
            self.probes = [self._probe(rows[i]) for i in spread_indices(len(rows), _ROWS)]
            lines = self._judge(state.global_step, tolerance)
        except GateError as failed:
            error = failed
        # The weights of one process may be broken: then all processes stop, and none waits.
        errors = [one for one in gather_object([error]) if one is not None]
        if errors:
            raise errors[0]
        say(*lines)
        if not self._known and state.is_world_process_zero:
            self._record.step_zero = [probe.reference for probe in self.probes]
            self._record.save()

    def _judge(self, step: int, tolerance: Tolerance) -> list[str]:
        """Return lines for the log. Raises GateError."""
        lines = []
        if step == 0 and self._other is None:
            lines.append(self._check_start(tolerance))
        elif step == 0:
            mean = sum(probe.drift for probe in self.probes) / len(self.probes)
            equal = mean < tolerance.least
            same = " (the same model: remove reference.name_or_path)" if equal else ""
            lines.append(
                f"step 0: the policy is {mean:.3g} nats per token from its reference, "
                f"{self._other}{same}"
            )
        if self._known:
            lines.append(self._check_same_reference(self._known, tolerance))
        return lines

    def _probe(self, row: dict[str, Any]) -> StartProbe:
        """Run one row through the code that trains; a batch would average differences out."""
        trainer, method = self._trainer, self._method
        logged = method.trainer.logged_metrics(trainer)
        inputs = trainer.data_collator([row])
        with eval_mode(trainer.model), _float32_logprobs_required(self._models):
            loss, _, _ = trainer.prediction_step(trainer.model_wrapped, inputs, True)
        metrics = {name: values[-1] for name, values in logged["eval"].items()}
        logged["eval"].clear()
        tokens = inputs["completion_mask"].sum(1).tolist()
        sides = [s for s in ("chosen", "rejected") if f"logps/{s}" in metrics]
        ratios = [metrics[f"rewards/{s}"] / method.reward_scale for s in sides]
        labels = [bool(row["label"])] if "label" in row else []
        chosen_nll = -metrics["logps/chosen"] / tokens[0] if "logps/chosen" in metrics else None
        balancing = metrics.get("aux_loss", 0.0) * getattr(trainer, "router_aux_loss_coef", 0.0)
        return StartProbe(
            loss=float(loss) - balancing,
            balancing=balancing,
            expected=method.start_loss(labels, chosen_nll),
            drifts=[abs(r) / n for r, n in zip(ratios, tokens, strict=True)],
            tokens=tokens,
            nats=sum(map(abs, ratios)),
            reference=[metrics[f"logps/{s}"] - r for s, r in zip(sides, ratios, strict=True)],
        )

    @property
    def _models(self) -> list[torch.nn.Module]:
        models = (self._trainer.model, getattr(self._trainer, "ref_model", None))
        return [model for model in models if model is not None]

    def _check_start(self, tolerance: Tolerance) -> str:
        drift = max(probe.drift for probe in self.probes)
        drifts = [value for probe in self.probes for value in probe.drifts]
        if not tolerance.allows(drifts, [n for probe in self.probes for n in probe.tokens]):
            raise GateError(
                Problem(
                    "step 0: the reference is not the starting policy: their log-probabilities "
                    f"differ by {drift:.3g} nats per token on {len(self.probes)} rows; expected 0",
                    path="reference",
                    hint="if you meant another model, name it in reference.name_or_path; if not, "
                    "check whether the weights changed on disk while they were loaded, and report "
                    "a bug in prefcli if they did not",
                    code="TRN026",
                )
            )
        for probe in self.probes:
            if probe.expected is None:
                continue
            if not abs(probe.loss - probe.expected) <= self._loss_tolerance(probe):
                raise GateError(
                    _other_loss(
                        probe.loss, probe.expected, self._method.name, "policy and reference agree"
                    )
                )
        first = self.probes[0]
        formula = (
            f", loss {first.loss:.4f} matches its formula" if first.expected is not None else ""
        )
        if first.balancing:
            formula += f", next to {first.balancing:.4f} that balances the experts"
        return (
            f"step 0: policy and reference agree on {len(self.probes)} rows "
            f"(within {drift:.1g} nats per token){formula}"
        )

    def _loss_tolerance(self, probe: StartProbe) -> float:
        """Bound the loss's distance from its formula: rounded log-ratios times its slope at 0."""
        slack = self._method.start_loss_slack(probe.nats, probe.drift)
        return _LOSS_TOLERANCE * (probe.expected or 0.0) + slack

    def _check_same_reference(self, known: Sequence[Sequence[float]], tolerance: Tolerance) -> str:
        for before, probe in zip(known, self.probes, strict=True):
            for old, new, tokens in zip(before, probe.reference, probe.tokens, strict=True):
                if not abs(old - new) <= tolerance.of(tokens) * max(abs(old), 1.0):
                    raise GateError(
                        Problem(
                            "the reference is not the one this run started with: it scores a "
                            f"response {new:.5g} nats, which was {old:.5g} before",
                            path="reference.name_or_path" if self._other else "model.name_or_path",
                            hint="restore its weights, which have changed on disk, or start a new "
                            "run in another output_dir",
                            code="TRN028",
                        )
                    )
        return f"resume: the reference is the one this run started with, on {len(known)} rows"


class PromptStartCheckCallback(StartCheckCallback):
    """Compares policy and reference on the tokens of prompts; there are no completions yet."""

    def _probe(self, row: dict[str, Any]) -> StartProbe:
        trainer = self._trainer
        with eval_mode(trainer.model), _float32_logprobs_required(self._models):
            policy, reference = trainer.prompt_logps(row)
        nats, tokens = float((policy - reference).sum().abs()), max(len(policy), 1)
        return StartProbe(
            loss=0.0,
            balancing=0.0,
            expected=None,
            drifts=[nats / tokens],
            tokens=[tokens],
            nats=nats,
            reference=[float(reference.sum())],
        )


class RewardStartCheckCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Probes a few pairs when a reward model begins to train.

    A new head gives every text the reward 0, so that the loss has a known value. A head that was
    trained before is only reported.
    """

    def __init__(self, trainer: Trainer, method: Method) -> None:
        self._trainer = trainer
        self._method = method

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if state.global_step:
            return
        trainer = self._trainer
        rows = [trainer.train_dataset[i] for i in spread_indices(len(trainer.train_dataset), _ROWS)]
        logged = self._method.trainer.logged_metrics(trainer)
        losses, margins = [], []
        with eval_mode(trainer.model):
            for row in rows:
                inputs = trainer.data_collator([row])
                loss, _, _ = trainer.prediction_step(trainer.model_wrapped, inputs, True)
                losses.append(float(loss))
                margins.append(logged["eval"]["margin"][-1])
        logged["eval"].clear()
        if any(margins):
            right = sum(margin > 0 for margin in margins)
            say(f"step 0: the reward head is right about {right} of {len(rows)} pairs")
            return
        # Without margins that is ln 2.
        expected = [math.log1p(math.exp(row.get(MARGIN, 0.0))) for row in rows]
        for loss, formula in zip(losses, expected, strict=True):
            if not abs(loss - formula) <= _LOSS_TOLERANCE * formula:
                raise GateError(_other_loss(loss, formula, self._method.name, "all rewards are 0"))
        why = "its margin" if MARGIN in rows[0] else "ln 2"
        say(f"step 0: a new reward head, loss {losses[0]:.4f} matches its formula ({why})")


def make_start_check(
    trainer: Trainer, recipe: Recipe, method: Method, record: RunRecord
) -> TrainerCallback | None:
    """Return the check of the first step that the method has, if any."""
    if method.needs_judge:
        return PromptStartCheckCallback(trainer, recipe, method, record)
    if method.needs_reference:
        return StartCheckCallback(trainer, recipe, method, record)
    return RewardStartCheckCallback(trainer, method) if method.head == "reward" else None


def _other_loss(loss: float, expected: float, section: str, why: str) -> Problem:
    return Problem(
        f"step 0: the loss is {loss:.5g} while {why}; its formula gives {expected:.5g}",
        path=section,
        hint="install the version of trl that prefcli was tested with: this one computes another "
        "loss than the recipe asks for",
        code="TRN027",
    )


@contextmanager
def _float32_logprobs_required(models: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Raise GateError if a model returns log-probabilities in 16 bits.

    The sum over a response would be rounded to whole nats from 256 on, equally in policy and
    reference, so that no other check notices it.
    """

    def check(module: torch.nn.Module, args: Any, output: Any) -> None:
        log_probs = getattr(output, "log_probs", None)
        if log_probs is not None and log_probs.dtype != torch.float32:
            name = str(log_probs.dtype).removeprefix("torch.")
            raise GateError(
                Problem(
                    f"step 0: log-probabilities are in {name}, in which their sum over a response "
                    "is rounded to half a nat or more",
                    path="launch.strategy",
                    hint="train with another strategy, and report this: an engine casts what the "
                    "model returns",
                    code="TRN034",
                )
            )

    handles = [model.register_forward_hook(check) for model in models]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
