"""RCP: recipe, command line and migration."""

from __future__ import annotations

from prefcli.error_codes.base import ErrorCode

RECIPE_CODES: tuple[ErrorCode, ...] = ()
