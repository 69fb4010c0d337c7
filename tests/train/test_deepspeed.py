"""ZeRO-2 and ZeRO-3 over two CPU processes, with DeepSpeed itself: the metrics of one process.

Skipped where DeepSpeed is not installed.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from prefcli.recipe import load
from prefcli.recipe.schema import Recipe
from prefcli.training import finish
from prefcli.training.run import train
from tests.support.deepspeed import deepspeed_on_cpus
from tests.support.judge import RLOO
from tests.support.preempted_runs import train_until_signal
from tests.support.processes import in_processes
from tests.support.tiny_runs import metric_rows, small_recipe

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}
SAMPLED = ("loss", "reward", "objective/kl", "entropy", "completions/mean_length")
CASES = {
    "zero2": {},
    "zero3": {"samples": {"prompts": 2, "max_new_tokens": 4}},
    "zero2 lora": {"lora": LORA},
    "zero3 lora": {"lora": LORA},
    "zero3 precomputed": {"reference": {"precompute": True}},
    "zero2 tokens": {"performance": {"tokens_per_batch": 60}},
    "zero3 rloo": RLOO,
    "zero3 rloo lora": RLOO | {"lora": LORA},
}


def recipes(model: Path, folder: Path, *, launched: bool = True) -> dict[str, Recipe]:
    folder.mkdir()
    data = small_recipe(model, folder)
    data["training"] |= {"global_batch_size": 8, "per_device_train_batch_size": 2, "max_steps": 3}
    loaded = {}
    for case, changes in CASES.items():
        path = folder / f"{case}.yaml"
        section = {"strategy": case.split()[0], "processes": 2} if launched else {}
        this = data | changes | {"output_dir": str(folder / case), "launch": section}
        path.write_text(yaml.safe_dump(this), encoding="utf-8")
        loaded[case] = load(str(path)).recipe
    return loaded


def train_case(recipe: Recipe) -> None:
    train(recipe, recipe.methods["rloo" if "rloo" in recipe.output_dir else "dpo"])


@pytest.fixture(scope="module")
def no_pages():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "write_report_and_card", lambda *args, **kwargs: None)
        yield patch


@pytest.fixture(scope="module")
def alone(tiny_model, tmp_path_factory, no_pages) -> Callable[[str], Path]:
    """Trains a case in this process, once."""
    folder = tmp_path_factory.mktemp("deepspeed") / "alone"
    made = recipes(tiny_model, folder, launched=False)

    @functools.cache
    def run(case: str) -> Path:
        train_case(made[case])
        return folder / case

    return run


def run_sharded(recipe: Recipe) -> None:
    with deepspeed_on_cpus(recipe):
        train_case(recipe)


@pytest.fixture(scope="module")
def sharded(tiny_model, tmp_path_factory, no_pages) -> Callable[[str], Path]:
    """Trains a case in two processes, once."""
    folder = tmp_path_factory.mktemp("deepspeed") / "sharded"
    made = recipes(tiny_model, folder)

    @functools.cache
    def run(case: str) -> Path:
        job = functools.partial(run_sharded, made[case])
        ended = in_processes([job], folder / f"logs of {case}")
        assert ended.codes == [0, 0], "\n".join(ended.logs)
        return folder / case

    return run


def answers(run: Path) -> list[dict]:
    lines = (run / "samples.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["policy"] for line in lines]


def losses(run: Path, metric: str = "loss") -> list[float]:
    return [row[metric] for row in metric_rows(run) if "loss" in row]


@pytest.mark.parametrize("case", CASES)
def test_zero_run_has_the_losses_of_one_process(alone, sharded, case):
    run = sharded(case)
    assert len(losses(run)) == 3
    for name in SAMPLED if "rloo" in case else ("loss",):
        assert losses(run, name) == pytest.approx(losses(alone(case), name), abs=1e-4)
    record = json.loads((run / "run.json").read_text("utf-8"))
    assert record["strategy"] == case.split()[0]
    assert record["model"]["max_difference"] <= 1e-4
    if case == "zero3":
        assert len(answers(run)) == 4
        assert answers(run) == answers(alone(case))


def stopped(recipe: Recipe) -> None:
    train_until_signal(recipe, 2, deepspeed_on_cpus(recipe))


@pytest.mark.parametrize("case", ["zero2", "zero3"])
def test_zero_run_stops_and_resumes_to_the_same_model(
    case, sharded, tiny_model, tmp_path, no_pages
):
    recipe = recipes(tiny_model, tmp_path / "stopped")[case]
    # DeepSpeed cannot start twice in a process.
    for job in (functools.partial(stopped, recipe), functools.partial(run_sharded, recipe)):
        ended = in_processes([job], tmp_path / "logs")
        assert ended.codes == [0, 0], "\n".join(ended.logs)
    assert "resum" in ended.logs[0]
    run = Path(recipe.output_dir)
    assert losses(run) == pytest.approx(losses(sharded(case)), abs=1e-6)
    trained, straight = (
        load_file(next((folder / "model").glob("*.safetensors"))) for folder in (run, sharded(case))
    )
    assert trained.keys() == straight.keys()
    for name, tensor in trained.items():
        torch.testing.assert_close(tensor, straight[name], rtol=1e-5, atol=1e-7)
