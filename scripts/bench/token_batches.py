#!/usr/bin/env python3
"""Compare micro-batches filled by tokens with micro-batches of a fixed number of rows.

    python scripts/bench/token_batches.py balance [PAIRS.jsonl ...] [--processes 8]
    python scripts/bench/token_batches.py speed [--pairs 2] [--accumulation 8] [--rounds 3]

balance: tokens of the slowest process over the mean, averaged over the steps of an epoch, of the
three length profiles and of files of pairs (text or messages; four characters count as a token).
Nothing is computed: a step lasts as long as its slowest process.

speed: tokens per second of optimizer steps of DPO, both ways in one process, in turns. The rows of
a step are the same. Prints the machine, and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from prefcli.data.lengths import Ints
from prefcli.library_logging import quiet_libraries
from prefcli.training.token_batches import deal_rows
from scripts.acceptance.adapter import trainer_of
from scripts.acceptance.arms import Laps
from scripts.acceptance.setting import Setting
from scripts.bench.profiles import PROFILES, Row, drawn
from scripts.bench.speed import PAIRS, machine, setting_of

_CHARACTERS = 4
"""Characters per token of English text, roughly."""


def slowest_over_mean(
    lengths: Ints, *, processes: int, micro_batch: int, accumulation: int
) -> tuple[float, float]:
    """Return the slowest process's tokens over the mean: (with fixed rows, with a token budget).

    The mean over steps, each weighted by its tokens, since the slowest process decides how long a
    step lasts. A budget is the largest micro-batch of fixed rows. The last, partial step is left
    out.
    """
    every = processes * micro_batch * accumulation
    steps = np.random.default_rng(0).permutation(len(lengths))[: len(lengths) // every * every]
    fixed = lengths[steps].reshape(-1, accumulation, processes, micro_batch).sum(3)
    budget = int(fixed.max())
    filled = np.array(
        [
            [
                sum(int(lengths[own].sum()) for own in of_process)
                for of_process in zip(*deal_rows(rows, lengths, budget, processes), strict=True)
            ]
            for rows in steps.reshape(-1, every).tolist()
        ]
    )
    return _ratio(fixed.sum(1)), _ratio(filled)


def _ratio(tokens: Ints) -> float:
    """tokens: by step and process."""
    return float(tokens.max(1).sum() / tokens.mean(1).sum())


def lengths_of(path: Path) -> Ints:
    """Estimate the tokens of the pairs of a file: the prompt once and both answers."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    characters = [sum(map(_characters, (r["prompt"], r["chosen"], r["rejected"]))) for r in rows]
    return np.maximum(np.array(characters) // _CHARACTERS, 1)


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return sum(len(message["content"]) for message in value)


def print_balance(options: argparse.Namespace) -> None:
    lengths = {
        profile: np.array([sum(map(len, row)) for row in drawn(profile, 100, 6400, options.seed)])
        for profile in PROFILES
    }
    lengths |= {f"{path.parent.name}/{path.stem}": lengths_of(path) for path in options.files}
    print(f"tokens of the slowest of {options.processes} processes over their mean")
    print("| lengths | rows per process and step | fixed rows | token budget |")
    print("|---" * 4 + "|")
    for name, its in lengths.items():
        for micro_batch, accumulation in ((4, 1), (8, 1), (4, 4)):
            fixed, filled = slowest_over_mean(
                its,
                processes=options.processes,
                micro_batch=micro_batch,
                accumulation=accumulation,
            )
            print(f"| {name} | {micro_batch} x {accumulation} | {fixed:.3f} | {filled:.3f} |")


def timed_steps(
    setting: Setting, rows: list[Row], options: argparse.Namespace, tokens: Any
) -> list[float]:
    """Return the seconds of each step but the first two. tokens: performance.tokens_per_batch."""
    folder = Path(tempfile.mkdtemp(dir=setting.work))
    file = setting.recipe(
        folder,
        setting.model(options.model),
        setting.written(folder / "rows.jsonl", rows),
        dpo={},
        training={
            "global_batch_size": options.pairs * options.accumulation,
            "per_device_train_batch_size": options.pairs,
            "max_steps": options.steps + 2,
            "gradient_checkpointing": False,
        },
        reference={"precompute": True},
        performance={"tokens_per_batch": tokens},
    )
    trainer = trainer_of(file, "dpo")
    laps = Laps(setting, 0, 1)
    trainer.add_callback(laps)
    trainer.train()
    return laps.wall[2:]


def print_speed(options: argparse.Namespace) -> None:
    print(
        f"{machine(options.threads)}; model {options.model}; "
        f"{options.accumulation} x {options.pairs} pairs per step"
    )
    print("| lengths | budget | tokens/s, fixed rows | tokens/s, token budget | ratio |")
    print("|---" * 5 + "|")
    for profile in options.profiles:
        with tempfile.TemporaryDirectory() as name:
            setting = setting_of(options, Path(name))
            vocabulary = setting.shapes[options.model].vocabulary
            count = options.pairs * options.accumulation * (options.steps + 2)
            rows = drawn(profile, vocabulary, count, options.seed)
            tokens = [sum(map(len, row)) + 2 for row in rows]
            per_step = sum(tokens) / (options.steps + 2)
            longest = options.pairs * max(tokens)
            arms: dict[Any, list[float]] = {"off": [], longest: []}
            for _ in range(options.rounds):
                for arm, seconds in arms.items():
                    seconds += timed_steps(setting, rows, options, arm)
        fixed, filled = (per_step / median(seconds) for seconds in arms.values())
        print(
            f"| {profile} | {longest:,} | {fixed:,.0f} | {filled:,.0f} | {filled / fixed:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parts = parser.add_subparsers(required=True)
    balance = parts.add_parser("balance")
    balance.add_argument("files", nargs="*", type=Path)
    balance.add_argument("--processes", type=int, default=8)
    balance.set_defaults(run=print_balance)
    speed = parts.add_parser("speed")
    speed.add_argument("--model", choices=PAIRS, default="C", help="C on a CPU, S or M on a GPU")
    speed.add_argument("--pairs", type=int, default=2)
    speed.add_argument("--accumulation", type=int, default=8)
    speed.add_argument("--steps", type=int, default=3)
    speed.add_argument("--rounds", type=int, default=2)
    speed.add_argument("--threads", type=int, default=1)
    speed.add_argument("--profiles", type=lambda text: text.split(","), default=list(PROFILES))
    speed.set_defaults(run=print_speed)
    options = parser.parse_args()
    quiet_libraries()
    options.run(options)


if __name__ == "__main__":
    main()
