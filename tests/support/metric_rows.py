"""Metric rows by hand, and what the rules say of them."""

from prefcli.health import Health, Monitor


def rows(count, metrics, *, every=10, start=None, first=1):
    """Train rows: of step 1, then of every `every` steps, `count` of them.

    metrics: a dict, or a function of the step; start: what the first row has instead.
    """
    at = [first, *(every * (i + 1) for i in range(count))]
    at = [step for i, step in enumerate(at) if i == 0 or step > first]
    made = []
    for i, step in enumerate(at):
        row = metrics(step) if callable(metrics) else metrics
        made.append({"step": step, **(start if i == 0 and start is not None else row)})
    return made


def at(step, metrics):
    """A row of an evaluation."""
    return {"step": step, **{f"eval_{key}": value for key, value in metrics.items()}}


def watch(facts, stream, **health):
    """What is said, in order; `health` as in a recipe."""
    monitor = Monitor(Health.model_validate(health).checks, facts)
    return [advice for row in sorted(stream, key=_order) for advice in monitor.look(row)]


def _order(row):
    return row["step"], any(key.startswith("eval_") for key in row)


def told(facts, stream, **health):
    """The same as (rule, level) pairs."""
    return [(advice.check, advice.level) for advice in watch(facts, stream, **health)]
