"""TRN: training: gates, divergence and memory."""

from __future__ import annotations

from prefcli.error_codes.base import ErrorCode

TRAINING_CODES: tuple[ErrorCode, ...] = (
    # 001-019: evaluation.
    ErrorCode(
        "TRN001",
        "no-desirable-row",
        "check-sft scores responses that the policy should prefer, and no row has one.",
        "prefcli check-sft with rows that are all labelled false",
        "Add rows labelled true, or pairs.",
    ),
    ErrorCode(
        "TRN002",
        "logits-not-finite",
        "The logits of a model are not finite, so no token can be sampled.",
        "prefcli sample with the model of a diverged run",
        "Check the weights of the model, or load it in a wider dtype.",
    ),
    ErrorCode(
        "TRN003",
        "sft-gate-failed",
        "The chosen responses have a higher perplexity under the starting policy than "
        "check_sft.max_perplexity allows: they are unlikely text to it, and preference tuning "
        "would mostly learn noise.",
        "prefcli check-sft with a base model and rows of chat answers",
        "Train the model on such text first (prefcli sft), or raise check_sft.max_perplexity.",
    ),
    # 060-099: trl and its trainers.
    ErrorCode(
        "TRN060",
        "unsupported-library-version",
        "A private function of trl, transformers, datasets, accelerate or torch that prefcli "
        "relies on is missing or takes other arguments in the installed version.",
        "pip install --upgrade transformers",
        "Install the versions prefcli was tested with: pip install prefcli -c constraints.txt",
    ),
)
