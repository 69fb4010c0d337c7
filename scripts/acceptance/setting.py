"""Models of known shapes, rows of known lengths and recipes over both, shared by the parts."""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefcli.recipe.sections import DataChecks

Row = tuple[list[int], list[int], list[int]]
"""Token ids of a prompt, of the chosen and of the rejected answer."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama."""

    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool
    louder: float = 1.0
    """What the matrices of a random model are multiplied with, so that attention and logits differ
    from token to token as much as a trained model's."""

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=self.tied,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=2,
        )

    @property
    def matrices(self) -> int:
        """Weights that a token meets in the layers."""
        keys = self.width * self.key_heads // self.heads
        return self.layers * (2 * self.width * (self.width + keys) + 3 * self.width * self.inner)


_SHAPES = {
    # What a CPU trains in seconds.
    "C": Shape(384, 1024, 6, 6, 6, 32_000, False),
    "T": Shape(512, 1408, 4, 8, 2, 8192, False, louder=8.0),
    # SmolLM2-135M and Llama-3.2-1B.
    "S": Shape(576, 1536, 30, 9, 3, 49_152, True),
    "M": Shape(2048, 8192, 16, 32, 8, 128_256, True),
}
_TINY = {
    "C": Shape(64, 128, 2, 4, 2, 512, False),
    "T": Shape(64, 128, 2, 4, 2, 256, False, louder=16.0),
    "S": Shape(48, 96, 2, 3, 1, 256, True),
    "M": Shape(64, 128, 2, 4, 2, 512, True),
}


class Setting:
    """One per process."""

    def __init__(self, work: Path, *, cpu: bool, quick: bool, threads: int = 0) -> None:
        self.work = work
        self.cpu = cpu
        self.quick = quick
        self.shapes = _TINY if quick else _SHAPES
        if cpu:
            torch.set_num_threads(threads or (1 if quick else os.cpu_count() or 1))

    @cached_property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.cpu else "cuda")

    def wait(self) -> None:
        if not self.cpu:
            torch.cuda.synchronize()

    def model(self, name: str, seed: int = 0) -> Path:
        """The folder of a random model and its tokenizer of one token a word; made once."""
        folder = self.work / f"model-{name}-{seed}"
        if folder.is_dir():
            return folder
        shape = self.shapes[name]
        made = self.work / f"model-{name}-{seed}-{os.getpid()}"
        torch.manual_seed(seed)
        with self.device:
            model = LlamaForCausalLM(shape.config())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter *= shape.louder
        model.save_pretrained(made)
        words = {"</s>": 1, "<pad>": 2}
        words |= {f"w{i}": i for i in range(shape.vocabulary) if i not in (1, 2)}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="w0"
        ).save_pretrained(made)
        try:
            made.rename(folder)
        except OSError:  # another process was faster
            assert folder.is_dir()
        return folder

    def drawn(
        self, name: str, count: int, seed: object, prompt: tuple[int, int], answer: tuple[int, int]
    ) -> list[Row]:
        """Rows of a model's tokens; prompt, answer: from and to so many tokens."""
        draw = random.Random(f"{seed}")
        vocabulary = self.shapes[name].vocabulary

        def tokens(low: int, high: int) -> list[int]:
            return [draw.randrange(3, vocabulary) for _ in range(draw.randint(low, high))]

        return [(tokens(*prompt), tokens(*answer), tokens(*answer)) for _ in range(count)]

    def written(self, path: Path, rows: list[Row], kind: str = "pair") -> Path:
        """kind: pair, labelled or demonstration, as methods have it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for number, row in enumerate(rows):
                prompt, chosen, rejected = (" ".join(f"w{t}" for t in part) for part in row)
                line: dict[str, Any] = {"prompt": prompt}
                if kind == "pair":
                    line |= {"chosen": f" {chosen}", "rejected": f" {rejected}"}
                elif kind == "labelled":
                    label = number % 2 == 0
                    line |= {"completion": f" {chosen if label else rejected}", "label": label}
                else:
                    line["completion"] = f" {chosen}"
                file.write(json.dumps(line) + "\n")
        return path

    def recipe(self, folder: Path, weights: Path, rows: Path, **sections: Any) -> Path:
        """A recipe file in `folder`, whose run is in folder/run; sections are merged into it."""
        data: dict[str, Any] = {
            "output_dir": str(folder / "run"),
            "model": {"name_or_path": str(weights)},
            "data": {
                "train": {"path": str(rows)},
                "max_length": 2048,
                "checks": {n: {"warn": None, "error": None} for n in DataChecks.model_fields},
            },
            "training": {"learning_rate": 1e-5, "warmup_steps": 0, "logging_steps": 1},
            "check_sft": {"on_fail": "skip"},
            "samples": {"prompts": 0},
        }
        for name, values in sections.items():
            both = isinstance(values, dict) and isinstance(data.get(name), dict)
            data[name] = {**data[name], **values} if both else values
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(data), encoding="utf-8")
        return file
