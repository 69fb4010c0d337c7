"""What a run will do, in lines for the log."""

from __future__ import annotations

from prefcli.data import Split
from prefcli.recipe.schema import Recipe
from prefcli.trl_integration.trl_args import Plan

_MANY_TIMES = 5


def sft_mix_lines(recipe: Recipe, split: Split | None, plan: Plan) -> list[str]:
    """What will be mixed in, in words."""
    options, training = recipe.sft_mix, recipe.training
    if options is None or split is None:
        return []
    a_step = training.global_batch_size * options.fraction / (1 - options.fraction)
    total = a_step * plan.steps
    lines = [
        f"sft_mix: {options.fraction:.1%} of the examples are demonstrations, {a_step:.3g} beside "
        f"the {training.global_batch_size} rows of a step; about {total:.0f} in all, of "
        f"{len(split.rows)} there are; loss = preference + {options.weight:g} x share x SFT loss"
    ]
    if total < 1:
        lines.append("warning: sft_mix: not one demonstration comes up in so few steps")
    elif total > _MANY_TIMES * len(split.rows):
        times = total / len(split.rows)
        lines.append(f"warning: sft_mix: each demonstration is seen about {times:.0f} times")
    return lines
