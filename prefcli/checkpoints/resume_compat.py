"""What may differ between the parts of a run: nothing, unless it is asked for, or changes no step.

One table for all of it. What is not in it is the run's identity: the method and its settings, the
model, lora, the reference, the seed, the share of sft_mix, the optimizer's kind. With another of
these, go on from model/ in a new output_dir.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefcli.console import warn
from prefcli.errors import Problem, RecipeError
from prefcli.recipe.load import leaves
from prefcli.recipe.source_map import dotted

FREE = (
    "expected",
    "data.checks.",
    "data.num_proc",
    "health.",
    "launch",
    "logging.",
    "performance.",
    "push_to_hub",
    "samples.",
    "training.gradient_checkpointing",
)
"""Beginnings of settings that change no step of a run."""

_SCHEDULE = "the schedule is the new recipe's, entered at the step that is gone on from"
_DIVIDED = "a step's rows are divided otherwise, and random states begin anew"
_DATA = "the order of the rows is drawn anew, so some come again and some not at all"
_NEW = "from here on"

ANYWAY: dict[str, str] = {
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
    "training.global_batch_size": "steps are counted in the new size: rows come again, or not "
    "at all",
    "processes": _DIVIDED,
    "strategy": _DIVIDED,
    "data.": _DATA,
    "sft_mix.data": _DATA,
    "check_sft.": "that gate stands at the start of a run, and was passed",
}
"""Beginnings of settings that --force-resume takes, and what it means to take them."""

_ONE_FORMAT = ("single", "ddp")
"""Strategies that read each other's checkpoints, and whose optimizer takes new settings."""
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
    """What differs from the run that is gone on with: refused, or taken and told."""

    anyway: bool = False
    """Is --force-resume given?"""
    here: dict[str, Any] = field(default_factory=dict)
    """What this start brings beside the recipe; nothing in a dry run, often another machine's."""
    taken: list[str] = field(default_factory=list)

    @property
    def retunes(self) -> bool:
        """Is the optimizer told otherwise than its checkpoint remembers?"""
        own = any(difference.startswith("training.") for difference in self.taken)
        return own and self.here["strategy"] in _ONE_FORMAT

    @property
    def of_rows(self) -> bool:
        return any(difference.startswith(("data.", "sft_mix.data")) for difference in self.taken)

    def judge(self, folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Raise RecipeError for what may not differ; what may is kept in `taken`, and said."""
        found = _differences(before, now)
        meaning = {key: self._meaning(key, before, now) for key in found}
        refused = [key for key in found if not (self.anyway and meaning[key])]
        if refused:
            raise RecipeError(
                Problem(
                    f"{folder} holds a different run: {'; '.join(found[key] for key in refused)}",
                    path="output_dir",
                    hint="name another output_dir, or undo the change to go on with that run"
                    + ("; or take it with --force-resume" if all(meaning.values()) else ""),
                )
            )
        for key, difference in found.items():
            self.taken.append(difference)
            warn(f"--force-resume: {difference}: {meaning[key]}")

    def _meaning(self, key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
        """Of taking it; None where it can't be taken."""
        strategies = {each.get("strategy", "single") for each in (before, now, self.here)}
        if key.startswith(_NOT_SHARDED) and not strategies <= set(_ONE_FORMAT):
            return None
        return next((words for start, words in ANYWAY.items() if key.startswith(start)), None)


def row_fingerprints(data: Mapping[str, Any]) -> dict[str, str]:
    """What `judge` compares of run.json's `data`; a run of an older prefcli has no fingerprint."""
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
    return {
        key: f"{key} was {old.get(key)!r} there and is {new.get(key)!r} now"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and not key.startswith(FREE)
    }
