"""How far the policy has moved since the start, in nats a token of the responses.

Batches differ more than a policy moves in a hundred steps, so rows are compared with themselves
wherever that can be done: with the reference, which is the start, or from one evaluation to the
next.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext

_STEPS = 10
_FEWEST_ROWS = 64
"""Of one and of the other side, where different rows are all there is to compare."""

Side = Literal["chosen", "rejected"]


class LogpDrift(NamedTuple):
    nats: float
    """Of log-probability a token; negative where the side has become less likely."""
    seen: str
    """How it was measured, in words."""


def drift(history: History, facts: RunContext, side: Side) -> LogpDrift | None:
    """Of one side since step 0; None where it can't be told from noise yet."""
    if facts.starts_at_reference:
        rewards = history.recent(f"rewards/{side}", _STEPS)
        tokens = history.recent(f"tokens/{side}", _STEPS)
        sums = facts.method.reward_is_sum
        if rewards is not None and tokens is not None and sums and tokens.mean > 0:
            scale = facts.method.reward_scale
            return LogpDrift(rewards.mean / scale / tokens.mean, "against the start")
    key = f"logps/{side}_per_token"
    first, last = history.first(f"eval_{key}"), history.last(f"eval_{key}")
    if first is not None and last is not None and first.step == 0 < last.step:
        return LogpDrift(last.value - first.value, "on data.eval, against step 0")
    enough = math.ceil(_FEWEST_ROWS / facts.batch)
    opening = history.opening(key, enough)
    if first is not None or opening is None:
        return None
    now = history.recent(key, max(enough, _STEPS), after=opening.end)
    return LogpDrift(now.mean - opening.mean, "against the first steps") if now else None


def gap(history: History, facts: RunContext, steps: int) -> float | None:
    """The margin of the last steps in nats a token: how much more likely a token of the chosen
    side has become than one of the rejected."""
    margin = history.recent("rewards/margins", steps)
    if margin is None:
        return None
    if not facts.method.reward_is_sum:
        return margin.mean / facts.method.reward_scale
    lengths = [history.recent(f"tokens/{side}", steps) for side in ("chosen", "rejected")]
    tokens = sum(each.mean for each in lengths if each is not None) / len(lengths)
    if None in lengths or tokens <= 0:
        return None
    return margin.mean / facts.method.reward_scale / tokens
