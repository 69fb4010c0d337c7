"""LIGHT: one table of all metrics, and the shape of a row of metrics.jsonl.

A new metric is one line in `METRICS` and its computation (`training/mixins/metric_sums.py`, or a
trl trainer that logs it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

Row = Mapping[str, float | None]
"""A line of metrics.jsonl: `step`, `seconds`, `epoch` and metrics; null is NaN or infinite."""

ROW_FIELDS = ("step", "seconds", "epoch")
"""Keys of a row that are not metrics."""

EVAL_PREFIX = "eval_"
"""Marks the metrics of an evaluation; without it they are of training."""


def is_eval(row: Mapping[str, object]) -> bool:
    """Return whether a row is of an evaluation rather than of training steps."""
    return any(key.startswith(EVAL_PREFIX) for key in row)


class Panel(NamedTuple):
    """A plot of one metric, or of several on the same axes."""

    title: str
    caption: str = ""
    """How to read it; by default the explanation of its first metric."""
    baseline: float | None = None
    """A value that is drawn as a horizontal line."""
    log_scale: bool = False
    """Use a logarithmic axis if the values span decades."""
    is_primary: bool = False
    """Pages show it large; they fold most of the others."""


Scope = Literal["all", "given", "pairs", "responses", "reference", "trainer", "training"]
"""Where a metric is measured. all: every evaluation. given: evaluations of responses that the data
has. pairs: of chosen and rejected pairs. responses: those and labelled responses. reference: with a
reference model. trainer: where trl's trainer logs it (`TrainerAdapter.metrics`). training: training
steps only."""


class Metric(NamedTuple):
    """Everything that prefcli prints or plots about one metric."""

    key: str
    """Its name in metrics.jsonl, which is trl's where trl logs it; without `eval_`."""
    label: str
    """Its name in a log line: short, without spaces."""
    title: str
    """Its name everywhere else, in at most 24 characters."""
    explanation: str
    """What it measures and how to read it."""
    digits: str = ".4f"
    """A format specification."""
    better: Literal["higher", "lower"] | None = None
    rel_tol: float = 0.0
    """Changes up to this share of the first value are not reported as changes."""
    abs_tol: float = 0.0
    """Changes up to this much are not reported as changes."""
    scope: Scope = "training"
    watch: Literal["always", "evaluations"] | None = None
    """Whether the log and the live view show it."""
    panel: Panel | None = None
    line: str = ""
    """Its name in the legend of a panel with several metrics."""
    of_tokens: bool = False
    """It needs the probabilities of tokens, which a reward model does not have."""
    superseded_by: str | None = None
    """A metric that shows the same better; where that is measured, reports omit this one."""

    @property
    def width(self) -> int:
        """Columns that fit nearly every value."""
        return _WIDTHS.get(self.digits, 9)

    def format(self, value: float | None) -> str:
        """Return a value as text of at most 9 characters; None is `nan`."""
        if value is None or math.isnan(value):
            return "nan"
        if math.isinf(value):
            return f"{value:+}"
        if self.digits.endswith(("3f", "4f")):
            if abs(value) >= 1000:
                return f"{value:.2e}"
            if value and not float(f"{value:{self.digits}}"):
                return f"{value:{'+' if self.digits[0] == '+' else ''}.1e}"
        # Adding 0.0 turns -0.0 into 0.0.
        return f"{value + 0.0:{self.digits}}".removesuffix(".")

    def format_change(self, first: float, last: float) -> str:
        """Return the difference of two values as text with a sign."""
        return self._replace(digits=f"+{self.digits.removeprefix('+')}").format(last - first)

    @property
    def is_in_units_of_method(self) -> bool:
        """Return whether values compare only between runs of one method with the same options."""
        return self.panel in (_LOSS, _MARGIN, _SCORE, _REWARDS, _LOG_ODDS) or self.key == "kl"

    def is_close(self, first: float, last: float) -> bool:
        """Return whether two values differ too little for the difference to count."""
        return abs(last - first) <= max(self.abs_tol, self.rel_tol * abs(first))


_WIDTHS = {"+.4f": 8, ".4f": 7, ".3f": 7, "#.3g": 8, ".2e": 8, ".0f": 6}

