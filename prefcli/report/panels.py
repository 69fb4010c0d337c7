"""Which curves a page shows, and what each usually means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prefcli.report.run_data import Row, Run

Point = tuple[float, float | None]

MOST = 1000
"""Points of a line; those of a longer one are thinned."""


class Shown(NamedTuple):
    """A picture: the metrics in it, by their label."""

    title: str
    means: str
    keys: Mapping[str, str]
    line: float | None = None
    """A level that means something, drawn across."""
    may_log: bool = False
    unless: str | None = None
    """Left out where this metric was measured."""


_SIDES = {"chosen": "rewards/chosen", "rejected": "rewards/rejected"}
_PER_TOKEN = {"chosen": "logps/chosen_per_token", "rejected": "logps/rejected_per_token"}
_SUMS = {"chosen": "logps/chosen", "rejected": "logps/rejected"}

SHOWN = (
    Shown(
        "Loss",
        "What training lowers; held-out loss that rises while the other falls is over-fitting.",
        {"loss": "loss", "preference": "preference_loss", "SFT term": "nll_loss"},
    ),
    Shown(
        "Reward margin",
        "Chosen minus rejected reward. It rises from about zero to a stable positive value; "
        "exploding: beta too low; flat: beta too high or learning rate too small.",
        {
            "all": "rewards/margins",
            "chosen longer": "rewards/margins_chosen_longer",
            "chosen shorter": "rewards/margins_chosen_shorter",
        },
        line=0.0,
    ),
    Shown(
        "Preference accuracy",
        "Share of pairs whose chosen side earns more. One half is chance.",
        {
            "all": "rewards/accuracies",
            "chosen longer": "rewards/accuracies_chosen_longer",
            "chosen shorter": "rewards/accuracies_chosen_shorter",
        },
        line=0.5,
    ),
    Shown(
        "Rewards",
        "How much likelier than at the start a side has become, in units of the method. That "
        "chosen falls, too, is common; rejected should fall faster.",
        _SIDES,
        line=0.0,
    ),
    Shown(
        "Log-probability a token",
        "Nats. Chosen stays near its start; rejected falls, but below -50 the distribution has "
        "collapsed.",
        _PER_TOKEN,
    ),
    Shown(
        "Log-probability of a response",
        "Nats, summed over its tokens; longer responses have lower ones.",
        _SUMS,
        unless="logps/chosen_per_token",
    ),
    Shown(
        "Perplexity of chosen responses",
        "Per token. Falling or steady is healthy; rising means they became less likely.",
        {"perplexity": "perplexity"},
        may_log=True,
    ),
    Shown(
        "KL to the reference",
        "Nats a token: how far the policy has moved. Larger beta holds it closer.",
        {"KL": "reference_kl"},
    ),
    Shown(
        "KTO's estimate of the KL",
        "The point from which gains and losses are counted; zero for long is a fault.",
        {"kl": "kl"},
    ),
    Shown(
        "Log odds",
        "Of chosen over rejected, and ORPO's penalty on it; the first should rise above zero.",
        {"log odds": "log_odds_chosen", "penalty": "log_odds_ratio"},
        line=0.0,
    ),
    Shown(
        "Loss of the demonstrations",
        "Those of sft_mix. Rising means that something is being forgotten.",
        {"loss": "sft_mix/loss"},
    ),
    Shown(
        "Token accuracy",
        "Share of response tokens that the model puts first.",
        {"accuracy": "mean_token_accuracy"},
    ),
    Shown(
        "Gradient norm",
        "Before clipping. Single spikes are normal; a lasting rise comes before divergence.",
        {"norm": "grad_norm"},
        may_log=True,
    ),
    Shown("Learning rate", "As scheduled.", {"rate": "learning_rate"}),
    Shown(
        "Tokens of a response",
        "Sides of unequal length teach length.",
        {"chosen": "tokens/chosen", "rejected": "tokens/rejected"},
    ),
    Shown("Tokens a second", "Over all devices.", {"rate": "tokens_per_second"}),
)

COLOURS = ("first", "second", "third")
_SIDE_COLOURS = {"chosen": "chosen", "rejected": "rejected"}


@dataclass(frozen=True)
class Line:
    """One metric over the steps; None is a value that was not finite."""

    label: str
    colour: str
    train: list[Point]
    held_out: list[Point]


@dataclass(frozen=True)
class Panel:
    title: str
    means: str
    lines: list[Line]
    across: float | None
    log: bool

    @property
    def has_train(self) -> bool:
        return any(line.train for line in self.lines)

    @property
    def has_held_out(self) -> bool:
        return any(line.held_out for line in self.lines)


def panels(run: Run) -> Iterator[Panel]:
    """The pictures of one run; those of which nothing was measured are left out."""
    for shown in SHOWN:
        if shown.unless and _measured(run, shown.unless):
            continue
        lines = [
            Line(label, _SIDE_COLOURS.get(label, COLOURS[at]), *_points(run, key))
            for at, (label, key) in enumerate(shown.keys.items())
            if _measured(run, key)
        ]
        if lines:
            yield _panel(shown, shown.title, lines)


def overlaid(runs: Sequence[Run], names: Sequence[str]) -> Iterator[Panel]:
    """One picture a metric, one line a run."""
    for shown in SHOWN:
        for label, key in shown.keys.items():
            lines = [
                Line(names[at], f"run{at % RUN_COLOURS}", *_points(run, key))
                for at, run in enumerate(runs)
                if _measured(run, key) and not (shown.unless and _measured(run, shown.unless))
            ]
            if lines:
                alone = len(shown.keys) == 1 or label in ("all", "loss")
                title = shown.title if alone else f"{shown.title}: {label}"
                yield _panel(shown, title, lines)


RUN_COLOURS = 8


def _panel(shown: Shown, title: str, lines: list[Line]) -> Panel:
    log = shown.may_log and _spans_decades(lines)
    return Panel(title, shown.means, lines, None if log else shown.line, log)


def _measured(run: Run, key: str) -> bool:
    return any(row.get(key) is not None for row in (*run.rows, *run.evals))


def _points(run: Run, key: str) -> tuple[list[Point], list[Point]]:
    return thinned(_series(run.rows, key)), thinned(_series(run.evals, key))


def _series(rows: Sequence[Row], key: str) -> list[Point]:
    return [(float(row["step"]), row[key]) for row in rows if key in row]


def thinned(points: list[Point], most: int = MOST) -> list[Point]:
    """At most so many points: of each stretch its lowest and highest, and a gap if it has one."""
    if len(points) <= most:
        return points
    stretches = most // 2 - 1
    kept = {0, len(points) - 1}
    for at in range(stretches):
        stretch = range(at * len(points) // stretches, (at + 1) * len(points) // stretches)
        finite = [(value, i) for i in stretch if (value := points[i][1]) is not None]
        gap = next((i for i in stretch if points[i][1] is None), None)
        if gap is not None:
            kept.add(gap)
        if finite:
            kept |= {min(finite)[1]} if gap is not None else {min(finite)[1], max(finite)[1]}
    return [points[i] for i in sorted(kept)]


def _spans_decades(lines: Sequence[Line]) -> bool:
    """Would a linear axis show little but the largest value?"""
    values = sorted(
        value for line in lines for _, value in (*line.train, *line.held_out) if value is not None
    )
    return bool(values) and values[0] > 0 and values[-1] > 20 * values[len(values) // 2]
