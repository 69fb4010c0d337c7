"""Run folders as files, with metrics like those of real runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RUN = {
    "status": "finished",
    "method": "dpo",
    "started": "2026-03-01T10:00:00+0000",
    "finished": "2026-03-01T11:02:03+0000",
    "prefcli": "0.1.0",
    "versions": {"torch": "2.13.0", "trl": "1.16.0"},
    "python": "3.11.7",
    "device": {"kind": "cuda", "name": "NVIDIA H200"},
    "lineage": [
        {"stage": "start", "model": "mistralai/Mistral-7B-v0.1", "revision": None},
        {"stage": "sft", "model": "runs/sft/model"},
    ],
    "check_sft": {"perplexity": 2.81, "max_perplexity": 10.0, "passed": True},
    "step_zero": [[-6.4, -7.7]],
    "data": {
        "train": {
            "read": 5000,
            "available": 5000,
            "kept": 4990,
            "tokens": 1234567,
            "dropped": {"chosen and rejected are identical": 10},
            "findings": {
                "cut": {"count": 25, "of": 4990, "share": 0.00501, "first": [], "note": ""}
            },
            "notes": [],
        },
        "eval": {
            "read": 400,
            "available": 400,
            "kept": 400,
            "fingerprint": "9f2c",
            "tokens": 98765,
            "dropped": {},
        },
    },
    "effective": {"learning_rate": 5e-7, "beta": 0.1, "loss_type": ["sigmoid"], "seed": 42},
    "steps": 200,
    "expected": {
        "eval_loss": {"value": 0.51, "low": 0.4868, "high": 0.5083, "within": False},
        "eval_rewards/accuracies": {"value": 0.77, "low": 0.73, "high": 0.78, "within": True},
    },
    "resumed": [{"at": "2026-03-01T10:30:00+0000", "checkpoint": "checkpoint-100"}],
}

RECIPE = """\
output_dir: runs/zephyr
seed: 42
model:
  name_or_path: runs/sft/model
  dtype: auto
dpo:
  beta: 0.1
  loss_type: sigmoid
data:
  train:
  - path: HuggingFaceH4/ultrafeedback_binarized
    split: train_prefs
    fraction: 1.0
  eval:
  - path: /home/ada/data/eval.jsonl
    fraction: 1.0
  max_length: 1024
training:
  num_train_epochs: 1.0
  global_batch_size: 128
  learning_rate: null
  optim: adamw_torch
expected:
  source: huggingface/alignment-handbook's zephyr-7b-beta, rerun by others
  metrics: {}
