"""TRN: training: gates, divergence and memory."""

from __future__ import annotations

from prefcli.error_codes.base import ErrorCode

TRAINING_CODES: tuple[ErrorCode, ...] = (
    # 001-019: evaluation.
    ErrorCode(
        "TRN001",
        "no-desirable-row",
        "`check-sft` scores responses that the policy should prefer, and no row has one.",
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
        "Install the versions prefcli was tested with: pip install prefcli -c constraints.txt.",
    ),
    ErrorCode(
        "TRN061",
        "metric-not-measured",
        "Early stopping follows a metric that evaluations of this method, or of this run, do not "
        "measure.",
        "training: {early_stopping: {metric: eval_kl}}  # with dpo",
        "Choose one of the metrics in the message for training.early_stopping.metric.",
    ),
    ErrorCode(
        "TRN062",
        "prompt-merges-with-response",
        "The tokenizer merges the end of a prompt with the start of its response into one token. "
        "trl's ORPO and CPO trainers need a prompt whose tokens are a prefix of the whole row.",
        '{"prompt": "The capital is Par", "chosen": "is", "rejected": "ma"}',
        "End prompts at the end of a word, or use a chat template that renders the prompt alone as "
        "it renders it before a response.",
    ),
    ErrorCode(
        "TRN063",
        "non-finite-number",
        "The loss, a log-probability or the gradient norm is NaN or infinite. The run stops before "
        "the weights change and names the rows of the batch.",
        "training: {learning_rate: 1.0}",
        "Lower training.learning_rate, or check the named rows; with float16, use bfloat16.",
    ),
    ErrorCode(
        "TRN064",
        "preempted",
        "A signal asked the run to stop; it saved a checkpoint and exited with code 75.",
        "scancel --signal TERM JOB",
        "Rerun the same command to resume from the checkpoint.",
    ),
    ErrorCode(
        "TRN065",
        "reference-cache-not-writable",
        "With reference.precompute, the processes of a run share reference log-probabilities "
        "through the cache of datasets, which is not writable.",
        "reference: {precompute: true}  # HF_DATASETS_CACHE on a read-only disk, two GPUs",
        "Set HF_DATASETS_CACHE to a folder that all processes can write.",
    ),
    ErrorCode(
        "TRN066",
        "reference-not-reproducible",
        "A second pass of the reference over the same rows gave other log-probabilities than the "
        "precomputed ones, so these cannot be relied on.",
        "reference: {precompute: true}  # with a model whose forward pass is not deterministic",
        "Set reference.precompute: false.",
    ),
    # 100-119: health rules and trackers.
    ErrorCode(
        "TRN100",
        "stopped-by-health-rule",
        "A health rule of the level stop found the run in the state that the rule is for, such as "
        "a loss that is not finite or a collapsed distribution. No final model is written.",
        "training: {learning_rate: 0.1}",
        "Follow the advice in the message. If the rule is wrong for your run, set its level to "
        "warn, as in health.collapse.level=warn, and run the same command to resume.",
    ),
    ErrorCode(
        "TRN101",
        "tracker-cannot-start",
        "A tracker in logging.report_to raised an error before the first step, for instance "
        "because its server is unreachable or no one is logged in.",
        "logging: {report_to: [wandb]}  # without `wandb login`",
        "Configure the tracker as its message says, or remove it from logging.report_to; "
        "metrics.jsonl is always written.",
    ),
)
