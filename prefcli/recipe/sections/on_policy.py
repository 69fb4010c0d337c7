"""judge, pairs: what scores completions of the policy, and which rows are made of them."""

from __future__ import annotations

import shlex
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from prefcli.config_base import ConfigBase, Count, Fraction, NonNegative, Positive, RuleError
from prefcli.recipe.paths import PathOrName
from prefcli.recipe.sections.data import Source, Sources
from prefcli.recipe.sections.output import LOWEST_TEMPERATURE


def _words(value: Any) -> Any:
    """Divide a command line into its words, as a shell does."""
    if not isinstance(value, str):
        return value
    try:
        return shlex.split(value)
    except ValueError as error:
        raise RuleError(f"{value!r} can't be divided into words: {error}") from None


def _names_a_function(name: str) -> str:
    place, colon, function = name.rpartition(":")
    module = place.removesuffix(".py")
    is_module = all(part.isidentifier() for part in module.split("."))
    if not (colon and module and function.isidentifier() and (is_module or place != module)):
        raise RuleError(f"{name!r} is not a function; write FILE.py:NAME or PACKAGE.MODULE:NAME")
    return name


class RewardModelJudge(ConfigBase):
    """A sequence classification model with one label."""

    name_or_path: PathOrName
    """A run of `prefcli reward`, a local folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""


class ImplicitRewardJudge(ConfigBase):
    """The implicit reward of a trained policy: beta * log(policy / reference)."""

    name_or_path: PathOrName
    """A run, with its reference, beta and reward; or a model, an adapter or a hub id, whose
    reference is that of this recipe."""
    beta: Positive | None = None
    """Factor of the reward. Default: the run's; 1 for a model, so that rewards are nats."""


class FunctionJudge(ConfigBase):
    """A Python function of (prompts, completions) that returns a number per completion."""

    name: Annotated[str, AfterValidator(_names_a_function)]
    """FILE.py:NAME or PACKAGE.MODULE:NAME. A prompt is text or a list of messages, a completion
    text; None instead of a number drops the completion."""
    timeout: Positive = 600.0
    """Seconds for one call, which has up to 64 completions."""


class ExecutableJudge(ConfigBase):
    """A program that reads a JSON line {id, prompt, completion} and writes {id, score}."""

    command: Annotated[
        list[str],
        BeforeValidator(_words, json_schema_input_type=str | list[str]),
        Field(min_length=1),
    ]
    """The program and its arguments, as a list or as one line. It runs until all rows are judged;
    answers without an id are in the order of the rows, and a score of null drops the completion."""
    timeout: Positive = 60.0
    """Seconds to wait for an answer. The first may take ten times as long, for a program that loads
    a model."""
    concurrency: Count = 1
    """Rows that are sent before the first of them is answered."""


class Judge(ConfigBase):
    """Scores the completions of `pairs`, `iterate` and `rloo`: exactly one of these."""

    reward_model: RewardModelJudge | None = None
    implicit_reward: ImplicitRewardJudge | None = None
    function: FunctionJudge | None = None
    executable: ExecutableJudge | None = None
    scores: Source | None = None
    """Completions that have scores already, such as the output of `prefcli score`: rows of prompt,
    responses and rewards, or of prompt, response and reward. Nothing is sampled."""

    @model_validator(mode="after")
    def _is_one(self) -> Judge:
        kinds = list(type(self).model_fields)
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            what = f"{' and '.join(given)} are given" if given else "no judge is given"
            raise RuleError(f"{what}; write exactly one of {', '.join(kinds)}")
        return self

    @property
    def models(self) -> dict[str, tuple[str, str | None]]:
        """The models that it loads: dotted path in a recipe, name and revision."""
        models: dict[str, tuple[str, str | None]] = {}
        if self.reward_model is not None:
            reward = self.reward_model
            models["judge.reward_model.name_or_path"] = reward.name_or_path, reward.revision
        if self.implicit_reward is not None:
            models["judge.implicit_reward.name_or_path"] = self.implicit_reward.name_or_path, None
        return models


_OF_PAIRS = ("rule", "min_margin", "max_length_ratio")
_OF_LABELS = ("desirable_threshold", "undesirable_threshold")
_WITHOUT_EFFECT = {
    "pairs": _OF_LABELS,
    "labels": _OF_PAIRS,
    "best": (*_OF_PAIRS, "undesirable_threshold"),
}
"""Kind: the keys that do nothing."""


class Pairs(ConfigBase):
    """`prefcli pairs`: completions that the model samples, judged, and made into rows."""

    prompts: Sources | None = None
    """Rows whose prompts are answered, of any format. Default: those of data.train."""
    samples_per_prompt: Count = 8
    """Completions of each prompt."""
    temperature: Annotated[float, Field(ge=LOWEST_TEMPERATURE)] = 1.0
    """Sampling temperature; 1 samples from the model's own distribution."""
    top_p: Fraction = 1.0
    """Sample from the most likely tokens with this total probability (nucleus sampling, Holtzman et
    al. 2020, arXiv:1904.09751)."""
    max_new_tokens: Count = 256
    """Longest completion, in tokens."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seed of the completions, together with the prompt and the number of the completion. Default:
    the recipe's seed."""
    batch_size: Count = 64
    """Completions that are sampled at once; fewer need less memory."""
    unfinished: Literal["drop", "keep"] = "drop"
    """Completions that are cut at max_new_tokens. keep: use them; a trainer appends the end token
    to them, so that the model learns to stop there."""
    kind: Literal["pairs", "labels", "best"] = "pairs"
    """pairs: a chosen and a rejected completion for dpo, ipo, orpo, simpo and cpo. labels: every
    completion with true or false for kto. best: the best completion for sft (rejection
    sampling)."""
    rule: Literal["best_worst", "best_random"] = "best_worst"
    """The pair of a prompt. best_worst: the two completions whose scores differ most. best_random:
    the best one, and one of the others at random."""
    min_margin: NonNegative = 0.0
    """Scores of a pair differ by at least this; equal scores never make a pair."""
    max_length_ratio: Annotated[float, Field(ge=1.0)] | None = None
    """The longer completion of a pair has at most this many times the tokens of the shorter one, so
    that length is not what distinguishes them. Default: any length."""
    desirable_threshold: float | None = None
    """labels: a completion with at least this score is desirable. best: the best completion needs
    this score."""
    undesirable_threshold: float | None = None
    """labels: a completion with at most this score is undesirable, and those between the thresholds
    are dropped. Default: all that are not desirable."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Pairs:
        changed = self.model_dump(exclude_defaults=True)
        idle = [key for key in _WITHOUT_EFFECT[self.kind] if key in changed]
        if idle:
            raise RuleError(f"{', '.join(idle)} has no effect with kind: {self.kind}")
        return self

    @model_validator(mode="after")
    def _labels_have_thresholds(self) -> Pairs:
        if self.kind == "labels" and self.desirable_threshold is None:
            raise RuleError("kind: labels needs desirable_threshold")
        low, high = self.undesirable_threshold, self.desirable_threshold
        if low is not None and high is not None and low >= high:
            raise RuleError(
                f"undesirable_threshold ({low:g}) must be below desirable_threshold ({high:g})"
            )
        return self

    @model_validator(mode="after")
    def _pairs_need_two_completions(self) -> Pairs:
        if self.kind == "pairs" and self.samples_per_prompt < 2:
            raise RuleError("kind: pairs needs samples_per_prompt of at least 2")
        return self
