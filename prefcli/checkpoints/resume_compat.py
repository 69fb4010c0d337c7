"""The settings that may change when a run is resumed, in one table.

A setting outside the table is part of the run's identity and must not change: the method and its
options, the model, lora, the reference, the seed, the fraction of sft_mix, the kind of optimizer.
To change one of these, start from model/ in a new output_dir.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefcli.console import warn
from prefcli.errors import Problem, RecipeError
from prefcli.methods import METHODS
from prefcli.recipe.load import leaves
from prefcli.recipe.source_map import dotted

FREE = (
    "data.checks.",
    "data.num_proc",
    "expected",
    "health.",
    "judge.executable.concurrency",
    "judge.executable.timeout",
    "judge.function.timeout",
    "launch",
    "logging.",
    "pairs.",
    "performance.",
    "push_to_hub",
    "rloo.sampling_batch_size",
    "samples.",
    "training.gradient_checkpointing",
)
"""Beginnings of settings that do not change the steps of a run."""

_JUDGE = "judge"
"""A section that changes no step of a method that needs no judge."""

_SCHEDULE = "the new recipe's schedule applies from the resumed step on"
_DIVIDED = "the rows of a step are divided differently, and random states start again"
_DATA = "rows are reshuffled: some will repeat and some will be skipped"
_NEW = "applies from here on"

RESUMABLE: dict[str, str] = {
    _JUDGE: "scores completions from here on, so that earlier rewards are not comparable",
    "training.learning_rate": _SCHEDULE,
    "training.lr_scheduler_type": _SCHEDULE,
    "training.min_lr_ratio": _SCHEDULE,
    "training.warmup_ratio": _SCHEDULE,
    "training.warmup_steps": _SCHEDULE,
    "training.num_train_epochs": _SCHEDULE,
    "training.max_steps": _SCHEDULE,
    "training.weight_decay": _NEW,
    "training.adam_": _NEW,
    "training.max_grad_norm": _NEW,
    "training.logging_steps": _NEW,
    "training.eval_steps": _NEW,
    "training.save_steps": _NEW,
    "training.save_total_limit": _NEW,
    "training.per_device_": _DIVIDED,
    "training.global_batch_size": "steps count in the new size: some rows will repeat or be "
    "skipped",
    "processes": _DIVIDED,
    "strategy": _DIVIDED,
    "data.": _DATA,
    "sft_mix.data": _DATA,
    "check_sft.": "the gate was passed when the run started, and does not run again",
}
"""Beginnings of settings that --force-resume accepts, and the effect of changing them."""

_ONE_FORMAT = ("single", "ddp")
"""Strategies that read each other's checkpoints and whose optimizer accepts new settings."""
_NOT_SHARDED = (
    "processes",
    "strategy",
    "training.learning_rate",
    "training.lr_scheduler_type",
    "training.min_lr_ratio",
    "training.warmup",
    "training.num_train_epochs",
    "training.max_steps",
    "training.weight_decay",
    "training.adam_",
)


@dataclass
class ResumeDiff:
    """The differences from the run that is resumed: refused, or accepted and reported."""

    force: bool = False
    """Whether --force-resume is given."""
    here: dict[str, Any] = field(default_factory=dict)
    """Facts of this start outside the recipe; empty in a dry-run, which may be elsewhere."""
    accepted: list[str] = field(default_factory=list)

    @property
    def changes_optimizer(self) -> bool:
        """Return whether the recipe's optimizer settings replace those in the checkpoint."""
        training = any(difference.startswith("training.") for difference in self.accepted)
        return training and self.here["strategy"] in _ONE_FORMAT

    @property
    def changes_rows(self) -> bool:
        return any(difference.startswith(("data.", "sft_mix.data")) for difference in self.accepted)

    def judge(
        self,
        folder: Path,
        before: Mapping[str, Any],
        now: Mapping[str, Any],
        *,
        finished: bool = False,
    ) -> None:
        """Raise RecipeError for a difference that is not allowed; report and keep the others.

        finished: the run has no steps left in which an accepted difference could act.
        """
        differences = _differences(before, now)
        effects = {key: self._effect(key, before, now) for key in differences}
        refused = [key for key in differences if not (self.force and effects[key])]
        if refused:
            can_force = not finished and all(effects.values())
            listed = "; ".join(differences[key] for key in refused)
            raise RecipeError(
                Problem(
                    f"{folder} holds a different run: {listed}",
                    path="output_dir",
                    hint="name another output_dir, or undo the change to resume that run"
                    + ("; or accept it with --force-resume" if can_force else ""),
                    code="RUN007",
                )
            )
        for key, difference in differences.items():
            self.accepted.append(difference)
            warn(f"--force-resume: {difference}: {effects[key]}")

    def _effect(self, key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
        """Describe the effect of a change; None if it cannot be accepted."""
        strategies = {facts.get("strategy", "single") for facts in (before, now, self.here)}
        if key.startswith(_NOT_SHARDED) and not strategies <= set(_ONE_FORMAT):
            return None
        return next((text for start, text in RESUMABLE.items() if key.startswith(start)), None)


def row_fingerprints(data: Mapping[str, Any]) -> dict[str, str]:
    """Return what `judge` compares of run.json's `data`; old versions wrote no fingerprint."""
    return {
        "sft_mix.data" if name == "sft_mix" else f"data.{name}": (
            f"{split['kept']} rows with the digest {split['fingerprint']}"
        )
        for name, split in data.items()
        if "fingerprint" in split
    }


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    old = {dotted(path): value for path, value in leaves(before)}
    new = {dotted(path): value for path, value in leaves(now)}
    method = METHODS.get(str(now.get("method")))
    free = FREE if method is not None and method.needs_judge else (*FREE, _JUDGE)
    return {
        key: f"{key} was {_shown(old.get(key))} there and is {_shown(new.get(key))} now"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and not key.startswith(free)
    }


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)
