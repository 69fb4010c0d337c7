"""LIGHT shelf: one adapter per trl trainer, with what prefcli has to know of it."""

from prefcli.methods.trainers.base import TrainerAdapter
from prefcli.methods.trainers.cpo import CPO
from prefcli.methods.trainers.dpo import DPO
from prefcli.methods.trainers.kto import KTO
from prefcli.methods.trainers.orpo import ORPO
from prefcli.methods.trainers.reward import REWARD
from prefcli.methods.trainers.rloo import RLOO
from prefcli.methods.trainers.sft import SFT

__all__ = ["CPO", "DPO", "KTO", "ORPO", "REWARD", "RLOO", "SFT", "TrainerAdapter"]
