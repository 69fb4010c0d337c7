"""Whole training steps, prefcli's compared with stock trl's, over three profiles of lengths.

Each arm trains through `trainer.train()` over the same rows in the same order, loader, clipping and
optimizer included; the device is waited for at the ends of a profile only.
"""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from scripts.acceptance import adapter
from scripts.acceptance.facts_part import matrix_rate
from scripts.acceptance.rows import POISONED, Sheet
from scripts.acceptance.setting import Row, Setting, Shape
from scripts.bench.profiles import PROFILES, drawn

_STOCK: dict[str, dict[str, Any]] = {
    "s0": {},
    "s1": {
        "gradient_checkpointing": False,
        "precompute_ref_log_probs": True,
        "optim": "adamw_torch_fused",
    },
}
"""trl with its default settings, and at its best."""
_OURS: dict[str, dict[str, Any]] = {
    "p0": {"training": {"gradient_checkpointing": True}},
    "p1": {},
    "p2": {
        "reference": {"precompute": True},
        "training": {"gradient_checkpointing": False, "optim": "adamw_torch_fused"},
    },
    "p3": {
        "reference": {"precompute": True},
        "training": {"gradient_checkpointing": False, "optim": "adamw_torch_fused"},
        "performance": {"compile": "on"},
    },
}
"""With settings as in s0, with the defaults, at the best, and the best with compiled layers."""
_CASES = (
    ("M full", "p2", 8),
    ("M full", "p3", 8),
    ("M full", "s1", 8),
    ("M LoRA", "p2", 8),
    ("M LoRA", "s1", 8),
    ("M full", "p1", 8),
    ("M full", "s0", 8),
    ("M full", "p0", 8),
    ("S full", "p2", 8),
    ("S full", "p2", 2),
    ("S full", "s1", 8),
    ("S full", "s1", 2),
)
_WARM, _TIMED = 2, 4
"""Steps of each profile."""
_AIM = 1.3
"""p2 over s1, for M in full."""


def run(sheet: Sheet, setting: Setting) -> None:
    cases = _CASES
    if setting.quick:
        cases = tuple(
            case for case in _CASES[:6] if case[0] == "M full" and case[1] in ("p1", "p2", "s1")
        )
    rate = matrix_rate(setting)
    patched = False
    for model, arm, pairs in cases:
        name = f"{model} {arm}, {pairs} pairs"
        if patched and arm in _OURS and not sheet.is_done(name):
            # Liger's kernels replace functions of transformers; prefcli runs without them.
            os._exit(POISONED)
        if not sheet.is_done(name):
            patched |= arm == "s1" and _liger(setting)
        sheet.run(name, _arm, sheet, setting, model, arm, pairs, rate, needs=14)
        adapter.release()
        if not setting.cpu and torch.cuda.memory_allocated() > 2**30:
            sheet.note("left on the GPU, GiB", torch.cuda.memory_allocated() / 2**30)
            os._exit(POISONED)
    sheet.run("ratios", _ratios, sheet, cases)


def _liger(setting: Setting) -> bool:
    return not setting.cpu and find_spec("liger_kernel") is not None