"""


def train_row(step: int, steps: int = 200) -> dict[str, float]:
    """A dpo run that goes well: the margin rises, chosen falls a little, rejected more."""
    done = step / steps
    wave = ((step * 7919) % 13 - 6) / 60  # noise, the same every time
    return {
        "step": step,
        "seconds": 1.5 * step,
        "epoch": done,
        "loss": 0.6931 - 0.19 * done + wave * 0.3,
        "grad_norm": 4.0 + 2 * wave + (40.0 if step == 120 else 0.0),
        "learning_rate": 5e-7 * (1 - done),
        "rewards/chosen": -0.6 * done + wave,
        "rewards/rejected": -1.7 * done + wave,
        "rewards/margins": 1.1 * done + wave * 0.5,
        "rewards/margins_chosen_longer": 1.5 * done + wave,
        "rewards/margins_chosen_shorter": 0.6 * done + wave,
        "rewards/accuracies": 0.5 + 0.27 * done + wave,
        "logps/chosen": -283.0 - 60 * done,
        "logps/rejected": -260.0 - 110 * done,
        "logps/chosen_per_token": -1.05 - 0.22 * done + wave * 0.1,
        "logps/rejected_per_token": -1.08 - 0.51 * done + wave * 0.1,
        "perplexity": 2.85 + 0.7 * done + wave * 0.2,
        "tokens/chosen": 270.0 + 300 * wave,
        "tokens/rejected": 240.0 + 300 * wave,
        "tokens_per_second": 21000.0 + 5000 * wave,
        "memory_gib": 71.25,
    }


def eval_row(step: int, **figures: float | None) -> dict[str, Any]:
    done = step / 200
    row = {
        "loss": 0.6931 - 0.18 * done,
        "rewards/chosen": -0.55 * done,
        "rewards/rejected": -1.6 * done,
        "rewards/margins": 1.05 * done,
        "rewards/accuracies": 0.77 if step else 0.0,
        "logps/chosen_per_token": -1.05 - 0.21 * done,
        "logps/rejected_per_token": -1.08 - 0.5 * done,
        "perplexity": 2.86 + 0.67 * done,
        "reference_kl": 0.31 * done,
        "runtime": 12.0,
        **figures,
    }
    return {"step": step, **{f"eval_{key}": value for key, value in row.items()}}


ADVICE = [
    {
        "rule": "displacement",
        "level": "note",
        "step": 150,
        "seen": "chosen responses are 0.31 nats per token below step 0",
        "means": "the margin grows because rejected ones fall faster",
        "change": "dpo.loss_type: [sigmoid, sft]",
        "message": "chosen responses are 0.31 nats per token below step 0: the margin grows "
        "because rejected ones fall faster; to hold them add dpo.loss_type: [sigmoid, sft]",
    },
    {
        "rule": "gradient",
        "level": "warn",
        "step": 120,
        "seen": "the gradient norm is 44, 11 times its median",
        "means": "a row unlike the others, or a learning rate at its edge",
        "change": "lower training.learning_rate",
        "message": "the gradient norm is 44, 11 times its median: a row unlike the others, or a "
        "learning rate at its edge; lower training.learning_rate",
    },
]


def sample_rows(*steps: int) -> list[dict[str, Any]]:
    prompts = ("How do I boil an egg?", "<script>alert(1)</script> \x1b[31m & ```")
    return [
        {
            "step": step,
            "place": f"/home/ada/data/eval.jsonl: row {at + 3}",
            "prompt": prompt,
            "policy": {
                "greedy": f"Answer of step {step} to prompt {at}.",
                "sampled": f"Drawn at step {step}.",
            },
            "reference": {"greedy": f"Answer of step 0 to prompt {at}.", "sampled": "Drawn."},
            "chosen": "Put it into boiling water for eight minutes.",
            "rejected": "No idea.",
        }
        for step in steps
        for at, prompt in enumerate(prompts)
    ]


def ranked_rows(step: int, scores: list[float]) -> list[dict[str, Any]]:
    """The held-out pairs of an evaluation with these margins."""
    return [
        {
            "step": step,
            "score": score,
            "chosen_reward": score,
            "rejected_reward": 0.0,
            "chosen_tokens": 12.0,
            "rejected_tokens": 9.0,
            "place": f"/home/ada/data/eval.jsonl: row {at}",
            "prompt": f"Question {at}?",
            "chosen": f"Good answer {at}.",
            "rejected": f"Bad answer {at}. " + "And so on. " * 60,
        }
        for at, score in enumerate(scores)
    ]


def write_run(
    folder: Path,
    *,
    run: dict[str, Any] | None = RUN,
    recipe: str | None = RECIPE,
    rows: list[dict[str, Any]] | None = None,
    health: list[dict[str, Any]] | None = None,
    samples: list[dict[str, Any]] | None = None,
    ranked: list[dict[str, Any]] | None = None,
) -> Path:
    """A run folder of these files; what is None is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    if run is not None:
        (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    if recipe is not None:
        (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    logs = {"metrics": rows, "health": health, "samples": samples, "held_out": ranked}
    for name, entries in logs.items():
        if entries is not None:
            text = "".join(json.dumps(entry) + "\n" for entry in entries)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def healthy_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [eval_row(0), train_row(1)]
    for step in range(5, 201, 5):
        rows.append(train_row(step))
        if step % 100 == 0:
            rows.append(eval_row(step))
    return rows


def dpo_run(folder: Path) -> Path:
    """A finished run with everything in it."""
    return write_run(
        folder,
        rows=healthy_rows(),
        health=ADVICE,
        samples=sample_rows(0, 100, 200),
        ranked=[*ranked_rows(100, [-9.0]), *ranked_rows(200, [-1.25, 0.5, 2.0])],
    )
