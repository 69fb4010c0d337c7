"""expected: the figures of a published run, beside which a run's last evaluation is put."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field

from prefcli.config_base import ConfigBase
from prefcli.methods import Method


def _band(ends: list[float]) -> list[float]:
    if len(ends) != 2:
        raise ValueError(f"a band has two ends, not {len(ends)}; write [low, high]")
    if ends[0] > ends[1]:
        raise ValueError(f"the band starts above its end; write [{ends[1]:g}, {ends[0]:g}]")
    return ends


def _not_empty(metrics: dict[str, list[float]]) -> dict[str, list[float]]:
    if not metrics:
        raise ValueError("metrics is empty; write a band, as in eval_loss: [0.49, 0.51]")
    return metrics


class Compared(NamedTuple):
    """A figure of a run beside its band."""

    value: float
    low: float
    high: float

    @property
    def within(self) -> bool:
        return self.low <= self.value <= self.high

    def as_dict(self) -> dict[str, float | bool]:
        return {**self._asdict(), "within": self.within}


class ExpectedResults(ConfigBase):
    """What a published run of this recipe measured. A comparison, not a gate."""

    source: Annotated[str, Field(min_length=1)]
    """Where the figures were published."""
    method: str | None = None
    """The method section they belong to; left out where the recipe has only one."""
    metrics: Annotated[
        dict[str, Annotated[list[float], AfterValidator(_band)]], AfterValidator(_not_empty)
    ]
    """Figures of the last evaluation, as metrics.jsonl names them: [low, high], ends included."""

    def check(self, methods: Mapping[str, Method]) -> None:
        """Can a run of these sections measure it? ValueError if not."""
        here = ", ".join(methods)
        if self.method is None and len(methods) > 1:
            raise ValueError(f"expected needs a method, since the recipe has several: {here}")
        if self.method is not None and self.method not in methods:
            raise ValueError(
                f"expected.method {self.method!r} is no section of this recipe, which has {here}"
            )
        method = methods[self.method or here]
        known = method.eval_metrics
        for name in self.metrics:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
                raise ValueError(
                    f"expected.metrics.{name} is not measured by an evaluation of {method.name}; "
                    + (f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}")
                )

    def compare(
        self, method: str, last: Mapping[str, float]
    ) -> tuple[dict[str, Compared], list[str]]:
        """A run's last evaluation beside the bands, by metric, and the same in words."""
        if self.method not in (None, method):
            return {}, [f"expected: not compared, it is of {self.method}"]
        compared = {
            name: Compared(last[name], low, high)
            for name, (low, high) in self.metrics.items()
            if name in last
        }
        return compared, [
            self._in_words(name, compared[name])
            if name in compared
            else f"expected: {name} was not measured"
            for name in self.metrics
        ]

    def _in_words(self, name: str, found: Compared) -> str:
        # As many digits as it takes, so that no figure seems to lie where it does not.
        value, band = f"{found.value:g}", f"{found.low:g} to {found.high:g}"
        if found.within:
            return f"expected: {name} {value} within {band}"
        source = " ".join(self.source.split())
        return f"expected: {name} {value} is outside {band} ({source})"
