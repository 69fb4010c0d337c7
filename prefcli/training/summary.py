"""The last lines of a run: what happened, in words and figures."""

from __future__ import annotations

from prefcli.methods import Method
from prefcli.training.folder import RunFolder
from prefcli.training.watch import Watch

_COMPARED = (
    ("eval_loss", "eval loss"),
    ("eval_rewards/accuracies", "preference accuracy"),
    ("eval_rewards/margins", "reward margin"),
    ("eval_logps/chosen", "log-probability of chosen"),
    ("eval_logps/rejected", "log-probability of rejected"),
    ("eval_mean_token_accuracy", "token accuracy"),
)

# Policy and reference agree at the start, so every pair is a tie there.
_TIES = ("eval_rewards/accuracies", "eval_rewards/margins")


def closing_lines(method: Method, folder: RunFolder, steps: int, watch: Watch) -> list[str]:
    lines = [
        f"done: {steps} steps of {method.name}{watch.since} in {watch.elapsed}; "
        f"the model is in {folder.model}"
    ]
    first, last = watch.first_eval, watch.last_eval
    for key, words in _COMPARED:
        if key not in last:
            continue
        tied = method.needs_reference and key in _TIES
        compared = key in first and first is not last and not tied
        before = f"{_number(first[key])} -> " if compared else ""
        lines.append(f"done: {words} {before}{_number(last[key])}")
    if not last:
        lines.append("done: no eval data, so nothing held out was measured (data.eval)")
    lines += [f"done: {words}" for words in _in_words(first, last)]
    return lines


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"


def _in_words(first: dict[str, float], last: dict[str, float]) -> list[str]:
    """What the figures usually mean (the practical rules of the DPO literature)."""
    words = []
    accuracy = last.get("eval_rewards/accuracies")
    if accuracy is not None:
        if accuracy > 0.9:
            words.append("the policy tells chosen from rejected on held-out rows")
        elif accuracy < 0.6:
            words.append(
                "the policy hardly tells chosen from rejected: learning rate too small, beta too "
                "high, or labels close to random"
            )
    key = "eval_logps/chosen"
    if key in first and key in last and last[key] < first[key]:
        words.append(
            "chosen responses became less likely than at the start, too; common with DPO, and to "
            "be watched when it is large"
        )
    return words
