"""Whole training steps, prefcli's compared with stock trl's, over three profiles of lengths."""

from __future__ import annotations

import os
import time

import torch

from scripts.acceptance import adapter
from scripts.acceptance.arms import PREFCLI, STOCK, Case, Laps, flops, make_trainer, uses_liger
from scripts.acceptance.rates import product_rate
from scripts.acceptance.rows import POISONED, Sheet
from scripts.acceptance.setting import Setting
from scripts.bench.profiles import PROFILES, drawn

_CASES = (
    Case("M", "full", "p2"),
    Case("M", "LoRA", "p2"),
    Case("M", "full", "s1"),
    Case("M", "LoRA", "s1"),
    Case("M", "full", "p3"),
    Case("M", "LoRA", "p3"),
    Case("M", "full", "p1"),
    Case("M", "full", "s0"),
    Case("M", "full", "p0"),
    Case("S", "full", "p2"),
    Case("S", "full", "p2", 2),
    Case("S", "full", "s1"),
    Case("S", "full", "s1", 2),
)
"""The most important first, in case the time is over."""
_QUICK = (Case("M", "full", "p2", 2), Case("M", "full", "s1", 2))
_WARM, _TIMED = 2, 7
"""Steps of each profile."""
_AIM = 1.3
"""Seconds of s1 over those of p2, for M in full."""


def run(sheet: Sheet, setting: Setting) -> None:
    cases = _QUICK if setting.quick else _CASES
    rate = product_rate(setting)
    patched = False
    for case in cases:
        if sheet.is_done(str(case)):
            continue
        liger = uses_liger(setting, case.arm)
        if patched and not liger:
            # Liger's kernels replace functions of transformers, for good.
            os._exit(POISONED)
        patched |= liger
        sheet.run(str(case), _measure, sheet, setting, case, rate, needs=14)
        adapter.release()
        if not setting.cpu and torch.cuda.memory_allocated() > 2**30:
            sheet.note("left on the GPU, GiB", torch.cuda.memory_allocated() / 2**30)
            os._exit(POISONED)
    sheet.run("ratios", _ratios, sheet, cases)


def _measure(sheet: Sheet, setting: Setting, case: Case, rate: float) -> None:
    warm, timed = (1, 1) if setting.quick else (_WARM, _TIMED)
    shape = setting.shapes[case.model]
    count = (warm + timed) * case.pairs
    shrink = 8 if setting.quick else 1
    rows = {name: drawn(name, shape.vocabulary, count, 0, shrink) for name in PROFILES}
    folder = setting.work / "speed" / str(case).replace(" ", "-")
    began = time.monotonic()
    every = [row for part in rows.values() for row in part]
    trainer = make_trainer(setting, folder, case, every, len(rows) * (warm + timed))
    laps = Laps(setting, warm, timed)
    trainer.add_callback(laps)
    ready = time.monotonic() - began
    checkpointing = adapter.checkpointing_of(trainer)
    try:
        trainer.train()
    finally:
        for (profile, its), seconds, peak in zip(rows.items(), laps.wall, laps.peaks, strict=False):
            measured = its[warm * case.pairs :]
            work = flops(measured, shape, case, checkpointing=checkpointing, cpu=setting.cpu)
            sheet.note(f"{profile}: ms", 1000 * seconds)
            sheet.note(f"{profile}: GiB", round(peak, 1))
            sheet.note(f"{profile}: of the product rate", round(work / timed / seconds / rate, 3))
            sheet.note(f"{profile}: FLOPs", work / timed)
    if case.arm in STOCK:
        sheet.note("how", f"Liger {uses_liger(setting, case.arm)}, {ready:.0f} s to make")
        return
    how = {k: v for k, v in adapter.speed_of(trainer).items() if not k.startswith("tokens")}
    sheet.note("how", f"checkpointing {checkpointing}, {how}, {ready:.0f} s to make")
    sheet.equal("passes that were trl's own", how.get("stock_calls"), 0)


def _ratios(sheet: Sheet, cases: tuple[Case, ...]) -> None:
    recorded = sheet.values()
    for case in cases:
        if case.arm not in PREFCLI:
            continue
        for arm in STOCK:
            stock = Case(case.model, case.tuning, arm, case.pairs)
            for profile in PROFILES:
                own, other = (
                    [recorded.get((str(c), f"{profile}: {w}")) for w in ("ms", "FLOPs")]
                    for c in (case, stock)
                )
                if not own[0] or not other[0]:
                    continue
                ratio, allowed = other[0] / own[0], other[1] / own[1]
                figure = f"{case}, {profile}: over {arm} (FLOPs allow {allowed:.2f})"
                aims = (case.model, case.tuning, case.arm, arm) == ("M", "full", "p2", "s1")
                if aims and not sheet.untimed:
                    sheet.at_least(figure, ratio, _AIM)
                else:
                    sheet.note(figure, ratio)
