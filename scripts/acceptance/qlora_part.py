"""Quantised bases with a mix of demonstrations."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec

from scripts.acceptance import adapter
from scripts.acceptance.commands import last_lines, steps_of
from scripts.acceptance.rows import Sheet
from scripts.acceptance.setting import Setting


def run(sheet: Sheet, setting: Setting) -> None:
    for name in ("T", "S"):
        for bits in ("4bit", "8bit"):
            case = f"{name}, {bits}"
            if setting.cpu:
                sheet.run(case, sheet.skipped, "quantised weights need CUDA here")
            elif find_spec("bitsandbytes") is None:
                sheet.run(case, sheet.skipped, "bitsandbytes is not installed")
            else:
                sheet.run(case, _case, sheet, setting, name, bits, needs=8)


def _case(sheet: Sheet, setting: Setting, name: str, bits: str) -> None:
    folder = setting.work / "qlora" / f"{name}-{bits}"
    pairs = setting.written(
        folder / "rows.jsonl", setting.drawn(name, 16, "qlora", (8, 60), (4, 40))
    )
    mix = setting.written(
        folder / "mix.jsonl", setting.drawn(name, 16, "mix", (8, 60), (4, 40)), "demonstration"
    )
    file = setting.recipe(
        folder,
        setting.model(name),
        pairs,
        dpo={},
        lora={"rank": 8},
        model={"quantization": bits},
        sft_mix={"data": {"path": str(mix)}},
        training={"global_batch_size": 8, "per_device_train_batch_size": 8, "max_steps": 4},
    )
    done = adapter.run(["dpo", str(file)], folder / "log.txt")
    sheet.equal("exit code", done["code"], 0)
    if done["code"]:
        sheet.note("last lines", last_lines(folder / "log.txt"))
        return
    losses = [row["loss"] for row in steps_of(folder / "run")]
    sheet.equal("losses are finite", all(map(math.isfinite, losses)) and bool(losses), True)
    record = json.loads((folder / "run" / "run.json").read_text("utf-8"))
    sheet.note("run.json", json.dumps(record.get("speed", {})))
