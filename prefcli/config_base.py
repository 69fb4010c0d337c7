"""The strict, frozen base of everything written in YAML, and the types of its values."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

_YAML_1_1_FLAGS = {"yes": True, "on": True, "no": False, "off": False}


def _flag(value: Any) -> Any:
    return _YAML_1_1_FLAGS.get(value.lower(), value) if isinstance(value, str) else value


class RuleError(ValueError):
    """A rule that a value or a section breaks; the message names the keys and the cure.

    code: a key of `prefcli.error_codes.ERROR_CODES`.
    """

    def __init__(self, message: str, *, code: str = "RCP016") -> None:
        super().__init__(message)
        self.code = code


class ConfigBase(BaseModel):
    """Unknown keys, wrong types and non-finite numbers are errors; values never change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=False,
        # Compile a section when it is first used; a recipe compiles all of its sections at once.
        defer_build=True,
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Add the docstrings of the keys as descriptions.

        pydantic's use_attribute_docstrings would read the sources at every start.
        """
        section = handler.resolve_ref_schema(handler(core_schema))
        for base in reversed(cls.__mro__):
            if issubclass(base, ConfigBase) and base is not ConfigBase:
                for name, text in _docstrings(base).items():
                    key = cls.model_fields[name].alias or name if name in cls.model_fields else name
                    if key in section.get("properties", {}):
                        section["properties"][key]["description"] = text
        return section


def _docstrings(section: type) -> dict[str, str]:
    """The text that follows each attribute of a class."""
    try:
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    except (OSError, TypeError):
        return {}  # no source file
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


def section() -> Any:
    """The default of a section: one with the defaults of its keys.

    `{}` is validated together with the recipe, which is faster than validating it separately.
    """
    return Field(default_factory=dict, validate_default=True)


Flag = Annotated[bool, BeforeValidator(_flag, json_schema_input_type=bool)]
"""true/false, and YAML 1.1's yes/no/on/off, which the reader passes on as text."""

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
