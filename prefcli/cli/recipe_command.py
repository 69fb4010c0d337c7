"""The parts of a command on a recipe: its arguments, opening the recipe, and output.

The heavy half (torch and its relatives) is imported inside commands, within `heavy_half`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from prefcli.cli.usage import check_recipe_argument
from prefcli.console import document, is_main_process, keep_stdout_for_json, say
from prefcli.errors import PrefcliError, RecipeError
from prefcli.methods import METHODS, Method
from prefcli.recipe import Loaded, Recipe, load
from prefcli.recipe.context_length import context_of, context_problem
from prefcli.recipe.offline import go_offline, go_offline_if_unreachable
from prefcli.recipe.source_map import Key
from prefcli.recipe.trackers import keep_trackers_here
from prefcli.recipe.validation_errors import missing_method

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML recipe.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Settings to change, e.g. training.learning_rate=1e-6."
    ),
]
MethodOption = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="|".join(METHODS),
        help="Which method section to use; required if the recipe has several.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
OutputDir = Annotated[
    str | None, typer.Option("--output-dir", help="Short for output_dir=FOLDER.", metavar="FOLDER")
]
Offline = Annotated[
    bool,
    typer.Option("--offline", help="Open no connection; take models and data from the cache."),
]


def command_app() -> typer.Typer:
    """A module's own commands, which `main.COMMANDS` lists."""
    return typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)


class LocatedError(PrefcliError):
    """An error of a later stage, with the places that its keys have in the recipe."""

    def __init__(self, error: PrefcliError, loaded: Loaded) -> None:
        super().__init__([loaded.locate(problem) for problem in error.problems])
        self.exit_code = error.exit_code


@contextmanager
def located(loaded: Loaded) -> Iterator[None]:
    """Add the recipe's places to errors."""
    try:
        yield
    except PrefcliError as error:
        raise LocatedError(error, loaded) from None


@contextmanager
def heavy_half(loaded: Loaded | None = None) -> Iterator[None]:
    """The border of the heavy half: imports inside are quiet, errors get the recipe's places."""
    from prefcli.library_logging import quiet_libraries

    quiet_libraries()  # some libraries log as soon as they are imported
    if loaded is None:
        yield
        return
    with located(loaded):
        yield


def open_recipe(
    recipe: str,
    overrides: list[str] | None,
    *,
    as_json: bool = False,
    output_dir: str | None = None,
) -> Loaded:
    """Load a command's recipe, with standard output reserved for JSON if it was requested."""
    keep_stdout_for_json(as_json)
    check_recipe_argument(recipe, overrides or ())
    given = [] if output_dir is None else [f"output_dir={json.dumps(output_dir)}"]
    try:
        return load(recipe, [*(overrides or []), *given])
    except RecipeError:
        from prefcli.recipe.migrate import tool_of_file

        if tool := tool_of_file(recipe):
            raise RecipeError(
                f"this is a config of {tool}, not a recipe",
                place=f"{recipe}:1:1",
                hint=f"run prefcli migrate {recipe}",
                code="RCP172",
            ) from None
        raise


def written_keys(loaded: Loaded) -> Set[Key]:
    """The keys that the recipe or an override has."""
    return loaded.places.keys.keys() | loaded.places.overrides.keys()


def check_context(loaded: Loaded) -> None:
    """Raise RecipeError for a max_length beyond the model's context. A default is within it."""
    if ("data", "max_length") not in written_keys(loaded):
        return
    context = context_of(loaded.recipe.model.name_or_path)
    if context and (problem := context_problem(loaded.recipe.data.max_length, context)):
        raise RecipeError(loaded.locate(problem))


def choose_method(loaded: Loaded, name: str | None) -> Method:
    """The method section of `--method`, or the only one. Raises RecipeError."""
    methods = loaded.recipe.methods
    if name is None and len(methods) == 1:
        return next(iter(methods.values()))
    if name is None:
        raise RecipeError(
            f"the recipe has several methods: {', '.join(methods)}",
            code="RCP019",
            place=loaded.places.source,
            hint=f"add --method {'|'.join(methods)}",
        )
    check_method(name)
    return section(loaded, name)


