"""A DPO step of stock trl and of prefcli in several settings, and the operations that it needs."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    Trainer,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer

from scripts.acceptance import adapter
from scripts.acceptance.setting import Row, Setting, Shape

ARMS = {
    "s0": "stock, defaults",
    "s1": "stock, best settings",
    "p0": "prefcli, settings as in stock",
    "p1": "prefcli, defaults",
    "p2": "prefcli, best settings",
    "p3": "prefcli, best settings, compiled",
}
"""Stock's defaults are gradient checkpointing and a reference model. The best settings are no
checkpointing, a precomputed reference, fused AdamW and, for stock on a GPU, Liger's layers."""

STOCK: dict[str, dict[str, Any]] = {
    "s0": {},
    "s1": {
        "gradient_checkpointing": False,
        "precompute_ref_log_probs": True,
        "optim": "adamw_torch_fused",
    },
}
_BEST = {
    "reference": {"precompute": True},
    "training": {"gradient_checkpointing": False, "optim": "adamw_torch_fused"},
}
PREFCLI: dict[str, dict[str, Any]] = {
    "p0": {"training": {"gradient_checkpointing": True}},
    "p1": {},
    "p2": _BEST,
    "p3": {**_BEST, "performance": {"compile": "on"}},
}


@dataclass(frozen=True)
class Case:
    """An arm on a model, named as in `Setting.shapes`."""

    model: str
    tuning: str
    """full or LoRA."""
    arm: str
    pairs: int = 8

    @property
    def lora(self) -> bool:
        return self.tuning == "LoRA"

    def __str__(self) -> str:
        return f"{self.model} {self.tuning} {self.arm}, {self.pairs} pairs"


def uses_liger(setting: Setting, arm: str) -> bool:
    return arm == "s1" and not setting.cpu and find_spec("liger_kernel") is not None


class Laps(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Seconds per step and peak memory of each lap of `warm` untimed and `timed` timed steps.

    Loading and the optimizer are included. The device is waited for at the ends of a lap. On a GPU
    the time is the median of the timed steps, since Triton compiles kernels for sizes that are new
    to it, which a long run does not notice; elsewhere it is the mean.
    """

    def __init__(self, setting: Setting, warm: int, timed: int) -> None:
        self._setting = setting
        self._warm = warm
        self._timed = timed
        self._began = 0.0, 0.0
        self._marks: list[torch.cuda.Event] = []
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.peaks: list[float] = []
        """GiB: torch's allocations on a GPU; on a CPU resident memory since the process started."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        at = state.global_step % (self._warm + self._timed)
        if at == 0 and not self._setting.cpu:
            torch.cuda.reset_peak_memory_stats()
        if at == self._warm:
            self._setting.wait()
            self._began = time.perf_counter(), time.process_time()
            self._marks = []
            self._mark()

    def _mark(self) -> None:
        if not self._setting.cpu:
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark()
        if state.global_step % (self._warm + self._timed):
            return
        self._setting.wait()
        wall, cpu = self._began
        mean = (time.perf_counter() - wall) / self._timed
        steps = [a.elapsed_time(b) / 1000 for a, b in pairwise(self._marks)]
        self.wall.append(median(steps) if steps else mean)
        self.cpu.append((time.process_time() - cpu) / self._timed)
        if self._setting.cpu:
            self.peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        else:
            self.peaks.append(torch.cuda.max_memory_allocated() / 2**30)


def make_trainer(
    setting: Setting, folder: Path, case: Case, rows: list[Row], steps: int
) -> Trainer:
    """Make a trainer that takes the rows in their order."""
    file = setting.written(folder / "rows.jsonl", rows)
    make = _stock_trainer if case.arm in STOCK else _prefcli_trainer
    trainer = make(setting, folder, case, file, steps)
    trainer._get_train_sampler = lambda *args, **kwargs: SequentialSampler(trainer.train_dataset)
    return trainer


def _stock_trainer(setting: Setting, folder: Path, case: Case, rows: Path, steps: int) -> Trainer:
    args = DPOConfig(
        output_dir=str(folder / "run"),
        per_device_train_batch_size=case.pairs,
        per_device_eval_batch_size=case.pairs,
        max_length=2048,
        max_steps=steps,
        learning_rate=1e-6,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=setting.cpu,
        bf16=not setting.cpu,
        use_liger_kernel=uses_liger(setting, case.arm),
        **STOCK[case.arm],
    )
    # As prefcli does: frozen weights in bfloat16.
    dtype = torch.bfloat16 if case.lora and not setting.cpu else torch.float32
    weights = setting.model(case.model)
    adapter_config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(weights, dtype=dtype),
        args=args,
        train_dataset=Dataset.from_json(str(rows), cache_dir=str(setting.work / "datasets")),
        processing_class=AutoTokenizer.from_pretrained(weights),
        peft_config=adapter_config if case.lora else None,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _prefcli_trainer(setting: Setting, folder: Path, case: Case, rows: Path, steps: int) -> Trainer:
    sections = PREFCLI[case.arm]
    training = {
        "global_batch_size": case.pairs,
        "per_device_train_batch_size": case.pairs,
        "max_steps": steps,
        "learning_rate": 1e-6,
        "logging_steps": 10,
        **sections.get("training", {}),
    }
    overrides: dict[str, Any] = {"training": training}
    if case.lora:
        overrides["lora"] = {"rank": 16, "alpha": 32, "dropout": 0.0}
    file = setting.recipe(
        folder, setting.model(case.model), rows, dpo={}, **{**sections, **overrides}
    )
    return adapter.trainer_of(file, "dpo")


def flops(rows: list[Row], shape: Shape, case: Case, *, checkpointing: bool, cpu: bool) -> float:
    """Count the multiplications and additions of a pass over the rows.

    layers: tokens * 2 * weights of the layers' matrices  +  attended pairs * 4 * width * layers
    head:   scored * 2 * width * vocabulary
    total:  layers * (policy + reference + recomputed) + head * (policy + reference)

    `policy` counts a forward pass and its gradients: 3, or 2 for frozen matrices, which need no
    weight gradient (an adapter's few weights are not counted). `reference` is 1, or 0 if
    precomputed, and `recomputed` is 1 under checkpointing. Stock computes rows * longest row tokens
    and attends to that squared; prefcli computes each prompt once and each answer twice. Both score
    the answers, but stock scores all positions on a CPU.
    """
    tokens = scored = attended = 0
    for start in range(0, len(rows), case.pairs):
        batch = rows[start : start + case.pairs]
        longest = max(len(p) + max(len(a), len(b)) + 1 for p, a, b in batch)
        for prompt, *answers in batch:
            own = [len(answer) + 1 for answer in answers]  # with the end token
            if case.arm in STOCK:
                tokens += 2 * longest
                attended += 2 * longest**2
                scored += 2 * longest if cpu else sum(own)
            else:
                tokens += len(prompt) + sum(own)
                attended += len(prompt) ** 2 // 2
                attended += sum(n * len(prompt) + n**2 // 2 for n in own)
                scored += sum(own)
    layers = 2 * tokens * shape.matrices + 4 * attended * shape.width * shape.layers
    head = 2 * scored * shape.width * shape.vocabulary
    policy = 2 if case.lora else 3
    reference = 1 if case.arm in ("s0", "p0", "p1") else 0
    return layers * (policy + reference + checkpointing) + head * (policy + reference)
