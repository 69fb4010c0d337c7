"""`prefcli pairs`: prompts are answered, the completions are judged and made into rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefcli.console import say
from prefcli.data.digests import tokenizer_digest
from prefcli.errors import DataError, RecipeError
from prefcli.evaluation.generate import load_for_generation
from prefcli.evaluation.judges import Completion, Judge, open_judge, required_judge
from prefcli.evaluation.on_policy.judging import (
    Scores,
    judge_completions,
    read_scores,
    try_judge,
)
from prefcli.evaluation.on_policy.output import OutputFiles
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
from prefcli.evaluation.on_policy.summary import ROWS_OF_PROMPTS, PairsSummary, Speed
from prefcli.evaluation.partial_file import PartialFile, stoppable
from prefcli.model import load_tokenizer
from prefcli.model.base_model import check_start_weights, load_base_config, with_merged_adapter
from prefcli.model.loading import context_length
from prefcli.model.stop_tokens import load_stop_tokens
from prefcli.recipe import Recipe
from prefcli.recipe.sections import Judge as JudgeOptions
from prefcli.recipe.sections import Model
from prefcli.text import counted, format_bytes

_BYTES_PER_TOKEN = 8
"""Bytes of a sampled token in all files of a start, at most."""
_START_OVER = "add --overwrite to start over"
_RULE = (
    *("kind", "rule", "min_margin", "max_length_ratio", "unfinished"),
    *("desirable_threshold", "undesirable_threshold"),
)
"""Keys of `pairs` that decide which rows are made."""


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
        origin = {"judge": {"description": f"stored scores {describe(judge.scores)}"}}
        return _write(recipe, files, stored, origin, {}, Speed())
    return _Start(recipe, judge, policy, files, overwrite=overwrite).run()


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
    return _Start(recipe, judge, policy, OutputFiles(output), overwrite=overwrite).check()


class _Start:
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
        tokenizer = load_tokenizer(self._policy)
        context = context_length(load_base_config(self._policy))
        room = Room(recipe.data.max_length, context, self._options.max_new_tokens)
        sources = self._options.prompts or recipe.data.train
        where = "data.train" if self._options.prompts is None else "pairs.prompts"
        self._sources = [describe(source) for source in sources]
        self._prompts = read_prompts(sources, where, recipe.seed, tokenizer, room)
        self._total = len(self._prompts.rows) * self._options.samples_per_prompt
        self._settings = {
            **identity(self._policy),
            "tokenizer": tokenizer_digest(tokenizer),
            "prompts": self._prompts.digest,
            **settings_of(self._options, recipe.sampling_seed),
        }
        self._speed = Speed()

    def run(self) -> PairsSummary:
        """Sample, judge and write."""
        say(*self._prompt_lines())
        with self._partial(self._files.partial_samples, self._settings) as sampled:
            samples = read_samples(sampled)
            if samples:
                say(f"pairs: {len(samples):,} of {self._total:,} completions were sampled before")
            if len(samples) < self._total:
                with open_judge(self._recipe, self._judge) as opened:
                    self._try(opened)
                what = "completions were sampled, which"
                with stoppable(sampled, lambda: len(samples), self._total, what):
                    self._sample(samples, sampled)
            scores, judge = self._judged(samples)
            prompts = [
                ScoredPrompt(row.columns(), self._candidates(i, samples, scores))
                for i, row in enumerate(self._prompts.rows)
            ]
            origin = {"prompts": self._sources, "sampling": self._settings, "judge": judge}
            dropped = {reason: tally.count for reason, tally in self._prompts.dropped.items()}
            self._files.write_samples(prompts)
            summary = _write(
                self._recipe,
                self._files,
                prompts,
                origin,
                {ROWS_OF_PROMPTS: dropped},
                self._speed,
            )
            self._files.remove_partial()
            return summary

    def check(self) -> list[str]:
        """Check everything that a start needs, without sampling."""
        self._check_partial(self._files.partial_samples, self._settings)
        warnings = check_start_weights(self._policy)
        needed = self._total * self._options.max_new_tokens * _BYTES_PER_TOKEN
        free = self._files.free_bytes
        if needed > free:
            raise RecipeError(
                f"the completions need up to {format_bytes(needed)}, and the disk has "
                f"{format_bytes(free)} free",
                code="ENV050",
                place="--output",
                hint="free some space, or name a file on another disk",
            )
        with open_judge(self._recipe, self._judge) as judge:
            settings = {**judge.settings, **self._settings}
            self._check_partial(self._files.partial_scores, settings)
            tried = self._try(judge)
        return [
            *self._prompt_lines(),
            f"model: {self._policy.name_or_path}, {counted(self._total, 'completion')} of at most "
            f"{self._options.max_new_tokens} tokens",
            *(f"warning: {warning}" for warning in warnings),
            f"judge: {tried}",
            f"disk: needs at most {format_bytes(needed)}; {format_bytes(free)} are free",
        ]

    def _try(self, judge: Judge) -> str:
        first = self._prompts.rows[0]
        return try_judge(judge, first.prompt, first.place, first.template)

    def _prompt_lines(self) -> list[str]:
        dropped = self._prompts.dropped.items()
        return [
            f"prompts: {counted(len(self._prompts.rows), 'prompt')}",
            *(f"prompts: {t.count} dropped: {reason} (first: {t.rows})" for reason, t in dropped),
        ]

    def _partial(self, path: Path, settings: Mapping[str, Any]) -> PartialFile:
        return PartialFile(path, settings, _START_OVER, overwrite=self._overwrite)

    def _check_partial(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Raise RecipeError if an earlier start had other settings."""
        if path.exists() and not self._overwrite:
            self._partial(path, settings).close()

    def _sample(self, samples: Samples, partial: PartialFile) -> None:
        """Add the completions that are missing."""
        before = set(samples)
        began = time.monotonic()
        model, tokenizer = load_for_generation(self._policy)
        stop = load_stop_tokens(self._policy, tokenizer, adapter=False).ids
        sampler = Sampler(model, tokenizer, stop, self._options, self._recipe.sampling_seed)
        sampler.sample(self._prompts.rows, samples, partial)
        new = [sample.tokens for number, sample in samples.items() if number not in before]
        self._speed.completions, self._speed.tokens = len(new), sum(new)
        self._speed.sampling_seconds = time.monotonic() - began

    def _judged(self, samples: Samples) -> tuple[Scores, dict[str, Any]]:
        """Judge the completions that have no score yet; return all scores, and the judge."""
        completions = self._completions(samples)
        with open_judge(self._recipe, self._judge) as judge:
            say(f"judge: {judge.description}")
            settings = {**judge.settings, **self._settings}
            with self._partial(self._files.partial_scores, settings) as partial:
                scores = read_scores(partial, judge)
                before, began = len(scores), time.monotonic()
                if before:
                    say(f"judge: {before:,} of {len(completions):,} were judged before")
                what = "completions were judged, which"
                with stoppable(partial, lambda: len(scores), len(completions), what):
                    judge_completions(judge, completions, scores, partial)
        self._speed.judged = len(scores) - before
        self._speed.judging_seconds = time.monotonic() - began
        description = {"description": judge.description, **judge.settings}
        return scores, {**description, "code": dict(judge.code)}

    def _completions(self, samples: Samples) -> dict[Number, Completion]:
        """Return the completions to judge, in the order of the prompts."""
        completions = {}
        for i, row in enumerate(self._prompts.rows):
            for number in usable(self._candidates(i, samples, {}), self._options):
                place = f"{row.place}, completion {number + 1}"
                text = samples[i, number].text
                completions[i, number] = Completion(row.prompt, text, place, row.template)
        return completions

    def _candidates(
        self, prompt: int, samples: Samples, scores: Mapping[Number, float | None]
    ) -> list[Candidate]:
        """Return the completions of a prompt with their scores."""
        candidates = []
        for number in range(self._options.samples_per_prompt):
            text, tokens, ended = samples[prompt, number]
            candidates.append(Candidate(text, tokens, ended, scores.get((prompt, number))))
        return candidates


def _write(
    recipe: Recipe,
    files: OutputFiles,
    prompts: Sequence[ScoredPrompt],
    origin: Mapping[str, Any],
    dropped: Mapping[str, dict[str, int]],
    speed: Speed,
) -> PairsSummary:
    """Make the rows and write them with their provenance. Raises DataError if there are none.

    origin: how the completions and their scores were made. dropped: what was dropped before.
    """
    options, seed, drops = recipe.pairs, recipe.sampling_seed, Drops()
    rows = [row for prompt in prompts for row in make_rows(prompt, options, seed, drops)]
    if not rows:
        raise DataError(
            f"no rows are left: {'; '.join(drops.lines())}",
            code="DAT015",
            place=str(files.rows),
            hint=drops.cure(),
        )
    summary = PairsSummary.of(
        str(files.rows),
        options.kind,
        origin["judge"]["description"],
        prompts,
        rows,
        {**dropped, "completions": drops.completions, "prompts": drops.prompts},
        speed,
    )
    result = summary.facts()
    rule = options.model_dump(mode="json", include=set(_RULE))
    files.write_rows(rows, {**origin, "rule": rule, "result": result})
    return summary
