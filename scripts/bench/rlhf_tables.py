"""The tables and plots of rlhf.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader
from rlhf_arms import DPO, RLHF, Arm, Comparison, Cost, Policy, Run, estimate

from prefcli.evaluation.bootstrap import Estimate
from prefcli.report.panels import Line, PanelData
from prefcli.report.plots.lines import line_plot
from prefcli.report.plots.plot import Plot

LEVELS = (0.25, 0.5, 0.75, 1.0)
"""Shares of dpo's gain in score, whose cost is compared."""
STAGE_HEADS = (
    "stage",
    "models in memory",
    "parameters",
    "steps",
    "completions",
    "sampled tokens",
    "wall-clock, s",
    "processor, s",
    "in steps",
    "peak memory, GiB",
)
CHOICE_HEADS = ("method", "settings", "score", "KL, nats per completion")
ARM_HEADS = (
    "arm",
    "seed",
    "score",
    "KL, nats per completion",
    "reward model's score",
    "tokens",
    "wall-clock, s",
    "processor, s",
)
COST_HEADS = (
    "seed",
    "score",
    "dpo, processor s",
    "reward and rloo, processor s",
    "ratio",
    "ratio of wall-clock",
    "ratio of steps alone",
)
POINT_HEADS = (
    "arm",
    "seed",
    "step",
    "processor, s",
    "score",
    "reward model's score",
    "KL, nats per completion",
)


def print_tables(result: Comparison) -> None:
    """Print what was measured."""
    arms = result.arms
    first = next(iter(result.reward.values()))
    print_table(STAGE_HEADS, stage_rows(result.libraries, result.stages, first))
    print_table(ARM_HEADS, arm_rows(arms))
    print_table(CHOICE_HEADS, choice_rows(result.choices))
    print_table(COST_HEADS, cost_rows(arms))
    print_table(POINT_HEADS, point_rows(arms))
    for seed, accuracy in result.accuracy.items():
        print(f"Held-out accuracy of the reward model, seed {seed}: {shown(accuracy, 3)}")
    for dpo, rlhf in both(arms):
        print(*equal_cost(dpo, rlhf), sep="\n")


def stage_rows(libraries: Cost, runs: Sequence[Run], reward: Run) -> Iterator[list[str]]:
    """Yield the stages with their costs, after what the libraries alone cost."""
    blank = [""] * 5
    yield ["libraries alone", *blank, *cost_cells(libraries), "", f"{libraries.peak_gib:.2f}"]
    for run in runs:
        held = [
            reward.own_parameters if name == "reward model" else run.own_parameters
            for name in run.models
        ]
        yield [
            run.title,
            f"{len(held)}: {', '.join(run.models)}",
            f"{sum(held):,}",
            str(run.steps),
            f"{run.completions:,}",
            f"{run.sampled_tokens:,}",
            *cost_cells(run.cost),
            f"{run.step_share:.0%}",
            f"{run.cost.peak_gib:.2f}",
        ]


def arm_rows(arms: Sequence[Arm]) -> Iterator[list[str]]:
    """Yield the start and the end of each arm."""
    ends = [("start", arms[0].seed, arms[0].points[0])]
    for name, seed, point in [*ends, *((arm.name, arm.seed, arm.end) for arm in arms)]:
        policy = point.policy
        yield [
            name,
            str(seed),
            shown(estimate(policy.scores)),
            shown(estimate(policy.log_ratios), 1),
            f"{np.nanmean(policy.rewards):.2f}",
            f"{policy.tokens.mean():.0f}",
            *cost_cells(point.cost),
        ]


def choice_rows(choices: Sequence[tuple[Run, Policy]]) -> Iterator[list[str]]:
    """Yield the settings that were tried."""
    for run, policy in choices:
        ends = shown(estimate(policy.scores)), shown(estimate(policy.log_ratios), 1)
        yield [run.method, run.choice, *ends]


def both(arms: Sequence[Arm]) -> Iterator[tuple[Arm, Arm]]:
    """Yield the arms of dpo and of the reward model with rloo of each seed."""
    for dpo in arms:
        for rlhf in arms:
            if (dpo.name, rlhf.name, dpo.seed) == (DPO, RLHF, rlhf.seed):
                yield dpo, rlhf


