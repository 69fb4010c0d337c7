"""The best of several runs by a held-out metric, among those whose model is usable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prefcli.metrics import METRICS
from prefcli.report.held_out import is_unchanged
from prefcli.report.run_data import Run, format_value
from prefcli.report.run_list import METRIC_HEADS
from prefcli.report.verdict import verdict

_METRIC_OF_HEAD = {head: key for key, head in METRIC_HEADS.items()}


@dataclass(frozen=True)
class Ranking:
    """Runs in the order of a metric, the best first, and those that have no rank."""

    head: str
    """The metric, by its head in a table."""
    order: list[int]
    """Indices of all runs: ranked ones, then the others in their order."""
    best: int | None
    ties: list[int]
    """Runs whose value differs from the best one within noise."""
    rejected: dict[int, str]
    """Runs with a better value whose model is not usable, with the reason."""
    value: str

    def lines(self, names: Sequence[str]) -> Iterator[str]:
        """Describe the best run."""
        if self.best is None:
            yield f"no run that finished well has a held-out {self.head}"
            return
        yield f"best {self.head} on held-out rows: {names[self.best]}, {self.value}"
        if self.ties:
            yield f"within noise of it: {', '.join(names[at] for at in self.ties)}"
        for at, reason in self.rejected.items():
            yield f"not chosen in spite of its {self.head}: {names[at]} ({reason})"


def rank_runs(runs: Sequence[Run], head: str) -> Ranking:
    """Rank runs by a metric of their last evaluation. head: a value of METRIC_HEADS."""
    key = _METRIC_OF_HEAD[head]
    sign = -1 if METRICS[key].better == "higher" else 1
    values = {
        at: sign * value
        for at, run in enumerate(runs)
        if run.evals and (value := run.model_eval.get(key)) is not None
    }
    verdicts = {at: verdict(runs[at]) for at in values}
    usable = {
        at: value
        for at, value in values.items()
        if verdicts[at].state == "finished" and verdicts[at].level != "error"
    }
    ranked = sorted(usable, key=lambda at: usable[at])
    order = [*ranked, *(at for at in range(len(runs)) if at not in usable)]
    if not ranked:
        return Ranking(head, order, None, [], {}, "")
    best, *others = ranked
    return Ranking(
        head,
        order,
        best,
        [at for at in others if _within_noise(runs, key, best, at)],
        {
            at: verdicts[at].title
            for at, value in values.items()
            if at not in usable and value < usable[best]
        },
        format_value(key, sign * usable[best]),
    )


def _within_noise(runs: Sequence[Run], key: str, best: int, other: int) -> bool:
    first, second = runs[best].model_eval[key], runs[other].model_eval[key]
    return (
        first is not None
        and second is not None
        and is_unchanged(key, first, second, runs[best].eval_rows)
    )
