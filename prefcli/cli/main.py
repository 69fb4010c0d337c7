"""The command line: which commands there are, and the one place that prints errors."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from prefcli import __version__, first_failure, preemption
from prefcli.cli.usage import CLICK_ERROR, check_command, usage_problem
from prefcli.console import is_main_process, output_problem, print_error, say
from prefcli.cuda_allocator import use_expandable_segments
from prefcli.errors import STOPPED, ExitCode, PrefcliError, Problem, RecipeError
from prefcli.methods import METHODS
from prefcli.secrets import is_secret, redact
from prefcli.telemetry import no_telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND_GROUPS = {
    "Start": {
        "init": ("init", "Write a recipe for your own model and data."),
        "recipes": ("recipes", "List, show or copy the shipped recipes."),
        "validate": ("validate", "Report every mistake in recipes, without torch."),
        "migrate": ("migrate", "Convert another tool's config or command to a recipe."),
    },
    "Train, or with --dry-run check everything": {
        name: ("train", method.suits) for name, method in METHODS.items()
    },
    "Data": {
        "data": ("data", "Audit the rows of a run: counts, lengths, swapped pairs."),
        "prepare": ("data", "Read, audit and tokenize the rows before a job."),
        "download": ("download", "Download models and data for --offline."),
    },
    "Models and runs": {
        "check-sft": ("check_sft", "Measure the perplexity of chosen responses before training."),
        "eval": ("eval", "Compare models on held-out rows, with intervals."),
        "score": ("score", "Write the rewards of responses next to them."),
        "pairs": ("pairs", "Sample completions, judge them and write pairs."),
        "iterate": ("iterate", "Sample, judge, train and evaluate in rounds."),
        "sample": ("sample", "Generate responses with one or more models."),
        "chat": ("chat", "Talk to a model."),
        "sweep": ("sweep", "Run a grid of settings, and compare the runs."),
        "merge": ("merge", "Add an adapter to the weights of its base model."),
        "runs": ("runs", "List the runs in a folder with their last evaluation."),
        "report": ("report", "Summarize a run as one page, or compare several."),
    },
    "Jobs": {
        "launch": ("launch", "Print how a run starts its processes."),
        "slurm": ("slurm", "Print a job file for a Slurm cluster."),
    },
    "Help": {
        "explain": ("explain", "Explain an error code, or a key of the recipe."),
        "schema": ("validate", "Print the recipe's JSON Schema, for editors."),
        "env": ("env", "Print versions and devices, for a bug report."),
    },
}
"""Heading: command: its module in this package, which is imported only when the command is used,
and a line about it."""
COMMANDS = {name: entry for group in COMMAND_GROUPS.values() for name, entry in group.items()}

RENAMED_COMMANDS = {"fetch": "download"}
RENAMED_OPTIONS = {"--resume-anyway": "--force-resume"}
"""Names of earlier versions: the new name."""

# click keeps the lines of a paragraph that starts with \b.
_EXIT_CODES = "\b\nExit codes:\n" + "\n".join(
    f"  {code.value:>2}  {code.meaning}" for code in ExitCode
)


class _Commands(TyperGroup):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            module = import_module(f"prefcli.cli.{COMMANDS[cmd_name][0]}")
            self.commands.update(typer.main.get_group(module.app).commands)
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for heading, group in COMMAND_GROUPS.items():
            with formatter.section(heading):
                # Of one width, so that the columns of the groups are aligned.
                lines = [(f"{name:<9}", summary) for name, (_, summary) in group.items()]
                formatter.write_dl(lines)


app = typer.Typer(
    name="prefcli",
    cls=_Commands,
    epilog=_EXIT_CODES,
    rich_markup_mode=None,  # boxes are slow to start and clutter logs
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def command_tree() -> TyperGroup:
    """The whole command line with every command imported."""
    tree = typer.main.get_command(app)
    assert isinstance(tree, TyperGroup)
    for name in COMMANDS:
        tree.get_command(None, name)  # type: ignore[arg-type]
    return tree


def _print_version(requested: bool) -> None:
    if requested:
        say(f"prefcli {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Preference tuning of language models from one typed recipe."""


