"""RUN: run folders, resume and publishing."""

from __future__ import annotations

from prefcli.error_codes.base import ErrorCode

RUN_CODES: tuple[ErrorCode, ...] = ()
