"""Options: the strict, frozen base of everything written in YAML."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_WORDS = {"yes": True, "on": True, "no": False, "off": False}


def _yes_no(value: Any) -> Any:
    return _WORDS.get(value.lower(), value) if isinstance(value, str) else value


class Options(BaseModel):
    """Unknown keys, wrong types and non-finite numbers are errors; values never change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=False,
    )


Flag = Annotated[bool, BeforeValidator(_yes_no, json_schema_input_type=bool)]
"""true/false, and YAML 1.1's yes/no/on/off, which our loader leaves as words."""

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
