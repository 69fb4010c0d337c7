"""Stopped by SIGTERM and started again: exit codes, and the weights of an uninterrupted run."""

from __future__ import annotations

from pathlib import Path

from scripts.acceptance.commands import Command, largest_difference, last_lines, steps_of
from scripts.acceptance.rows import Sheet
from scripts.acceptance.setting import Setting

_RATE = 1e-4


def run(sheet: Sheet, setting: Setting) -> None:
    sheet.run("SIGTERM in training", _in_training, sheet, setting)
    if not setting.quick:
        sheet.run("SIGTERM before training", _before, sheet, setting, needs=10)


def _recipe(setting: Setting, name: str, steps: int) -> Path:
    folder = setting.work / "signals" / name
    count, size = (16, 10) if setting.quick else (64, 60)
    rows = setting.drawn("T", count, "signals", (5, size), (3, size))
    path = setting.work / "signals" / "rows.jsonl"
    if not path.is_file():
        setting.written(path, rows)
    return setting.recipe(
        folder,
        setting.model("T"),
        path,
        dpo={},
        data={"eval": {"path": str(path)}},
        training={
            "global_batch_size": 8,
            "per_device_train_batch_size": 8,
            "max_steps": steps,
            "learning_rate": _RATE,
            "lr_scheduler_type": "constant",
            "gradient_checkpointing": False,
        },
        check_sft={"on_fail": "warn"},
        samples={"prompts": 1, "max_new_tokens": 2 if setting.quick else 16},
    )


def _in_training(sheet: Sheet, setting: Setting) -> None:
    steps, after = (12, 3) if setting.quick else (60, 10)
    files = [_recipe(setting, name, steps) for name in ("reference_run", "stopped")]
    runs = [file.parent / "run" for file in files]
    uninterrupted, stopped = (
        Command(["dpo", str(file)], file.parent / "log.txt", fork=setting.quick) for file in files
    )
    stopped.stop_when(lambda: len(steps_of(runs[1])) >= after, sheet.left - 8)
    sheet.equal("exit code", stopped.wait(sheet.left - 8), 75)
    again = Command(["dpo", str(files[1])], files[1].parent / "log.txt", fork=setting.quick)
    code = uninterrupted.wait(sheet.left - 8)
    sheet.equal("exit code of the other run", code, 0)
    sheet.equal("exit code of the second start", again.wait(sheet.left - 12), 0)
    if not (runs[1] / "model").is_dir():
        sheet.note("last lines", last_lines(again.log))
        return
    last = [len(steps_of(run)) for run in runs]
    sheet.equal("steps logged", last[1], last[0])
    off = largest_difference(*runs)
    sheet.note("bit-identical", off == 0.0)
    sheet.at_most("largest difference of a weight, in steps", off / _RATE, 1.0)


def _before(sheet: Sheet, setting: Setting) -> None:
    """While the model is loaded, or check-sft looks at it."""
    file = _recipe(setting, "early", 5)
    early = Command(["dpo", str(file)], file.parent / "log.txt")
    early.stop_when(lambda: early.says("lineage:"), sheet.left - 6)
    sheet.equal("exit code", early.wait(min(20.0, sheet.left - 3)), 75)
