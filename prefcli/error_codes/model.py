"""MDL: models, tokenizers, chat templates and adapters."""

from __future__ import annotations

from prefcli.error_codes.base import ErrorCode

MODEL_CODES: tuple[ErrorCode, ...] = ()
