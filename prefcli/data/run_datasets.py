"""The datasets of a run: train, eval and sft_mix as the method and the model need them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from prefcli.data import Finding, Limits, Split, Tally, check_shape, judge, load_split, tokenize
from prefcli.data.cache_keys import splits_key
from prefcli.data.digests import row_key
from prefcli.data.prompt_part import prompt_parts
from prefcli.data.special_tokens import SpecialTokenCheck
from prefcli.data.split_cache import Splits, cached_splits
from prefcli.data.token_view import RowView, view
from prefcli.data.turn_masks import with_generation_markers
from prefcli.errors import DataError, Problem, RecipeError
from prefcli.methods import Method, Sft
from prefcli.model.stop_tokens import StopTokens, load_stop_tokens
from prefcli.recipe.schema import Recipe, mixes_demonstrations
from prefcli.recipe.sections import DataChecks, SftMix

_SAMPLED_EPOCHS = 3
"""Epochs whose shuffles are searched for the largest batch; more change little and take long."""


@dataclass(frozen=True)
class RunDatasets:
    """The splits of a run, in the method's kind of rows."""

    train: Split
    eval: Split | None
    stop_tokens: StopTokens
    sft_mix: Split | None = None
    """Demonstrations that are mixed in; None if their fraction is 0."""
    warnings: tuple[str, ...] = ()
    """Findings above the warning limits of `data.checks`."""
    cache_path: Path | None = None
    """The file of these splits in the cache, if there is one."""
    was_cached: bool = False
    """The splits were in the cache before this run."""

    def sequences_per_epoch(self, method: Method, max_length: int) -> tuple[int, bool]:
        """Return (sequences per epoch, whether that is exact): rows, or packed sequences."""
        if method.packs:
            return math.ceil(self.tokens_per_epoch / max_length), False
        rows = len(self.train.rows) * method.completions_per_prompt
        return round(rows * self.train.scale), not self.train.is_sample

    @property
    def is_sample(self) -> bool:
        """True if any split is a sample."""
        return any(split.is_sample for split in self.splits)

    @property
    def tokens_per_epoch(self) -> int:
        """Return the tokens of the rows in an epoch, each of them once."""
        return round(self.train.tokens * self.train.scale)

    @property
    def longest_row(self) -> int:
        """Tokens of the longest trained row, after the cut."""
        trained = [split for split in (self.train, self.sft_mix) if split is not None]
        return max(split.lengths.longest for split in trained)

    def packed(self, recipe: Recipe, method: Method, budget: int | None = None) -> int:
        """Return the tokens of the largest packed micro-batch, with those of sft_mix.

        budget: tokens of preference rows up to which micro-batches are filled.
        """
        epochs = self.sampled_epochs(recipe)
        tokens = self.train.lengths.packed(recipe.training.train_batch_size, epochs)
        if budget is not None:
            tokens = max(budget, self.train.lengths.longest_packed)
        if self.sft_mix is not None:
            tokens += self.sft_mix.lengths.packed(mixed_rows(recipe, method), epochs)
        return tokens

    @staticmethod
    def sampled_epochs(recipe: Recipe) -> int:
        """Return the number of epochs whose shuffles are searched for the largest batch."""
        return min(_SAMPLED_EPOCHS, math.ceil(recipe.training.num_train_epochs))

    def resolve_from_data(self, method: Method) -> tuple[Method, list[str]]:
        """Return the method with its defaults that depend on the data, and lines about them."""
        if method.rows != "labelled":
            return method, []
        labels = self.train.rows["label"]
        desirable = sum(labels)
        return method.for_labels(desirable, len(labels) - desirable)

    @property
    def splits(self) -> list[Split]:
        return [s for s in (self.train, self.eval, self.sft_mix) if s is not None]

    def cache_lines(self) -> list[str]:
        """Describe the cache entry, if the rows came from the cache."""
        if self.cache_path is None or not self.was_cached:
            return []
        rows = ", ".join(f"{split.name} {len(split.rows)}" for split in self.splits)
        return [f"data: prepared before ({rows} rows; key {self.cache_path.stem[:12]})"]

    def judge(self, checks: DataChecks) -> tuple[list[Problem], list[Problem]]:
        """Return (warnings, errors) for the findings of all splits."""
        return judge({split.name: split.findings for split in self.splits}, checks)