class _Laps(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Seconds and peak of each profile."""

    def __init__(self, setting: Setting, warm: int, timed: int) -> None:
        self._setting = setting
        self._warm = warm
        self._each = warm + timed
        self._began = 0.0
        self.seconds: list[float] = []
        self.peaks: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        at = state.global_step % self._each
        if at == 0 and not self._setting.cpu:
            torch.cuda.reset_peak_memory_stats()
        if at == self._warm:
            self._setting.wait()
            self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._each:
            return
        self._setting.wait()
        self.seconds.append((time.perf_counter() - self._began) / (self._each - self._warm))
        peak = 0.0 if self._setting.cpu else torch.cuda.max_memory_allocated() / 2**30
        self.peaks.append(peak)


def _arm(sheet: Sheet, setting: Setting, model: str, arm: str, pairs: int, rate: float) -> None:
    warm, timed = (1, 1) if setting.quick else (_WARM, _TIMED)
    pairs = min(pairs, 2) if setting.quick else pairs
    shape = setting.shapes[model[0]]
    count = (warm + timed) * pairs
    shrink = 8 if setting.quick else 1
    rows = {name: drawn(name, shape.vocabulary, count, 0, shrink) for name in PROFILES}
    folder = setting.work / "speed" / f"{model}-{arm}-{pairs}".replace(" ", "-")
    setting.written(folder / "rows.jsonl", [row for part in rows.values() for row in part])
    steps = len(rows) * (warm + timed)
    lora = "LoRA" in model
    began = time.monotonic()
    if arm in _STOCK:
        trainer = _stock(setting, model[0], folder, arm, pairs, steps, lora)
    else:
        trainer = _ours(setting, model[0], folder, arm, pairs, steps, lora)
    trainer._get_train_sampler = lambda *args, **kwargs: SequentialSampler(trainer.train_dataset)
    laps = _Laps(setting, warm, timed)
    trainer.add_callback(laps)
    ready = time.monotonic() - began
    checkpointing = adapter.checkpointing_of(trainer)
    try:
        trainer.train()
    finally:
        laps_of_profiles = zip(rows.items(), laps.seconds, laps.peaks, strict=False)
        for (profile, its), seconds, peak in laps_of_profiles:
            work = flops(its[warm * pairs :], shape, arm, lora, checkpointing, pairs) / timed
            sheet.note(f"{profile}: ms", 1000 * seconds)
            sheet.note(f"{profile}: GiB", round(peak, 1))
            sheet.note(f"{profile}: of the product rate", round(work / seconds / rate, 3))
            sheet.note(f"{profile}: FLOPs", work)
    how = adapter.speed_of(trainer) if arm in _OURS else {"liger": arm == "s1" and _liger(setting)}
    words = {k: v for k, v in how.items() if k not in ("tokens", "tokens_padded")}
    sheet.note("how", f"checkpointing {checkpointing}, {words}, {ready:.0f} s to make")
    if arm in _OURS:
        sheet.equal("passes that were trl's own", how.get("stock_calls"), 0)


def _stock(
    setting: Setting, model: str, folder: Any, arm: str, pairs: int, steps: int, lora: bool
) -> Any:
    """trl's own trainer."""
    changes = dict(_STOCK[arm])
    if arm == "s1" and _liger(setting):
        changes["use_liger_kernel"] = True
    args = DPOConfig(
        output_dir=str(folder / "run"),
        per_device_train_batch_size=pairs,
        max_length=2048,
        max_steps=steps,
        learning_rate=1e-6,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=setting.cpu,
        bf16=not setting.cpu,
        **changes,
    )
    # As prefcli does: frozen weights in bfloat16.
    dtype = torch.bfloat16 if lora and not setting.cpu else torch.float32
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(setting.model(model), dtype=dtype),
        args=args,
        train_dataset=Dataset.from_json(
            str(folder / "rows.jsonl"), cache_dir=str(setting.work / "datasets")
        ),
        processing_class=AutoTokenizer.from_pretrained(setting.model(model)),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if lora else None,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _ours(
    setting: Setting, model: str, folder: Any, arm: str, pairs: int, steps: int, lora: bool
) -> Any:
    sections = _OURS[arm]
    training = {
        "global_batch_size": pairs,
        "per_device_train_batch_size": pairs,
        "max_steps": steps,
        "learning_rate": 1e-6,
        "logging_steps": 10,
        **sections.get("training", {}),
    }
    overrides: dict[str, Any] = {"training": training}
    if lora:
        overrides["lora"] = {"rank": 16, "alpha": 32, "dropout": 0.0}
    file = setting.recipe(
        folder,
        setting.model(model),
        folder / "rows.jsonl",
        dpo={},
        **{**sections, **overrides},
    )
    return adapter.trainer_of(file, "dpo")


def flops(
    rows: list[Row], shape: Shape, arm: str, lora: bool, checkpointing: bool, pairs: int
) -> float:
    """Multiplications and additions that the arm can't do without; an answer ends with a token of
    its own.

    layers: tokens * 2 * weights of the layers' matrices + attended pairs * 4 * width * layers;
    head: scored * 2 * width * vocabulary; a forward pass and its gradients count 3, and 2 where
    the matrices are frozen; the reference 1, or 0 where precomputed; recomputing 1.
    """
    tokens = scored = attended = 0
    for start in range(0, len(rows), pairs):
        batch = rows[start : start + pairs]
        longest = max(len(p) + max(len(a), len(b)) + 1 for p, a, b in batch)
        for prompt, *answers in batch:
            scored += sum(len(answer) + 1 for answer in answers)
            if arm in _STOCK:
                tokens += 2 * longest
                attended += 2 * longest**2 // 2
                continue
            tokens += len(prompt)
            attended += len(prompt) ** 2 // 2
            for answer in answers:
                own = len(answer) + 1
                tokens += own
                attended += own * len(prompt) + own**2 // 2
    layers = 2 * tokens * shape.matrices + 4 * attended * shape.width * shape.layers
    head = 2 * scored * shape.width * shape.vocabulary
    policy = 2 if lora else 3
    reference = 1 if arm in ("s0", "p0", "p1") else 0
    return layers * (policy + reference + checkpointing) + head * (policy + reference)


def _ratios(sheet: Sheet, cases: tuple[tuple[str, str, int], ...]) -> None:
    recorded = sheet.values()
    for model, arm, pairs in cases:
        if arm not in _OURS:
            continue
        for other in _STOCK:
            for profile in PROFILES:
                prefcli_values, stock_values = (
                    {
                        w: recorded.get((f"{model} {a}, {pairs} pairs", f"{profile}: {w}"))
                        for w in ("ms", "FLOPs")
                    }
                    for a in (arm, other)
                )
                if not prefcli_values["ms"] or not stock_values["ms"]:
                    continue
                figure = f"{model}, {pairs} pairs, {profile}: {arm}/{other}"
                ratio, bound = (
                    stock_values["ms"] / prefcli_values["ms"],
                    stock_values["FLOPs"] / prefcli_values["FLOPs"],
                )
                if (model, arm, other) == ("M full", "p2", "s1") and not sheet.untimed:
                    sheet.at_least(figure, ratio, _AIM)
                else:
                    sheet.note(figure, ratio)
                sheet.note(f"{figure}, what FLOPs allow", bound)
