"""training.early_stopping: the end of a run that no longer gets better on held-out rows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from prefcli.config_base import ConfigBase, Count, NonNegative
from prefcli.methods import Method
from prefcli.metrics import metric


class EarlyStopping(ConfigBase):
    """Stop when `patience` evaluations in a row bring nothing better; the best checkpoint becomes
    the model."""

    metric: Annotated[str, Field(min_length=1)] = "eval_loss"
    """Any figure of an evaluation, as metrics.jsonl names it."""
    patience: Count = 3
    """Evaluations."""
    threshold: NonNegative = 0.0
    """What counts as better must be so by more than this."""

    @property
    def greater_is_better(self) -> bool:
        return metric(self.metric).better == "higher"

    def check(self, methods: Iterable[Method]) -> None:
        """ValueError where none of the methods measures the metric."""
        known = list(dict.fromkeys(name for method in methods for name in method.eval_metrics))
        if self.metric not in known:
            close = difflib.get_close_matches(self.metric, known, n=1, cutoff=0.6)
            raise ValueError(
                f"training.early_stopping.metric {self.metric} is not measured by an evaluation; "
                + (f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}")
            )
