"""The peak that torch counts in three steps of the 1B model, compared with the prediction."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from scripts.acceptance import adapter
from scripts.acceptance.rows import Sheet
from scripts.acceptance.setting import Setting

_STOCK = {"performance": {"shared_prefix": "off"}}
"""A dry-run simulates trl's own forward."""


def _settings(checkpointing: bool | str, **overrides: str) -> dict[str, Any]:
    return {"training": {"gradient_checkpointing": checkpointing, **overrides}}


CASES: dict[str, dict[str, Any]] = {
    "full, whole": {**_settings(False), **_STOCK},
    "LoRA, whole": {**_settings(False), **_STOCK, "lora": {"rank": 16}},
    "full, checkpointing": {**_settings(True), **_STOCK},
    "precomputed, whole": {**_settings(False), **_STOCK, "reference": {"precompute": True}},
    "full, whole, fused": {**_settings(False, optim="adamw_torch_fused"), **_STOCK},
    "full, packed": _settings(False),
}


def recipe_of(setting: Setting, name: str) -> Path:
    folder = setting.work / "memory" / name.replace(", ", "-").replace(" ", "-")
    file = folder / "recipe.yaml"
    if file.is_file():
        return file
    length, batch = (64, 2) if setting.quick else (1024, 4)
    half = length // 2 - 1
    # Almost equally long: batches have padding, and thereby a mask, as in use.
    rows = setting.drawn("M", 8 * batch, "memory", (half, half), (half - 3, half))
    sections = CASES[name]
    training = {
        "global_batch_size": 2 * batch,
        "per_device_train_batch_size": batch,
        "max_steps": 3,
        **sections["training"],
    }
    return setting.recipe(
        folder,
        setting.model("M"),
        setting.written(folder / "rows.jsonl", rows),
        dpo={},
        data={"max_length": length},
        **{**sections, "training": training},
    )


def run(sheet: Sheet, setting: Setting) -> None:
    for name in list(CASES)[: 1 if setting.quick else None]:
        sheet.run(name, _case, sheet, setting, name, needs=12)


def _case(sheet: Sheet, setting: Setting, name: str) -> None:
    file = recipe_of(setting, name)
    if setting.quick:
        words = ["dpo", str(file), "--dry-run", "--json", "--devices", "1", "--gpu-memory", "80GB"]
        words.append("launch.strategy=single")  # or the choice would simulate another step
        done = adapter.run(words, file.parent / "dry-run.json")
        sheet.equal("exit code of the dry-run", done["code"], 0)
    if setting.cpu:
        sheet.note("predicted, GiB", _predicted(file.parent))
        sheet.skipped("counted: only CUDA counts its peaks")
        return
    adapter.release()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    trainer = adapter.trainer_of(file, "dpo")
    trainer.train()
    counted = (torch.cuda.max_memory_allocated() - before) / 2**30
    reserved = torch.cuda.max_memory_reserved() / 2**30
    del trainer
    adapter.release()
    sheet.note("counted, GiB", counted)
    sheet.note("reserved over allocated", reserved / counted)
    ends = time.monotonic() + min(20.0, sheet.left - 10)
    while not (file.parent / "dry-run.json").is_file() and time.monotonic() < ends:
        time.sleep(0.5)
    predicted = _predicted(file.parent)
    if predicted is None:
        sheet.skipped("the dry-run is not done yet")
        return
    packed = "packed" in name
    sheet.note("predicted, GiB", predicted)
    sheet.at_most("off", abs(predicted / counted - 1), 0.1, must=not packed)


def _predicted(folder: Path) -> float | None:
    file = folder / "dry-run.json"
    if not file.is_file():
        return None
    text = file.read_text("utf-8")
    document, _ = json.JSONDecoder().raw_decode(text[text.index("{") :])
    memory = document.get("memory") or document.get("facts", {}).get("memory")
    return memory["allocated"] / 2**30 if memory else None
