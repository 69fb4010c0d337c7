#!/usr/bin/env python3
"""Compare a training step of stock trl with one of prefcli.

    python scripts/bench/speed.py [--quick] [--threads 1,2] [--size tiny|1B] [--rounds 2] [--mkl]

Runs forward and backward passes of DPO over the same pairs, from the same weights, in four arms:

    a  trl's DPOTrainer with its default settings: gradient checkpointing, a reference model
    b  trl's without checkpointing, with a precomputed reference
    c  prefcli, other settings as in a
    d  prefcli, checkpointing where memory requires it (the default), with a precomputed reference

All arms are in one process and take turns batch by batch after a warm-up round; the results are
medians. On a busy machine trust CPU time; on a GPU use wall-clock time, since CPU time is
meaningless there. The optimizer step is not included. Peak memory never falls within a process, so
each arm has a separate process for it, over all batches: resident memory including libraries on a
CPU, torch's allocations on a GPU. On two cores a full table takes about two hours, most of them in
stock trl.

"FLOPs" is the ratio of the multiplications of arm a to those that an arm needs: the speed-up if
only multiplications took time. On a CPU trl's head spends as much time on moving logits, so the
ratios may well be higher:

    layers: tokens * 2 * weights of the layers' matrices  +  attended pairs * 4 * width * layers
    head:   scored * 2 * width * vocabulary
    step:   layers * (policy + reference + recomputed) + head * (policy + reference)

`policy` counts a forward pass and its gradients: 3, or 2 for frozen matrices, which need no weight
gradient (an adapter's few weights are not counted). `reference` is 1, or 0 if precomputed, and
`recomputed` is 1 under checkpointing. Stock computes rows * longest row tokens, attends to that
squared and scores all of them; prefcli computes each prompt once and each answer twice, and scores
the answers.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
)
from trl import DPOConfig, DPOTrainer

from prefcli.data.run_datasets import load_run_datasets
from prefcli.library_logging import quiet_libraries
from prefcli.model import detect_device, load_policy, load_tokenizer
from prefcli.packed_forward import onednn_linear
from prefcli.recipe import load
from prefcli.recipe.sections import DataChecks
from prefcli.training.trainer import make_trainer
from scripts.bench.profiles import PROFILES, Row, drawn

ARMS = {
    "a": "trl, default settings",
    "b": "trl, no checkpointing, precomputed",
    "c": "prefcli, settings as in a",
    "d": "prefcli, checkpointing auto, precomputed",
}
TUNINGS = ("full", "LoRA")
BATCHES = 3


@dataclass(frozen=True)
class Size:
    """A Llama and the pairs of its batch."""

    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    pairs: int

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=2,
        )

    @property
    def matrices(self) -> int:
        """Weights that a token meets in the layers."""
        keys = self.width * self.key_heads // self.heads
        return self.layers * (2 * self.width * (self.width + keys) + 3 * self.width * self.inner)


SIZES = {
    "tiny": Size(384, 1024, 6, 6, 6, 32_000, 4),
    "1B": Size(2048, 8192, 16, 32, 8, 128_256, 8),
}


def flops(rows: list[Row], size: Size, tuning: str, arm: str) -> int:
    """Count the multiplications of an arm, as the module docstring says."""
    policy = 3 if tuning == "full" else 2
    tokens = scored = attended = 0
    stock = arm in "ab"
    for start in range(0, len(rows), size.pairs):
        batch = rows[start : start + size.pairs]
        if stock:
            longest = max(len(p) + max(len(a), len(b)) + 1 for p, a, b in batch)
            tokens += 2 * len(batch) * longest
            attended += 2 * len(batch) * longest**2
            scored += 2 * len(batch) * longest
            continue
        for prompt, *answers in batch:
            tokens += len(prompt)
            attended += len(prompt) ** 2 // 2
            for answer in answers:
                own = len(answer) + 1  # with the end token
                tokens += own
                scored += own
                attended += own * len(prompt) + own**2 // 2
    layers = 2 * tokens * size.matrices + 4 * attended * size.width * size.layers
    head = 2 * scored * size.width * size.vocabulary
    reference, recomputed = (1, 1) if arm in "ac" else (0, 0)
    return layers * (policy + reference + recomputed) + head * (policy + reference)


def prepare(folder: Path, rows: list[Row], size: Size) -> None:
    """Write a model, a tokenizer with one token per word, and the rows as text."""
    words = {"</s>": 1, "<pad>": 2} | {
        f"w{i}": i for i in range(size.vocabulary) if i not in (1, 2)
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="w0"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    with torch.device(detect_device().kind):
        model = LlamaForCausalLM(size.config())
    model.save_pretrained(folder)
    names = ("prompt", "chosen", "rejected")
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            texts = (" ".join(f"w{token}" for token in part) for part in row)
            prompt, *answers = texts
            line = dict(zip(names, (prompt, *(f" {answer}" for answer in answers)), strict=True))
            file.write(json.dumps(line) + "\n")


def stock(folder: Path, tuning: str, arm: str, size: Size) -> Any:
    """Return trl's own trainer."""
    device = detect_device()
    changes = (
        {"gradient_checkpointing": False, "precompute_ref_log_probs": True} if arm == "b" else {}
    )
    args = DPOConfig(
        output_dir=str(folder / f"run-{arm}"),
        per_device_train_batch_size=size.pairs,
        per_device_eval_batch_size=size.pairs,
        max_length=2048,
        max_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=device.kind == "cpu",
        bf16=device.bfloat16,
        **changes,
    )
    return DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=args,
        train_dataset=Dataset.from_json(str(folder / "rows.jsonl")),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
        if tuning == "LoRA"
        else None,
    )


