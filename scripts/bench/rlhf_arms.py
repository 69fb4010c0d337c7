"""The stages and arms of rlhf.py: what they cost, and what their policies have reached."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from prefcli.evaluation.bootstrap import Bootstrap, Estimate, Floats, Mean
from prefcli.evaluation.judges import required_judge
from prefcli.methods import METHODS
from prefcli.recipe import load
from prefcli.recipe.schema import Recipe

DPO, RLHF, TRUE_SCORE = "dpo", "reward, rloo", "true score"
"""Names of the arms."""


@dataclass(frozen=True)
class Cost:
    """The cost of a process: seconds of the clock and of a processor, and its peak memory."""

    wall: float
    processor: float
    peak_gib: float

    def __add__(self, other: Cost) -> Cost:
        peak = max(self.peak_gib, other.peak_gib)
        return Cost(self.wall + other.wall, self.processor + other.processor, peak)

    def times(self, share: float) -> Cost:
        return Cost(self.wall * share, self.processor * share, self.peak_gib)


NOTHING = Cost(0.0, 0.0, 0.0)


def run_process(words: Sequence[str], log: Path) -> Cost:
    """Run a program to its end. Exits if it fails."""
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{shlex.join(words)} ended with exit code {process.returncode}; see {log}")
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return Cost(time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit)


@dataclass(frozen=True)
class Run:
    """A finished stage."""

    name: str
    """Of its folder."""
    title: str
    choice: str
    """Settings that the command line gives."""
    method: str
    folder: Path
    cost: Cost

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @cached_property
    def recipe(self) -> Recipe:
        return load(str(self.folder / "recipe.yaml")).recipe

    @cached_property
    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.folder / "run.json").read_text("utf-8"))
        return record

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Metrics of each step."""
        lines = (self.folder / "metrics.jsonl").read_text("utf-8").splitlines()
        return [row for row in map(json.loads, lines) if row["step"]]

    @property
    def steps(self) -> int:
        return int(self.record["steps"])

    @property
    def checkpoints(self) -> dict[int, Path]:
        """Folders of the checkpoints by step; that of the last step is the run's model."""
        folders = self.folder.glob("checkpoint-*")
        by_step = {int(path.name.rpartition("-")[2]): path for path in folders}
        return dict(sorted({**by_step, self.steps: self.model}.items()))

    @property
    def step_share(self) -> float:
        """Share of the cost that is spent in steps, and not in starting and ending."""
        return float(self.rows[-1]["seconds"]) / self.cost.wall

    def cost_until(self, step: float, *, bare: bool = False) -> Cost:
        """Return the cost until a step. bare: of steps alone, without starting and ending."""
        steps = np.array([row["step"] for row in self.rows], np.float64)
        seconds = np.array([row["seconds"] for row in self.rows], np.float64)
        share = float(np.interp(step, steps, seconds)) / float(seconds[-1])
        in_steps = self.step_share * share
        return self.cost.times(in_steps if bare else 1 - self.step_share + in_steps)

    @property
    def completions(self) -> int:
        """Completions that the steps have trained on."""
        per_row = 1 if self.method in ("rloo", "sft") else 2
        return per_row * self.recipe.training.global_batch_size * self.steps

    @property
    def sampled_tokens(self) -> int:
        lengths = [row.get("completions/mean_length", 0.0) for row in self.rows]
        return round(self.recipe.training.global_batch_size * sum(lengths))

    @property
    def own_parameters(self) -> int:
        return sum(part["trained"] + part["frozen"] for part in self.record["parts"].values())

    @property
    def models(self) -> list[str]:
        """The models in memory during training, by what they are for."""
        method, recipe = METHODS[self.method], self.recipe
        models = ["reward model" if method.head == "reward" else "policy"]
        is_held = not recipe.trains_adapter and not recipe.reference.precompute
        if method.needs_reference and is_held:
            models.append("reference")
        if method.needs_judge and required_judge(recipe).models:
            models.append("reward model")
        return models

    def facts(self) -> dict[str, Any]:
        names = ("step_share", "steps", "completions", "sampled_tokens", "models", "own_parameters")
        return {**vars(self.cost), **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class Policy:
    """Measurements of a policy: arrays of held-out prompts by completions of each."""

    scores: Floats
    log_ratios: Floats
    """log of policy / start of each completion, whose mean is the KL divergence, in nats."""
    rewards: Floats
    """By the reward model; empty without one."""
    tokens: Floats

    @classmethod
    def read(cls, path: Path) -> Policy:
        return cls(**{k: np.array(v) for k, v in json.loads(path.read_text("utf-8")).items()})

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({k: v.tolist() for k, v in vars(self).items()}), "utf-8")

    @property
    def score(self) -> float:
        return float(np.nanmean(self.scores))

    @property
    def kl(self) -> float:
        return float(self.log_ratios.mean())

    def facts(self) -> dict[str, Any]:
        named = {"score": self.scores, "kl": self.log_ratios, "reward": self.rewards}
        facts = {name: vars(estimate(v)) for name, v in named.items() if v.size}
        return {**facts, "tokens": float(self.tokens.mean())}


