"""Every command: parse, call one function, print, choose the exit code."""

from __future__ import annotations

import sys

from prefcli import signals
from prefcli.cli.app import app, print_json
from prefcli.console import is_main_process
from prefcli.errors import ExitCode, PrefcliError

# Each registers its commands, in the order of `prefcli --help`.
# isort: off
from prefcli.cli import methods as methods
from prefcli.cli import data as data
from prefcli.cli import measures as measures
from prefcli.cli import report as report
from prefcli.cli import recipes as recipes
# isort: on


def main() -> None:
    """Run the command line; the one place where errors are printed and exit codes chosen."""
    signals.listen()
    try:
        with signals.as_error():
            app()
    except PrefcliError as error:
        if is_main_process():
            for problem in error.problems:
                # To be pre-empted is no error.
                what = "" if error.exit_code == ExitCode.REQUEUE else "error: "
                print(f"{what}{problem}", file=sys.stderr)
        if "--json" in sys.argv:
            problems = [problem.as_dict() for problem in error.problems]
            print_json({"exit_code": int(error.exit_code), "problems": problems})
        sys.exit(error.exit_code)
    finally:
        signals.deafen()
