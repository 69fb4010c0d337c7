"""DAT: sources, rows and data checks."""

from __future__ import annotations

from prefcli.error_codes.base import ErrorCode

DATA_CODES: tuple[ErrorCode, ...] = ()
