"""Responses of models, without a recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from prefcli.cli.recipe_command import Offline, command_app, heavy_half
from prefcli.console import say
from prefcli.errors import RecipeError
from prefcli.recipe.offline import go_offline
from prefcli.secrets import redact

app = command_app()


@app.command()
def sample(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Model folders or hub ids to compare.")
    ],
    prompts: Annotated[
        str, typer.Option("--prompts", help="Data file with a `prompt` column.", metavar="FILE")
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", help="Write prompts and completions as JSONL.", metavar="FILE"),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest completion, in tokens.")
    ] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Sampling temperature; 0 is greedy.")
    ] = 0.0,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of the random sampler.")
    ] = 42,
    chat_template: Annotated[
        str | None, typer.Option(metavar="FILE", help="Use this chat template.")
    ] = None,
    offline: Offline = False,
) -> None:
    """Generate responses with one or more models and show them together."""
    if offline:
        go_offline()
    if output is not None:
        with _writing(output):  # before minutes of generation
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            Path(output).open("a").close()
    with heavy_half():
        from prefcli.evaluation.generate import Sampling, generate_answers

    rows = generate_answers(
        models, prompts, chat_template, Sampling(max_new_tokens, temperature, seed)
    )
    if output is not None:
        text = "".join(redact(json.dumps(row)) + "\n" for row in rows)
        with _writing(output):
            Path(output).write_text(text, encoding="utf-8")
        say(f"{len(rows)} prompts answered, written to {output}")
        return
    for row in rows:
        say("", f"prompt: {row['shown']}")
        for model in models:
            say(f"  {model}: {row['completions'][model].strip()}")


@contextmanager
def _writing(path: str) -> Iterator[None]:
    """Turn a failed write into a RecipeError."""
    try:
        yield
    except OSError as error:
        raise RecipeError(
            f"can't write {path or 'an empty name'}: {error.strerror}",
            code="RCP027",
            hint="name another file with --output",
        ) from None
