"""One process under each strategy: figures, a stop, a resume, model/."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from scripts.acceptance.commands import Command, last_lines, steps_of
from scripts.acceptance.judge import COUNT_EVEN
from scripts.acceptance.rows import Sheet
from scripts.acceptance.setting import Setting

_RUNS = {
    "single": None,
    "single, again": None,
    "ddp": "ddp",
    "fsdp2": "fsdp2",
    "zero2": "zero2",
    "zero3": "zero3",
    "rloo, fsdp2": "fsdp2",
}
"""The strategy of each run; the method is dpo unless the name has another."""
_APART = 2e-3
"""By how much losses may differ from those of single, next to what two runs of single differ by:
backward passes of flash attention add up in no fixed order."""


def run(sheet: Sheet, setting: Setting) -> None:
    started: dict[str, tuple[Path, Command]] = {}
    for name, strategy in _RUNS.items():
        if why := _why_not(setting, strategy):
            sheet.run(name, sheet.skipped, why)
            continue
        file = _recipe(setting, name, strategy)
        log = file.parent / "log.txt"
        command = Command(
            [_method(name), str(file)], log, fork=setting.quick, launched=bool(strategy)
        )
        started[name] = (file, command)
    for name, (file, command) in started.items():
        sheet.run(name, _judged, sheet, setting, name, file, command)


def _method(name: str) -> str:
    return "rloo" if name.startswith("rloo") else "dpo"


def _why_not(setting: Setting, strategy: str | None) -> str | None:
    if strategy in ("zero2", "zero3") and find_spec("deepspeed") is None:
        return "deepspeed is not installed"
    if strategy in ("fsdp2", "zero2", "zero3") and setting.cpu:
        return "the launcher shards over GPUs only"
    return None


def _run_of(setting: Setting, name: str) -> Path:
    return setting.work / "sharded" / name / "run"


def _recipe(setting: Setting, name: str, strategy: str | None) -> Path:
    size = (20, 60) if setting.quick else (100, 300)
    path = setting.work / "sharded" / "rows.jsonl"
    if not path.is_file():
        setting.written(path, setting.drawn("S", 32, "sharded", size, size))
    sections: dict[str, Any] = {"dpo": {}}
    if _method(name) == "rloo":
        sections = {
            "rloo": {"num_generations": 2, "max_completion_length": 32},
            "judge": {"function": {"name": COUNT_EVEN}},
        }
    if strategy:
        sections["launch"] = {"strategy": strategy, "processes": 1}
    return setting.recipe(
        setting.work / "sharded" / name,
        setting.model("S"),
        path,
        training={
            "global_batch_size": 4,
            "per_device_train_batch_size": 4,
            "max_steps": 4 if setting.quick else 8,
            # Or rounding under another strategy would show in all steps after the first.
            "learning_rate": 1e-7,
            "gradient_checkpointing": False,
            "save_steps": 2 if setting.quick else 4,
        },
        **sections,
    )


def _apart(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """Return the largest difference of losses of the same step."""
    pairs = zip(one, other, strict=False)
    return max((abs(a["loss"] - b["loss"]) for a, b in pairs), default=0.0)


def _judged(sheet: Sheet, setting: Setting, name: str, file: Path, command: Command) -> None:
    run, single = file.parent / "run", _run_of(setting, "single")
    # The part about signals stops a run of one process, too.
    stops = name not in ("single, again", "ddp") and not setting.quick
    # All run at the same time, and those after a slow one need seconds to be judged.
    stopped = stops and command.stop_when(lambda: len(steps_of(run)) >= 2, sheet.left - 45)
    code = command.wait(sheet.left - 40)
    if stopped:
        # It may have been as good as done.
        sheet.equal("exit code after SIGTERM", code if code != 0 else 75, 75)
        command = Command([_method(name), str(file)], file.parent / "log.txt")
        code = command.wait(sheet.left - 20)
    sheet.equal("exit code", code, 0)
    if code != 0:
        sheet.note("last lines", last_lines(command.log))
    sheet.equal("model/ is there", (run / "model").is_dir(), True)
    steps, others = steps_of(run), steps_of(single)
    if steps and others and name != "single" and _method(name) == "dpo":
        sheet.note("steps", len(steps))
        apart = _apart(steps, others)
        if name == "single, again":
            sheet.note("loss from single's", apart)
        else:
            noise = _apart(steps_of(_run_of(setting, "single, again")), others)
            sheet.at_most("loss from single's", apart, _APART + noise)
    record = json.loads((run / "run.json").read_text("utf-8"))
    figures = [value for row in record.get("step_zero", []) for value in row]
    if figures:
        exact = torch.tensor(figures, dtype=torch.float64)
        rounded = bool((exact.bfloat16().double() == exact).all())
        sheet.equal("log-probabilities are rounded to bf16", rounded, False)
    speed = record.get("speed", {})
    sheet.note("shared_prefix", f"{speed.get('shared_prefix')}, {speed.get('attention')}")
