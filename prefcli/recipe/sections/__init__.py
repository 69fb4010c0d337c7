"""The sections of a recipe that no method owns, one file per group.

A method's own section is in `methods/`; rules between sections are in `recipe/schema.py`.
"""

from prefcli.recipe.sections.data import (
    HELD_OUT,
    SOURCES,
    CheckSft,
    CheckText,
    Data,
    DataChecks,
    SftMix,
    Shares,
    Source,
)
from prefcli.recipe.sections.model import Lora, Model, Reference, RewardModel, check_pinned
from prefcli.recipe.sections.on_policy import (
    ExecutableJudge,
    FunctionJudge,
    ImplicitRewardJudge,
    Judge,
    Pairs,
    RewardModelJudge,
)
from prefcli.recipe.sections.output import (
    ExpectedResults,
    Logging,
    PushToHub,
    SampleOptions,
)
from prefcli.recipe.sections.training import (
    EarlyStopping,
    Launch,
    Performance,
    Training,
    need_deepspeed,
)

__all__ = [
    "HELD_OUT",
    "SOURCES",
    "CheckSft",
    "CheckText",
    "Data",
    "DataChecks",
    "EarlyStopping",
    "ExecutableJudge",
    "ExpectedResults",
    "FunctionJudge",
    "ImplicitRewardJudge",
    "Judge",
    "Launch",
    "Logging",
    "Lora",
    "Model",
    "Pairs",
    "Performance",
    "PushToHub",
    "Reference",
    "RewardModel",
    "RewardModelJudge",
    "SampleOptions",
    "SftMix",
    "Shares",
    "Source",
    "Training",
    "check_pinned",
    "need_deepspeed",
]
