"""TRN: training: gates, divergence and memory."""

from __future__ import annotations

from prefcli.error_codes.base import ErrorCode

TRAINING_CODES: tuple[ErrorCode, ...] = ()
