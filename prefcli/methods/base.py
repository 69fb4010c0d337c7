"""The base of all methods: options of a recipe section, trl's names for them, capabilities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

from prefcli.config_base import ConfigBase
from prefcli.methods.trainers import TrainerAdapter
from prefcli.metrics import EVAL_PREFIX, METRICS

Head = Literal["language_model", "reward"]
"""What a model gives. language_model: logits of the next token. reward: one number for a text."""

RowKind = Literal["pair", "labelled", "demonstration", "prompt"]
"""pair: prompt, chosen, rejected. labelled: prompt, completion, label. demonstration: SFT rows.
prompt: the policy samples the completions."""


class LearningRates(NamedTuple):
    """Defaults for a recipe without a learning rate."""

    full: float
    lora: float


_SCOPES: Mapping[RowKind, tuple[str, ...]] = {
    "pair": ("given", "pairs", "responses"),
    "labelled": ("given", "responses"),
    "demonstration": ("given",),
    "prompt": (),
}
"""Scopes of metrics that rows of a kind have."""


class Band(NamedTuple):
    """Range of the values in published runs, ends included."""

    low: float
    high: float
    source: str


_BATCH = Band(16, 128, "the published runs of alignment-handbook, SimPO and KTO")


def pair_learning_rates(lora: bool) -> Band:
    """Return the band of losses over log-ratios of pairs."""
    if lora:
        return Band(1e-6, 1e-5, "alignment-handbook's recipes, ten times the full values")
    return Band(2e-7, 1e-6, "alignment-handbook's recipes; a rule of thumb begins at 1e-6")


class Method(ConfigBase):
    """A training method. Its docstring is the command's help, its fields are the section's keys.

    The rest of prefcli asks for capabilities and never for a method's name.
    """

    name: ClassVar[str]
    suits: ClassVar[str]
    """The data and the model that it is for, in a few words."""
    rows: ClassVar[RowKind]
    trainer: ClassVar[TrainerAdapter]
    """The trl trainer that runs it."""
    head: ClassVar[Head] = "language_model"
    """The head of the trained model."""
    needs_reference: ClassVar[bool] = True
    needs_sft: ClassVar[bool] = True
    """It starts from an SFT policy, so `check-sft` runs before it."""
    keeps_dropout: ClassVar[bool] = False
    """It trains with the base model's dropout; methods that compare two passes disable it."""
    keeps_adapter_dropout: ClassVar[bool] = True
    """It trains with lora.dropout."""
    needs_judge: ClassVar[bool] = False
    """It samples completions, which a judge scores during training."""
    strength_key: ClassVar[str | None] = None
    """Key of the section that sets how far the preference term moves the policy."""
    stronger: ClassVar[Literal["higher", "lower"]] = "lower"
    """Value of `strength_key` that lets it move the policy further."""
    learning_rates: ClassVar[LearningRates]
    hidden_metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics that the log and the live view omit, since others show the same better."""

    @abstractmethod
    def trl_options(self) -> Mapping[str, Any]:
        """Return this section in trl's names: the part of the trl config that the method owns."""

    @abstractmethod
    def rate_band(self, *, lora: bool, parameters: int) -> Band:
        """Return the band of learning rates for a model of this size."""

    def trl_classes(self) -> tuple[type[Any], type[Any]]:
        """Import trl and return its (config, trainer)."""
        return self.trainer.classes()

    def option_bands(self) -> Mapping[str, Band]:
        """Return the bands of this section's own keys, by dotted recipe path."""
        return {}

    def bands(self, *, lora: bool, parameters: int) -> Mapping[str, Band]:
        """Map dotted recipe paths to the bands of published values for a model of this size."""
        return {
            "training.learning_rate": self.rate_band(lora=lora, parameters=parameters),
            "training.global_batch_size": _BATCH,
            **self.option_bands(),
        }

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics of an evaluation in which one value is better than another, besides the loss."""
        scopes = {"all", *_SCOPES[self.rows], *["reference"] * self.precomputes_reference}
        return tuple(
            name
            for name, entry in METRICS.items()
            if entry.better is not None
            and name != "loss"
            and (self.head == "language_model" or not entry.of_tokens)
            and (entry.scope in scopes or name in self.trainer.metrics)
        )

    @property
    def eval_metrics(self) -> tuple[str, ...]:
        """Keys that `expected.metrics` and `training.early_stopping.metric` may name."""
        return tuple(f"{EVAL_PREFIX}{name}" for name in ("loss", *self.metrics))

    @property
    def watched(self) -> tuple[str, ...]:
        """Metrics that the log and the live view show where they are measured, in order."""
        return self._shown("always")

    @property
    def watched_in_evaluations(self) -> tuple[str, ...]:
        """Metrics that they also show of evaluations."""
        return self._shown("evaluations")

    def _shown(self, watch: str) -> tuple[str, ...]:
        return tuple(
            name
            for name, entry in METRICS.items()
            if entry.watch == watch
            and name not in self.hidden_metrics
            and (entry.scope != "trainer" or name in self.trainer.metrics)
            and (self.head == "language_model" or not entry.of_tokens)
        )

    @property
    def has_sft_term(self) -> bool:
        """Return whether the loss contains a mean over the tokens of a device batch."""
        return False

    @property
    def reward_scale(self) -> float:
        """Factor between log-probabilities and rewards."""
        return 1.0

    @property
    def reward_is_sum(self) -> bool:
        """Return whether rewards come from sums over a response's tokens instead of means."""
        return False

    @property
    def reward_is_linear(self) -> bool:
        """Return whether a reward is a multiple of a log-probability, so that it has nats."""
        return True

    @property
    def loss_saturates(self) -> bool:
        """Return whether a large reward margin leaves no gradient."""
        return False

    def transform_scores(self, scores: Any) -> Any:
        """Map the log-probabilities of responses to what `reward_scale` multiplies."""
        return scores

    @property
    def weaken(self) -> str:
        """Advice: the change of this section that lets the preference move the policy less."""
        if self.strength_key is None:
            return "train for fewer epochs"
        return f"{'raise' if self.stronger == 'lower' else 'lower'} {self.name}.{self.strength_key}"

    @property
    def strengthen(self) -> str:
        """Advice: the change of this section that lets the preference move the policy further."""
        if self.strength_key is None:
            return "train for more epochs"
        return (
            f"{'raise' if self.stronger == 'higher' else 'lower'} {self.name}.{self.strength_key}"
        )

    @property
    def sft_term_advice(self) -> str | None:
        """Advice: how to add an SFT term to the loss, or to give it more weight."""
        return None

    @property
    def length_bias_advice(self) -> str | None:
        """Advice: how to correct a reward that grows with length."""
        return None

    @property
    def trains_prompt(self) -> bool:
        """Return whether the loss covers the tokens of prompts."""
        return False

    @property
    def assistant_only(self) -> bool:
        """Return whether only assistant turns are trained on."""
        return False

    @property
    def margins_from(self) -> str | None:
        """Return the column of a pair's margin; None if the loss has none."""
        return None

    @property
    def precomputes_reference(self) -> bool:
        """Return whether the reference can score all rows before training."""
        return self.needs_reference and not self.needs_judge

    @property
    def sampled_tokens(self) -> int:
        """Return the tokens of the longest completion that is sampled for a row; 0 for none."""
        return 0

    def sampled_together(self, rows: int) -> int:
        """Return how many of a step's `rows` completions on a device are sampled at once."""
        return rows

    @property
    def completions_per_prompt(self) -> int:
        """Return the number of completions that are trained on for each row."""
        return 1

    @property
    def packs(self) -> bool:
        """Return whether rows are joined to sequences of max_length."""
        return False

    @property
    def rows_are_independent(self) -> bool:
        """Return whether a row's loss is the same whichever rows share its device batch."""
        return not self.pairs_neighbours

    @property
    def pairs_neighbours(self) -> bool:
        """Return whether trl pairs each row with its neighbour in the device batch."""
        return False

    def smallest_batch(self) -> tuple[int, str]:
        """Return the smallest allowed number of rows per device, and why.

        Above 1, the loss depends on which rows share a device batch.
        """
        return 1, ""

    def for_labels(self, desirable: int, undesirable: int) -> tuple[Self, list[str]]:
        """Return the method for data with these numbers of labels, and lines for the log."""
        return self, []

    def start_loss(
        self, labels: Sequence[bool] = (), chosen_nll: float | None = None
    ) -> float | None:
        """Return the loss while the policy equals the reference; None if it has no fixed value.

        labels: the labels of the rows, for methods that read labels.
        chosen_nll: mean negative log-probability per token of the chosen side, for SFT terms.
        """
        return None

    def start_loss_slack(self, nats: float, nats_per_token: float) -> float:
        """Return how far log-ratios that differ from 0 by rounding may move the starting loss.

        nats: sum of the absolute log-ratios of a row. nats_per_token: the largest of them, divided
        by the tokens of its response.
        """
        return self.reward_scale * nats

    def notes(self) -> list[str]:
        """Return what the user should know before the run starts."""
        return []
