"""`prefcli pairs`: prompts are answered, the completions are judged and made into rows."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from prefcli import __version__, preemption
from prefcli.checkpoints.atomic import write_text
from prefcli.console import say, warn
from prefcli.data.digests import tokenizer_digest
from prefcli.data.row_writer import row_writer
from prefcli.errors import DataError, InterruptedRunError, PreemptedError, PrefcliError, RecipeError
from prefcli.evaluation.generate import load_for_generation
from prefcli.evaluation.judges import Completion, Judge, open_judge
from prefcli.evaluation.on_policy.pairing import (
    Candidate,
    Drops,
    ScoredPrompt,
    make_rows,
    usable,
)
from prefcli.evaluation.on_policy.policy import identity
from prefcli.evaluation.on_policy.prompts import Room, describe, read_prompts
from prefcli.evaluation.on_policy.sampling import (
    Number,
    Sampler,
    Samples,
    read_samples,
    settings_of,
)
from prefcli.evaluation.on_policy.stored_scores import read_stored_scores
from prefcli.evaluation.partial_file import PartialFile
from prefcli.model import load_tokenizer
from prefcli.model.base_model import check_start_weights, load_base_config, with_merged_adapter
from prefcli.model.loading import context_length
from prefcli.model.stop_tokens import load_stop_tokens
from prefcli.progress_bar import progress
from prefcli.recipe import Recipe
from prefcli.recipe.sections import Judge as JudgeOptions
from prefcli.recipe.sections import Model
from prefcli.text import counted, format_bytes

_BYTES_PER_TOKEN = 8
"""Bytes of a sampled token in all files of a start, at most."""
_START_OVER = "add --overwrite to start over"
_ANSWERS = ("yes", "no")
"""Texts that a judge is tried on."""
_ROWS = "rows of prompts"
_LIBRARIES = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class OutputFiles:
    """The files of one output."""

    rows: Path

    @property
    def samples(self) -> Path:
        """All completions with their scores, which `judge.scores` reads."""
        return self.rows.with_suffix(".samples.jsonl")

    @property
    def provenance(self) -> Path:
        """How the rows were made. Not JSON: a folder of data may hold it."""
        return self.rows.with_suffix(".provenance.yaml")

    @property
    def partial_samples(self) -> Path:
        return self.rows.with_suffix(".samples.partial")

    @property
    def partial_scores(self) -> Path:
        return self.rows.with_suffix(".scores.partial")


@dataclass
class Speed:
    """The work of this start and its time."""

    completions: int = 0
    tokens: int = 0
    sampling_seconds: float = 0.0
    judged: int = 0
    judging_seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            **vars(self),
            "tokens_per_second": _rate(self.tokens, self.sampling_seconds),
            "judged_per_second": _rate(self.judged, self.judging_seconds),
        }

    def line(self) -> str:
        """Describe the speed."""
        return (
            f"sampled {counted(self.completions, 'completion')} in "
            f"{self.sampling_seconds:.1f} s ({_rate(self.tokens, self.sampling_seconds):,.0f} "
            f"tokens/s), judged {self.judged:,} in {self.judging_seconds:.1f} s"
        )


def _rate(number: int, seconds: float) -> float:
    return number / seconds if seconds else 0.0


@dataclass
class PairsSummary:
    """The result of `prefcli pairs`."""

    output: str
    kind: str
    judge: str
    prompts: int
    completions: int
    rows: int = 0
    mean_score: float | None = None
    """Mean over all completions that have a score."""
    mean_best: float | None = None
    """Mean score of the best completion of each prompt."""
    mean_chosen: float | None = None
    mean_rejected: float | None = None
    labels: dict[str, int] | None = None
    """Labelled rows by label."""
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    """Counts by what is dropped (prompts and completions) and by reason."""
    speed: Speed = field(default_factory=Speed)

    def lines(self) -> list[str]:
        """Describe the result."""
        lines = [
            f"{number:,} {what} dropped: {reason}"
            for what, reasons in self.dropped.items()
            if what != _ROWS  # counted before anything is sampled
            for reason, number in reasons.items()
        ]
        if self.mean_score is not None and self.mean_best is not None:
            lines.append(
                f"mean score {self.mean_score:+.3f}; of the best completion of each prompt "
                f"{self.mean_best:+.3f}"
            )
        if self.mean_chosen is not None and self.mean_rejected is not None:
            lines.append(
                f"mean score of chosen {self.mean_chosen:+.3f}, of rejected "
                f"{self.mean_rejected:+.3f}"
            )
        if self.labels is not None:
            lines.append(f"{self.labels['true']:,} desirable, {self.labels['false']:,} undesirable")
        what = {"pairs": "pair", "labels": "labelled row", "best": "demonstration"}[self.kind]
        lines.append(
            f"{counted(self.rows, what)} of {counted(self.prompts, 'prompt')} and "
            f"{counted(self.completions, 'completion')}, written to {self.output}"
        )
        if self.speed.completions or self.speed.judged:
            lines.append(self.speed.line())
        return [f"pairs: {line}" for line in lines]

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "speed": self.speed.as_dict()}


def make_pairs(
    recipe: Recipe, policy: Model, output: Path, *, overwrite: bool = False
) -> PairsSummary:
    """Sample, judge and write rows. An earlier start that was stopped is continued.

    policy: the model that answers. overwrite: replace the output, and what an earlier start has
    done with other settings. Raises RecipeError and DataError.
    """
    judge = required_judge(recipe)
    files = OutputFiles(output)
    if judge.scores is not None:
        say(f"pairs: scores of {judge.scores.path}; nothing is sampled")
        stored = read_stored_scores(judge.scores, recipe.seed)
        count = sum(len(prompt.candidates) for prompt in stored)
        description = f"stored scores {describe(judge.scores)}"
        summary = PairsSummary(str(output), recipe.pairs.kind, description, len(stored), count)
        _write(recipe, files, stored, summary, {"judge": {"description": description}})
        return summary
    return _Work(recipe, judge, policy, files, overwrite=overwrite).run()


def check_pairs(
    recipe: Recipe, policy: Model, output: Path, *, overwrite: bool = False
) -> list[str]:
    """Check judge, prompts, model and disk without sampling, and describe them.

    Raises RecipeError and DataError.
    """
    judge = required_judge(recipe)
    if judge.scores is not None:
        stored = read_stored_scores(judge.scores, recipe.seed)
        count = sum(len(prompt.candidates) for prompt in stored)
        return [f"judge: {counted(count, 'stored score')} of {counted(len(stored), 'prompt')}"]
    return _Work(recipe, judge, policy, OutputFiles(output), overwrite=overwrite).check()


def required_judge(recipe: Recipe) -> JudgeOptions:
    """Return the recipe's judge. Raises RecipeError if it has none."""
    if recipe.judge is None:
        raise RecipeError(
            "the recipe has no judge",
            code="JDG008",
            hint="add one, e.g. judge: {reward_model: {name_or_path: HUB_ID_OR_FOLDER}}, or "
            "judge: {executable: {command: [python, judge.py]}}",
        )
    return recipe.judge


