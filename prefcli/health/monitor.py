"""All rules over one stream of metric rows; each speaks once, and again only when it gets worse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prefcli.health.base import LEVELS, Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext
from prefcli.metrics import Row


class Monitor:
    """Fed row by row; pure, so that literal rows test it."""

    def __init__(self, checks: Sequence[HealthRule], facts: RunContext) -> None:
        self._checks = [check for check in checks if check.level != "off"]
        self._facts = facts
        self._said: dict[str, int] = {}
        self.history = History()

    def replay(self, rows: Iterable[Row], said: Iterable[Mapping[str, Any]]) -> None:
        """What a run that is resumed has measured and said already."""
        for row in rows:
            self.history.add(row)
        for advice in said:
            # A run that was stopped, and goes on all the same, is stopped again.
            level = min(LEVELS.index(advice["level"]), LEVELS.index("warn"))
            self._remember(advice["check"], level)

    def look(self, row: Row) -> list[Advice]:
        """What is new to say after this row; the loudest first."""
        self.history.add(row)
        found = {
            check.name: (check, advice)
            for check in self._checks
            if (advice := check.look(self.history, self._facts)) is not None
        }
        new = [
            advice
            for check, advice in found.values()
            if not found.keys() & set(check.defers_to) and self._is_news(advice)
        ]
        return sorted(new, key=lambda advice: -LEVELS.index(advice.level))

    def _is_news(self, advice: Advice) -> bool:
        level = LEVELS.index(advice.level)
        if level <= self._said.get(advice.check, -1):
            return False
        self._remember(advice.check, level)
        return True

    def _remember(self, check: str, level: int) -> None:
        self._said[check] = max(level, self._said.get(check, -1))
