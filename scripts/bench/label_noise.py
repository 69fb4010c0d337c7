#!/usr/bin/env python3
"""Swap the labels of some pairs, and measure how `prefcli data --scored` finds and cleans them.

    python scripts/bench/label_noise.py --model MODEL --pairs TRAIN EVAL \
        [--shares 0 0.05 0.1 0.2 0.3] [--train 0.3] [--seeds 42 43] [--output-dir runs/label-noise]

For each share, dpo is trained on the odd and on the even rows of the noisy pairs, and each run
scores the other rows; the table has the estimate with its interval, and precision and recall of the
pairs that are named as swapped.
With --train, dpo on the noisy pairs, dpo without the named pairs, dpo with these swapped back,
robust dpo with the estimate as its label_smoothing, and ipo on the noisy pairs are compared on the
held-out pairs. The settings are those of
recipes/stories.yaml: an epoch over 2,000 pairs takes two minutes on a core. Folders with a model
are not trained again.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from prefcli.console import keep_stdout_for_json
from prefcli.data.clean_rows import write_clean
from prefcli.data.findings import percent
from prefcli.evaluation.bootstrap import Estimate
from prefcli.evaluation.evaluate import evaluate
from prefcli.evaluation.pair_quality import PairQuality, judge_pairs
from prefcli.library_logging import quiet_libraries
from prefcli.preflight.pretokenize import data_report
from prefcli.recipe import load
from prefcli.recipe.schema import Recipe
from prefcli.training.run import train

STORIES = Path(__file__).parents[2] / "recipes" / "stories.yaml"
ACCURACY = "rewards/accuracies"
DETECTION = (
    "swapped",
    "estimate",
    "labels agreed with",
    "named",
    "expected",
    "of them swapped",
    "of the swapped",
)
TRAINED = ("seed", "method", "training pairs", "rows", "held-out accuracy", "minus the first")


Arm = tuple[str, str, str, list[str]]
"""A way to train: its name, its pairs, the method and its settings."""


class Bench:
    """The runs on noisy pairs."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._folder = Path(args.output_dir)

    def noisy_pairs(self, share: float) -> tuple[Path, set[int]]:
        """Write the pairs with some labels swapped: (file, numbers of these rows).

        The rows of a smaller share are among those of a larger one.
        """
        lines = Path(self._args.pairs[0]).read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        order = list(range(len(rows)))
        random.Random(1).shuffle(order)
        swapped = set(order[: round(share * len(rows))])
        for at in swapped:
            rows[at]["chosen"], rows[at]["rejected"] = rows[at]["rejected"], rows[at]["chosen"]
        path = self._folder / f"pairs-{100 * share:g}.jsonl"
        write_rows(path, rows)
        for half in range(2):
            write_rows(half_of(path, half), rows[half::2])
        return path, {at + 1 for at in swapped}

    def recipe(self, rows: Path, run: str, *changes: str) -> Recipe:
        return load(
            str(STORIES),
            [
                f"model.name_or_path={self._args.model}",
                f"data.train.path={rows}",
                f"data.eval.path={self._args.pairs[1]}",
                f"output_dir={self._folder / run}",
                "samples.prompts=0",
                *changes,
            ],
        ).recipe

    def trained(self, rows: Path, run: str, method: str, *changes: str) -> str:
        """Train a run, and return its folder."""
        made = self.recipe(rows, run, *changes)
        if not (self._folder / run / "model").is_dir():
            train(made, made.methods[method])
        return str(made.output_dir)

    def judged(self, rows: Path, name: str) -> PairQuality:
        """Judge the pairs of each half by a model of the other half."""
        models = [
            self.trained(half_of(rows, half), f"{name}-half-{half}", "dpo", "data.eval=null")
            for half in range(2)
        ]
        recipe = self.recipe(rows, name)
        split = data_report(recipe, recipe.methods["dpo"]).datasets.train
        return judge_pairs(recipe, recipe.methods["dpo"], split, models=models)

    def compared(self, rows: Path, name: str, quality: PairQuality) -> Iterable[list[str]]:
        """Yield a table row for each way to train on the noisy pairs."""
        named = quality.rows("contradicted")
        recipe = self.recipe(rows, name)
        files = {"noisy": rows}
        for clean, options in {
            "without the named": {"drop": {"contradicted": named}, "swap": named[:0]},
            "named swapped back": {"drop": {}, "swap": named},
        }.items():
            files[clean] = rows.with_name(f"{rows.stem}-{clean.replace(' ', '-')}.jsonl")
            write_clean(recipe, quality.split, files[clean], **options)
        robust = ["dpo.loss_type=robust", f"dpo.label_smoothing={quality.noise.share.value}"]
        arms: list[Arm] = [("dpo", clean, "dpo", []) for clean in files]
        arms += [("robust dpo", "noisy", "dpo", robust), ("ipo", "noisy", "ipo", [])]
        for seed in self._args.seeds:
            runs = [
                self.trained(
                    files[clean],
                    f"{name}-{label}-{clean}-{seed}".replace(" ", "-"),
                    method,
                    f"seed={seed}",
                    *changes,
                )
                for label, clean, method, changes in arms
            ]
            total = evaluate(recipe, recipe.methods["dpo"], runs).total
            for at, (label, clean, *_) in enumerate(arms):
                count = len(files[clean].read_text("utf-8").splitlines())
                accuracy = in_percent(total.models[at][ACCURACY])
                difference = in_percent(total.differences[at - 1][ACCURACY]) if at else ""
                yield [str(seed), label, clean, f"{count:,}", accuracy, difference]