_LOSS = Panel("Loss", is_primary=True)
_SCORE = Panel("Score of completions", is_primary=True)
_MARGIN = Panel(
    "Reward margin",
    "Chosen minus rejected reward. It rises from about zero to a stable positive value. If it "
    "explodes, the model moves too far; if it stays flat, it does not learn. The health rules "
    "margin and no_learning name the option to change.",
    baseline=0.0,
    is_primary=True,
)
_ACCURACY = Panel("Reward accuracy", baseline=0.5, is_primary=True)
_REWARDS = Panel(
    "Rewards",
    "For a policy, how much more likely each side has become since the start, in the method's "
    "units; for a reward model, its scores. A falling chosen reward is common; the rejected reward "
    "should fall faster.",
    baseline=0.0,
)
_LOGP_PER_TOKEN = Panel(
    "Log-probability per token",
    "In nats. Chosen stays near its start and rejected falls. The health rule collapse reports if "
    "either falls too far.",
    is_primary=True,
)
_LOGP = Panel(
    "Log-probability of a response",
    "In nats, summed over its tokens, so longer responses have lower values.",
)
_LOG_ODDS = Panel(
    "Log odds",
    "The log odds of chosen over rejected should rise above zero; the penalty is ORPO's loss on "
    "them.",
    baseline=0.0,
)
_ENDING = Panel(
    "Ending",
    "The probability of the stop token where held-out responses end, and the share of samples that "
    "stopped before samples.max_new_tokens.",
)
_REPETITION = Panel(
    "Repetition",
    "Share of 4-grams of words in greedy samples that repeat earlier ones, and share of the greedy "
    "samples that differ from each other.",
)
_LENGTH = Panel(
    "Tokens per response", "If chosen responses are longer, the policy also learns length."
)

