"""On-policy rounds: sample, judge and pair, train, and measure, each step a prefcli command."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from prefcli.checkpoints.atomic import write_text
from prefcli.errors import ExitCode, RecipeError
from prefcli.launcher.round_results import EVAL, HELD_OUT, PAIRS, Result, State, read_result
from prefcli.launcher.signal_forwarding import SignalForwarder
from prefcli.launcher.sweep import run_in
from prefcli.methods import Method
from prefcli.recipe import Recipe
from prefcli.recipe.source_map import dotted, leaves
from prefcli.report.compare_page import Summary
from prefcli.report.tables import Cell, Head, Table
from prefcli.text import aligned

RoundReference = Literal["previous", "start"]

STATE_FILE = "iterate.json"
_SAMPLES = 4
"""Completions of each held-out prompt whose scores are averaged."""
_HEADS = ("rows", "held-out score", "KL to the start", "accuracy")
_NOTE = (
    "Scores of new completions of held-out prompts with 95 % intervals; KL and accuracy against "
    "the model of the recipe. Below, they are against the reference of each run."
)
KINDS = {"pair": "pairs", "labelled": "labels", "demonstration": "best"}
"""Rows of a method: the `pairs.kind` that makes them."""


@dataclass(frozen=True)
class Plan:
    """The commands of all rounds."""

    recipe: Recipe
    source: str
    """The recipe's file."""
    overrides: Sequence[str]
    method: Method
    folder: Path
    reference: RoundReference = "previous"
    flags: Sequence[str] = ()
    """Options of every command."""

    def held_out(self, number: int) -> Path:
        """Return the file of the best completion of each held-out prompt; round 0 is the start."""
        return self.place(number) / HELD_OUT

    def place(self, number: int) -> Path:
        """Return the folder of a round."""
        return self.folder / (f"round-{number}" if number else "start")

    def run(self, number: int) -> Path:
        """Return the run folder of a round."""
        return self.place(number) / "run"

    def steps(self, number: int) -> Iterator[tuple[Path, list[str]]]:
        """Yield the commands of a round, each with the file that it completes."""
        here = self.place(number)
        if number:
            rows, model = here / PAIRS, self.run(number) / "model"
            sampled = {**self._model(number - 1), "pairs.seed": self.recipe.sampling_seed + number}
            yield rows, self._words("pairs", sampled, "--output", str(rows))
            trained = {
                **self._trained(number),
                "data.train": {"path": str(rows)},
                "output_dir": str(self.run(number)),
            }
            yield model, self._words(self.method.name, trained)
            file = here / EVAL
            words = self._words("eval", {}, str(model), "--method", self.method.name)
            yield file, [*words, "--output", str(file)]
        measured = {**self._model(number), **self._measurement()}
        file = self.held_out(number)
        yield file, self._words("pairs", measured, "--output", str(file))

    def _words(self, command: str, settings: Mapping[str, Any], *others: str) -> list[str]:
        """Return a command after `prefcli`. settings: replace those of the command line."""
        values = dict(override.split("=", 1) for override in self.overrides)
        values |= {key: _as_override(value) for key, value in settings.items()}
        overrides = [f"{key}={value}" for key, value in values.items()]
        return [command, self.source, *overrides, *others, *self.flags]

    def _model(self, number: int) -> dict[str, Any]:
        """Return the settings that name the model of a round."""
        if not number:
            return {}
        given = self.recipe.model
        of_start = ("revision", "tokenizer", "tokenizer_revision", "adapter")
        return {
            "model.name_or_path": str(self.run(number) / "model"),
            **({"model.init": "pretrained"} if given.init != "pretrained" else {}),
            **{f"model.{key}": None for key in of_start if getattr(given, key) is not None},
        }

    def _trained(self, number: int) -> dict[str, Any]:
        """Return the settings of a round's training: where it starts, and its reference."""
        start = self._model(number - 1)
        if number == 1:
            return start
        if self.recipe.trains_adapter:
            start |= {"model.adapter": "continue", "lora": None}
        named = self.recipe.reference
        if self.reference == "start" and self.method.needs_reference and not named.name_or_path:
            model = self.recipe.model
            start["reference.name_or_path"] = model.name_or_path
            if model.revision is not None:
                start["reference.revision"] = model.revision
        return start

    def _measurement(self) -> dict[str, Any]:
        """Return the settings that sample all held-out prompts and drop nothing."""
        sources = [
            source.model_dump(mode="json", exclude_defaults=True)
            for source in self.recipe.data.eval_sources
        ]
        fixed = {
            "prompts": sources,
            "kind": "best",
            "rule": "best_worst",
            "min_margin": 0.0,
            "max_length_ratio": None,
            "desirable_threshold": None,
            "undesirable_threshold": None,
            "samples_per_prompt": _SAMPLES,
            "unfinished": "keep",
        }
        given = self.recipe.pairs
        return {f"pairs.{k}": value for k, value in fixed.items() if getattr(given, k) != value}

    def state(self) -> State:
        """Return what all rounds depend on."""
        recipe = self.recipe.model_dump(mode="json", exclude={"output_dir"})
        return State(method=self.method.name, reference=self.reference, recipe=recipe)


