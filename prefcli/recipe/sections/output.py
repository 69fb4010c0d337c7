"""samples, logging, expected, push_to_hub: what a run reports and publishes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, field_validator, model_validator

from prefcli.config_base import ConfigBase, Count, Flag, RuleError
from prefcli.methods import Method
from prefcli.text import did_you_mean

LOWEST_TEMPERATURE = 1e-4
"""Logits that are divided by less overflow."""


class SampleOptions(ConfigBase):
    """Responses to a few prompts of data.eval during training.

    At the start, at each evaluation and at the end: one greedy response, and one sampled with the
    recipe's seed.
    """

    prompts: Annotated[int, Field(ge=0)] = 4
    """Number of prompts, spread over data.eval; 0 disables samples."""
    max_new_tokens: Count = 64
    """Longest response, in tokens."""
    temperature: Annotated[float, Field(ge=LOWEST_TEMPERATURE)] = 1.0
    """Temperature of sampled responses."""

    @model_validator(mode="after")
    def _settings_need_prompts(self) -> SampleOptions:
        changed = sorted(self.model_dump(exclude={"prompts"}, exclude_defaults=True))
        if self.prompts == 0 and changed:
            raise RuleError(f"{', '.join(changed)} has no effect with prompts: 0")
        return self


class Logging(ConfigBase):
    """Experiment trackers, in addition to metrics.jsonl, which is always written."""

    report_to: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = Field(
        default_factory=list
    )
    """Tracker names; their packages are installed with prefcli[trackers]."""
    run_name: str | None = None
    """Default: the last part of output_dir."""

    @field_validator("report_to", mode="after")
    @classmethod
    def _trackers_are_unique(cls, value: list[str]) -> list[str]:
        repeated = sorted({name for name in value if value.count(name) > 1})
        if repeated:
            raise RuleError(f"{', '.join(repeated)} is listed twice; name each tracker once")
        return value

    @model_validator(mode="after")
    def _run_name_needs_tracker(self) -> Logging:
        if self.run_name is not None and not self.report_to:
            raise RuleError("run_name has no effect without report_to; name a tracker")
        return self


def _interval(bounds: list[float]) -> list[float]:
    if len(bounds) != 2:
        raise RuleError(f"an interval has two bounds, not {len(bounds)}; write [low, high]")
    if bounds[0] > bounds[1]:
        raise RuleError(
            f"the lower bound is above the upper one; write [{bounds[1]:g}, {bounds[0]:g}]"
        )
    return bounds


def _not_empty(metrics: dict[str, list[float]]) -> dict[str, list[float]]:
    if not metrics:
        raise RuleError("metrics is empty; write an interval, e.g. eval_loss: [0.49, 0.51]")
    return metrics


class Compared(NamedTuple):
    """A metric of a run and the interval it is expected in."""

    value: float
    low: float
    high: float

    @property
    def within(self) -> bool:
        return self.low <= self.value <= self.high

    def as_dict(self) -> dict[str, float | bool]:
        return {**self._asdict(), "within": self.within}


class ExpectedResults(ConfigBase):
    """Metrics of a published run of this recipe, to compare with; never an error."""

    source: Annotated[str, Field(min_length=1)]
    """The publication: a URL, or a repository and file."""
    method: str | None = None
    """The method section they belong to; required if the recipe has several."""
    metrics: Annotated[
        dict[str, Annotated[list[float], AfterValidator(_interval)]], AfterValidator(_not_empty)
    ]
    """Metrics of the last evaluation by their names in metrics.jsonl: [low, high], inclusive."""

    def check(self, methods: Mapping[str, Method]) -> None:
        """Raise RuleError for a metric that a run of these methods does not measure."""
        names = ", ".join(methods)
        if self.method is None and len(methods) > 1:
            raise RuleError(f"expected needs a method, since the recipe has several: {names}")
        if self.method is not None and self.method not in methods:
            raise RuleError(
                f"expected.method {self.method!r} is not a section of this recipe ({names})"
            )
        method = methods[self.method or names]
        known = method.eval_metrics
        for name in self.metrics:
            if name not in known:
                raise RuleError(
                    f"expected.metrics.{name} is not measured by an evaluation of {method.name}; "
                    + (did_you_mean(name, known) or f"write one of {', '.join(known)}"),
                    code="RCP031",
                )

    def compare(
        self, method: str, last: Mapping[str, float]
    ) -> tuple[dict[str, Compared], list[str]]:
        """Compare a run's last evaluation, by metric and as lines of text."""
        if self.method not in (None, method):
            return {}, [f"expected: not compared, since the metrics are for {self.method}"]
        compared = {
            name: Compared(last[name], low, high)
            for name, (low, high) in self.metrics.items()
            if name in last
        }
        return compared, [
            self._line(name, compared[name])
            if name in compared
            else f"expected: {name} was not measured"
            for name in self.metrics
        ]

    def _line(self, name: str, result: Compared) -> str:
        # :g prints enough digits to show on which side of a bound the value is.
        value, interval = f"{result.value:g}", f"{result.low:g} to {result.high:g}"
        if result.within:
            return f"expected: {name} {value} within {interval}"
        source = " ".join(self.source.split())
        return f"expected: {name} {value} is outside {interval} ({source})"


class PushToHub(ConfigBase):
    """Publish the final model on the hub, after it is saved and verified.

    The token comes from the environment (HF_TOKEN) or from `hf auth login`, never from a recipe. A
    failed upload leaves the saved model intact.
    """

    repo_id: Annotated[
        str, Field(pattern=r"^([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*$", max_length=96)
    ]
    """e.g. my-name/zephyr-7b-dpo; created if it does not exist."""
    private: Flag = True
    """Fail if the repository is public."""
    revision: Annotated[str, Field(min_length=1)] | None = None
    """A branch, created if it does not exist. Default: main."""
