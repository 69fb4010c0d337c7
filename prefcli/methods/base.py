"""What every method is: its options as written in a recipe, and how trl spells them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

from prefcli.config_base import ConfigBase

RowKind = Literal["pair", "labelled", "demonstration"]
"""pair: prompt, chosen, rejected. labelled: prompt, completion, label. demonstration: SFT rows."""


class LearningRates(NamedTuple):
    """What the method is usually trained with; used where a recipe names no learning rate."""

    full: float
    lora: float


PER_TOKEN = ("logps/chosen_per_token", "logps/rejected_per_token", "perplexity")
"""Of responses, in nats; the perplexity is that of the chosen ones."""


class Band(NamedTuple):
    """Where the published runs lie, ends included."""

    low: float
    high: float
    source: str


_BATCH = Band(16, 128, "the published runs of alignment-handbook, SimPO and KTO")


def pair_learning_rates(lora: bool) -> Band:
    """Of the losses over log-ratios of pairs."""
    if lora:
        return Band(1e-6, 1e-5, "alignment-handbook's recipes, ten times the full values")
    return Band(2e-7, 1e-6, "alignment-handbook's recipes; a rule of thumb begins at 1e-6")


class Method(ConfigBase):
    """One way to train. The docstring is the command's help, the fields are the section's keys."""

    name: ClassVar[str]
    rows: ClassVar[RowKind]
    needs_reference: ClassVar[bool] = True
    needs_sft: ClassVar[bool] = True
    """Starts from an SFT policy, so `check-sft` guards it."""
    keeps_dropout: ClassVar[bool] = False
    """Trains with the base model's own dropout; the others compare two passes, which it blurs."""
    sequential: ClassVar[bool] = False
    """trl keeps the row order, so rows are shuffled once, before training."""
    prompt_margin: ClassVar[int] = 0
    """Tokens that trl's trainer may put before a prompt beyond the tokenizer's own."""
    frames_rows: ClassVar[bool] = False
    """trl's trainer itself puts a BOS before a row and an EOS after it, where they are missing."""
    prompt_in_sft_term: ClassVar[bool] = False
    """The SFT term is taken over the prompt, too."""
    max_merged_tokens: ClassVar[int | None] = None
    """Tokens of a prompt that may merge with the completion, where trl's trainer has a limit."""
    learning_rates: ClassVar[LearningRates]
    metrics: ClassVar[tuple[str, ...]] = (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
        *PER_TOKEN,
        "rewards/margins_chosen_longer",
        "rewards/margins_chosen_shorter",
        "rewards/accuracies_chosen_longer",
        "rewards/accuracies_chosen_shorter",
        "reference_kl",
    )
    """What an evaluation measures beside the loss, in trl's names and ours; see `eval_metrics`."""
    watched: ClassVar[tuple[str, ...]] = (
        "loss",
        "sft_mix/loss",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen_per_token",
        "logps/rejected_per_token",
        "grad_norm",
        "learning_rate",
    )
    """The handful that matters, in the order in which it is shown; what is not measured is not."""
    watched_in_evaluations: ClassVar[tuple[str, ...]] = ("perplexity", "reference_kl")
    """Beside those of `watched`."""

    @abstractmethod
    def trl_classes(self) -> tuple[type[Any], type[Any]]:
        """trl's (config, trainer). Imports trl, and nothing else here does."""

    @abstractmethod
    def trl_options(self) -> Mapping[str, Any]:
        """This section in trl's names: the part of the trl config that the method owns."""

    @abstractmethod
    def rate_band(self, *, lora: bool, parameters: int) -> Band:
        """Of learning rates, for a model of this size."""

    def option_bands(self) -> Mapping[str, Band]:
        """Of this section's own keys, by dotted recipe path."""
        return {}

    def bands(self, *, lora: bool, parameters: int) -> Mapping[str, Band]:
        """Dotted recipe path -> the band of its published values, for a model of this size."""
        return {
            "training.learning_rate": self.rate_band(lora=lora, parameters=parameters),
            "training.global_batch_size": _BATCH,
            **self.option_bands(),
        }

    @property
    def eval_metrics(self) -> tuple[str, ...]:
        """Figures of an evaluation, as metrics.jsonl names them; `expected` and early stopping take
        these."""
        return tuple(f"eval_{name}" for name in ("loss", *self.metrics))

    @property
    def has_sft_term(self) -> bool:
        """Does trl's loss hold a mean over the tokens of a device batch?"""
        return False

    @property
    def trains_prompt(self) -> bool:
        """Is the whole loss taken over prompts, too?"""
        return False

    @property
    def assistant_only(self) -> bool:
        """Are assistant turns all that is trained on?"""
        return False

    @property
    def packs(self) -> bool:
        """Are several rows joined to sequences of max_length?"""
        return False

    @property
    def pairs_neighbours(self) -> bool:
        """Does trl pair each row with its neighbour in the device batch, before training?"""
        return False

    def smallest_batch(self) -> tuple[int, str]:
        """Rows that a device batch must have, and why."""
        return 1, ""

    def for_labels(self, desirable: int, undesirable: int) -> tuple[Self, list[str]]:
        """The method for data with so many rows of each label, and what to say of it."""
        return self, []

    def start_loss(
        self, labels: Sequence[bool] = (), chosen_nll: float | None = None
    ) -> float | None:
        """The loss while the policy still equals the reference; None where that says nothing.

        labels: those of the rows it is taken over, for methods that read labels.
        chosen_nll: mean negative log-probability per token of the chosen side, for SFT terms.
        """
        return None

    def notes(self) -> list[str]:
        """What a user should know before the run starts."""
        return []
