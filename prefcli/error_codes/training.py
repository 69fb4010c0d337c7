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
        "The logits of a model are not finite, so no token can be sampled and no response scored.",
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
    ErrorCode(
        "TRN004",
        "sampling-out-of-memory",
        "The GPU ran out of memory while `prefcli pairs` sampled completions. Those before are in "
        "a file that ends with .samples.partial.",
        "pairs: {batch_size: 512}  # for a 7B model",
        "Lower pairs.batch_size and run the same command again: it continues.",
    ),
    # 020-059: preflight, the start of a run, and the saved model.
    ErrorCode(
        "TRN021",
        "warmup-too-long",
        "The warm-up takes as many steps as the run has, so the full learning rate is never used.",
        "warmup_steps: 500 with max_steps: 200",
        "Lower training.warmup_steps, or write training.warmup_ratio instead.",
    ),
    ErrorCode(
        "TRN023",
        "gpu-out-of-memory",
        "The GPU ran out of memory, in a training step or before or after the steps.",
        "a micro-batch of 16 rows of 4096 tokens for a 7B model",
        "Lower training.per_device_train_batch_size; gradient accumulation keeps the global "
        "batch. Or lower data.max_length, train a LoRA adapter, or set "
        "training.gradient_checkpointing: true. `--dry-run --gpu-memory 80GiB` shows what fits.",
    ),
    ErrorCode(
        "TRN024",
        "start-weights-changed",
        "A resumed run would start from other weights than before: the model's files have changed.",
        "an sft run that was trained again between the start of dpo and its resume",
        "Restore the weights, or start a new run in another output_dir.",
    ),
    ErrorCode(
        "TRN026",
        "reference-is-not-the-policy",
        "Before the first step, policy and reference give different log-probabilities, though "
        "the reference should be the starting policy.",
        "weights that change on disk while the run loads them",
        "If you meant another reference, name it in reference.name_or_path. If the weights on "
        "disk did not change, report a bug in prefcli.",
    ),
    ErrorCode(
        "TRN027",
        "loss-differs-from-formula",
        "Before the first step the loss is not the value that its formula gives for equal "
        "policy and reference. The installed trl computes another loss.",
        "a version of trl that prefcli was not tested with",
        "Install the tested versions: pip install prefcli -c constraints.txt.",
    ),
    ErrorCode(
        "TRN028",
        "reference-changed",
        "On a resume the reference gives other log-probabilities than when the run started: "
        "its weights have changed.",
        "reference.name_or_path without a revision, after its authors pushed new weights",
        "Restore the weights, name the old commit in reference.revision, or start a new run in "
        "another output_dir.",
    ),
    ErrorCode(
        "TRN029",
        "step-not-simulated",
        "A dry-run could not simulate a step, so it is unknown whether the model can be trained, "
        "and with a known GPU memory whether the step fits.",
        "a model that uses operations without a fake version",
        "Run without a launcher and pass --devices. If the model is the reason, try a short "
        "run on the GPU.",
    ),
    ErrorCode(
        "TRN030",
        "attention-not-supported",
        "The model does not support the requested attention implementation.",
        "attn_implementation: flash_attention_2 for a model without it",
        "Write auto, or one of the implementations in the message.",
    ),
    ErrorCode(
        "TRN031",
        "step-does-not-fit",
        "The simulated step needs more memory than each GPU has.",
        "full fine-tuning of a 7B model with --gpu-memory 24GiB",
        "Apply the changes that the message lists, or use more or larger GPUs. A run whose "
        "launch.strategy is not auto starts without this prediction.",
    ),
    ErrorCode(
        "TRN032",
        "saved-model-differs",
        "The saved model was read back and is not the model that was trained. It stays in "
        "model.partial; the checkpoints are intact.",
        "a file system that corrupts large files",
        "Check the disk and rerun the same command, which saves the model again. Report it if "
        "it happens again.",
    ),
    ErrorCode(
        "TRN034",
        "half-precision-log-probabilities",
        "Before the first step the model returns log-probabilities in 16 bits. Their sum over "
        "a response would be rounded to half a nat or more, and so would every reward.",
        "a sharding engine that casts the model's outputs to bfloat16",
        "Train with another launch.strategy, and report the problem.",
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
        "Lower training.learning_rate, or check the named rows. At the first step the rows or the "
        "starting weights are the cause. With float16, use bfloat16.",
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
        "With `reference.precompute`, the processes of a run share reference log-probabilities "
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
    ErrorCode(
        "TRN067",
        "packed-forward-unavailable",
        "The packed forward, which `performance.shared_prefix: on` requires, does not support this "
        "model, its attention or how it is sharded; the message has the reason.",
        "{performance: {shared_prefix: on}, model: {attn_implementation: eager}}",
        "Set performance.shared_prefix: auto, which falls back to trl's own forward.",
    ),
    ErrorCode(
        "TRN068",
        "global-batch-size-unreachable",
        "The global batch size is not a multiple of the rows that all devices process at "
        "once, so no number of accumulated micro-batches gives it.",
        "training: {global_batch_size: 16, per_device_train_batch_size: 4}  # on 8 devices",
        "Set training.per_device_train_batch_size to one of the sizes in the message, or change "
        "training.global_batch_size.",
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
    ErrorCode(
        "TRN069",
        "interrupted",
        "Ctrl-C asked the run to stop; it saved a checkpoint and exited with code 130. A second "
        "Ctrl-C stops at once, without one.",
        "prefcli dpo recipe.yaml, then Ctrl-C",
        "Rerun the same command to resume from the checkpoint.",
    ),
)