def check_method(name: str) -> None:
    """Raise RecipeError for a value of `--method` that is not a method."""
    if name not in METHODS:
        raise RecipeError(
            f"--method {name}: no such method",
            code="RCP019",
            hint=f"write one of {', '.join(METHODS)}",
        )


def section(loaded: Loaded, name: str) -> Method:
    """The recipe's section of a method. Raises RecipeError if it has none."""
    method = loaded.recipe.methods.get(name)
    if method is None:
        raise RecipeError(missing_method(loaded.recipe, name, loaded.places))
    return method


def resolve_offline(loaded: Loaded, *, offline: bool) -> None:
    """Decide once, before libraries are imported, whether this run uses the hub."""
    if offline:
        go_offline()
        with located(loaded):
            say(*keep_trackers_here(loaded.recipe.logging))
    elif go_offline_if_unreachable(loaded.recipe):
        say("Hugging Face Hub is unreachable; using the local cache")


def folder_of_runs(recipe: Recipe, output_dir: str | None, suffix: str) -> Path:
    """The folder of a command with several runs: --output-dir, or output_dir with a suffix."""
    if output_dir == "":
        raise RecipeError(
            "--output-dir is empty", code="RCP033", hint="check the variable that it comes from"
        )
    return Path(output_dir or f"{recipe.output_dir}-{suffix}")


def refuse_without_effect(options: list[str], on: str, hint: str) -> None:
    """Raise RecipeError for options that do nothing on a command."""
    if options:
        raise RecipeError(
            f"{', '.join(options)} has no effect on {on}",
            code="RCP025",
            hint=hint,
        )


def print_json(content: Any) -> None:
    document(json.dumps(content, indent=2, default=str))


@contextmanager
def writing(path: Path | str, option: str | None = "--output") -> Iterator[None]:
    """Turn a failed write into a RecipeError. option: the option that named the file, if any."""
    try:
        yield
    except OSError as error:
        reason = error.strerror
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = f"{Path(path).parent} is not a folder"
        raise RecipeError(
            f"can't write {path or 'an empty name'}: {reason}",
            code="RCP027",
            hint="name another file" + (f" with {option}" if option else ""),
        ) from None


def check_writable(path: Path | str, option: str = "--output") -> None:
    """Raise RecipeError if an output file can't be written, before the work that fills it."""
    if is_main_process():
        with writing(path, option):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            is_new = not Path(path).exists()
            Path(path).open("a").close()
            if is_new:
                Path(path).unlink()


_ROW_SUFFIXES = (".jsonl", ".parquet")


def checked_output(output: str, option: str = "--output", *, overwrite: bool | None = None) -> Path:
    """Return the path of a file of rows. Raises RecipeError before anything is loaded.

    option: the option that named the file.
    overwrite: the value of --overwrite; None for a command without it.
    """
    path = Path(output).expanduser()
    if path.suffix.lower() not in _ROW_SUFFIXES:
        raise RecipeError(
            f"{option} {output}: the suffix is not one of {', '.join(_ROW_SUFFIXES)}",
            code="RCP033",
            hint="write FILE.jsonl or FILE.parquet",
        )
    if os.path.exists(path) and not overwrite:
        replace = "" if overwrite is None else ", or replace it with --overwrite"
        raise RecipeError(
            f"{output} exists",
            code="RCP027",
            hint=f"delete it, or name another file with {option}{replace}",
        )
    check_writable(path, option)
    return path


def write_file(path: Path, text: str, *, option: str | None = None) -> None:
    """Write a text file and its folder on the main process, and print where it is.

    option: the option that named the file; None for an argument. Raises RecipeError.
    """
    if not is_main_process():
        return
    with writing(path, option):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    say(f"written to {path}")
