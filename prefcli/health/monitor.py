"""All rules over one stream of metric rows. A rule reports again only if the run gets worse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prefcli.health.base import LEVELS, Advice, HealthRule
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext
from prefcli.metrics import Row


class Monitor:
    """The state of all rules; pure, so that tests can use literal rows."""

    def __init__(self, rules: Sequence[HealthRule], run: RunContext) -> None:
        self._rules = [rule for rule in rules if rule.level != "off"]
        self._run = run
        self._reported: dict[str, int] = {}
        """Rule -> index of the most severe level that it has reported."""
        self.history = History()

    def replay(self, rows: Iterable[Row], advice: Iterable[Mapping[str, Any]]) -> None:
        """Restore the state of a run that is resumed, from its rows and its health.jsonl."""
        for row in rows:
            self.history.add(row)
        for entry in advice:
            # A rule that stopped the run stops it again if nothing has changed.
            level = min(LEVELS.index(entry["level"]), LEVELS.index("warn"))
            self._remember(entry["rule"], level)

    def observe(self, row: Row) -> list[Advice]:
        """Add a row and return the advice that is new, the most severe first."""
        self.history.add(row)
        current = {
            rule.name: (rule, advice)
            for rule in self._rules
            if (advice := rule.check(self.history, self._run)) is not None
        }
        new = [
            advice
            for rule, advice in current.values()
            if not current.keys() & set(rule.defers_to) and self._is_new(advice)
        ]
        return sorted(new, key=lambda advice: -LEVELS.index(advice.level))

    def _is_new(self, advice: Advice) -> bool:
        level = LEVELS.index(advice.level)
        if level <= self._reported.get(advice.rule, -1):
            return False
        self._remember(advice.rule, level)
        return True

    def _remember(self, rule: str, level: int) -> None:
        self._reported[rule] = max(level, self._reported.get(rule, -1))
