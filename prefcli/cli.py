"""Every command: parse, call one function, print, choose the exit code.

The heavy half is imported inside commands, below the line that says `border`, and nowhere else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from prefcli import __version__
from prefcli.console import document, is_main_process, keep_stdout_for_json, say
from prefcli.errors import ExitCode, PrefcliError, RecipeError
from prefcli.methods import METHODS, Method
from prefcli.recipe import Loaded, Recipe, library, load
from prefcli.recipe.explain import missing_method

# click keeps the lines of a paragraph that starts with \b.
_EXIT_CODES = "\b\nExit codes:\n" + "\n".join(
    f"  {code.value:>2}  {code.meaning}" for code in ExitCode
)

app = typer.Typer(
    name="prefcli",
    help="Preference tuning of language models from one typed recipe.",
    epilog=_EXIT_CODES,
    rich_markup_mode=None,  # boxes cost a third of the start-up, and are noise in a log
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(
    help="The shipped recipes: list, show, copy.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(recipes_app, name="recipes")

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML recipe.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="As in training.learning_rate=1e-6."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
OutputDir = Annotated[
    str | None, typer.Option("--output-dir", help="The same as output_dir=...", metavar="FOLDER")
]


def main() -> None:
    """Run the command line; the one place where errors are printed and exit codes chosen."""
    try:
        app()
    except PrefcliError as error:
        if is_main_process():
            for problem in error.problems:
                print(f"error: {problem}", file=sys.stderr)
        if "--json" in sys.argv:
            problems = [problem.as_dict() for problem in error.problems]
            _print_json({"exit_code": int(error.exit_code), "problems": problems})
        sys.exit(error.exit_code)


class LocatedError(PrefcliError):
    """An error of a later stage, with the places its dotted paths have in the recipe."""

    def __init__(self, error: PrefcliError, loaded: Loaded) -> None:
        super().__init__([loaded.locate(problem) for problem in error.problems])
        self.exit_code = error.exit_code


def _load(path: str, overrides: list[str] | None, output_dir: str | None = None) -> Loaded:
    extra = (
        [f"output_dir={json.dumps(output_dir, ensure_ascii=False)}"]
        if output_dir is not None
        else []
    )
    return load(path, [*(overrides or []), *extra])


def _print_json(content: Any) -> None:
    document(json.dumps(content, indent=2, default=str))


def _method_command(name: str) -> Callable[..., None]:
    def command(
        recipe: RecipeArgument,
        overrides: Overrides = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Prove that the recipe will run; train nothing.")
        ] = False,
        resume: Annotated[
            str,
            typer.Option(
                help="auto: go on from the run's last checkpoint, if there is one; never; "
                "or a checkpoint folder.",
                metavar="auto|never|PATH",
            ),
        ] = "auto",
        output_dir: OutputDir = None,
        allow_unusual: Annotated[
            bool,
            typer.Option(
                "--allow-unusual", help="Take values ten times outside what is published."
            ),
        ] = False,
        as_json: Json = False,
    ) -> None:
        keep_stdout_for_json(as_json)
        loaded = _load(recipe, overrides, output_dir)
        run = _rehearse if dry_run else _train
        run(loaded, _section(loaded, name), resume, as_json, allow_unusual=allow_unusual)

    command.__doc__ = METHODS[name].__doc__
    return command


def _section(loaded: Loaded, name: str) -> Method:
    method = loaded.recipe.methods.get(name)
    if method is None:
        raise RecipeError(missing_method(loaded.recipe, name, loaded.places))
    return method


def _train(
    loaded: Loaded, method: Method, resume: str, as_json: bool, *, allow_unusual: bool
) -> None:
    from prefcli.training.run import train  # border
    from prefcli.training.watch import quiet_libraries

    quiet_libraries()
    try:
        outcome = train(loaded.recipe, method, resume, allow_unusual=allow_unusual)
    except PrefcliError as error:
        raise LocatedError(error, loaded) from None
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from the last checkpoint, if there is one")
        raise typer.Exit(130) from None  # 128 + SIGINT, as shells have it
    if as_json:
        _print_json(vars(outcome))


def _rehearse(
    loaded: Loaded, method: Method, resume: str, as_json: bool, *, allow_unusual: bool
) -> None:
    from prefcli.training.dry_run import dry_run  # border
    from prefcli.training.watch import quiet_libraries

    quiet_libraries()
    found = dry_run(loaded.recipe, method, resume, allow_unusual=allow_unusual)
    texts = dict.fromkeys(loaded.places.overrides.values())
    flags = ["--allow-unusual"] if allow_unusual else []
    flags += ["--resume", resume] if resume != "auto" else []
    problems = [loaded.locate(problem) for problem in found.problems]
    code = found.failure.exit_code if found.failure else ExitCode.DONE
    if as_json:
        _print_json(
            {
                "will_run": not problems,
                "exit_code": int(code),
                "problems": [problem.as_dict() for problem in problems],
                **found.facts,
            }
        )
    for problem in problems:
        say(f"error: {problem}")
    say(
        f"will not run: {len(problems)} problem{'s'[: len(problems) != 1]} above"
        if problems
        else f"will run: {' '.join(['prefcli', method.name, loaded.places.source, *texts, *flags])}"
    )
    raise typer.Exit(code)


for _name, _class in METHODS.items():
    app.command(_name, short_help=(_class.__doc__ or "").splitlines()[0])(_method_command(_name))


@app.command("check-sft")
def check_sft(recipe: RecipeArgument, overrides: Overrides = None, as_json: Json = False) -> None:
    """Perplexity of the chosen responses under the starting model: fit for preference tuning?

    Exit code 0 if it is at most check_sft.max_perplexity, else 3.
    """
    keep_stdout_for_json(as_json)
    loaded = _load(recipe, overrides)
    from prefcli.measure.check_sft import check_sft as measure  # border
    from prefcli.training.watch import quiet_libraries

    quiet_libraries()
    try:
        report = measure(loaded.recipe)
    except PrefcliError as error:
        raise LocatedError(error, loaded) from None
    say(*report.lines())
    if as_json:
        _print_json(report.as_dict())
    raise typer.Exit(ExitCode.DONE if report.passed else ExitCode.GATE)


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
        typer.Option("--output", help="Write prompt and completions as JSONL.", metavar="FILE"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 42,
    chat_template: Annotated[str | None, typer.Option(metavar="FILE")] = None,
) -> None:
    """What each model answers to each prompt: before beside after."""
    from prefcli.measure.sample import Sampling, answers  # border
    from prefcli.training.watch import quiet_libraries

    quiet_libraries()
    if output is not None:
        _make_parent(Path(output))
    rows = answers(models, prompts, chat_template, Sampling(max_new_tokens, temperature, seed))
    if output is not None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        Path(output).write_text(text, encoding="utf-8")
        say(f"{len(rows)} prompts answered, written to {output}")
        return
    for row in rows:
        say("", f"prompt: {row['shown']}")
        for model in models:
            say(f"  {model}: {row['completions'][model].strip()}")


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"--output {path}: {error.strerror}") from None


@app.command()
def validate(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...")], as_json: Json = False
) -> None:
    """Check recipes against the schema, without torch: every error at once."""
    results: list[dict[str, Any]] = []
    for path in recipes:
        try:
            loaded = load(path)
        except PrefcliError as error:
            problems = [problem.as_dict() for problem in error.problems]
            results.append({"recipe": path, "valid": False, "problems": problems})
            if not as_json:
                for problem in error.problems:
                    print(f"error: {problem}", file=sys.stderr)
        else:
            methods = list(loaded.recipe.methods)
            results.append({"recipe": path, "valid": True, "methods": methods})
            if not as_json:
                say(f"{path}: valid ({', '.join(methods)})")
    if as_json:
        _print_json(results)
    valid = all(result["valid"] for result in results)
    raise typer.Exit(ExitCode.DONE if valid else ExitCode.RECIPE)


@app.command()
def schema() -> None:
    """The recipe's JSON Schema, for completion in editors."""
    _print_json(Recipe.model_json_schema(by_alias=True))


@recipes_app.command("list")
def list_recipes(as_json: Json = False) -> None:
    """Name and purpose of each shipped recipe."""
    found = library.shipped()
    if as_json:
        _print_json([{"name": r.name, "about": r.about} for r in found])
        return
    width = max(len(r.name) for r in found)
    for recipe in found:
        say(f"{recipe.name:<{width}}  {recipe.about}")


@recipes_app.command("show")
def show_recipe(name: str) -> None:
    """Print a shipped recipe."""
    say(library.find(name).path.read_text(encoding="utf-8").rstrip())


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="A recipe, or a folder of them with its data.")],
    target: Annotated[Path, typer.Argument(help="Folder to copy into.")],
) -> None:
    """Copy a shipped recipe, or a folder of recipes with its data, to make it yours."""
    for path in library.copy(name, target):
        say(str(path))


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"prefcli {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Preference tuning of language models from one typed recipe."""


if __name__ == "__main__":
    main()