@dataclass(frozen=True)
class Point:
    """A checkpoint: its step, the cost until then, and what was measured."""

    step: int
    cost: Cost
    policy: Policy


@dataclass
class Arm:
    """The stages that lead from the start to a policy, and what its checkpoints have reached."""

    name: str
    seed: int
    stages: list[Run]
    points: list[Point]
    """The first is the start, at no cost."""

    @property
    def last(self) -> Run:
        return self.stages[-1]

    @property
    def end(self) -> Point:
        return self.points[-1]

    def cost_until(self, step: float, *, bare: bool = False) -> Cost:
        """Return the cost of the stages before the last, and of the last until a step."""
        costs = [run.cost_until(run.steps, bare=bare) for run in self.stages[:-1]]
        return sum(costs, self.last.cost_until(step, bare=bare))

    def cost_of(self, target: float, *, bare: bool = False) -> Cost | None:
        """Return the cost until a score is reached, between checkpoints by a straight line."""
        for one, other in pairwise(self.points):
            low, high = one.policy.score, other.policy.score
            if low < target <= high:
                share = (target - low) / (high - low)
                step = one.step + share * (other.step - one.step)
                return self.cost_until(step, bare=bare)
        return None

    def facts(self) -> dict[str, Any]:
        points = [{"step": p.step, **vars(p.cost), **p.policy.facts()} for p in self.points]
        stages = [run.name for run in self.stages]
        return {"name": self.name, "seed": self.seed, "stages": stages, "points": points}

    def at_cost(self, kind: str, limit: float) -> Point:
        """Return the last checkpoint that costs no more, or the start."""
        return [p for p in self.points if getattr(p.cost, kind) <= limit][-1]


def estimate(values: Floats, *, share: bool = False) -> Estimate:
    """Return the mean with its 95 % interval over prompts, which are the first axis."""
    values = np.nanmean(values.reshape(len(values), -1), axis=1)
    values = values[~np.isnan(values)]
    rows = np.arange(len(values))
    bootstrap, mean = Bootstrap(rows), Mean(values, np.ones(len(values)), share)
    return bootstrap.estimate(mean, bootstrap.values([mean], [rows])[0][0], rows)


@dataclass(frozen=True)
class Comparison:
    """All arms and choices, trained and measured."""

    libraries: Cost
    stages: list[Run]
    arms: list[Arm]
    choices: list[tuple[Run, Policy]]
    """All settings of the command line with the first seed."""
    reward: dict[int, Run]
    """By seed."""
    accuracy: dict[int, Estimate]
    """Of the reward models, on held-out pairs."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "libraries": vars(self.libraries),
            "stages": {run.name: run.facts() for run in self.stages},
            "arms": [arm.facts() for arm in self.arms],
            "choices": {run.name: policy.facts() for run, policy in self.choices},
            "reward_accuracy": {seed: vars(value) for seed, value in self.accuracy.items()},
        }
