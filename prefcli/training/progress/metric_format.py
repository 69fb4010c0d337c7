"""The names and digits of metrics, as a person reads them."""

from __future__ import annotations

import math
from typing import NamedTuple

from prefcli.health import Row

TIE = 1e-6


class Figure(NamedTuple):
    label: str
    """In a log line: short, without a space."""
    words: str
    digits: str
    """A format that Python reads."""

    @property
    def width(self) -> int:
        """Room for nearly every value, so that columns stay where they are."""
        return _WIDTHS.get(self.digits, 9)

    def text(self, value: float | None) -> str:
        """At most 9 characters. None stands for a value that is not finite."""
        if value is None or math.isnan(value):
            return "nan"
        if math.isinf(value):
            return f"{value:+}"
        if abs(value) >= 1000 and self.digits.endswith(("3f", "4f")):
            return f"{value:.2e}"
        return f"{value:{self.digits}}".removesuffix(".")

    def change(self, first: float, last: float) -> str:
        digits = f"+{self.digits.removeprefix('+')}"
        return self._replace(digits=digits).text(last - first)


_WIDTHS = {"+.4f": 8, ".4f": 7, ".3f": 7, "#.3g": 8, ".2e": 8, ".0f": 6}
_FIGURES = {
    "loss": Figure("loss", "loss", ".4f"),
    "preference_loss": Figure("pref_loss", "preference loss", ".4f"),
    "sft_mix/loss": Figure("sft_loss", "SFT mix loss", ".4f"),
    "nll_loss": Figure("nll", "SFT loss", ".4f"),
    "kl": Figure("kl", "KL estimate", ".4f"),
    "log_odds_chosen": Figure("log_odds", "log odds", "+.4f"),
    "rewards/margins": Figure("margin", "reward margin", "+.4f"),
    "rewards/accuracies": Figure("acc", "accuracy", ".3f"),
    "mean_token_accuracy": Figure("token_acc", "token accuracy", ".3f"),
    "logps/chosen_per_token": Figure("chosen/tok", "chosen per token", ".3f"),
    "logps/rejected_per_token": Figure("rejected/tok", "rejected per token", ".3f"),
    "perplexity": Figure("ppl", "perplexity", ".3f"),
    "reference_kl": Figure("ref_kl", "KL to reference", ".4f"),
    "grad_norm": Figure("grad", "gradient norm", "#.3g"),
    "learning_rate": Figure("lr", "learning rate", ".2e"),
    "tokens_per_second": Figure("tok/s", "tokens a second", ".0f"),
}


def figure(name: str) -> Figure:
    return _FIGURES.get(name, Figure(name, name, ".4g"))


def is_tie(row: Row, name: str) -> bool:
    """Is it an accuracy where policy and reference agree? Every pair is a tie there, no error."""
    if not name.endswith("rewards/accuracies"):
        return False
    margin = row.get(name.replace("accuracies", "margins"))
    return margin is not None and abs(margin) < TIE