@dataclass
class Rounds:
    """The results of the rounds, and why they ended."""

    results: list[Result] = field(default_factory=list)
    end: str = ""
    code: int = ExitCode.DONE

    @property
    def best(self) -> Result:
        return max(self.results, key=lambda result: result.score)

    def lines(self) -> list[str]:
        """Return a table of the rounds."""
        rows = [["round", *_HEADS], *([result.name, *result.cells()] for result in self.results)]
        return aligned(rows, right=(1,))

    def summary(self) -> Summary:
        """Return the same table for the page that compares the runs."""
        columns = zip(*(result.cells() for result in self.results), strict=True)
        rows = [
            (Head(head), [Cell(text) for text in column])
            for head, column in zip(_HEADS, columns, strict=True)
        ]
        table = Table([Head(result.name) for result in self.results], rows)
        return Summary("Rounds", table, _NOTE)


def run_rounds(
    plan: Plan,
    count: int,
    report: Callable[[str], None],
    *,
    max_kl: float | None = None,
    program: Sequence[str] = (sys.executable, "-m", "prefcli"),
) -> Rounds:
    """Run up to `count` rounds; steps that have ended before are skipped. Raises RecipeError.

    The rounds end when the held-out score does not rise, or the KL to the starting model is above
    `max_kl`. The output of a command goes to a log in its round's folder.
    """
    _check_state(plan)
    rounds = Rounds()
    signals = SignalForwarder()
    try:
        for number in range(count + 1):
            for done, words in plan.steps(number):
                if not _is_done(done):
                    code = _run(plan, number, words, program, signals, report)
                    if code != ExitCode.DONE:
                        rounds.code, rounds.end = code, f"a command ended with exit code {code}"
                        return rounds
            rounds.results.append(read_result(plan.place(number), number))
            if reason := _reason_to_end(rounds.results, max_kl):
                rounds.end = reason
                return rounds
    finally:
        signals.restore()
    rounds.end = f"all {count} rounds are done" if count > 1 else "the only round is done"
    return rounds


def _reason_to_end(results: Sequence[Result], max_kl: float | None) -> str | None:
    last = results[-1]
    if max_kl is not None and last.kl is not None and last.kl > max_kl:
        return f"the KL to the starting model, {last.kl:.3g}, is above {max_kl:g}"
    if len(results) > 1 and last.score <= results[-2].score:
        return f"the held-out score did not rise: {results[-2].score:+.3f}, then {last.score:+.3f}"
    return None


def _is_done(path: Path) -> bool:
    """Check whether an earlier start has completed a step."""
    if path.name != "model":
        return path.is_file()
    run = run_in(path.parent)
    return run is not None and run.status == "finished"


def _run(
    plan: Plan,
    number: int,
    words: Sequence[str],
    program: Sequence[str],
    signals: SignalForwarder,
    report: Callable[[str], None],
) -> int:
    """Run a command, and return its exit code."""
    here = plan.place(number)
    here.mkdir(parents=True, exist_ok=True)
    log = here / f"{words[0]}.log"
    report(f"iterate: {here.name}: {words[0]}, see {log}")
    with log.open("ab") as output:
        output.write(f"$ {shlex.join(['prefcli', *words])}\n".encode())
        output.flush()
        process = subprocess.Popen(
            [*program, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches it once, from here
        )
    signals.send_to([process.pid])
    code = process.wait()
    signals.send_to([])
    if code != ExitCode.DONE:
        errors = [
            line
            for line in log.read_text("utf-8", errors="replace").splitlines()
            if line.startswith(("error: ", "    -> "))
        ]
        report("\n".join([f"iterate: {words[0]} ended with exit code {code}", *errors[-2:]]))
    return code


def _check_state(plan: Plan) -> None:
    """Record what the rounds depend on. Raises RecipeError if an earlier start had another."""
    path, now = plan.folder / STATE_FILE, plan.state()
    before = State.read(path)
    if before is None:
        plan.folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(now.model_dump(), indent=2) + "\n")
        return
    one, other = dict(leaves(before.model_dump())), dict(leaves(now.model_dump()))
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    if keys:
        names = sorted(dotted(key).removeprefix("recipe.") for key in keys)
        raise RecipeError(
            f"the rounds in {plan.folder} were made with other settings: {', '.join(names)}",
            code="RUN104",
            place=str(path),
            hint="restore these settings to continue, or name another folder with --output-dir",
        )


def _as_override(value: Any) -> str:
    """Return a value as it is written after KEY=."""
    is_plain = isinstance(value, str) and yaml.safe_load(value) == value
    return value if is_plain else json.dumps(value)