def prefcli_trainer(folder: Path, tuning: str, arm: str, size: Size) -> Any:
    """Return the trainer of a prefcli run."""
    data: dict[str, Any] = {
        "output_dir": str(folder / f"run-{arm}"),
        "model": {"name_or_path": str(folder), "dtype": "float32"},
        "dpo": {},
        "data": {
            "train": {"path": str(folder / "rows.jsonl")},
            "max_length": 2048,
            "checks": {name: {"warn": None, "error": None} for name in DataChecks.model_fields},
        },
        "training": {
            "global_batch_size": size.pairs,
            "per_device_train_batch_size": size.pairs,
            "learning_rate": 1e-6,
            "max_steps": 1,
            "warmup_steps": 0,
        },
        "reference": {"precompute": arm == "d"},
    }
    if detect_device().kind == "cuda":
        del data["model"]["dtype"]
    if arm == "c":
        data["training"]["gradient_checkpointing"] = True
    if tuning == "LoRA":
        data["lora"] = {"rank": 16, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"}
    file = folder / f"recipe-{arm}.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    recipe = load(str(file)).recipe
    tokenizer = load_tokenizer(recipe.model)
    inputs = load_run_datasets(recipe, recipe.methods["dpo"], tokenizer)
    method, _ = inputs.resolve_from_data(recipe.methods["dpo"])
    device = detect_device()
    # Frozen weights in float32, too: as stock has them.
    policy = load_policy(recipe.model, torch.float32, recipe.seed)
    trainer, effective = make_trainer(
        recipe, method, device, policy, tokenizer, inputs, eval_on_start=False
    )
    trainer.args.save_strategy = "no"
    assert trainer.context.packed_forward.reason is None, trainer.context.packed_forward.reason
    if arm == "d" and effective["gradient_checkpointing"]:
        print("(checkpointing is on in arm d: memory needs it)", file=sys.stderr)
    return trainer


def stepper(folder: Path, tuning: str, arm: str, size: Size) -> Callable[[int], float]:
    """Takes a batch by its number, through forward and backward passes; gives its loss."""
    trainer = (stock if arm in "ab" else prefcli_trainer)(folder, tuning, arm, size)
    trainer.remove_callback(PrinterCallback)
    trainer.train()  # one step: what it sets up stays
    rows = [trainer.train_dataset[i] for i in range(BATCHES * size.pairs)]
    batches = [
        trainer.data_collator(rows[start : start + size.pairs])
        for start in range(0, len(rows), size.pairs)
    ]

    def step(number: int) -> float:
        trainer.model.zero_grad(set_to_none=True)
        return float(trainer.training_step(trainer.model_wrapped, dict(batches[number])))

    return step


@dataclass
class Figures:
    cpu: float
    wall: float
    loss: float


def timed(
    steps: dict[str, Callable[[int], float]], rounds: int, batches: int
) -> dict[str, Figures]:
    """Return the median seconds of a batch over all rounds and batches."""
    wait = torch.cuda.synchronize if detect_device().kind == "cuda" else lambda: None
    spent: dict[str, list[tuple[float, float]]] = {arm: [] for arm in steps}
    losses: dict[str, list[float]] = {arm: [] for arm in steps}
    for turn in range(rounds + 1):
        for number in range(batches):
            for arm, step in steps.items():
                wait()
                cpu, wall = time.process_time(), time.perf_counter()
                loss = step(number)
                wait()
                took = time.process_time() - cpu, time.perf_counter() - wall
                if turn:
                    spent[arm].append(took)
                    losses[arm].append(loss)
    return {
        arm: Figures(
            median(cpu for cpu, _ in pairs), median(wall for _, wall in pairs), median(losses[arm])
        )
        for arm, pairs in spent.items()
    }


def peak(options: argparse.Namespace, profile: str, tuning: str, arm: str) -> float:
    """Return the peak in GiB of a process that runs this arm alone."""
    command = [sys.executable, __file__, "--peak-of", profile, tuning, arm, "--size", options.size]
    done = subprocess.run(
        [*command, "--seed", str(options.seed)], check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1])