def mixed_rows(recipe: Recipe, method: Method) -> int:
    """Return the largest number of demonstrations that are added to a micro-batch."""
    mix = active_sft_mix(recipe, method)
    if mix is None:
        return 0
    batch = recipe.training.train_batch_size
    return math.ceil(batch * mix.fraction / (1 - mix.fraction))


def active_sft_mix(recipe: Recipe, method: Method) -> SftMix | None:
    """Return the sft_mix section if this method mixes rows in, else None."""
    mix = recipe.sft_mix
    if mix is None or mix.fraction == 0 or not mixes_demonstrations(method):
        return None
    return mix


def shape_checks(recipe: Recipe, method: Method) -> list[Callable[[], str]]:
    """Return a check of each source's row format that needs no tokenizer; see `check_shape`."""
    data, mix = recipe.data, active_sft_mix(recipe, method)
    of_method = functools.partial(check_shape, kind=method.rows, margins_from=method.margins_from)
    checks: list[Callable[[], str]] = [functools.partial(of_method, data.train, "data.train")]
    if data.eval_sources:
        checks.append(functools.partial(of_method, data.eval_sources, "data.eval"))
    if mix is not None:
        checks.append(
            functools.partial(
                check_shape, mix.data, "sft_mix.data", "demonstration", last_turn=True
            )
        )
    return checks


def first_row_view(
    recipe: Recipe, method: Method, tokenizer: PreTrainedTokenizerBase, split: Split
) -> RowView:
    """Return the tokens of the split's first row."""
    if method.assistant_only:
        tokenizer = with_generation_markers(tokenizer, "sft.assistant_only_loss")
    row = split.for_trl()[0]
    return view(row, tokenizer, method, recipe.data.max_length, split.place(0))


def load_run_datasets(
    recipe: Recipe,
    method: Method,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sample: int | None = None,
) -> RunDatasets:
    """Load all splits, from the cache if they are there.

    Raises RecipeError, and DataError also if a finding exceeds an error limit of `data.checks`.

    sample: read at most that many rows of each source.
    """
    inputs = (
        _inputs_once(recipe, method, tokenizer)
        if sample is None
        else read_run_datasets(recipe, method, tokenizer, sample=sample)
    )
    warnings, errors = inputs.judge(recipe.data.checks)
    if errors:
        raise DataError(errors)
    return dataclasses.replace(inputs, warnings=tuple(map(str, warnings)))


def _inputs_once(recipe: Recipe, method: Method, tokenizer: PreTrainedTokenizerBase) -> RunDatasets:
    """Call `read_run_datasets`, unless the splits are in the cache."""
    ends = load_stop_tokens(recipe.model, tokenizer, adapter=recipe.trains_adapter)

    def make() -> Splits:
        inputs = read_run_datasets(recipe, method, tokenizer)
        splits = {"train": inputs.train, "eval": inputs.eval, "sft_mix": inputs.sft_mix}
        return {name: split for name, split in splits.items() if split is not None}

    mix = active_sft_mix(recipe, method)
    key = splits_key(recipe, method, tokenizer, mix, sorted(ends.ids))
    splits, path, was_cached = cached_splits(key, make)
    return RunDatasets(
        splits["train"],
        splits.get("eval"),
        ends,
        splits.get("sft_mix"),
        cache_path=path,
        was_cached=was_cached,
    )


