"""What every health rule is: its thresholds as written in a recipe, and what it says of a run."""

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
Loudness = Literal["note", "warn", "stop", "off"]


@dataclass(frozen=True)
class Advice:
    """One line to the person who watches: what is seen, what it usually means, what to change."""

    check: str
    level: Level
    step: int
    seen: str
    means: str
    change: str

    def __str__(self) -> str:
        return f"{self.seen}: {self.means}; {self.change}"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "message": str(self)}


class HealthRule(ConfigBase):
    """One rule. The docstring tells it and its source; the fields are its thresholds."""

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()
    """Metrics of a method (`Method.metrics`) without which the rule has nothing to look at."""
    needs: ClassVar[str | None] = None
    """A section of the recipe without which it has nothing to look at, as a dotted path."""
    defers_to: ClassVar[tuple[str, ...]] = ()
    """Rules that, while they are true, say the same with a better reason."""

    level: Loudness = "warn"
    """How loud: a note, a warning, the end of the run with exit code 5, or off."""

    @model_validator(mode="before")
    @classmethod
    def _level_alone(cls, value: Any) -> Any:
        return {"level": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _nothing_for_nobody(self) -> HealthRule:
        inert = [key for key in self.changed if key != "level"]
        if self.level == "off" and inert:
            raise ValueError(f"{inert[0]} has no effect with level: off; leave one of them out")
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
        about = section.pop("description", "")
        return {"anyOf": [section, level], "description": about}

    @classmethod
    def applies(cls, method: Method) -> bool:
        return set(cls.reads) <= set(method.metrics)

    @abstractmethod
    def look(self, history: History, facts: RunContext) -> Advice | None:
        """What there is to say of the run now, whether it was said before or not."""

    def advice(
        self, history: History, *, seen: str, means: str, change: str, at_most: Level = "stop"
    ) -> Advice:
        """At most as severe as `level`.

        at_most: for a finding that is milder than the one the rule is named after.
        """
        assert self.level != "off", "the monitor asks no rule that is off"
        level = min(self.level, at_most, key=LEVELS.index)
        return Advice(self.name, level, history.step, seen, means, change)
