#!/usr/bin/env python3
"""Compare DPO with RLHF, a reward model and RLOO, from one start, on one task with a known score.

    python scripts/bench/rlhf.py --model MODEL --pairs TRAIN EVAL --judge "python judge.py" \
        [--dpo "dpo.beta=0.1" --dpo "dpo.beta=0.03"] [--rloo "rloo.beta=0.05" --rloo ...] \
        [--seeds 42 43] [--true-score] [--output-dir runs/rlhf]

MODEL is an SFT model; with --demonstrations FILE, `prefcli sft` makes it one first. The judge is a
program as in judge.executable of a recipe, and both ways should raise its score. Training never
sees that score, except with --true-score: RLOO with the judge in place of the reward model.

Every stage is a prefcli command in a separate process, without evaluations, on the recipe of
--recipe. Each --dpo and --rloo is one choice of settings; the defaults are for the stories recipe.
The choice with the best score on every other prompt of EVAL is trained with all seeds, and measured
on the remaining prompts. Its checkpoints give the score and the KL divergence over the cost.
Finished runs are not trained again. With recipes/stories.yaml a stage takes two to six minutes on a
core.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rlhf_arms import (
    DPO,
    NOTHING,
    RLHF,
    TRUE_SCORE,
    Arm,
    Comparison,
    Cost,
    Point,
    Policy,
    Run,
    run_process,
)
from rlhf_tables import print_tables, write_plots

from prefcli.console import keep_stdout_for_json, say
from prefcli.data.digests import json_digest, row_key
from prefcli.data.tokenization import prompt_alone
from prefcli.evaluation.bootstrap import Estimate, Floats
from prefcli.evaluation.generate import (
    completion_text,
    generate_ids,
    load_named,
    read_prompts,
)
from prefcli.evaluation.judges import Completion, open_judge, required_judge
from prefcli.evaluation.logprobs import Row, score
from prefcli.evaluation.on_policy.sampling import DrawPerRow
from prefcli.library_logging import quiet_libraries
from prefcli.recipe import load

STORIES = Path(__file__).parents[2] / "recipes" / "stories.yaml"
PREFCLI = [sys.executable, "-m", "prefcli"]
_ROLLOUTS = (
    "training.learning_rate=3e-4 training.global_batch_size=64 "
    "training.per_device_train_batch_size=64 rloo.num_generations=8"
)
CHOICES = {
    "dpo": ["dpo.beta=0.1", "dpo.beta=0.03"],
    "rloo": [f"{_ROLLOUTS} rloo.beta={beta}" for beta in (0.05, 0.02)],
}
"""Settings to choose from, for recipes/stories.yaml."""
_BATCH = 64


class Bench:
    """The runs and measurements of a comparison."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._folder = Path(args.output_dir)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._start = str(args.model)
        prompts = list({json.dumps(p): p for p in read_prompts(args.pairs[1])}.values())
        self._prompts = {"choice": prompts[::2], "test": prompts[1::2]}

    def libraries(self) -> Cost:
        """Return what a process costs that only imports the libraries of a run."""
        words = [sys.executable, "-c", "import prefcli.training.run"]
        return run_process(words, self._folder / "libraries.log")

    def trained(
        self, method: str, seed: int, choice: str = "", *, reward: Run | None = None, name: str = ""
    ) -> Run:
        """Run a stage, or read one that has ended. reward: the judge of rloo."""
        args = self._args
        settings = [
            f"model.name_or_path={self._start}",
            f"data.train.path={args.demonstrations if method == 'sft' else args.pairs[0]}",
            "data.eval=null",
            f"seed={seed}",
            "samples.prompts=0",
            "training.logging_steps=1",
            f"training.save_steps={args.save_steps}",
            "training.save_total_limit=null",
        ]
        if method == "rloo":
            settings += [
                f"judge={json.dumps(judge_of(reward) if reward else self._judge)}",
                f"rloo.max_completion_length={args.max_new_tokens}",
                f"training.max_steps={args.rloo_steps}",
            ]
        words = [method, args.recipe, *settings, *shlex.split(choice)]
        place = f"{name or method}-{seed}-{json_digest(words)[:8]}"
        folder = self._folder / place
        file = self._folder / f"{place}.cost.json"
        if not file.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            say(f"rlhf: {place}: {method} {choice}")
            spent = run_process(
                [*PREFCLI, *words, f"output_dir={folder}"], self._folder / f"{place}.log"
            )
            file.write_text(json.dumps(vars(spent)), "utf-8")
        title = f"{', '.join(filter(None, (method, name)))}, seed {seed}"
        cost = Cost(**json.loads(file.read_text("utf-8")))
        return Run(place, title, choice, method, folder, cost)

    def start_from(self, run: Run) -> None:
        """Take the model of a run as the start of all stages after it."""
        self._start = str(run.model)

    @property
    def _judge(self) -> dict[str, Any]:
        return {"executable": {"command": self._args.judge}}

    def measured(self, name: str, model: str | Path, part: str, reward: Run | None) -> Policy:
        """Sample completions of held-out prompts, and measure them; done once for each name."""
        args = self._args
        settings = [args.pairs[1], args.judge, args.max_new_tokens, args.samples]
        folder = self._folder / f"measured-{json_digest(settings)[:8]}"
        path = folder / f"{name}-{part}.json"
        if not path.is_file():
            say(f"rlhf: measuring {name} on {len(self._prompts[part])} prompts")
            self._measure(str(model), part, reward).write(path)
        return Policy.read(path)

    def _measure(self, model: str, part: str, reward: Run | None) -> Policy:
        prompts = [p for p in self._prompts[part] for _ in range(self._args.samples)]
        policy, tokenizer = load_named(model, None)
        start, _ = load_named(self._start, None)
        ids = [prompt_alone({"prompt": prompt}, tokenizer) for prompt in prompts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        rows: dict[int, Row] = {}
        for at in range(0, len(order), _BATCH):
            batch = order[at : at + _BATCH]
            draw = DrawPerRow(
                [row_key([part, i]) for i in batch], self._args.max_new_tokens, 1.0, 1.0
            )
            with torch.no_grad():
                sampled = generate_ids(
                    policy,
                    [ids[i] for i in batch],
                    tokenizer.pad_token_id,
                    self._args.max_new_tokens,
                    processors=[draw],
                    do_sample=False,  # the last processor has chosen
                )
            rows |= {i: (ids[i], answer) for i, (answer, _) in zip(batch, sampled, strict=True)}
        answers = [rows[i] for i in range(len(ids))]
        texts = [completion_text(tokenizer, *row) for row in answers]
        length = max(len(prompt) + len(answer) for prompt, answer in answers)
        logps = [score(m, answers, max_length=length) for m in (policy, start)]
        completions = [
            Completion(prompt, text, f"held-out prompt {at + 1}")
            for at, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
        ]
        ratios = [a.logp - b.logp if a and b else 0.0 for a, b in zip(*logps, strict=True)]
        measured = [
            self._judged(self._judge, completions),
            np.array(ratios),
            np.array([]) if reward is None else self._judged(judge_of(reward), completions),
            np.array([float(len(answer)) for _, answer in answers]),
        ]
        return Policy(*(values.reshape(-1, self._args.samples) for values in measured))

    def _judged(self, judge: dict[str, Any], completions: Sequence[Completion]) -> Floats:
        changes = [f"model.name_or_path={self._start}", f"judge={json.dumps(judge)}"]
        recipe = load(self._args.recipe, changes).recipe
        with open_judge(recipe, required_judge(recipe)) as program:
            scores = program.score_all(completions)
        return np.array([math.nan if score is None else score for score in scores])

    def accuracy(self, reward: Run) -> Estimate:
        """Return the share of held-out pairs that a reward model puts in order."""
        output = self._folder / f"{reward.name}.eval.json"
        words = ["eval", str(reward.folder), "--data", self._args.pairs[1], "--output", str(output)]
        run_process([*PREFCLI, *words], output.with_suffix(".log"))
        (metrics,) = json.loads(output.read_text("utf-8"))["total"]["models"].values()
        return Estimate(**metrics["rewards/accuracies"])

    def arm(self, name: str, seed: int, stages: list[Run], reward: Run) -> Arm:
        """Measure the checkpoints of an arm, also by a reward model."""
        last = stages[-1]
        start = self.measured(f"start-{reward.name}", self._start, "test", reward)
        arm = Arm(name, seed, stages, [Point(0, NOTHING, start)])
        for step, folder in last.checkpoints.items():
            if step % self._args.save_steps and step != last.steps:
                continue
            policy = self.measured(f"{last.name}-{step}", folder, "test", reward)
            arm.points.append(Point(step, arm.cost_until(step), policy))
        return arm

    def end_of(self, run: Run, reward: Run) -> Policy:
        """Measure the model of a run on the prompts for the test."""
        return self.measured(f"{run.name}-{run.steps}", run.model, "test", reward)

    def best(self, runs: Sequence[Run]) -> int:
        """Return which run has the best score on the prompts that are for choosing."""
        if len(runs) == 1:
            return 0
        policies = [self.measured(run.name, run.model, "choice", None) for run in runs]
        return max(range(len(runs)), key=lambda at: policies[at].score)


def judge_of(reward: Run) -> dict[str, Any]:
    return {"reward_model": {"name_or_path": str(reward.model)}}


def compare(args: argparse.Namespace) -> Comparison:
    """Train and measure."""
    bench = Bench(args)
    libraries, first = bench.libraries(), args.seeds[0]
    shared = []
    if args.demonstrations is not None:
        shared = [bench.trained("sft", first)]
        bench.start_from(shared[0])
    dpo = [bench.trained("dpo", first, choice) for choice in args.dpo]
    best_dpo = bench.best(dpo)
    if args.rloo_steps is None:
        rollouts = load(args.recipe, shlex.split(args.rloo[0])).recipe.training.global_batch_size
        args.rloo_steps = dpo[best_dpo].completions // rollouts
    reward = {seed: bench.trained("reward", seed, args.reward) for seed in args.seeds}
    rloo = [bench.trained("rloo", first, choice, reward=reward[first]) for choice in args.rloo]
    best_rloo = bench.best(rloo)
    arms = []
    for seed, judge in reward.items():
        run = bench.trained("dpo", seed, args.dpo[best_dpo])
        arms.append(bench.arm(DPO, seed, [run], judge))
        run = bench.trained("rloo", seed, args.rloo[best_rloo], reward=judge)
        arms.append(bench.arm(RLHF, seed, [judge, run], judge))
    if args.true_score:
        run = bench.trained("rloo", first, args.rloo[best_rloo], name="true-score")
        arms.append(bench.arm(TRUE_SCORE, first, [run], reward[first]))
    stages = {run.name: run for run in [*shared, *(run for arm in arms for run in arm.stages)]}
    return Comparison(
        libraries,
        list(stages.values()),
        arms,
        [(run, bench.end_of(run, reward[first])) for run in [*dpo, *rloo]],
        reward,
        {seed: bench.accuracy(run) for seed, run in reward.items()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", nargs=2, metavar=("TRAIN", "EVAL"), required=True)
    parser.add_argument("--judge", metavar="COMMAND", required=True)
    parser.add_argument("--demonstrations", metavar="FILE", help="run `prefcli sft` on these first")
    parser.add_argument("--recipe", default=str(STORIES))
    for method, choices in CHOICES.items():
        what = f"settings of {method}; repeat for a choice (default: {', '.join(choices)})"
        parser.add_argument(f"--{method}", metavar="SETTINGS", action="append", help=what)
    parser.add_argument("--reward", metavar="SETTINGS", default="reward={}")
    parser.add_argument(
        "--rloo-steps", type=int, help="default: as many completions as dpo trains on"
    )
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--samples", type=int, default=2, help="completions of a held-out prompt")
    parser.add_argument("--save-steps", type=int, default=14, help="steps between measurements")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43])
    parser.add_argument("--true-score", action="store_true")
    parser.add_argument("--output-dir", default="runs/rlhf")
    args = parser.parse_args()
    for method, choices in CHOICES.items():
        setattr(args, method, getattr(args, method) or choices)
    quiet_libraries()
    keep_stdout_for_json(True)  # the tables alone go to standard output
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    result = compare(args)
    print_tables(result)
    folder, first = Path(args.output_dir), args.seeds[0]
    write_plots([arm for arm in result.arms if arm.seed == first], folder)
    text = json.dumps(result.as_dict(), indent=2)
    (folder / "rlhf.json").write_text(f"{text}\n", "utf-8")


if __name__ == "__main__":
    main()
