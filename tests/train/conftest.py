"""A tiny real model and tokenizer, and rows of every shape; nothing is downloaded or mocked."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefcli import cli
from prefcli.checkpoints.run_dir import RunDir
from prefcli.console import keep_stdout_for_json
from prefcli.data.run_datasets import load_inputs
from prefcli.library_logging import quiet_libraries
from prefcli.model import detect_device, load_policy, load_tokenizer
from prefcli.recipe import Loaded, load
from prefcli.recipe.data_checks import DataChecks
from prefcli.training.trainer import make_trainer

torch.set_num_threads(1)
quiet_libraries()
# Each training run collects garbage, and what the libraries made at import is never any.
gc.freeze()

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "A:{% generation %}{{ m.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ m.role[0] | upper }}:{{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
WORDS = "red green blue big small kind rude yes no please thanks cat dog sun".split()  # noqa: SIM905


ANYTHING = {name: {"error": None} for name in DataChecks.model_fields}
"""`data.checks` of recipes whose data is no example: there are few prompts in so few words."""


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


@pytest.fixture(autouse=True)
def _plain_console():
    keep_stdout_for_json(False)


@pytest.fixture(autouse=True)
def _own_environment():
    """What accelerate's classes set in it while they are tried, the next test must not find."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def _no_pages(request, monkeypatch):
    """A page takes longer than a run of a tiny model: only tests marked `report` have theirs."""
    if request.node.get_closest_marker("report") is None:
        monkeypatch.setattr("prefcli.training.run.write_report_and_card", lambda *args, **kwargs: None)


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch):
    """Only a power cut could tell the difference, and on a busy disk each takes long."""
    monkeypatch.setattr("prefcli.checkpoints.atomic.os.fsync", lambda handle: None)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A two-layer Llama with random weights and a byte-level BPE tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-model")
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
    return folder


@pytest.fixture
def recipe_data(tiny_model, tmp_path) -> dict:
    return small_recipe(tiny_model, tmp_path)


def small_recipe(model: Path, folder: Path) -> dict:
    """A valid recipe with every method, as plain data to change in a test."""
    train = write_jsonl(folder / "train.jsonl", pairs(24))
    held_out = write_jsonl(folder / "eval.jsonl", pairs(40)[30:])
    return {
        "output_dir": str(folder / "run"),
        "model": {"name_or_path": str(model)},
        "sft": {},
        "dpo": {},
        "ipo": {"beta": 1.0},
        "kto": {},
        "orpo": {},
        "simpo": {},
        "data": {
            "train": {"path": str(train)},
            "eval": {"path": str(held_out)},
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


@pytest.fixture
def make_recipe(tmp_path):
    """Plain data -> a loaded recipe, by way of a file."""

    def make(data: dict, *overrides: str) -> Loaded:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        return load(str(path), overrides)

    return make


@pytest.fixture
def dry_run(tmp_path, monkeypatch, capsys):
    """Run `prefcli METHOD recipe.yaml --dry-run --json`; (exit code, document, what was said)."""

    def run(data: dict, method: str = "dpo", *more: str):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        argv = ["prefcli", method, str(path), "--dry-run", "--json", *more]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), json.loads(out), err

    return run


def trainer_of(recipe, name: str, tokenizer=None):
    """(trainer, inputs) as a run builds them, on a fresh float32 policy."""
    tokenizer = tokenizer or load_tokenizer(recipe.model)
    inputs = load_inputs(recipe, recipe.methods[name], tokenizer)
    method, _ = inputs.resolve_from_data(recipe.methods[name])
    policy = load_policy(recipe.model, torch.float32, recipe.seed)
    trainer, _ = make_trainer(recipe, method, detect_device(), policy, tokenizer, inputs)
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
