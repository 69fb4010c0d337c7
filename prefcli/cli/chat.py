"""A conversation with a model on the terminal."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from prefcli.cli.recipe_command import Offline, command_app, heavy_half
from prefcli.cli.sample import ChatTemplate, Temperature, check_temperature
from prefcli.console import say, visible
from prefcli.errors import ExitCode
from prefcli.recipe.offline import go_offline
from prefcli.secrets import redact

app = command_app()


@app.command()
def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a model folder or hub id.")],
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System message of the conversation.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    temperature: Temperature = 0.7,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Seed of the random sampler.")
    ] = 42,
    chat_template: ChatTemplate = None,
    offline: Offline = False,
) -> None:
    """Talk to a model.

    Reads one message per line, from a terminal or a pipe. /new starts another conversation; the end
    of the input (Ctrl-D) ends it.
    """
    check_temperature(temperature)
    if offline:
        go_offline()
    with heavy_half():
        from prefcli.evaluation.chat import Chat
        from prefcli.evaluation.generate import Sampling

    options = Sampling(max_new_tokens, temperature, seed)
    talk = Chat(model, chat_template, options, _show, system=system)
    if not talk.remembers:
        say("note: the model has no chat template, so it continues each text on its own")
        if system:
            say("warning: --system has no effect without a chat template")
    try:
        while (text := _next_message()) is not None:
            if text == "/new":
                talk.restart()
            elif text:
                talk.answer(text)
                say("")
    except KeyboardInterrupt:
        say("")
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _next_message() -> str | None:
    """Read a line; None at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def _show(text: str) -> None:
    print(redact(visible(text)), end="", flush=True)
