"""TRN: training: gates, divergence and memory."""

from __future__ import annotations

from prefcli.error_codes.base import ErrorCode

TRAINING_CODES: tuple[ErrorCode, ...] = (
    # 060-099: trl and its trainers.
    ErrorCode(
        "TRN060",
        "unsupported-library-version",
        "A private function of trl, transformers, datasets, accelerate or torch that prefcli "
        "relies on is missing or takes other arguments in the installed version.",
        "pip install --upgrade transformers",
        "Install the versions prefcli was tested with: pip install prefcli -c constraints.txt",
    ),
)