class _Work:
    """One start of `prefcli pairs` that samples."""

    def __init__(
        self,
        recipe: Recipe,
        judge: JudgeOptions,
        policy: Model,
        files: OutputFiles,
        *,
        overwrite: bool,
    ) -> None:
        """Read the prompts. Raises RecipeError and DataError."""
        self._recipe, self._judge, self._files = recipe, judge, files
        self._overwrite = overwrite
        self._options = recipe.pairs
        self._policy = with_merged_adapter(policy)
        self._tokenizer = load_tokenizer(self._policy)
        context = context_length(load_base_config(self._policy))
        room = Room(recipe.data.max_length, context, self._options.max_new_tokens)
        sources = self._options.prompts or recipe.data.train
        where = "data.train" if self._options.prompts is None else "pairs.prompts"
        self._sources = [describe(source) for source in sources]
        self._prompts = read_prompts(sources, where, recipe.seed, self._tokenizer, room)
        self._speed = Speed()
        self._settings = {
            **identity(self._policy),
            "tokenizer": tokenizer_digest(self._tokenizer),
            "prompts": self._prompts.digest,
            **settings_of(self._options, self._seed),
        }

    @property
    def _seed(self) -> int:
        return self._recipe.seed if self._options.seed is None else self._options.seed

    @property
    def _total(self) -> int:
        return len(self._prompts.rows) * self._options.samples_per_prompt

    def run(self) -> PairsSummary:
        """Sample, judge and write."""
        files = self._files
        say(*self._prompt_lines())
        with self._partial(files.partial_samples, self._settings) as sampled:
            samples = read_samples(sampled)
            if samples:
                say(f"pairs: {len(samples):,} of {self._total:,} completions were sampled before")
            if len(samples) < self._total:
                self._try_judge()
                with _stoppable(files.partial_samples):
                    self._sample(samples, sampled)
            scores, judge = self._scores(samples)
            return self._finish(samples, scores, judge)

    def check(self) -> list[str]:
        """Check everything that a start needs, without sampling."""
        if self._files.partial_samples.exists() and not self._overwrite:
            self._partial(self._files.partial_samples, self._settings).close()
        warnings = check_start_weights(self._policy)
        count, free = self._total, _free_bytes(self._files.rows)
        needed = count * self._options.max_new_tokens * _BYTES_PER_TOKEN
        if needed > free:
            raise RecipeError(
                f"the completions need up to {format_bytes(needed)}, and the disk has "
                f"{format_bytes(free)} free",
                code="ENV050",
                place="--output",
                hint="free some space, or name a file on another disk",
            )
        return [
            *self._prompt_lines(),
            f"model: {self._policy.name_or_path}, {counted(count, 'completion')} of at most "
            f"{self._options.max_new_tokens} tokens",
            *(f"warning: {warning}" for warning in warnings),
            f"judge: {self._try_judge()}",
            f"disk: needs at most {format_bytes(needed)}; {format_bytes(free)} are free",
        ]

    def _prompt_lines(self) -> list[str]:
        dropped = self._prompts.dropped.items()
        return [
            f"prompts: {counted(len(self._prompts.rows), 'prompt')}",
            *(f"prompts: {t.count} dropped: {reason} (first: {t.rows})" for reason, t in dropped),
        ]

    def _try_judge(self) -> str:
        """Let the judge score two texts, before hours of sampling; return what it gave."""
        row = self._prompts.rows[0]
        texts = [
            Completion(row.prompt, text, f"a test of the judge, {row.place}", row.template)
            for text in _ANSWERS
        ]
        with open_judge(self._recipe, self._judge) as judge:
            scores = judge.score_all(texts)
        shown = ", ".join(
            f"{'null' if score is None else format(score, '.3g')} for {text!r}"
            for text, score in zip(_ANSWERS, scores, strict=True)
        )
        return f"{judge.description} gives {shown} as an answer to the first prompt"

    def _sample(self, samples: Samples, partial: PartialFile) -> None:
        before = set(samples)
        began = time.monotonic()
        model, tokenizer = load_for_generation(self._policy)
        stop = load_stop_tokens(self._policy, tokenizer, adapter=False).ids
        sampler = Sampler(model, tokenizer, stop, self._options, self._seed)
        sampler.sample(self._prompts.rows, samples, partial)
        new = [sample.tokens for number, sample in samples.items() if number not in before]
        self._speed.completions, self._speed.tokens = len(new), sum(new)
        self._speed.sampling_seconds = time.monotonic() - began

    def _completions(self, samples: Samples) -> dict[Number, Completion]:
        """Return the completions to judge, in the order of the prompts."""
        completions = {}
        for i, row in enumerate(self._prompts.rows):
            for number in usable(self._candidates(i, samples, {}), self._options):
                place = f"{row.place}, completion {number + 1}"
                text = samples[i, number].text
                completions[i, number] = Completion(row.prompt, text, place, row.template)
        return completions

    def _scores(self, samples: Samples) -> tuple[dict[Number, float | None], dict[str, Any]]:
        """Judge the completions that have no score yet; return all scores, and the judge."""
        completions = self._completions(samples)
        path = self._files.partial_scores
        with open_judge(self._recipe, self._judge) as judge:
            say(f"judge: {judge.description}")
            settings = {**judge.settings, **self._settings}
            with self._partial(path, settings) as partial:
                scores = _stored(partial, judge)
                if scores:
                    say(f"judge: {len(scores):,} of {len(completions):,} were judged before")
                with _stoppable(path):
                    self._judge_missing(judge, completions, scores, partial)
        return scores, {
            "description": judge.description,
            **judge.settings,
            "code": dict(judge.code),
        }

    def _partial(self, path: Path, settings: Mapping[str, Any]) -> PartialFile:
        return PartialFile(path, settings, _START_OVER, overwrite=self._overwrite)

    def _judge_missing(
        self,
        judge: Judge,
        completions: Mapping[Number, Completion],
        scores: dict[Number, float | None],
        partial: PartialFile,
    ) -> None:
        began, total = time.monotonic(), len(completions)
        before = len(scores)
        # The groups are those of an uninterrupted start.
        numbers, size = iter(completions), judge.rows_at_once or max(total, 1)
        try:
            with progress("judge", total, "completions", done=before) as count:
                while group := list(islice(numbers, size)):
                    missing = [number for number in group if number not in scores]
                    rows = [completions[number] for number in missing]
                    for part in judge.score(rows) if rows else ():
                        ready = {missing[i]: score for i, score in part.items()}
                        partial.add([(*number, score) for number, score in ready.items()])
                        scores |= ready
                        count(len(ready))
        except PrefcliError:
            say(f"judge: {len(scores):,} of {total:,} completions are judged, in {partial.path}")
            raise
        self._speed.judged = len(scores) - before
        self._speed.judging_seconds = time.monotonic() - began

    def _candidates(
        self, prompt: int, samples: Samples, scores: Mapping[Number, float | None]
    ) -> list[Candidate]:
        numbers = ((prompt, number) for number in range(self._options.samples_per_prompt))
        return [
            Candidate(sample.text, sample.tokens, sample.ended, scores.get(number))
            for number in numbers
            for sample in (samples[number],)
        ]

    def _finish(
        self,
        samples: Samples,
        scores: Mapping[Number, float | None],
        judge: Mapping[str, Any],
    ) -> PairsSummary:
        prompts = [
            ScoredPrompt(row.columns(), self._candidates(i, samples, scores))
            for i, row in enumerate(self._prompts.rows)
        ]
        count, kind = len(samples), self._options.kind
        output, description = str(self._files.rows), judge["description"]
        summary = PairsSummary(output, kind, description, len(prompts), count)
        summary.speed = self._speed
        summary.dropped[_ROWS] = {
            reason: tally.count for reason, tally in self._prompts.dropped.items()
        }
        provenance = {"prompts": self._sources, "sampling": self._settings, "judge": judge}
        _write_samples(self._files.samples, prompts)
        _write(self._recipe, self._files, prompts, summary, provenance)
        for path in (self._files.partial_scores, self._files.partial_samples):
            path.unlink(missing_ok=True)
        return summary


