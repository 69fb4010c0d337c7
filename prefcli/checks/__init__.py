"""LIGHT shelf: one file a health rule; history of metric rows -> advice, pure.

A new rule is a file here and a line in `Health`.
"""

from __future__ import annotations

from pydantic import Field

from prefcli.checks.accuracy import Accuracy
from prefcli.checks.base import LEVELS, Advice, Check, Level
from prefcli.checks.collapse import Collapse
from prefcli.checks.displacement import Displacement
from prefcli.checks.facts import Facts
from prefcli.checks.finite import Finite
from prefcli.checks.flat import Flat
from prefcli.checks.forgetting import Forgetting
from prefcli.checks.gradient import Gradient
from prefcli.checks.history import History, Row, is_eval
from prefcli.checks.kto_kl import KtoKl
from prefcli.checks.length import Length
from prefcli.checks.margin import Margin
from prefcli.checks.monitor import Monitor
from prefcli.checks.orpo_odds import OrpoOdds
from prefcli.checks.overfitting import Overfitting
from prefcli.checks.saturation import Saturation
from prefcli.options import Options


class Health(Options):
    """What is looked for while a run goes on. Each rule is a section, or its `on` alone:
    `health: {collapse: warn, gradient: off, displacement: {fall: 1.5}}`."""

    finite: Finite = Field(default_factory=Finite)
    collapse: Collapse = Field(default_factory=Collapse)
    displacement: Displacement = Field(default_factory=Displacement)
    margin: Margin = Field(default_factory=Margin)
    flat: Flat = Field(default_factory=Flat)
    accuracy: Accuracy = Field(default_factory=Accuracy)
    saturation: Saturation = Field(default_factory=Saturation)
    gradient: Gradient = Field(default_factory=Gradient)
    length: Length = Field(default_factory=Length)
    kto_kl: KtoKl = Field(default_factory=KtoKl)
    orpo_odds: OrpoOdds = Field(default_factory=OrpoOdds)
    overfitting: Overfitting = Field(default_factory=Overfitting)
    forgetting: Forgetting = Field(default_factory=Forgetting)

    @property
    def checks(self) -> list[Check]:
        return [getattr(self, name) for name in type(self).model_fields]


__all__ = [
    "LEVELS",
    "Advice",
    "Check",
    "Facts",
    "Health",
    "History",
    "Level",
    "Monitor",
    "Row",
    "is_eval",
]
