"""Tokenizer and rows of a run, and what they must have in common with model and method."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from prefcli.data import Limits, Split, Tally, check_shape, judge, load_split, tokenize
from prefcli.data.cache_key import Splits, cached_splits
from prefcli.data.special_tokens import SpecialTokenCheck
from prefcli.data.token_view import RowView, view
from prefcli.errors import DataError, Problem, RecipeError
from prefcli.methods import Method, Sft
from prefcli.model import load_base_config, load_tokenizer, reference_model
from prefcli.model.stop_tokens import StopTokens, load_stop_tokens
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import DataChecks, SftMix

_EPOCHS_DRAWN = 3
"""Of which the largest batch is looked for: more add little, and take long on many rows."""


@dataclass(frozen=True)
class RunDatasets:
    train: Split
    eval: Split | None
    ends: StopTokens
    """Where the model stops writing."""
    sft_mix: Split | None = None
    """Demonstrations that are mixed in; None also where their fraction is 0."""
    warnings: tuple[str, ...] = ()
    """What was found in the data, above the shares of `data.checks` that warn."""
    kept: Path | None = None
    """Where other processes and later runs find these rows."""
    was_cached: bool = False
    """Were they there already?"""

    def sequences(self, method: Method, max_length: int) -> tuple[int, bool]:
        """(sequences an epoch has, is that exact?): rows, or what packing makes of them."""
        if method.packs:
            return math.ceil(self.tokens_an_epoch / max_length), False
        rows = len(self.train.rows)
        return round(rows * self.train.scale), not self.train.is_sample

    @property
    def sampled(self) -> bool:
        """Was any split looked at in part only?"""
        return any(split.is_sample for split in self.splits)

    @property
    def tokens_an_epoch(self) -> int:
        return round(self.train.tokens * self.train.scale)

    @property
    def longest(self) -> int:
        """Tokens of the longest row that is trained on, after the cut."""
        trained = [split for split in (self.train, self.sft_mix) if split is not None]
        return max(split.lengths.longest for split in trained)

    def packed(self, recipe: Recipe, method: Method) -> int:
        """Tokens of the largest micro-batch without padding, demonstrations of sft_mix included."""
        training = recipe.training
        epochs = min(_EPOCHS_DRAWN, math.ceil(training.num_train_epochs))
        tokens = self.train.lengths.packed(training.per_device_train_batch_size, epochs)
        if self.sft_mix is not None:
            tokens += self.sft_mix.lengths.packed(mixed_rows(recipe, method), epochs)
        return tokens

    def resolve_from_data(self, method: Method) -> tuple[Method, list[str]]:
        """The method with what only the data can tell, and what to say of it."""
        if method.rows != "labelled":
            return method, []
        labels = self.train.rows["label"]
        desirable = sum(labels)
        return method.for_labels(desirable, len(labels) - desirable)

    @property
    def splits(self) -> list[Split]:
        return [s for s in (self.train, self.eval, self.sft_mix) if s is not None]

    def cache_lines(self) -> list[str]:
        """Where the rows came from, if not from their sources."""
        if self.kept is None or not self.was_cached:
            return []
        rows = ", ".join(f"{split.name} {len(split.rows)}" for split in self.splits)
        return [f"data: prepared before ({rows} rows; key {self.kept.stem[:12]})"]

    def judge(self, checks: DataChecks) -> tuple[list[Problem], list[Problem]]:
        """(warnings, errors) for what was found in the data."""
        return judge({split.name: split.findings for split in self.splits}, checks)


def mixed_rows(recipe: Recipe, method: Method) -> int:
    """Demonstrations beside the rows of a micro-batch, at most."""
    mix = active_sft_mix(recipe, method)
    if mix is None:
        return 0
    batch = recipe.training.per_device_train_batch_size
    return math.ceil(batch * mix.fraction / (1 - mix.fraction))


def active_sft_mix(recipe: Recipe, method: Method) -> SftMix | None:
    """What is mixed into this method's rows; None also where the fraction is 0."""
    mix = recipe.sft_mix
    if mix is None or mix.fraction == 0 or method.rows == "demonstration":
        return None
    return mix


def shape_checks(recipe: Recipe, method: Method) -> list[Callable[[], str]]:
    """A look at each source without a tokenizer, for what it tells; see `glance`."""
    data, mix = recipe.data, active_sft_mix(recipe, method)
    looks: list[Callable[[], str]] = [
        functools.partial(check_shape, data.train, "data.train", method.rows)
    ]
    if data.eval is not None:
        looks.append(functools.partial(check_shape, data.eval, "data.eval", method.rows))
    if mix is not None:
        looks.append(
            functools.partial(
                check_shape, mix.data, "sft_mix.data", "demonstration", last_turn=True
            )
        )
    return looks


def first_row_view(
    recipe: Recipe, method: Method, tokenizer: PreTrainedTokenizerBase, split: Split
) -> RowView:
    """The first row that is kept, token by token."""
    if method.assistant_only:
        tokenizer = _with_marks(tokenizer)
    row = split.for_trl()[0]
    return view(row, tokenizer, method, recipe.data.max_length, split.place(0))


