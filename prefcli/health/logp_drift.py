"""The change of log-probabilities since the start, in nats per token of the responses.

Batches differ more than a policy changes in a hundred steps, so rows are compared with themselves
if possible: with the reference, which is the start, or from one evaluation to the next.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

_STEPS = 10
_MIN_ROWS = 64
"""Rows at the start and now, if only different rows can be compared."""

Side = Literal["chosen", "rejected"]


class LogpDrift(NamedTuple):
    """The change of one side's log-probability."""

    nats: float
    """Per token; negative if the side has become less likely."""
    basis: str
    """What it was measured against, as text."""


def logp_drift(history: History, run: RunContext, side: Side) -> LogpDrift | None:
    """Return one side's change since step 0; None while it is within noise."""
    if run.starts_at_reference:
        rewards = history.recent(f"rewards/{side}", _STEPS)
        tokens = history.recent(f"tokens/{side}", _STEPS)
        sums = run.method.reward_is_sum
        if rewards is not None and tokens is not None and sums and tokens.mean > 0:
            scale = run.method.reward_scale
            return LogpDrift(rewards.mean / scale / tokens.mean, "against the start")
    key = f"logps/{side}_per_token"
    first, last = history.first(f"eval_{key}"), history.last(f"eval_{key}")
    if first is not None and last is not None and first.step == 0 < last.step:
        return LogpDrift(last.value - first.value, "on data.eval, against step 0")
    enough = math.ceil(_MIN_ROWS / run.batch)
    windows = history.from_opening(key, enough, max(enough, _STEPS))
    if first is not None or windows is None:
        return None
    opening, now = windows
    return LogpDrift(now.mean - opening.mean, "against the first steps")


def margin_per_token(history: History, run: RunContext, steps: int) -> float | None:
    """Return the margin of the last steps in nats per token: how much more likely a token of the
    chosen side has become than one of the rejected side."""
    margin = history.recent("rewards/margins", steps)
    if margin is None or not run.method.reward_is_linear:
        return None
    nats = margin.mean / run.method.reward_scale
    if not run.method.reward_is_sum:
        return nats
    lengths = [
        window
        for side in ("chosen", "rejected")
        if (window := history.recent(f"tokens/{side}", steps)) is not None
    ]
    tokens = sum(window.mean for window in lengths) / 2
    return nats / tokens if len(lengths) == 2 and tokens > 0 else None
