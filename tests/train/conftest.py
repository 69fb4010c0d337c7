"""A tiny real model and tokenizer, and rows of every shape; nothing is downloaded or mocked."""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefcli import cli
from prefcli.checkpoints import atomic
from prefcli.console import keep_stdout_for_json
from prefcli.library_logging import quiet_libraries
from prefcli.model import load_tokenizer
from prefcli.recipe import Loaded, load
from prefcli.training import finish
from tests.support.tiny_runs import TEMPLATE, sentence, small_recipe, trainer_of, write_jsonl

torch.set_num_threads(1)
quiet_libraries()
# Each training run collects garbage, and what the libraries made at import is never any.
gc.freeze()


@pytest.fixture(autouse=True)
def _plain_console():
    keep_stdout_for_json(False)


@pytest.fixture(autouse=True)
def _own_environment():
    """What accelerate's classes set in it while they are tried, the next test must not find."""
    with mock.patch.dict(os.environ):
        yield


def pytest_report_header() -> str:
    return (
        "prefcli, tests/train: fsync is replaced by nothing; reports and model cards are written "
        "only in tests marked `report`"
    )


@pytest.fixture(autouse=True)
def _without_reports(request, monkeypatch):
    """Skip report and model card, which take longer than a run of a tiny model."""
    if request.node.get_closest_marker("report") is None:
        monkeypatch.setattr(finish, "write_report_and_card", lambda *args, **kwargs: None)


@pytest.fixture(autouse=True)
def _without_fsync(monkeypatch):
    """Skip fsync: only a power cut shows the difference, and it is slow on a busy disk."""
    monkeypatch.setattr(atomic, "fsync", lambda handle: None)


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


@pytest.fixture
def trl_rows(recipe_data, make_recipe, tmp_path):
    """Build (canonical rows, the rows that trl prepares from them, tokenizer, recipe)."""

    def build(name, rows, change=lambda tokenizer: None, **section):
        train = write_jsonl(tmp_path / "rows.jsonl", rows)
        recipe_data["data"] = {"train": {"path": str(train)}, "max_length": 64}
        recipe_data[name] = section
        recipe = make_recipe(recipe_data).recipe
        tokenizer = load_tokenizer(recipe.model)
        change(tokenizer)
        trainer, inputs = trainer_of(recipe, name, tokenizer)
        return inputs.train.rows.to_list(), trainer.train_dataset.to_list(), tokenizer, recipe

    return build
