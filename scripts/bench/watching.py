#!/usr/bin/env python3
"""What watching costs: steps of the quickstart's DPO with our callback, and without.

    python scripts/bench/watching.py [--rounds 7] [--steps 40]

The same trainer trains on the same rows from the same weights, with the callback (journal, health
rules, screen) and bare, in turn, in one process; evaluations, checkpoints and samples are left out.
Every step is logged for the journal, ten times as often as the default, and the first step is not
timed. Two figures come out, each a median over the rounds: the ratio of a watched round to the bare
one beside it, and the share of its time that a watched round spends inside the callback. On a busy
machine the second is the one to trust. On a terminal the callback draws the live view, elsewhere it
prints lines; `| cat` shows the cost of lines.
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

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prefcli.checks import Check, Facts, Health, Monitor
from prefcli.console import is_screen
from prefcli.model import load_policy, load_tokenizer, machine
from prefcli.recipe import load
from prefcli.recipe.schema import Recipe
from prefcli.training.folder import RunFolder
from prefcli.training.inputs import Inputs, load_inputs
from prefcli.training.libraries import quiet_libraries
from prefcli.training.trainer import make_trainer
from prefcli.training.watch import Watch

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart"


def rules() -> list[Check]:
    """Every rule of the shelf, at its defaults."""
    return Health().checks


class Clock(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """From the end of the first step to the end of the last, logging included."""

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


def timed(watch: Watch) -> list[float]:
    """Seconds of each call into the callback, as they come."""
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


def round_of(recipe: Recipe, inputs: Inputs, *, watched: bool) -> tuple[float, float]:
    """(seconds a step, share of them inside the callback)."""
    method, _ = inputs.settle(recipe.methods["dpo"])
    tokenizer = load_tokenizer(recipe.model)
    policy = load_policy(recipe.model, torch.float32, recipe.seed)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        steps = recipe.training.max_steps or 0
        watch = Watch(RunFolder(folder), method, Monitor(rules(), Facts("dpo", steps)))
        spent = timed(watch)
        trainer, _ = make_trainer(
            recipe,
            method,
            machine(),
            policy,
            tokenizer,
            inputs,
            eval_on_start=False,
            callbacks=[watch, clock] if watched else [clock],
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
    inputs = load_inputs(recipe, recipe.methods["dpo"], load_tokenizer(recipe.model))
    round_of(recipe, inputs, watched=False)  # warm
    rounds = [
        (round_of(recipe, inputs, watched=False)[0], *round_of(recipe, inputs, watched=True))
        for _ in range(args.rounds)
    ]
    bare, watched, inside = (median(column) for column in zip(*rounds, strict=True))
    ratio = median(w / b for b, w, _ in rounds)
    spread = sorted(w / b for b, w, _ in rounds)
    print(
        f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{'live view' if is_screen() else 'lines'}, {args.rounds} rounds of {args.steps} steps\n"
        f"bare {bare * 1000:.1f} ms a step, watched {watched * 1000:.1f} ms: ratio {ratio:.4f} "
        f"({spread[0]:.3f} to {spread[-1]:.3f})\n"
        f"inside the callback: {inside:.3%} of the time, {inside * watched * 1000:.3f} ms a step"
    )


if __name__ == "__main__":
    main()