def half_of(path: Path, half: int) -> Path:
    return path.with_name(f"{path.stem}-half-{half}.jsonl")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def detection_row(share: float, swapped: set[int], quality: PairQuality) -> list[str]:
    """Return the table row of a share of swapped labels."""
    numbers = quality.split.rows["_row"][:]
    named = {numbers[row] for row in quality.rows("contradicted")}
    hits = len(named & swapped)
    return [
        percent(share),
        in_percent(quality.noise.share),
        percent(quality.noise.accuracy),
        str(len(named)),
        f"{quality.expected_swapped:.0f}",
        f"{hits} ({percent(hits / len(named))})" if named else "0",
        percent(hits / len(swapped)) if swapped else "",
    ]


def in_percent(estimate: Estimate) -> str:
    value, low, high = (f"{100 * (x or 0.0):.1f}" for x in vars(estimate).values())
    return f"{value} % [{low}, {high}]"


def print_row(cells: Iterable[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def print_head(cells: tuple[str, ...]) -> None:
    print_row(cells)
    print(f"|{'---|' * len(cells)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", nargs=2, metavar=("TRAIN", "EVAL"), required=True)
    parser.add_argument("--shares", nargs="*", type=float, default=[0, 0.05, 0.1, 0.2, 0.3])
    parser.add_argument("--train", type=float, metavar="SHARE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43])
    parser.add_argument("--output-dir", default="runs/label-noise")
    args = parser.parse_args()
    quiet_libraries()
    keep_stdout_for_json(True)  # the tables alone go to standard output
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    bench, start = Bench(args), time.monotonic()
    judged: dict[float, Mapping[str, Any]] = {}
    print_head(DETECTION)
    for share in dict.fromkeys([*args.shares, *([args.train] if args.train else [])]):
        rows, swapped = bench.noisy_pairs(share)
        quality = bench.judged(rows, f"noise-{100 * share:g}")
        judged[share] = {"rows": rows, "quality": quality}
        print_row(detection_row(share, swapped, quality))
    print(f"\n{time.monotonic() - start:.0f} s\n")
    if args.train is not None:
        print_head(TRAINED)
        for row in bench.compared(name=f"noise-{100 * args.train:g}", **judged[args.train]):
            print_row(row)
        print(f"\n{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
