"""The shelf of methods. A new one is a file here, a line here and a section in the schema."""

from prefcli.methods.base import Band, LearningRates, Method, RowKind
from prefcli.methods.dpo import Dpo
from prefcli.methods.ipo import Ipo
from prefcli.methods.kto import Kto
from prefcli.methods.orpo import Orpo
from prefcli.methods.sft import Sft
from prefcli.methods.simpo import Simpo

METHODS: dict[str, type[Method]] = {m.name: m for m in (Sft, Dpo, Ipo, Kto, Orpo, Simpo)}

__all__ = [
    "METHODS",
    "Band",
    "Dpo",
    "Ipo",
    "Kto",
    "LearningRates",
    "Method",
    "Orpo",
    "RowKind",
    "Sft",
    "Simpo",
]
