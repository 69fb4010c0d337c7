"""LIGHT shelf: one file per health rule. Rules read metric rows and return advice; they are pure.

A new rule is a file here and a line in `Health`.
"""

from __future__ import annotations

from prefcli.config_base import ConfigBase, section
from prefcli.health.accuracy import Accuracy
from prefcli.health.base import LEVEL_NAMES, LEVELS, Advice, HealthRule, Level, upgrade_advice
from prefcli.health.collapse import Collapse
from prefcli.health.displacement import Displacement
from prefcli.health.end_token import EndToken
from prefcli.health.entropy import Entropy
from prefcli.health.equal_scores import EqualScores
from prefcli.health.finite import Finite
from prefcli.health.forgetting import Forgetting
from prefcli.health.gradient import Gradient
from prefcli.health.kto_kl import KtoKl
from prefcli.health.length import Length
from prefcli.health.length_hacking import LengthHacking
from prefcli.health.margin import Margin
from prefcli.health.metric_history import History
from prefcli.health.monitor import Monitor
from prefcli.health.no_learning import NoLearning
from prefcli.health.orpo_odds import OrpoOdds
from prefcli.health.overfitting import Overfitting
from prefcli.health.policy_kl import PolicyKl
from prefcli.health.repetition import Repetition
from prefcli.health.run_context import RunContext
from prefcli.health.saturation import Saturation


class Health(ConfigBase):
    """Rules that check the metrics during training. Each is a section, or its level alone:
    `health: {collapse: warn, gradient: off, displacement: {warn_nats: 1.5}}`."""

    finite: Finite = section()
    collapse: Collapse = section()
    displacement: Displacement = section()
    margin: Margin = section()
    no_learning: NoLearning = section()
    accuracy: Accuracy = section()
    saturation: Saturation = section()
    gradient: Gradient = section()
    length: Length = section()
    end_token: EndToken = section()
    repetition: Repetition = section()
    kto_kl: KtoKl = section()
    orpo_odds: OrpoOdds = section()
    policy_kl: PolicyKl = section()
    length_hacking: LengthHacking = section()
    entropy: Entropy = section()
    equal_scores: EqualScores = section()
    overfitting: Overfitting = section()
    forgetting: Forgetting = section()

    @property
    def rules(self) -> list[HealthRule]:
        return [getattr(self, name) for name in type(self).model_fields]


__all__ = [
    "LEVELS",
    "LEVEL_NAMES",
    "Advice",
    "Health",
    "HealthRule",
    "History",
    "Level",
    "Monitor",
    "RunContext",
    "upgrade_advice",
]
