"""LIGHT: every error code and its explanation, for `prefcli explain CODE` and docs/errors.md.

One file a group of codes. A code names a kind of mistake with one cure; several messages may share
it. A code is never reused or renumbered once it is released.
"""

from prefcli.error_codes.base import ErrorCode
from prefcli.error_codes.data import DATA_CODES
from prefcli.error_codes.environment import ENVIRONMENT_CODES
from prefcli.error_codes.judge import JUDGE_CODES
from prefcli.error_codes.model import MODEL_CODES
from prefcli.error_codes.recipe import RECIPE_CODES
from prefcli.error_codes.run import RUN_CODES
from prefcli.error_codes.training import TRAINING_CODES

ERROR_CODES: dict[str, ErrorCode] = {
    entry.code: entry
    for entry in (
        *RECIPE_CODES,
        *DATA_CODES,
        *MODEL_CODES,
        *ENVIRONMENT_CODES,
        *RUN_CODES,
        *TRAINING_CODES,
        *JUDGE_CODES,
    )
}

__all__ = ["ERROR_CODES", "ErrorCode"]