def read_run_datasets(
    recipe: Recipe,
    method: Method,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sample: int | None = None,
) -> RunDatasets:
    """Load all splits from their sources without judging the findings."""
    data = recipe.data
    if method.assistant_only:
        tokenizer = with_generation_markers(tokenizer, "sft.assistant_only_loss")
    ends = load_stop_tokens(recipe.model, tokenizer, adapter=recipe.trains_adapter)
    read = functools.partial(
        load_split,
        kind=method.rows,
        tokenizer=tokenizer,
        limits=Limits(
            data.max_length,
            method.trainer.prompt_margin,
            method.trainer.max_merged_tokens,
            method.trainer.renders_tools,
            method.assistant_only,
            method.trains_prompt,
            method.trainer.drops_longer_rows,
            method.sampled_tokens,
        ),
        seed=recipe.seed,
        num_proc=data.num_proc,
        sample=sample,
        checks=[_special_token_check(ends, method, tokenizer)],
        margins_from=method.margins_from,
    )
    part, rest = prompt_parts(data.held_out, recipe.seed)
    train = read(data.train, "data.train", shuffle=method.trainer.keeps_row_order, part=rest)
    held_out = None
    if data.eval is not None:
        sources = data.eval_sources or data.train
        held_out = read(sources, "data.eval", train_prompts=train.prompts, part=part)
    mixed = _demonstrations(recipe, method, tokenizer, ends, sample)
    inputs = RunDatasets(train, held_out, ends, mixed)
    if method.assistant_only and not inputs.train.conversational:
        raise RecipeError(
            Problem(
                "the rows are text, which has no assistant turns",
                path="sft.assistant_only_loss",
                hint="remove assistant_only_loss, or train on messages",
                code="DAT018",
            )
        )
    if method.pairs_neighbours:
        inputs = dataclasses.replace(
            inputs,
            train=_with_neighbours(_drop_single_row(inputs.train, recipe, tokenizer), recipe),
            eval=_with_neighbours(_drop_single_row(inputs.eval, recipe, tokenizer), recipe)
            if inputs.eval
            else None,
        )
    if method.rows == "labelled":
        _need_both_labels(inputs.train)
    return inputs


def _drop_single_row(split: Split, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Split:
    """Drop a last row that is alone in its device batch: trl would pair it with itself."""
    size = recipe.training.train_batch_size
    last = len(split.rows) - 1
    if last == 0 or last % size or split.is_sample:
        return split
    reason = f"single row in the last device batch of {size} (kto needs at least two per batch)"
    dropped = Tally()
    dropped.add(lambda: split.place(last))
    ids = tokenize(split.rows[last], tokenizer)
    tokens = min(len(ids["prompt_ids"]) + len(ids["completion_ids"]), recipe.data.max_length)
    return dataclasses.replace(
        split,
        rows=split.rows.select(range(last)),
        dropped={**split.dropped, reason: dropped},
        tokens=split.tokens - tokens,
    )


def _with_neighbours(split: Split, recipe: Recipe) -> Split:
    """Count the rows whose neighbour in the device batch has the same completion."""
    size = recipe.training.train_batch_size
    keys = np.array([row_key(completion) for completion in split.rows["completion"]])
    batches = [keys[start : start + size] for start in range(0, len(keys), size)]
    matched = np.flatnonzero(np.concatenate([b == np.roll(b, 1) for b in batches])).tolist()
    if not matched:
        return split
    finding = Finding(
        "matched_neighbours",
        len(matched),
        len(keys),
        [split.place(at) for at in matched[:3]],
        len(matched),
        f"{len(np.unique(keys))} distinct completions",
    )
    return dataclasses.replace(split, findings=[*split.findings, finding])


def _demonstrations(
    recipe: Recipe,
    method: Method,
    tokenizer: PreTrainedTokenizerBase,
    ends: StopTokens,
    sample: int | None,
) -> Split | None:
    mix = active_sft_mix(recipe, method)
    if mix is None:
        return None
    split = load_split(
        mix.data,
        "sft_mix.data",
        "demonstration",
        tokenizer,
        limits=Limits(recipe.data.max_length),
        seed=recipe.seed,
        last_turn=True,
        num_proc=recipe.data.num_proc,
        sample=sample,
        checks=[_special_token_check(ends, Sft(), tokenizer)],
    )
    return dataclasses.replace(split, name="sft_mix")


def _special_token_check(
    ends: StopTokens, method: Method, tokenizer: PreTrainedTokenizerBase
) -> Callable[[bool], SpecialTokenCheck]:
    return lambda chat: SpecialTokenCheck.of(tokenizer, ends.ids, method, chat=chat)


def _need_both_labels(split: Split) -> None:
    labels = set(split.rows["label"])
    if len(labels) == 1:
        only = str(labels.pop()).lower()
        invalid = next((f for f in split.findings if f.name == "bad_label"), None)
        if invalid is not None:
            raise DataError(
                f"all valid labels are {only}, and {invalid.line()}",
                code="DAT016",
                place=split.rows[0]["_file"],
                hint=DataChecks.words("bad_label").cure,
            )
        raise DataError(
            f"all labels are {only}" + (" in this sample" if split.is_sample else ""),
            code="DAT016",
            place=split.rows[0]["_file"],
            hint="take a larger sample"
            if split.is_sample
            else "add rows with the other label, or train on the desirable rows with `prefcli sft`",
        )
