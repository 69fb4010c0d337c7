"""Rows, recipes and trainers for tests on a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefcli.checkpoints.run_dir import RunDir
from prefcli.data.run_datasets import load_run_datasets
from prefcli.evaluation.judges.function import Function
from prefcli.model import detect_device, load_policy, load_tokenizer
from prefcli.recipe.defaults import resolve_defaults
from prefcli.recipe.sections import DataChecks
from prefcli.training.trainer import make_trainer
from tests.support.judge import RLOO

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "A:{% generation %}{{ m.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ m.role[0] | upper }}:{{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
WORDS = "red green blue big small kind rude yes no please thanks cat dog sun".split()  # noqa: SIM905


ANYTHING = {name: {"error": None} for name in DataChecks.model_fields}
"""`data.checks` without errors: the generated rows have few distinct prompts and words."""


def sentence(seed: int, length: int) -> str:
    return " ".join(WORDS[(seed * 7 + i * (seed % 5 + 3)) % len(WORDS)] for i in range(length))


def pairs(count: int, *, chat: bool = False) -> list[dict]:
    rows = []
    for i in range(count):
        prompt, chosen, rejected = (
            f"say {sentence(i, 3)}",
            f" {sentence(i + 1, 2 + i % 4)} thanks",
            f" {sentence(i + 2, 2 + (i + 1) % 4)} no",
        )
        if chat:
            rows.append(
                {
                    "prompt": [{"role": "user", "content": prompt}],
                    "chosen": [{"role": "assistant", "content": chosen}],
                    "rejected": [{"role": "assistant", "content": rejected}],
                }
            )
        else:
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def labelled(count: int) -> list[dict]:
    return [
        {
            "prompt": r["prompt"],
            "completion": r["chosen" if i % 3 else "rejected"],
            "label": i % 3 > 0,
        }
        for i, r in enumerate(pairs(count))
    ]


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_pairs(folder: Path) -> Path:
    """Write train.jsonl and eval.jsonl, and return the folder."""
    write_jsonl(folder / "train.jsonl", pairs(24))
    write_jsonl(folder / "eval.jsonl", pairs(40)[30:])
    return folder


def save_tiny_model(folder: Path) -> None:
    """Save a two-layer Llama with random weights and a byte-level BPE tokenizer."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [sentence(i, 8) for i in range(50)],
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<s>", "</s>", "<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def small_recipe(model: Path, folder: Path, rows: Path | None = None) -> dict:
    """A valid recipe with every method, as plain data to change in a test.

    rows: a folder that has train.jsonl and eval.jsonl already.
    """
    if rows is None:
        rows = write_pairs(folder)
    return {
        "output_dir": str(folder / "run"),
        "model": {"name_or_path": str(model)},
        "sft": {},
        "dpo": {},
        "ipo": {"beta": 1.0},
        "kto": {},
        "orpo": {},
        "simpo": {},
        "cpo": {},
        "reward": {},
        **RLOO,
        "data": {
            "train": {"path": str(rows / "train.jsonl")},
            "eval": {"path": str(rows / "eval.jsonl")},
            "max_length": 64,
            "checks": ANYTHING,
        },
        "training": {
            "global_batch_size": 8,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "max_steps": 2,
        },
        "check_sft": {"on_fail": "skip"},
        "samples": {"prompts": 0},
    }


def trainer_of(recipe, name: str, tokenizer=None):
    """Return (trainer, inputs) as a run builds them, on a fresh float32 policy."""
    recipe = resolve_defaults(recipe, recipe.methods[name])
    tokenizer = tokenizer or load_tokenizer(recipe.model)
    inputs = load_run_datasets(recipe, recipe.methods[name], tokenizer)
    method, _ = inputs.resolve_from_data(recipe.methods[name])
    policy = load_policy(recipe.model, torch.float32, recipe.seed)
    judge = Function(recipe.judge.function) if method.needs_judge else None
    trainer, _ = make_trainer(
        recipe, method, detect_device(), policy, tokenizer, inputs, judge=judge
    )
    return trainer, inputs


def interrupt(run: str | Path, last: str) -> None:
    """Leave a finished run as one that was killed after the checkpoint before `last`."""
    folder = RunDir(str(run))
    shutil.rmtree(folder.model)
    shutil.rmtree(folder.path / last)
    folder.write_run({**folder.read_run(), "status": "running"})


UNTIMED = ("seconds", "runtime", "per_second", "memory_gib")
"""Ends of the metrics that two equal runs differ in."""


def metric_rows(run: str | Path) -> list[dict]:
    lines = (Path(run) / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]