def _stored(partial: PartialFile, judge: Judge) -> dict[Number, float | None]:
    """Return the scores of an earlier start, and warn if the judge's code has changed since."""
    scores: dict[Number, float | None] = {}
    code: dict[str, str] = {}
    for value in partial.values():
        if isinstance(value, dict):
            code = value
        else:
            scores |= {(prompt, number): score for prompt, number, score in value}
    now = dict(judge.code)
    if code != now:
        if scores:
            names = ", ".join(name for name in now if code.get(name) != now[name])
            warn(
                f"{names} has changed since {len(scores):,} completions were judged; their scores "
                f"are not computed again (delete {partial.path} for that)"
            )
        partial.add(now)
    return scores


def _write_samples(path: Path, prompts: Sequence[ScoredPrompt]) -> None:
    """Write all completions as `judge.scores` reads them."""

    def rows() -> Iterator[dict[str, Any]]:
        for prompt in prompts:
            yield {
                **prompt.columns,
                "responses": [one.text for one in prompt.candidates],
                "rewards": [one.score for one in prompt.candidates],
                "tokens": [one.length for one in prompt.candidates],
                "ended": [one.ended for one in prompt.candidates],
            }

    with _complete(path) as written:
        row_writer(path.suffix)(written, rows)


def _write(
    recipe: Recipe,
    files: OutputFiles,
    prompts: Sequence[ScoredPrompt],
    summary: PairsSummary,
    provenance: Mapping[str, Any],
) -> None:
    """Make the rows and write them with their provenance. Raises DataError if there are none."""
    options = recipe.pairs
    seed = recipe.seed if options.seed is None else options.seed
    drops = Drops()
    rows = [row for prompt in prompts for row in make_rows(prompt, options, seed, drops)]
    summary.dropped |= {"completions": drops.completions, "prompts": drops.prompts}
    summary.dropped = {what: reasons for what, reasons in summary.dropped.items() if reasons}
    _add_means(summary, prompts, rows)
    if not rows:
        raise DataError(
            f"no rows are left: {'; '.join(drops.lines())}",
            code="DAT015",
            place=str(files.rows),
            hint=drops.cure(),
        )
    text = {
        "prefcli": __version__,
        "versions": {name: version(name) for name in _LIBRARIES},
        "file": files.rows.name,
        **provenance,
        "rule": options.model_dump(
            mode="json",
            include={
                *("kind", "rule", "min_margin", "max_length_ratio", "unfinished"),
                *("desirable_threshold", "undesirable_threshold"),
            },
        ),
        "result": {
            name: value
            for name, value in vars(summary).items()
            if name not in ("speed", "output", "judge", "kind")
        },
    }
    with _complete(files.rows) as written:
        row_writer(files.rows.suffix)(written, lambda: iter(rows))
        document = yaml.safe_dump(text, sort_keys=False, allow_unicode=True)
        write_text(files.provenance, document)


