"""Options: the strict, frozen base of everything written in YAML."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

_WORDS = {"yes": True, "on": True, "no": False, "off": False}


def _yes_no(value: Any) -> Any:
    return _WORDS.get(value.lower(), value) if isinstance(value, str) else value


class ConfigBase(BaseModel):
    """Unknown keys, wrong types and non-finite numbers are errors; values never change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=False,
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """With the docstrings of the keys. (pydantic's use_attribute_docstrings reads the sources
        whenever a class is made, which every start of the program would pay for.)"""
        section = handler.resolve_ref_schema(handler(core_schema))
        for base in reversed(cls.__mro__):
            if issubclass(base, ConfigBase) and base is not ConfigBase:
                for name, text in _docstrings(base).items():
                    key = cls.model_fields[name].alias or name if name in cls.model_fields else name
                    if key in section.get("properties", {}):
                        section["properties"][key]["description"] = text
        return section


def _docstrings(section: type) -> dict[str, str]:
    """Of its attributes: the text that follows each."""
    try:
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    except (OSError, TypeError):
        return {}  # made without a source file
    assert isinstance(body, ast.ClassDef)
    return {
        line.target.id: inspect.cleandoc(text.value.value)
        for line, text in itertools.pairwise(body.body)
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


Flag = Annotated[bool, BeforeValidator(_yes_no, json_schema_input_type=bool)]
"""true/false, and YAML 1.1's yes/no/on/off, which our loader leaves as words."""

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
