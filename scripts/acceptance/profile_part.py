"""The time of a step: kernels, idle time, launches, and where the CPU waits."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from scripts.acceptance import adapter
from scripts.acceptance.rows import Sheet
from scripts.acceptance.setting import Setting
from scripts.bench.profiles import drawn

_WARM, _TIMED = 3, 2
_SHOWN = 14


class _Watch(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Some steps to warm up, some under the profiler, some that note each wait."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        activities = [ProfilerActivity.CPU]
        if not setting.cpu:
            activities.append(ProfilerActivity.CUDA)
        self.events = profile(activities=activities)
        self.seconds = 0.0
        self.waits: Counter[str] = Counter()
        self._caught: Any = None
        self._noted: list[warnings.WarningMessage] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == _WARM:
            self._setting.wait()
            self.events.start()
            self._began = time.perf_counter()
        if state.global_step == _WARM + _TIMED and not self._setting.cpu:
            self._caught = warnings.catch_warnings(record=True)
            self._noted = self._caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == _WARM + _TIMED:
            self._setting.wait()
            self.seconds = time.perf_counter() - self._began
            self.events.stop()
        if state.global_step == _WARM + 2 * _TIMED and self._caught is not None:
            torch.cuda.set_sync_debug_mode("default")
            self._caught.__exit__(None, None, None)
            for warning in self._noted:
                if "synchroniz" in str(warning.message):
                    self.waits[
                        "/".join(Path(warning.filename).parts[-3:]) + f":{warning.lineno}"
                    ] += 1


def run(sheet: Sheet, setting: Setting) -> None:
    sheet.run("M full, p2", _profiled, sheet, setting)


def _profiled(sheet: Sheet, setting: Setting) -> None:
    pairs = 2 if setting.quick else 8
    steps = _WARM + 2 * _TIMED
    vocabulary = setting.shapes["M"].vocabulary
    shrink = 8 if setting.quick else 1
    rows = drawn("ultrafeedback-like", vocabulary, pairs * steps, 0, shrink)
    folder = setting.work / "profile"
    file = setting.recipe(
        folder,
        setting.model("M"),
        setting.written(folder / "rows.jsonl", rows),
        dpo={},
        reference={"precompute": True},
        training={
            "global_batch_size": pairs,
            "per_device_train_batch_size": pairs,
            "max_steps": steps,
            "gradient_checkpointing": False,
            "optim": "adamw_torch_fused",
            "logging_steps": 10,
        },
    )
    trainer = adapter.trainer_of(file, "dpo")
    watch = _Watch(setting)
    trainer.add_callback(watch)
    trainer.train()
    sheet.note("ms a step, profiled", 1000 * watch.seconds / _TIMED)
    averages = watch.events.key_averages()
    if setting.cpu:
        return
    kernels: Counter[str] = Counter()
    busy = launches = 0.0
    for event in averages:
        if getattr(event, "is_user_annotation", False):
            continue  # spans kernels that are counted themselves
        if str(event.device_type).endswith("CUDA"):
            kernels[event.key] += event.self_device_time_total
            busy += event.self_device_time_total
        elif event.key.startswith(("cudaLaunchKernel", "cuLaunchKernel")):
            launches += event.count
    host = sorted(watch.events.key_averages(), key=lambda event: -event.self_cpu_time_total)
    for event in host[:_SHOWN]:
        spent = event.self_cpu_time_total / 1000 / _TIMED
        sheet.note(f"host: {event.key[:60]}", f"{spent:.1f} ms in {event.count / _TIMED:g} calls")
    sheet.note("share of time the GPU is idle", 1 - busy / 1e6 / watch.seconds)
    sheet.note("launches a step", launches / _TIMED)
    for name, spent in kernels.most_common(_SHOWN):
        sheet.note(_kernel(name), f"{spent / busy:.1%}")
    sheet.note("waits a step", sum(watch.waits.values()) / _TIMED)
    for place, count in watch.waits.most_common(_SHOWN):
        sheet.note(place, f"{count / _TIMED:g} a step")


def _kernel(name: str) -> str:
    """Templates' names are pages long."""
    plain = (
        name.replace("at::native::", "").replace("void ", "").replace("(anonymous namespace)", "")
    )
    return plain[:70]
