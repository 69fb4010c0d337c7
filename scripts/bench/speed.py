#!/usr/bin/env python3
"""Compare a training step of stock trl with one of prefcli, on a CPU or on one GPU.

    python scripts/bench/speed.py [--quick] [--model C|S|M] [--threads 1] [--clock wall|cpu]

Trains DPO over the same pairs, from the same weights, in these arms:

    s0  stock trl, default settings: gradient checkpointing, a reference model
    s1  stock trl, best settings: no checkpointing, a precomputed reference, fused AdamW, and
        Liger's layers on a GPU
    p0  prefcli, settings as in s0
    p1  prefcli, defaults: checkpointing where memory requires it
    p2  prefcli, settings as in s1

One arm is alive at a time, in its own process, which is also measured for its peak memory: resident
memory including libraries on a CPU, torch's allocations on a GPU. A step includes loading, clipping
and the optimizer. Each process trains one lap to warm up and `--laps` laps over the same batches;
`--rounds` runs all arms again, in turn. The results are minima. On a busy machine take
`--threads 1 --clock cpu`.

The script first measures how fast the machine multiplies large matrices. "of the rate" is the
share of that speed that an arm reaches with the operations it does (`flops` in
scripts/acceptance/arms.py). Each arm's process measures the rate again, since it depends on the
load. "FLOPs allow" is the ratio of the operations: the speed-up if only multiplications took time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.acceptance.arms import ARMS, Case, Laps, flops, make_trainer
from scripts.acceptance.rates import product_rate, product_rates
from scripts.acceptance.setting import Setting
from scripts.bench.profiles import PROFILES, drawn

_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PAIRS = {"C": 4, "S": 8, "M": 8}


def setting_of(options: argparse.Namespace, work: Path) -> Setting:
    on_cpu = not torch.cuda.is_available()
    return Setting(work, cpu=on_cpu, quick=False, threads=options.threads)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train one arm and return what was measured."""
    setting = setting_of(options, options.work)
    case = Case(options.model, options.tuning, options.arm, PAIRS[options.model])
    shape = setting.shapes[case.model]
    rows = drawn(options.profile, shape.vocabulary, options.batches * case.pairs, options.seed)
    clock = _CLOCKS[options.clock]
    folder = Path(tempfile.mkdtemp(dir=setting.work))
    trainer = make_trainer(setting, folder, case, rows, options.batches * (1 + options.laps))
    laps = Laps(setting, 0, options.batches)
    trainer.add_callback(laps)
    rate = product_rate(setting, clock)
    loss = trainer.train().training_loss
    rate = max(rate, product_rate(setting, clock))
    checkpointing = bool(trainer.args.gradient_checkpointing)
    work = flops(rows, shape, case, checkpointing=checkpointing, cpu=setting.cpu) / options.batches
    seconds = min((laps.wall if options.clock == "wall" else laps.cpu)[1:])
    peak = max(laps.peaks)
    values = {"seconds": seconds, "flops": work, "rate": rate, "share": work / seconds / rate}
    return values | {"peak": peak, "loss": loss}


def child(options: argparse.Namespace, work: Path, *words: str) -> dict[str, Any]:
    """Run this script in a separate process and return the last line of its output."""
    shared = [
        f"--{name}={getattr(options, name)}"
        for name in ("model", "threads", "clock", "laps", "batches", "seed")
    ]
    done = subprocess.run(
        [sys.executable, __file__, f"--work={work}", *shared, *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hub")},
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def machine(threads: int) -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = f"{named[0] if named else platform.processor()}, {len(named) or '?'} cores"
    cpu += f", {torch.backends.cpu.get_cpu_capability()}"
    gpu = f"{torch.cuda.get_device_name()}; " if torch.cuda.is_available() else ""
    return f"{gpu}{cpu}; torch {torch.__version__}; {threads} threads"


def lines(options: argparse.Namespace, work: Path) -> Iterator[str]:
    yield f"{machine(options.threads)}, {options.clock} time"
    rates = child(options, work, "--rates")
    yield "; ".join(f"{name}: {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items())
    shape = setting_of(options, work).shapes[options.model]
    yield (
        f"Llama {shape.width} wide, {shape.layers} layers, {shape.vocabulary} tokens; "
        f"{PAIRS[options.model]} pairs per step"
    )
    yield ""
    yield (
        "| profile | tuning | arm | s per step | times s0 | FLOPs allow | times s1 | FLOPs allow "
        "| of the rate | peak GiB | loss |"
    )
    yield "|---" * 11 + "|"
    for profile in options.profiles:
        for tuning in options.tunings:
            best: dict[str, dict[str, Any]] = {}
            for _ in range(options.rounds):
                for arm in options.arms:
                    words = (f"--arm={arm}", f"--profile={profile}", f"--tuning={tuning}")
                    measured = child(options, work, *words)
                    best[arm] = min(best.get(arm, measured), measured, key=lambda v: v["seconds"])
            for arm, own in best.items():
                cells = [profile, tuning, f"{arm}: {ARMS[arm]}", f"{own['seconds']:.3f}"]
                for other in (best.get("s0"), best.get("s1")):
                    cells += [
                        f"{other[figure] / own[figure]:.2f}" if other else ""
                        for figure in ("seconds", "flops")
                    ]
                cells += [f"{own['share']:.2f}", f"{own['peak']:.2f}", f"{own['loss']:.6f}"]
                yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def several(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--model", choices=PAIRS, default="C", help="C on a CPU, S or M on a GPU")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clock", choices=_CLOCKS, default="wall")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--laps", type=int, default=2)
    parser.add_argument("--batches", type=int, default=2, help="different batches of a lap")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profiles", type=several, default=list(PROFILES))
    parser.add_argument("--tunings", type=several, default=["full", "LoRA"])
    parser.add_argument("--arms", type=several, default=["s0", "s1", "p0", "p1", "p2"])
    parser.add_argument("--quick", action="store_true", help="hh-like, one batch, one lap")
    for name in ("work", "arm", "profile", "tuning"):
        parser.add_argument(f"--{name}", type=Path if name == "work" else str, help="internal")
    parser.add_argument("--rates", action="store_true", help="internal")
    options = parser.parse_args()
    if options.rates:
        setting = setting_of(options, options.work)
        print(json.dumps(product_rates(setting, _CLOCKS[options.clock])))
        return
    if options.arm:
        print(json.dumps(measure(options)))
        return
    if options.quick:
        options.profiles, options.batches, options.laps = ["hh-like"], 1, 1
    with tempfile.TemporaryDirectory() as folder:
        for line in lines(options, Path(folder)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
