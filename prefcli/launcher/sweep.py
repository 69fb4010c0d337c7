"""A grid of runs of one recipe: what each changes, where it writes, and running them in turn."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from prefcli.errors import ExitCode, RecipeError
from prefcli.launcher.signal_forwarding import SignalForwarder
from prefcli.methods import METHODS
from prefcli.recipe.overrides import key_path
from prefcli.report.run_data import read_run

_LONGEST_NAME = 120
"""Characters of a folder's name."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    name: str
    """Of its folder."""
    method: str
    overrides: tuple[str, ...]

    def with_sections(self, methods: Collection[str], *, precomputes: bool) -> Trial:
        """Add what the recipe lacks: the section of the method, and precomputed references.

        methods: that have a section in the recipe. precomputes: score the reference once for all.
        """
        added = [] if self.method in methods else [f"{self.method}={{}}"]
        if precomputes and METHODS[self.method].needs_reference:
            added.append("reference.precompute=true")
        return replace(self, overrides=(*added, *self.overrides))

    def command(self, recipe: str, folder: Path) -> str:
        """Return the command as a shell reads it."""
        return shlex.join(["prefcli", *self.words(recipe, folder)])

    def words(self, recipe: str, folder: Path) -> list[str]:
        """Return the command after `prefcli`."""
        place = f"output_dir={json.dumps(str(folder / self.name))}"
        return [self.method, recipe, *self.overrides, place]


def trials_of(settings: Sequence[str], methods: Sequence[str]) -> list[Trial]:
    """Return a trial per method and combination of values.

    settings: KEY=VALUE, or KEY=VALUE,VALUE,... for a dimension of the grid. A key without a dot is
    an option of the method, such as beta, if the method has it. Raises RecipeError.
    """
    dimensions = [_values(setting) for setting in settings]
    trials = []
    for method in methods:
        for values in product(*(values for _, values in dimensions)):
            chosen = [
                (_of_method(key, method), value)
                for (key, _), value in zip(dimensions, values, strict=True)
            ]
            varied = [
                f"{key.rpartition('.')[2]}={value}"
                for (key, value), (_, every) in zip(chosen, dimensions, strict=True)
                if len(every) > 1
            ]
            name = re.sub(r"[^\w.=-]+", "_", "-".join([method, *varied]))[:_LONGEST_NAME]
            trials.append(Trial(name, method, tuple(f"{key}={value}" for key, value in chosen)))
    names = [trial.name for trial in trials]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RecipeError(
            f"two runs of the sweep would be {twice[0]}",
            code="RCP036",
            hint="write each value once",
        )
    return trials


def _values(setting: str) -> tuple[str, list[str]]:
    key, equals, text = setting.partition("=")
    values = _split(text)
    if not equals or key_path(key) is None or not all(values):
        raise RecipeError(
            f"{setting!r} is not KEY=VALUE,VALUE,...",
            code="RCP013",
            hint="write a key of the recipe and its values, such as dpo.beta=0.05,0.1,0.2",
        )
    return key, values


def _split(text: str) -> list[str]:
    """Split at commas outside brackets and quotes: lists and mappings are one value."""
    values, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        if character == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += character
    return [value.strip() for value in values]


def _of_method(key: str, method: str) -> str:
    options = {field.alias or name for name, field in METHODS[method].model_fields.items()}
    return f"{method}.{key}" if "." not in key and key in options else key


def run_trials(
    trials: Sequence[Trial], recipe: str, folder: Path, report: Callable[[str], None]
) -> Iterator[tuple[Trial, int]]:
    """Run the trials that have not finished, one after the other; yield each with its exit code.

    The output of a trial goes to NAME.log next to its folder. Ends after a trial that was
    interrupted or preempted.
    """
    for at, trial in enumerate(trials, 1):
        path, log = folder / trial.name, folder / f"{trial.name}.log"
        head = f"sweep: {at} of {len(trials)}: {trial.name}"
        if _has_finished(path):
            report(f"{head}: finished before")
            yield trial, ExitCode.DONE
            continue
        report(f"{head}: running, see {log}")
        began = time.monotonic()
        code = _run([sys.executable, "-m", "prefcli", *trial.words(recipe, folder)], log)
        report(f"{head}: exit code {code} after {time.monotonic() - began:.0f} s")
        yield trial, code
        if code in (ExitCode.REQUEUE, ExitCode.INTERRUPTED) or code < 0:
            return


def _has_finished(folder: Path) -> bool:
    try:
        return read_run(folder).status == "finished"
    except RecipeError:  # nothing is there yet
        return False


def _run(command: list[str], log: Path) -> int:
    signals = SignalForwarder()
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Or Ctrl-C would reach it twice, from the terminal too, and it would not save.
                start_new_session=True,
            )
            signals.send_to([process.pid])
            return process.wait()
    finally:
        signals.restore()
