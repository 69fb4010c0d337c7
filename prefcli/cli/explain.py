"""Explanations of error codes, for a person, a script or the documentation."""

from __future__ import annotations

from typing import Annotated

import typer

from prefcli.cli.recipe_command import Json, command_app, print_json
from prefcli.console import document
from prefcli.error_codes import ERROR_CODES, ErrorCode
from prefcli.error_codes.markdown import error_reference
from prefcli.errors import RecipeError

app = command_app()


@app.command()
def explain(
    code: Annotated[
        str | None, typer.Argument(metavar="[CODE]", help="An error code, e.g. RCP001.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print all codes as the page docs/errors.md.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Explain an error code: what it means, an example and the cure.

    Lists all codes if none is given.
    """
    entries = list(ERROR_CODES.values()) if code is None else [_find(code)]
    if as_json:
        print_json([entry._asdict() for entry in entries] if code is None else entries[0]._asdict())
    elif markdown:
        document(error_reference(entries).rstrip("\n"))
    elif code is None:
        width = max(len(entry.code) for entry in entries)
        document("\n".join(f"{entry.code:<{width}}  {entry.name}" for entry in entries))
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
