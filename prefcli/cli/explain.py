"""Explanations of error codes and recipe keys, for a person, a script or the documentation."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from prefcli.cli.recipe_command import Json, command_app, print_json
from prefcli.console import document
from prefcli.error_codes import ERROR_CODES, ErrorCode
from prefcli.error_codes.markdown import error_reference
from prefcli.errors import RecipeError
from prefcli.methods import METHODS
from prefcli.text import aligned, did_you_mean

if TYPE_CHECKING:
    from prefcli.recipe.reference import RecipeKey

app = command_app()

_CODE = re.compile(r"[A-Za-z]{3}\d+")


@app.command()
def explain(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[CODE|KEY]",
            help="An error code, e.g. RCP001, or a key of the recipe, e.g. dpo.beta.",
        ),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print all codes as the page docs/errors.md.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Explain an error code, or a key of the recipe.

    Lists all codes if nothing is given.
    """
    if subject is not None and not _CODE.fullmatch(subject):
        _explain_key(subject, as_json=as_json)
        return
    entries = list(ERROR_CODES.values()) if subject is None else [_find(subject)]
    if as_json:
        everything = [entry._asdict() for entry in entries]
        print_json(everything if subject is None else everything[0])
    elif markdown:
        document(error_reference(entries).rstrip("\n"))
    elif subject is None:
        document("\n".join(aligned([(entry.code, entry.name) for entry in entries])))
    else:
        document("\n".join(_lines(entries[0])))


def _find(code: str) -> ErrorCode:
    entry = ERROR_CODES.get(code.upper())
    if entry is None:
        raise RecipeError(
            f"there is no error code {code}",
            code="RCP028",
            hint="run `prefcli explain` to list all codes",
        )
    return entry


def _explain_key(text: str, *, as_json: bool) -> None:
    """Print what a key means; for a section, also its keys; for a last part, all its homes."""
    from prefcli.recipe.reference import recipe_keys

    keys = recipe_keys()
    path = re.sub(r"\[\d+\]", "", text).strip(".")
    named = [key for key in keys if key.path == path]
    named = named or [key for key in keys if key.path.rpartition(".")[2] == path]
    if not named:
        raise RecipeError(
            f"{text} is neither an error code nor a key of the recipe",
            code="RCP028",
            hint=did_you_mean(path, [key.path for key in keys])
            or "run `prefcli explain` to list all codes, `prefcli schema` for all keys",
        )
    if as_json:
        print_json([key._asdict() | {"published": _published(key.path)} for key in named])
        return
    document("\n\n".join("\n".join(_lines_of_key(key, keys)) for key in named))


def _lines_of_key(key: RecipeKey, keys: Sequence[RecipeKey]) -> list[str]:
    default = "required" if key.default is None else f"default: {key.default}"
    last = key.path.rpartition(".")[2]
    inside = [inner for inner in keys if inner.path.startswith(f"{key.path}.")]
    form = f"    write {last}: VALUE, or {key.path}=VALUE after the recipe"
    return [
        key.path,
        f"    {key.type}; {default}",
        *textwrap.wrap(key.description, 96, initial_indent="    ", subsequent_indent="    "),
        *(f"    published for {line}" for line in _published(key.path)),
        *([] if key.is_section else [form]),
        *(f"  {line}" for line in aligned([(inner.path, inner.type) for inner in inside])),
    ]


def _published(path: str) -> list[str]:
    """The published ranges of a key, by method, for models of 7 billion parameters."""
    lines = []
    for name, method in METHODS.items():
        full, lora = (
            method().bands(lora=lora, parameters=7_000_000_000).get(path) for lora in (False, True)
        )
        same = full == lora
        bands = {name: full} if same else {f"{name}, full": full, f"{name}, LoRA": lora}
        lines += [
            f"{which}: {band.low:g} to {band.high:g} ({band.source})"
            for which, band in bands.items()
            if band is not None
        ]
    return lines


def _lines(entry: ErrorCode) -> list[str]:
    return [
        f"{entry.code} {entry.name}",
        "",
        entry.meaning,
        "",
        "Example:",
        *(f"    {line}" for line in entry.example.splitlines()),
        "",
        f"Cure: {entry.cure}",
    ]
