#!/usr/bin/env python3
"""Train every method on one model and one preference task, and print a table of the results.

    python scripts/bench/methods.py --model MODEL --pairs TRAIN EVAL --labelled TRAIN EVAL \
        --demonstrations TRAIN EVAL [--scorer FILE] [--only dpo dpo+mix] [--output-dir runs/methods]

The settings are those of recipes/stories.yaml, a model of 260 thousand parameters; every run is one
epoch at seed 42 and takes a minute or two on a CPU. `+mix` adds sft_mix at its default of 0.15.
FILE is a Python file with a function `score(text)`, applied to one completion of every eval prompt,
sampled at temperature 1. Finished runs are not trained again.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import torch

from prefcli.console import keep_stdout_for_json
from prefcli.evaluation.check_sft import SftReport, check_sft
from prefcli.evaluation.generate import Sampling, generate_answers
from prefcli.library_logging import quiet_libraries
from prefcli.recipe import load
from prefcli.recipe.schema import Recipe
from prefcli.training.run import train

STORIES = Path(__file__).parents[2] / "recipes" / "stories.yaml"
CHANGES: dict[str, list[str]] = {
    "dpo": [],
    "ipo": [],
    "kto": [],
    "orpo": ["training.learning_rate=1e-3"],
    "simpo": [],
}
RUNS = [*CHANGES, *(f"{name}+mix" for name in CHANGES)]
HEAD = (
    "run",
    "preference accuracy",
    "reward margin",
    "chosen more likely per token",
    "perplexity of chosen",
    "perplexity of demonstrations",
    "sampled score",
)


def recipe(model: str, eval_rows: str, *changes: str) -> Recipe:
    return load(
        str(STORIES),
        [
            f"model.name_or_path={model}",
            f"data.train.path={eval_rows}",
            f"data.eval.path={eval_rows}",
            "check_sft.max_perplexity=1e6",
            "check_sft.max_rows=100000",
            *changes,
        ],
    ).recipe


def measure(args: argparse.Namespace, model: str) -> tuple[SftReport, SftReport, float | None]:
    """Measure pairs and demonstrations under the model, and the mean score of its samples."""
    pairs = check_sft(recipe(model, args.pairs[1]))
    alone = [f"{name}=null" for name in CHANGES]
    demonstrations = check_sft(recipe(model, args.demonstrations[1], *alone))
    score = None
    if args.scorer is not None:
        rows = generate_answers([model], args.pairs[1], None, Sampling(100, 1.0))
        of_text = scorer(args.scorer)
        score = mean(of_text(row["completion"]) for row in rows)
    return pairs, demonstrations, score


def scorer(path: str) -> Callable[[str], float]:
    spec = importlib.util.spec_from_file_location("scorer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    score: Callable[[str], float] = module.score
    return score


def trained(args: argparse.Namespace, run: str) -> tuple[str, dict[str, float]]:
    """Train a run; return its model and its last evaluation."""
    name = run.partition("+")[0]
    rows = args.labelled if name == "kto" else args.pairs
    mix = [f"sft_mix.data.path={args.demonstrations[0]}"] if run.endswith("+mix") else []
    made = load(
        str(STORIES),
        [
            f"model.name_or_path={args.model}",
            f"data.train.path={rows[0]}",
            f"data.eval.path={rows[1]}",
            f"output_dir={args.output_dir}/{run}",
            "training.per_device_eval_batch_size=50",
            *CHANGES[name],
            *mix,
        ],
    ).recipe
    outcome = train(made, made.methods[name])
    return outcome.model, outcome.metrics


def row(name: str, metrics: dict[str, float], args: argparse.Namespace, model: str) -> str:
    pairs, demonstrations, score = measure(args, model)
    accuracy = metrics.get("eval_rewards/accuracies")
    margin = metrics.get("eval_rewards/margins")
    cells = [
        name,
        "" if accuracy is None else f"{accuracy:.1%}",
        "" if margin is None else f"{margin:.3g}",
        f"{pairs.chosen_more_likely:.1%}",
        f"{pairs.perplexity:.2f}",
        f"{demonstrations.perplexity:.2f}",
        "" if score is None else f"{score:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    for name in ("--pairs", "--labelled", "--demonstrations"):
        parser.add_argument(name, nargs=2, metavar=("TRAIN", "EVAL"), required=True)
    parser.add_argument("--scorer", metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=RUNS)
    parser.add_argument("--output-dir", default="runs/methods")
    args = parser.parse_args()
    quiet_libraries()
    keep_stdout_for_json(True)  # the table alone goes to standard output
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    print(row("before", {}, args, args.model), flush=True)
    for run in args.only:
        model, metrics = trained(args, run)
        print(row(run, metrics, args, model), flush=True)


if __name__ == "__main__":
    main()