def cost_rows(arms: Sequence[Arm]) -> Iterator[list[str]]:
    """Yield what both ways cost until a score is reached."""
    for dpo, rlhf in both(arms):
        low, high = dpo.points[0].policy.score, dpo.end.policy.score
        for level in LEVELS:
            target = low + level * (high - low)
            cells = [str(dpo.seed), f"{target:.2f}"]
            costs = [arm.cost_of(target) for arm in (dpo, rlhf)]
            cells += ["not reached" if c is None else f"{c.processor:.0f}" for c in costs]
            bare = [arm.cost_of(target, bare=True) for arm in (dpo, rlhf)]
            yield [
                *cells,
                ratio(costs, "processor"),
                ratio(costs, "wall"),
                ratio(bare, "processor"),
            ]


def ratio(costs: Sequence[Cost | None], kind: str) -> str:
    """Return the second cost over the first."""
    one, other = (None if cost is None else getattr(cost, kind) for cost in costs)
    return "" if one is None or other is None else f"{other / one:.1f}"


def point_rows(arms: Sequence[Arm]) -> Iterator[list[str]]:
    """Yield the checkpoints of all arms."""
    for arm in arms:
        for point in arm.points:
            yield [
                arm.name,
                str(arm.seed),
                str(point.step),
                f"{point.cost.processor:.0f}",
                f"{point.policy.score:.2f}",
                f"{np.nanmean(point.policy.rewards):.2f}",
                f"{point.policy.kl:.1f}",
            ]


def equal_cost(dpo: Arm, rlhf: Arm) -> Iterator[str]:
    """Yield what the reward model and rloo have reached at what dpo cost."""
    for kind, name in (("wall", "wall-clock"), ("processor", "processor time")):
        limit = getattr(dpo.end.cost, kind)
        point = rlhf.at_cost(kind, limit)
        yield (
            f"Seed {dpo.seed}, after {limit:.0f} s of {name}: dpo {dpo.end.policy.score:.2f}, "
            f"reward and rloo {point.policy.score:.2f} (step {point.step} of {rlhf.last.steps})"
        )


def cost_cells(cost: Cost) -> list[str]:
    return [f"{cost.wall:.0f}", f"{cost.processor:.0f}"]


def shown(value: Estimate, digits: int = 2) -> str:
    value_, low, high = (f"{x or 0.0:.{digits}f}" for x in vars(value).values())
    return f"{value_} [{low}, {high}]"


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join([*row, *[''] * (len(heads) - len(row))])} |")
    print(flush=True)


def write_plots(arms: Sequence[Arm], folder: Path) -> None:
    """Write the score over processor minutes and over the KL divergence as SVG files."""
    by_cost, by_kl = [], []
    for arm in arms:
        start = arm.points[0].policy.score
        waiting = arm.cost_until(0).processor / 60
        points = [(p.cost.processor / 60, p.policy.score) for p in arm.points[1:]]
        by_cost.append([(0.0, start), (waiting, start), *points])
        by_kl.append([(p.policy.kl, p.policy.score) for p in arm.points])
    for name, title, lines in (
        ("score-by-cost", "processor min", by_cost),
        ("score-by-kl", "KL, nats", by_kl),
    ):
        panel = PanelData(
            "score",
            "",
            [
                Line(arm.name, f"run{at}", [], [*points])
                for at, (arm, points) in enumerate(zip(arms, lines, strict=True))
            ],
            None,
            log_scale=False,
        )
        end = max(x for points in lines for x, _ in points)
        plot = line_plot(panel, [], (0.0, end), title)
        (folder / f"rlhf-{name}.svg").write_text(as_file(plot), "utf-8")


def as_file(plot: Plot) -> str:
    """Return a plot of the report as an SVG file, with its styles."""
    pages = Environment(loader=PackageLoader("prefcli.report"), trim_blocks=True, autoescape=True)
    drawn = pages.from_string('{% from "plot.svg" import draw %}{{ draw(plot) }}').render(plot=plot)
    sheet = (files("prefcli.report") / "templates" / "style.css").read_text("utf-8")
    colours = sheet[: sheet.index("* {")]
    rules = "\n".join(line for line in sheet.splitlines() if line.startswith(".plot "))
    font = ".plot { font: 12px system-ui, sans-serif; background: var(--page); }"
    size = f'width="{2 * plot.width}" height="{2 * plot.height}"'
    return (
        drawn.strip()
        .replace(
            '<svg class="plot"', f'<svg xmlns="http://www.w3.org/2000/svg" {size} class="plot"', 1
        )
        .replace(">", f">\n<style>\n{colours}{font}\n{rules}\n</style>", 1)
    )
