"""Metric rows made by hand, and the advice of the health rules on them."""

from prefcli.health import Health, Monitor
from prefcli.metrics import is_eval


def rows(count, metrics, *, every=10, start=None, first=1):
    """Training rows: one of step 1, then `count` of every `every` steps.

    metrics: a dict, or a function of the step; start: the metrics of the first row.
    """
    at = [first, *(every * (i + 1) for i in range(count))]
    at = [step for i, step in enumerate(at) if i == 0 or step > first]
    made = []
    for i, step in enumerate(at):
        row = metrics(step) if callable(metrics) else metrics
        made.append({"step": step, **(start if i == 0 and start is not None else row)})
    return made


def at(step, metrics):
    """An evaluation row."""
    return {"step": step, **{f"eval_{key}": value for key, value in metrics.items()}}


def advice_of(context, stream, **health):
    """The advice in the order of steps; `health` is the section of a recipe."""
    monitor = Monitor(Health.model_validate(health).rules, context)
    return [advice for row in sorted(stream, key=_order) for advice in monitor.observe(row)]


def _order(row):
    return row["step"], is_eval(row)


def reported(context, stream, **health):
    """The same as (rule, level) pairs."""
    return [(advice.rule, advice.level) for advice in advice_of(context, stream, **health)]