def _run() -> None:
    """Run the command of the arguments. Raises RecipeError for what click refuses."""
    arguments = sys.argv[1:] or ["--help"]
    check_command(arguments, COMMANDS)
    try:
        code = app(arguments, standalone_mode=False)
    except CLICK_ERROR as error:
        raise RecipeError(usage_problem(error, arguments)) from None
    except typer.Abort:  # Ctrl-C or the end of input at a question
        code = ExitCode.INTERRUPTED
    sys.exit(code or 0)


def main(command: Callable[[], None] = _run, *, grace: float = 0.5) -> None:
    """Run the command line, print errors and exit with the exit code.

    If several processes fail on a node, only the first one prints.
    grace: seconds that a failing process waits for the others. Processes often fail because another
    one is gone, and the launcher or the first one to fail knows the cause.
    """
    no_telemetry()
    use_expandable_segments()
    try:
        with preemption.preemption_as_error():
            preemption.install_handlers()
            refuse_secrets(sys.argv[1:])
            refuse_renamed(sys.argv[1:])
            command()
    except PrefcliError as error:
        if _prints(error, grace):
            _print_problems(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except Exception as error:  # a bug in prefcli; the traceback may quote anything
        if isinstance(error, OSError) and (problem := output_problem()) is not None:
            _print_problems(RecipeError(problem))  # typer's own output, such as --help
            sys.exit(ExitCode.RECIPE)
        if first_failure.is_distributed():
            time.sleep(grace)
        if first_failure.first_to_fail():
            _print_error(traceback.format_exc())
        sys.exit(ExitCode.BUG)
    finally:
        preemption.ignore_signals()


def _print_problems(error: PrefcliError) -> None:
    for problem in error.problems:
        # Preemption is not an error.
        start = "" if error.exit_code in STOPPED else "error: "
        _print_error(f"{start}{problem}\n")
    if "--json" in sys.argv:
        problems = [problem.as_dict() for problem in error.problems]
        content = {"exit_code": int(error.exit_code), "problems": problems}
        print(redact(json.dumps(content, indent=2, default=str)), flush=True)


def _prints(error: PrefcliError, grace: float) -> bool:
    """True for the process that prints an error: the main one, or the first that fails alone."""
    if error.exit_code in STOPPED:
        # Not marked as a failure: the other processes must save, not stop.
        return is_main_process()
    if not is_main_process():
        time.sleep(grace)
    return first_failure.first_to_fail()


def _print_error(text: str) -> None:
    rank = "" if is_main_process() else f"rank {os.environ['RANK']}: "
    print_error(rank + text)


def refuse_secrets(arguments: Sequence[str]) -> None:
    """Raise RecipeError for an access token in the arguments, which other users could read."""
    problems = [
        Problem(
            "this looks like an access token, and other users can read the command line",
            place=f"argument {number} of the command line",
            path=_key_of_secret(argument),
            hint="run `hf auth login`, or export HF_TOKEN",
            code="RCP015",
        )
        for number, argument in enumerate(arguments, start=1)
        if is_secret(argument)
    ]
    if problems:
        raise RecipeError(problems)


def _key_of_secret(argument: str) -> str | None:
    """KEY of a KEY=VALUE argument whose value is a token; None for other arguments."""
    from prefcli.recipe.overrides import key_path

    name, equals, _ = argument.partition("=")
    return name if equals and not is_secret(name) and key_path(name) is not None else None


def refuse_renamed(arguments: Sequence[str]) -> None:
    """Raise RecipeError for a command or an option that has a new name."""
    for old, new, place in _renamed(arguments):
        raise RecipeError(
            f"{old} is now called {new}",
            code="RCP002",
            place=place,
            hint=f"write {new}",
        )


def _renamed(arguments: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    if arguments and (new := RENAMED_COMMANDS.get(arguments[0])):
        yield f"prefcli {arguments[0]}", f"prefcli {new}", "argument 1 of the command line"
    for number, argument in enumerate(arguments, start=1):
        if new := RENAMED_OPTIONS.get(argument):
            yield argument, new, f"argument {number} of the command line"
