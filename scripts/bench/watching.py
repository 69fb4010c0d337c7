#!/usr/bin/env python3
"""Measure the cost of monitoring: steps of the quickstart's DPO with the callback and without.

    python scripts/bench/watching.py [--rounds 7] [--steps 40]

The same trainer trains on the same rows from the same weights in three arms, in turn: bare;
measured, with the sums per token that rules and log need; and watched, with the callback (metrics
log, health rules, progress) added. There are no evaluations, checkpoints or samples. Every step is
logged, ten times as often as the default, and the first step is not timed. The script prints the
ratio of each arm to the bare one, and the share of its time that a watched round spends inside the
callback, as medians over the rounds; on a busy machine trust the last one. On a terminal the
callback draws the live view, elsewhere it prints lines; `| cat` shows the cost of lines.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefcli.checkpoints.run_dir import RunDir
from prefcli.console import is_screen
from prefcli.data.run_datasets import RunDatasets, load_run_datasets
from prefcli.health import Health, HealthRule, Monitor, RunContext
from prefcli.library_logging import quiet_libraries
from prefcli.model import detect_device, load_policy, load_tokenizer
from prefcli.recipe import load
from prefcli.recipe.schema import Recipe
from prefcli.training import trainer as trainer_module
from prefcli.training.callbacks.monitor_callback import MonitorCallback
from prefcli.training.mixins.metrics_mixin import MetricsMixin
from prefcli.training.trainer import make_trainer, trainer_class_of

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart"


def rules() -> list[HealthRule]:
    """Return every health rule with its default thresholds."""
    return Health().rules


class Clock(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Times the run from the end of the first step to the end of the last, logging included."""

    def __init__(self) -> None:
        self.first = self.last = 0.0

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if state.global_step == 1:
            self.first = time.perf_counter()

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self.last = time.perf_counter()


def timed(watch: MonitorCallback) -> list[float]:
    """Wrap the callback; return a list that collects the seconds of each call."""
    spent: list[float] = []

    def around(method: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            start = time.perf_counter()
            method(*args, **kwargs)
            spent.append(time.perf_counter() - start)

        return call

    for name in ("on_step_begin", "on_step_end", "on_log"):
        setattr(watch, name, around(getattr(watch, name)))
    return spent


def without_sums(*args: Any, **kwargs: Any) -> type[Any]:
    """Return the trainer class without the sums per token; replaces `trainer_class_of`."""
    full = trainer_class_of(*args, **kwargs)
    return type(full.__name__, tuple(b for b in full.__bases__ if b is not MetricsMixin), {})


def round_of(recipe: Recipe, inputs: RunDatasets, name: str) -> tuple[float, float]:
    """Return (seconds per step, share of them inside the callback) of one arm."""
    method, _ = inputs.resolve_from_data(recipe.methods["dpo"])
    tokenizer = load_tokenizer(recipe.model)
    policy = load_policy(recipe.model, torch.float32, recipe.seed)
    clock = Clock()
    made = without_sums if name == "bare" else trainer_class_of
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(trainer_module, "trainer_class_of", made),
    ):
        steps = recipe.training.max_steps or 0
        watch = MonitorCallback(RunDir(folder), method, Monitor(rules(), RunContext(method, steps)))
        spent = timed(watch)
        trainer, _ = make_trainer(
            recipe,
            method,
            detect_device(),
            policy,
            tokenizer,
            inputs,
            eval_on_start=False,
            callbacks=[watch, clock] if name == "watched" else [clock],
        )
        trainer.args.save_strategy = "no"
        try:
            trainer.train()
        finally:
            watch.close()
    seconds = clock.last - clock.first
    return seconds / (steps - 1), sum(spent) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    quiet_libraries()
    recipe = load(
        str(QUICKSTART / "dpo.yaml"),
        [
            f"model.name_or_path={QUICKSTART / 'model'}",
            "model.init=random",
            f"training.max_steps={args.steps}",
            "training.logging_steps=1",
            "data.eval=null",
            "training.per_device_eval_batch_size=null",
        ],
    ).recipe
    inputs = load_run_datasets(recipe, recipe.methods["dpo"], load_tokenizer(recipe.model))
    round_of(recipe, inputs, "bare")  # warm
    rounds = [
        {name: round_of(recipe, inputs, name) for name in ("bare", "measured", "watched")}
        for _ in range(args.rounds)
    ]
    print(
        f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{'live view' if is_screen() else 'lines'}, {args.rounds} rounds of {args.steps} steps\n"
        f"bare: {median(r['bare'][0] for r in rounds) * 1000:.1f} ms per step"
    )
    for name in ("measured", "watched"):
        ratios = sorted(arms[name][0] / arms["bare"][0] for arms in rounds)
        print(f"{name} / bare: {median(ratios):.4f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
    inside = median(arms["watched"][1] for arms in rounds)
    print(f"inside the callback: {inside:.3%} of the time of a watched round")


if __name__ == "__main__":
    main()