def _add_means(
    summary: PairsSummary, prompts: Sequence[ScoredPrompt], rows: Sequence[Mapping[str, Any]]
) -> None:
    by_prompt = [[c.score for c in p.candidates if c.score is not None] for p in prompts]
    summary.rows = len(rows)
    summary.mean_score = _mean([score for scores in by_prompt for score in scores])
    summary.mean_best = _mean([max(scores) for scores in by_prompt if scores])
    if summary.kind == "pairs":
        summary.mean_chosen = _mean([row["chosen_score"] for row in rows])
        summary.mean_rejected = _mean([row["rejected_score"] for row in rows])
    elif summary.kind == "labels":
        desirable = sum(row["label"] for row in rows)
        summary.labels = {"true": desirable, "false": len(rows) - desirable}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


@contextmanager
def _complete(path: Path) -> Iterator[Path]:
    """Yield a path to write; the file appears at `path` once the block ends. Raises RecipeError."""
    written = path.with_name(path.name + ".writing")
    try:
        yield written
        os.replace(written, path)
    except OSError as error:
        raise RecipeError(
            f"can't write {path}: {error.strerror}",
            code="RCP027",
            hint="free space on the disk, and run the same command again: completions and scores "
            "are not lost",
        ) from None
    finally:
        written.unlink(missing_ok=True)


@contextmanager
def _stoppable(path: Path) -> Iterator[None]:
    """Turn a signal or Ctrl-C into an error that says how to continue."""
    try:
        yield
    except (preemption.Stop, KeyboardInterrupt) as stop:
        kind = PreemptedError if isinstance(stop, preemption.Stop) else InterruptedRunError
        raise kind(
            f"stopped; what is done is in {path}; run the same command again to continue",
            code="RUN103",
        ) from None


def _free_bytes(output: Path) -> int:
    folder = output.absolute().parent
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free