_ALL = (
    Metric(
        "loss",
        "loss",
        "loss",
        "What training minimizes. If it rises on held-out rows while it falls in training, the "
        "policy overfits.",
        better="lower",
        rel_tol=0.01,
        scope="all",
        watch="always",
        panel=_LOSS,
        line="loss",
        superseded_by="reward",
    ),
    Metric(
        "aux_loss",
        "balance",
        "expert balance",
        "The auxiliary loss that keeps the experts of a mixture equally used. The loss includes it "
        "times router_aux_loss_coef of the model's config.",
        rel_tol=0.01,
        watch="always",
        panel=Panel("Expert balance"),
    ),
    Metric(
        "preference_loss",
        "pref_loss",
        "preference loss",
        "The method's loss without the mixed-in demonstrations.",
        better="lower",
        rel_tol=0.01,
        panel=_LOSS,
        line="preference",
    ),
    Metric(
        "nll_loss",
        "nll",
        "SFT term",
        "Negative log-likelihood of the chosen responses, which the loss includes.",
        better="lower",
        rel_tol=0.01,
        scope="trainer",
        watch="always",
        panel=_LOSS,
        line="SFT term",
    ),
    Metric(
        "sft_mix/loss",
        "sft_loss",
        "SFT mix loss",
        "Loss on the demonstrations of sft_mix. If it rises, the policy forgets what SFT taught.",
        better="lower",
        rel_tol=0.01,
        watch="always",
        panel=Panel("SFT mix loss"),
    ),
    Metric(
        "sft_mix/perplexity",
        "sft_ppl",
        "SFT mix perplexity",
        "Perplexity per token of the demonstrations of sft_mix.",
        ".3f",
        better="lower",
        rel_tol=0.02,
    ),
    Metric(
        "sft_mix/fraction",
        "sft_fraction",
        "SFT mix fraction",
        "Share of demonstrations among the rows of the step.",
        ".3f",
    ),
    Metric(
        "kl",
        "kl",
        "KTO KL estimate",
        "The reference point of KTO: rewards above it are gains, below it losses. If it stays at "
        "zero, the estimate does not work.",
        better="lower",
        abs_tol=0.001,
        scope="trainer",
        watch="always",
        panel=Panel("KTO KL estimate"),
    ),
    Metric(
        "reward",
        "reward",
        "score of completions",
        "Mean score that the judge gives to completions of the policy.",
        "+.4f",
        better="higher",
        rel_tol=0.02,
        scope="trainer",
        watch="always",
        panel=_SCORE,
        line="mean",
    ),
    Metric(
        "reward_std",
        "reward_std",
        "spread of scores",
        "Standard deviation of the scores of all completions of a step, or of an evaluation.",
        scope="trainer",
        panel=_SCORE,
        line="standard deviation",
    ),
    Metric(
        "frac_reward_zero_std",
        "equal_scores",
        "prompts of equal scores",
        "Share of the prompts whose completions all have the same score: only the KL penalty acts "
        "on them.",
        ".3f",
        scope="trainer",
    ),
    Metric(
        "objective/kl",
        "kl_sum",
        "KL per completion",
        "Estimate of KL(policy || reference) on completions of the policy: the mean of their "
        "summed log-ratios, in nats.",
        ".3f",
        better="lower",
        rel_tol=0.02,
        scope="trainer",
        watch="always",
        panel=Panel(
            "KL per completion",
            "How far the policy is from its reference. A score that rises only with much KL may "
            "be a weakness of the judge.",
            is_primary=True,
        ),
    ),
    Metric(
        "completions/mean_length",
        "length",
        "tokens per completion",
        "Mean length of the policy's completions, with the end token.",
        ".1f",
        abs_tol=0.5,
        scope="trainer",
        watch="always",
        panel=Panel("Tokens per completion"),
    ),
    Metric(
        "completions/clipped_ratio",
        "cut",
        "completions cut",
        "Share of the completions that were cut at max_completion_length.",
        ".3f",
        better="lower",
        abs_tol=0.01,
        scope="trainer",
    ),
    Metric(
        "reward_length_correlation",
        "length_corr",
        "score and length",
        "Correlation of score and length over the completions of a step.",
        "+.3f",
        scope="trainer",
    ),
    Metric(
        "unscored",
        "unscored",
        "completions unscored",
        "Share of the completions that the judge could not score; they teach nothing.",
        ".3f",
        better="lower",
        abs_tol=0.01,
        scope="trainer",
    ),
    Metric(
        "log_odds_chosen",
        "log_odds",
        "log odds",
        "Log odds of chosen over rejected.",
        "+.4f",
        better="higher",
        abs_tol=0.01,
        scope="trainer",
        watch="always",
        panel=_LOG_ODDS,
        line="log odds",
    ),
    Metric(
        "log_odds_ratio",
        "odds_ratio",
        "odds-ratio penalty",
        "Log sigmoid of the log odds, ORPO's preference term.",
        better="higher",
        abs_tol=0.01,
        scope="trainer",
        panel=_LOG_ODDS,
        line="penalty",
    ),
    Metric(
        "rewards/margins",
        "margin",
        "reward margin",
        "Mean of chosen minus rejected reward.",
        "+.4f",
        better="higher",
        rel_tol=0.02,
        scope="responses",
        watch="always",
        panel=_MARGIN,
        line="all",
    ),
    Metric(
        "rewards/margins_chosen_longer",
        "margin_longer",
        "margin, chosen longer",
        "Reward margin of the pairs whose chosen response is the longer one.",
        "+.4f",
        better="higher",
        rel_tol=0.02,
        scope="pairs",
        panel=_MARGIN,
        line="chosen longer",
    ),
    Metric(
        "rewards/margins_chosen_shorter",
        "margin_shorter",
        "margin, chosen shorter",
        "Reward margin of the pairs whose chosen response is the shorter one.",
        "+.4f",
        better="higher",
        rel_tol=0.02,
        scope="pairs",
        panel=_MARGIN,
        line="chosen shorter",
    ),
    Metric(
        "rewards/accuracies",
        "acc",
        "reward accuracy",
        "Share of pairs whose chosen response has the higher reward. One half is chance.",
        ".3f",
        better="higher",
        abs_tol=0.01,
        scope="pairs",
        watch="always",
        panel=_ACCURACY,
        line="all",
    ),
    Metric(
        "rewards/accuracies_chosen_longer",
        "acc_longer",
        "accuracy, chosen longer",
        "Reward accuracy on the pairs whose chosen response is the longer one.",
        ".3f",
        better="higher",
        abs_tol=0.01,
        scope="pairs",
        panel=_ACCURACY,
        line="chosen longer",
    ),
    Metric(
        "rewards/accuracies_chosen_shorter",
        "acc_shorter",
        "accuracy, chosen shorter",
        "Reward accuracy on the pairs whose chosen response is the shorter one.",
        ".3f",
        better="higher",
        abs_tol=0.01,
        scope="pairs",
        panel=_ACCURACY,
        line="chosen shorter",
    ),
    Metric(
        "rewards/chosen",
        "chosen_reward",
        "chosen reward",
        "Mean reward of the chosen responses.",
        "+.4f",
        better="higher",
        rel_tol=0.02,
        scope="responses",
        panel=_REWARDS,
        line="chosen",
    ),
    Metric(
        "rewards/rejected",
        "rejected_reward",
        "rejected reward",
        "Mean reward of the rejected responses.",
        "+.4f",
        better="lower",
        rel_tol=0.02,
        scope="responses",
        panel=_REWARDS,
        line="rejected",
    ),
    Metric(
        "mean_reward",
        "mean_reward",
        "mean reward",
        "Mean reward of all responses. Preferences leave it open; "
        "reward.center_rewards_coefficient keeps it near 0.",
        "+.4f",
        rel_tol=0.02,
        scope="trainer",
    ),
    Metric(
        "min_reward",
        "min_reward",
        "lowest reward",
        "The lowest reward of a response, a mean over batches.",
        "+.4f",
        rel_tol=0.02,
        scope="trainer",
    ),
    Metric(
        "max_reward",
        "max_reward",
        "highest reward",
        "The highest reward of a response, a mean over batches.",
        "+.4f",
        rel_tol=0.02,
        scope="trainer",
    ),
    Metric(
        "logps/chosen_per_token",
        "chosen/tok",
        "chosen logp per token",
        "Mean log-probability of a token of the chosen responses, in nats.",
        ".3f",
        better="higher",
        abs_tol=0.02,
        scope="responses",
        watch="always",
        panel=_LOGP_PER_TOKEN,
        line="chosen",
        of_tokens=True,
    ),
    Metric(
        "logps/rejected_per_token",
        "rejected/tok",
        "rejected logp per token",
        "Mean log-probability of a token of the rejected responses, in nats.",
        ".3f",
        better="lower",
        abs_tol=0.02,
        scope="responses",
        watch="always",
        panel=_LOGP_PER_TOKEN,
        line="rejected",
        of_tokens=True,
    ),
    Metric(
        "logps/chosen",
        "chosen_logp",
        "chosen logp",
        "Log-probability of a chosen response, in nats, summed over its tokens.",
        ".1f",
        better="higher",
        rel_tol=0.01,
        scope="responses",
        panel=_LOGP,
        line="chosen",
        superseded_by="logps/chosen_per_token",
        of_tokens=True,
    ),
    Metric(
        "logps/rejected",
        "rejected_logp",
        "rejected logp",
        "Log-probability of a rejected response, in nats, summed over its tokens.",
        ".1f",
        better="lower",
        rel_tol=0.01,
        scope="responses",
        panel=_LOGP,
        line="rejected",
        superseded_by="logps/rejected_per_token",
        of_tokens=True,
    ),
    Metric(
        "perplexity",
        "ppl",
        "perplexity",
        "Per token, of the chosen or demonstrated responses. A steady or falling value is healthy; "
        "if it rises, they become less likely.",
        ".3f",
        better="lower",
        rel_tol=0.02,
        scope="given",
        watch="evaluations",
        panel=Panel("Perplexity", log_scale=True),
        of_tokens=True,
    ),
    Metric(
        "reference_kl",
        "ref_kl",
        "KL to the reference",
        "Nats per token: how far the policy has moved from the reference. A larger beta keeps it "
        "closer.",
        better="lower",
        abs_tol=0.001,
        scope="reference",
        watch="evaluations",
        panel=Panel("KL to the reference"),
    ),
    Metric(
        "end_probability",
        "p_end",
        "end probability",
        "Mean probability of the stop token where the chosen or demonstrated held-out responses "
        "end. If it stays near zero, generation does not stop.",
        "#.3g",
        better="higher",
        abs_tol=0.01,
        scope="given",
        watch="evaluations",
        panel=_ENDING,
        line="probability",
        of_tokens=True,
    ),
    Metric(
        "samples_ended",
        "ended",
        "samples ended",
        "Share of the samples that stopped by themselves, before samples.max_new_tokens.",
        ".3f",
        better="higher",
        abs_tol=0.01,
        watch="evaluations",
        panel=_ENDING,
        line="samples",
    ),
    Metric(
        "samples_repeated",
        "repeated",
        "repetition",
        "Share of the 4-grams of words in greedy samples that repeat earlier ones of the same "
        "sample (seq-rep-4); near 1 the answers loop.",
        ".3f",
        better="lower",
        abs_tol=0.02,
        watch="evaluations",
        panel=_REPETITION,
        line="repeated 4-grams",
    ),
    Metric(
        "samples_distinct",
        "distinct",
        "distinct samples",
        "Share of the greedy samples that differ from each other; a policy that has collapsed "
        "gives the same answer to every prompt.",
        ".3f",
        better="higher",
        abs_tol=0.01,
        panel=_REPETITION,
        line="distinct samples",
    ),
    Metric(
        "mean_token_accuracy",
        "token_acc",
        "token accuracy",
        "Share of response tokens that the model ranks first.",
        ".3f",
        better="higher",
        abs_tol=0.005,
        scope="trainer",
        watch="always",
        panel=Panel("Token accuracy", is_primary=True),
    ),
    Metric(
        "grad_norm",
        "grad",
        "gradient norm",
        "Norm of the gradient before clipping. Single spikes are normal; a lasting rise precedes "
        "divergence.",
        "#.3g",
        rel_tol=0.02,
        watch="always",
        panel=Panel("Gradient norm", log_scale=True),
    ),
    Metric(
        "learning_rate",
        "lr",
        "learning rate",
        "The scheduled learning rate.",
        ".2e",
        watch="always",
        panel=Panel("Learning rate"),
    ),
    Metric(
        "entropy",
        "entropy",
        "entropy",
        "Mean entropy of the next-token distribution, in nats.",
        ".3f",
        abs_tol=0.02,
        scope="trainer",
    ),
    Metric(
        "logits/chosen",
        "chosen_logits",
        "chosen logits",
        "Mean of all logits on the chosen responses.",
        ".3f",
        abs_tol=0.02,
        scope="trainer",
    ),
    Metric(
        "logits/rejected",
        "rejected_logits",
        "rejected logits",
        "Mean of all logits on the rejected responses.",
        ".3f",
        abs_tol=0.02,
        scope="trainer",
    ),
    Metric(
        "tokens/chosen",
        "chosen_tokens",
        "tokens per chosen",
        "Mean length of the chosen responses.",
        ".1f",
        abs_tol=0.5,
        scope="responses",
        panel=_LENGTH,
        line="chosen",
    ),
    Metric(
        "tokens/rejected",
        "rejected_tokens",
        "tokens per rejected",
        "Mean length of the rejected responses.",
        ".1f",
        abs_tol=0.5,
        scope="responses",
        panel=_LENGTH,
        line="rejected",
    ),
    Metric(
        "tokens_per_second",
        "tok/s",
        "tokens per second",
        "Training throughput over all devices, without padding.",
        ".0f",
        better="higher",
        rel_tol=0.02,
        panel=Panel("Tokens per second"),
    ),
    Metric(
        "memory_gib",
        "mem_gib",
        "peak memory, GiB",
        "Peak memory of the main process's device.",
        ".2f",
        better="lower",
        rel_tol=0.02,
    ),
    Metric(
        "num_tokens",
        "num_tokens",
        "tokens seen",
        "Tokens trained on so far, as trl counts them.",
        ".0f",
        scope="trainer",
    ),
    Metric(
        "runtime",
        "runtime",
        "evaluation seconds",
        "Duration of the evaluation.",
        ".1f",
        scope="trainer",
    ),
    Metric(
        "samples_per_second",
        "rows/s",
        "eval rows per second",
        "Rows per second of the evaluation.",
        "#.3g",
        scope="trainer",
    ),
    Metric(
        "steps_per_second",
        "batches/s",
        "eval batches per second",
        "Batches per second of the evaluation.",
        "#.3g",
        scope="trainer",
    ),
)

METRICS: Mapping[str, Metric] = {metric.key: metric for metric in _ALL}
"""In the order in which tables and pages show them. No tolerance is published; all are our
proposals."""


def metric(key: str) -> Metric:
    """Return the entry of a key with or without `eval_`; an unknown metric is named by its key."""
    name = key.removeprefix(EVAL_PREFIX)
    return METRICS.get(name) or Metric(key, key, key, "", digits=".4g")


DISTANCE = "reference_kl"
DISTANCES = (DISTANCE, "objective/kl")
"""Metrics that rise in every run that trains, so pages call them neither better nor worse."""

TIE = 1e-6


def is_tie(row: Row, key: str) -> bool:
    """Return whether an accuracy is over ties only, as while the policy equals its reference.

    trl counts a tie as an error, so the accuracy reads 0.
    """
    if "rewards/accuracies" not in key:
        return False
    margin = row.get(key.replace("accuracies", "margins"))
    return margin is not None and abs(margin) < TIE
