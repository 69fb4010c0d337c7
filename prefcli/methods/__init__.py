"""The shelf of methods. A new one is a file here, two lines here and a section in the schema."""

from prefcli.methods.base import Band as Band
from prefcli.methods.base import Head as Head
from prefcli.methods.base import LearningRates as LearningRates
from prefcli.methods.base import Method as Method
from prefcli.methods.base import RowKind as RowKind
from prefcli.methods.cpo import Cpo as Cpo
from prefcli.methods.dpo import Dpo as Dpo
from prefcli.methods.ipo import Ipo as Ipo
from prefcli.methods.kto import Kto as Kto
from prefcli.methods.orpo import Orpo as Orpo
from prefcli.methods.reward import Reward as Reward
from prefcli.methods.rloo import Rloo as Rloo
from prefcli.methods.sft import Sft as Sft
from prefcli.methods.simpo import Simpo as Simpo

_METHODS: tuple[type[Method], ...] = (
    Sft,
    Dpo,
    Ipo,
    Kto,
    Orpo,
    Simpo,
    Cpo,
    Reward,
    Rloo,
)

METHODS: dict[str, type[Method]] = {method.name: method for method in _METHODS}
