"""The shape of a health rule: thresholds from the recipe, and advice about the run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from pydantic import GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from prefcli.config_base import ConfigBase
from prefcli.health.metric_history import History
from prefcli.health.run_context import RunContext
from prefcli.methods import Method

Level = Literal["note", "warn", "stop"]
LEVELS: tuple[Level, ...] = ("note", "warn", "stop")
"""From mild to severe."""
LEVEL_NAMES: Mapping[str, str] = {"note": "note", "warn": "warning", "stop": "stop"}
"""Levels as they are printed."""
LevelOrOff = Literal["note", "warn", "stop", "off"]


@dataclass(frozen=True)
class Advice:
    """An observation, what it usually means and what to change."""

    rule: str
    level: Level
    step: int
    seen: str
    means: str
    change: str

    def __str__(self) -> str:
        return f"{self.seen}: {self.means}; {self.change}"

    def as_dict(self) -> dict[str, Any]:
        """Return a line of health.jsonl."""
        return {**asdict(self), "message": str(self)}

    def as_line(self) -> str:
        """Return a line of the log."""
        return f"health: {LEVEL_NAMES[self.level]} at step {self.step}: {self}"


def upgrade_advice(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a line of health.jsonl with this version's keys; earlier ones have "check"."""
    return {"rule": entry["check"], **entry} if "check" in entry and "rule" not in entry else entry


class HealthRule(ConfigBase):
    """One rule. Its docstring has the sources; its fields are thresholds."""

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()
    """Metrics (`Method.metrics`) that the rule needs; it ignores methods without them."""
    needs: ClassVar[str | None] = None
    """A section of the recipe that the rule needs, as a dotted path."""
    needs_language_model: ClassVar[bool] = False
    """It judges texts or tokens, which a reward model does not write."""
    of_sampled_completions: ClassVar[bool] = False
    """It judges completions that the policy samples in training."""
    defers_to: ClassVar[tuple[str, ...]] = ()
    """Rules whose advice replaces this rule's, since they name a better reason."""

    level: LevelOrOff = "warn"
    """Severity: note, warn, stop (ends the run with exit code 5) or off."""

    @model_validator(mode="before")
    @classmethod
    def _accept_a_level(cls, value: Any) -> Any:
        return {"level": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _refuse_thresholds_of_a_rule_that_is_off(self) -> HealthRule:
        unused = [key for key in self.changed if key != "level"]
        if self.level == "off" and unused:
            raise ValueError(f"{unused[0]} has no effect with level: off; remove one of them")
        return self

    @property
    def changed(self) -> list[str]:
        """Keys whose value is not the default."""
        fields = type(self).model_fields
        return [key for key, field in fields.items() if getattr(self, key) != field.default]

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        section = super().__get_pydantic_json_schema__(core_schema, handler)
        level = {"enum": [*LEVELS, "off"], "type": "string"}
        description = section.pop("description", "")
        return {"anyOf": [section, level], "description": description}

    @classmethod
    def applies(cls, method: Method) -> bool:
        """Return whether the rule can check runs of a method."""
        if cls.needs_language_model and method.head != "language_model":
            return False
        if cls.of_sampled_completions and not method.needs_judge:
            return False
        return set(cls.reads) <= set(method.metrics)

    @abstractmethod
    def check(self, history: History, run: RunContext) -> Advice | None:
        """Return advice if the run is in the state that the rule is for."""

    def advice(
        self, history: History, *, seen: str, means: str, change: str, at_most: Level = "stop"
    ) -> Advice:
        """Return advice of the recipe's level.

        at_most: a limit of the level, for milder findings.
        """
        assert self.level != "off", "the monitor skips rules that are off"
        level = min(self.level, at_most, key=LEVELS.index)
        return Advice(self.name, level, history.step, seen, means, change)