def print_peak(options: argparse.Namespace) -> None:
    profile, tuning, arm = options.peak_of
    size = SIZES[options.size]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        prepare(
            Path(name), drawn(profile, size.vocabulary, BATCHES * size.pairs, options.seed), size
        )
        step = stepper(Path(name), tuning, arm, size)
        for number in range(BATCHES):
            step(number)
    if detect_device().kind == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**30)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.processor()}, {len(named) or '?'} cores"


def lines(options: argparse.Namespace) -> Iterator[str]:
    size = SIZES[options.size]
    device = detect_device()
    where = f"{device.name}; {processor()}" if device.kind == "cuda" else processor()
    yield f"{where}; torch {torch.__version__}; Llama {size.width} wide, {size.layers} layers, "
    yield f"{size.vocabulary} tokens, {'bf16' if device.bfloat16 else 'fp32'}, {size.pairs} pairs"
    yield ""
    yield (
        "| profile | tuning | threads | arm | CPU s | wall s | x a, CPU | x a, wall | x b, CPU "
        "| x b, wall | FLOPs | peak GiB | of a | loss |"
    )
    yield "|---" * 14 + "|"
    for profile in options.profiles:
        rows = drawn(profile, size.vocabulary, BATCHES * size.pairs, options.seed)
        for tuning in options.tunings:
            peaks = (
                {arm: peak(options, profile, tuning, arm) for arm in ARMS} if options.peaks else {}
            )
            with tempfile.TemporaryDirectory() as name:
                prepare(Path(name), rows, size)
                steps = {arm: stepper(Path(name), tuning, arm, size) for arm in ARMS}
                for threads in options.threads:
                    torch.set_num_threads(threads)
                    figures = timed(steps, options.rounds, options.batches)
                    for arm, words in ARMS.items():
                        own, a, b = figures[arm], figures["a"], figures["b"]
                        bound = flops(rows, size, tuning, "a") / flops(rows, size, tuning, arm)
                        memory = (
                            f"{peaks[arm]:.2f} | {peaks[arm] / peaks['a']:.2f}" if peaks else " | "
                        )
                        yield (
                            f"| {profile} | {tuning} | {threads} | {arm}: {words} "
                            f"| {own.cpu:.2f} | {own.wall:.2f} "
                            f"| {a.cpu / own.cpu:.2f} | {a.wall / own.wall:.2f} "
                            f"| {b.cpu / own.cpu:.2f} | {b.wall / own.wall:.2f} "
                            f"| {bound:.2f} | {memory} | {own.loss:.6f} |"
                        )
                del steps
                gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def several(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser.add_argument("--threads", type=several, default=[1, 2])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batches", type=int, choices=range(1, BATCHES + 1), default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profiles", type=lambda text: text.split(","), default=list(PROFILES))
    parser.add_argument("--tunings", type=lambda text: text.split(","), default=list(TUNINGS))
    parser.add_argument("--no-peaks", dest="peaks", action="store_false", help="time only")
    parser.add_argument("--mkl", action="store_true", help="multiply by MKL instead of oneDNN")
    parser.add_argument("--quick", action="store_true", help="hh-like, one batch, no peaks")
    parser.add_argument("--peak-of", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet_libraries()
    if options.mkl:
        onednn_linear.better_by_onednn = lambda: False
    if options.peak_of:
        print_peak(options)
        return
    if options.quick:
        options.profiles, options.peaks = ["hh-like"], False
        options.rounds, options.batches, options.threads = 1, 1, options.threads[:1]
    for line in lines(options):
        print(line, flush=True)


if __name__ == "__main__":
    main()