def check_reference(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """A named reference reads the same tokens as the policy. Raises RecipeError."""
    named = reference_model(recipe.reference, recipe.model)
    if named is None:
        return
    where = "reference"
    check_model_fit(recipe, load_base_config(named, where=where), tokenizer, where=where)
    theirs = load_tokenizer(named.model_copy(update={"chat_template": None}), where=where)
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise RecipeError(
            Problem(
                f"the tokenizer of {named.name_or_path} is not the policy's: the same ids would "
                "mean other words to it",
                path="reference.name_or_path",
                hint="name a model of the same family and tokenizer",
            )
        )


def check_model_fit(
    recipe: Recipe,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    where: str = "model",
) -> None:
    """Context length and vocabulary: told before any row is tokenised. Raises RecipeError."""
    text = config.get_text_config()
    context = getattr(text, "max_position_embeddings", None)
    problems = []
    if context is not None and recipe.data.max_length > context:
        problems.append(
            Problem(
                f"{recipe.data.max_length} is more than the {where}'s context of {context} tokens",
                path="data.max_length",
                hint=f"write {context} or less",
            )
        )
    if len(tokenizer) > text.vocab_size:
        problems.append(
            Problem(
                f"the tokenizer has {len(tokenizer)} tokens, the {where} {text.vocab_size}",
                path=f"{where}.name_or_path",
                hint="the folder mixes files of two models",
            )
        )
    if problems:
        raise RecipeError(problems)


def load_run_datasets(
    recipe: Recipe,
    method: Method,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sample: int | None = None,
) -> RunDatasets:
    """All splits in the method's kind of row. Raises RecipeError, and DataError also for what is
    found in more rows than `data.checks` allows.

    sample: so many rows of each source.
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
    """`read_inputs`, unless another process has done it."""
    ends = load_stop_tokens(recipe.model, tokenizer, adapter=recipe.trains_adapter)

    def make() -> Splits:
        inputs = read_run_datasets(recipe, method, tokenizer)
        found = {"train": inputs.train, "eval": inputs.eval, "sft_mix": inputs.sft_mix}
        return {name: split for name, split in found.items() if split is not None}

    splits, path, before = cached_splits(
        recipe, method, tokenizer, active_sft_mix(recipe, method), sorted(ends.ids), make
    )
    return RunDatasets(
        splits["train"],
        splits.get("eval"),
        ends,
        splits.get("sft_mix"),
        kept=path,
        was_cached=before,
    )


def read_run_datasets(
    recipe: Recipe,
    method: Method,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sample: int | None = None,
) -> RunDatasets:
    """`load_inputs` without a verdict on what is found."""
    data = recipe.data
    if method.assistant_only:
        tokenizer = _with_marks(tokenizer)
    ends = load_stop_tokens(recipe.model, tokenizer, adapter=recipe.trains_adapter)
    read = functools.partial(
        load_split,
        kind=method.rows,
        tokenizer=tokenizer,
        limits=Limits(
            data.max_length,
            method.trainer.prompt_margin,
            method.trainer.max_merged_tokens,
            method.assistant_only,
        ),
        seed=recipe.seed,
        num_proc=data.num_proc,
        sample=sample,
        checks=[_marks(ends, method, tokenizer)],
    )
    train = read(data.train, "data.train", shuffle=method.trainer.keeps_row_order)
    held_out = None
    if data.eval is not None:
        held_out = read(data.eval, "data.eval", train_prompts=train.prompts)
    mixed = _demonstrations(recipe, method, tokenizer, ends, sample)
    inputs = RunDatasets(train, held_out, ends, mixed)
    if method.assistant_only and not inputs.train.conversational:
        raise RecipeError(
            Problem(
                "only messages have assistant turns, and these rows are text",
                path="sft.assistant_only_loss",
                hint="leave it out",
            )
        )
    if method.pairs_neighbours:
        inputs = dataclasses.replace(
            inputs,
            train=_without_a_lone_row(inputs.train, recipe, tokenizer),
            eval=_without_a_lone_row(inputs.eval, recipe, tokenizer) if inputs.eval else None,
        )
    if method.rows == "labelled":
        _need_both_labels(inputs.train)
    return inputs


def _without_a_lone_row(split: Split, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Split:
    """trl would pair a row that is alone in its device batch with its own completion."""
    size = recipe.training.per_device_train_batch_size
    last = len(split.rows) - 1
    if last == 0 or last % size or split.is_sample:
        return split
    why = f"alone in the last device batch of {size}, where kto pairs neighbours"
    dropped = Tally()
    dropped.add(lambda: split.place(last))
    ids = tokenize(split.rows[last], tokenizer)
    tokens = min(len(ids["prompt_ids"]) + len(ids["completion_ids"]), recipe.data.max_length)
    return dataclasses.replace(
        split,
        rows=split.rows.select(range(last)),
        dropped={**split.dropped, why: dropped},
        tokens=split.tokens - tokens,
    )


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
        checks=[_marks(ends, Sft(), tokenizer)],
    )
    return dataclasses.replace(split, name="sft_mix")


def _marks(
    ends: StopTokens, method: Method, tokenizer: PreTrainedTokenizerBase
) -> Callable[[bool], SpecialTokenCheck]:
    return lambda chat: SpecialTokenCheck.of(tokenizer, ends.ids, method, chat=chat)


def _need_both_labels(split: Split) -> None:
    labels = set(split.rows["label"])
    if len(labels) == 1:
        only = str(labels.pop()).lower()
        raise DataError(
            f"every label is {only}" + (" in this sample" if split.is_sample else ""),
            place=split.rows[0]["_file"],
            hint="take a larger sample"
            if split.is_sample
            else "kto learns from both: add rows with the other label, or train on the desirable "
            "ones with `prefcli sft`",
        )


def _with_marks(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer with a template that marks assistant turns, as trl will use it."""
    if tokenizer.chat_template is None or has_generation_markers(tokenizer.chat_template):
        return tokenizer
    try:
        template = get_training_chat_template(tokenizer)
    except ValueError:
        raise RecipeError(
            Problem(
                "the chat template does not mark assistant turns",
                path="sft.assistant_only_loss",
                hint="put {% generation %} and {% endgeneration %} around them, in a template of "
                "your own under model.chat_template",
            )
        ) from None
    marked = copy.copy(tokenizer)
    marked.chat_template = template
    return marked
