"""The training plan of a recipe on a number of devices: steps, evaluations and checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prefcli.data import Split
from prefcli.errors import Problem, RecipeError
from prefcli.recipe.distributed_env import world_size
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Training
from prefcli.text import counted
from prefcli.trl_integration.trl_args import accumulate, repeated_rows

_MANY_REPEATS = 5
_FEW_DEMONSTRATIONS = 5


@dataclass(frozen=True)
class Plan:
    """The steps of a run on its devices, and the work at some of them."""

    exact: bool
    """False if packing decides how many sequences the rows make."""
    rows: int
    """Rows, or packed sequences, per epoch."""
    world_size: int
    accumulation: int
    steps: int
    steps_per_epoch: int
    warmup_steps: int
    evaluations: int
    checkpoints: int
    repeated: int
    """Rows trained twice per epoch, to fill the last batch of every process."""

    def lines(self, training: Training, rows: str = "rows") -> list[str]:
        """Describe the plan for the log. rows: what a step trains on."""
        about = "" if self.exact else "about "
        repeated = (
            [f"plan: {self.repeated} {rows} per epoch are trained twice, to fill the last batches"]
            if self.repeated
            else []
        )
        return [
            f"plan: {about}{counted(self.steps, 'step')} of {training.global_batch_size} {rows} "
            f"({training.train_batch_size} per device x {counted(self.world_size, 'device')} x "
            f"{self.accumulation} accumulated), {counted(self.steps_per_epoch, 'step')} per epoch, "
            f"{counted(self.warmup_steps, 'warm-up step')}, "
            f"{counted(self.evaluations, 'evaluation')}, {counted(self.checkpoints, 'checkpoint')}",
            *repeated,
        ]

    def warnings(self, training: Training) -> list[str]:
        """Describe what keeps the run from teaching much."""
        warnings = []
        if self.rows < training.global_batch_size:
            warnings.append(
                f"plan: training.global_batch_size is {training.global_batch_size}, but there are "
                f"only {self.rows} rows, so each step has {self.rows}; lower it, or add rows"
            )
        if self.warmup_steps >= self.steps:
            rate = "0 in the only step" if self.steps == 1 else "below its full value in all steps"
            warnings.append(
                f"plan: all {self.steps} steps are warm-up, so the learning rate is {rate}; set "
                "training.warmup_ratio=0, or train longer"
            )
        return warnings


def make_plan(
    training: Training, rows: int, *, exact: bool = True, has_eval: bool, world: int | None = None
) -> Plan:
    """Count steps as transformers will. Raises RecipeError for a batch or rate out of reach.

    world: processes of the run; by default those of this process's launcher.
    """
    world = world or world_size()
    accumulation = accumulate(training, world)
    batches = math.ceil(rows / (training.train_batch_size * world))
    per_epoch = max(1, math.ceil(batches / accumulation))
    steps = training.max_steps or math.ceil(training.num_train_epochs * per_epoch)
    warmup = training.warmup
    if warmup >= steps:
        raise RecipeError(
            Problem(
                f"{training.warmup_steps} warm-up steps leave none of {steps} steps at the full "
                "learning rate",
                path="training.warmup_steps",
                hint="lower it, or write training.warmup_ratio instead",
                code="TRN021",
            )
        )
    evaluations = 0
    if has_eval:
        every = training.eval_steps
        # Before the first step, after the last, and every eval_steps between.
        evaluations = 2 + ((steps - 1) // every if every else 0)
    return Plan(
        exact=exact,
        rows=rows,
        world_size=world,
        accumulation=accumulation,
        steps=steps,
        steps_per_epoch=per_epoch,
        warmup_steps=int(warmup) if warmup >= 1 else math.ceil(steps * warmup),
        evaluations=evaluations,
        repeated=repeated_rows(rows, training.train_batch_size * world, world),
        checkpoints=steps // training.save_steps + bool(steps % training.save_steps),
    )


def sft_mix_lines(recipe: Recipe, split: Split | None, plan: Plan) -> list[str]:
    """Describe how many demonstrations are mixed into the steps."""
    options, training = recipe.sft_mix, recipe.training
    if options is None or split is None:
        return []
    per_step = training.global_batch_size * options.fraction / (1 - options.fraction)
    total = per_step * plan.steps
    lines = [
        f"sft_mix: {options.fraction:.1%} of the examples are demonstrations: {per_step:.3g} with "
        f"the {training.global_batch_size} rows of a step, about {total:.0f} in the run, from "
        f"{len(split.rows)} rows; loss = preference + {options.weight:g} x share x SFT loss"
    ]
    if total < 1:
        lines.append("warning: sft_mix: these steps are too few to include a demonstration")
    elif total < _FEW_DEMONSTRATIONS:
        lines.append(
            f"warning: sft_mix: the run includes only about {total:.0f} demonstrations; raise "
            "sft_mix.fraction, or train longer"
        )
    elif total > _MANY_REPEATS * len(split.rows):
        times = total / len(split.rows)
        lines.append(f"warning: sft_mix: each demonstration is used about {times:.0f} times")
    return lines
