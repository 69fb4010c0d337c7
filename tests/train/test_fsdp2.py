"""FSDP2 over two CPU processes: the metrics of one process, and sums in float32."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule

from prefcli.model import Device
from prefcli.recipe import load
from prefcli.recipe.schema import Recipe
from prefcli.training import finish, generation_model
from prefcli.training import run as run_module
from prefcli.training.run import train
from prefcli.training.trainer import make_trainer
from tests.support.fsdp2 import fsdp2_on_cpus
from tests.support.judge import RLOO
from tests.support.preempted_runs import train_until_signal
from tests.support.processes import in_processes
from tests.support.tiny_runs import metric_rows, sentence, small_recipe, write_jsonl

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}
CASES = {
    "dpo full": {"samples": {"prompts": 2, "max_new_tokens": 4}},
    "dpo lora": {"lora": LORA, "samples": {"prompts": 2, "max_new_tokens": 4}},
    "dpo full in bfloat16": {},
    "dpo lora in bfloat16": {"lora": LORA},
    "dpo mixed": {"sft_mix": {"fraction": 0.5}},
    "dpo precomputed": {"reference": {"precompute": True}},
    "dpo by tokens": {"performance": {"tokens_per_batch": 70}},
    "kto full": {"kto": {"loss_type": "apo_zero_unpaired"}},  # without an estimate over a batch
    "sft full": {},
    "orpo full": {},
    "simpo lora": {"lora": LORA},
    "reward full": {},
    "reward lora": {"lora": LORA},
    "rloo full": RLOO,
    "rloo lora": RLOO | {"lora": LORA},
}
SLOW = (
    "dpo full",
    "kto full",
    "sft full",
    "dpo lora in bfloat16",
    "dpo mixed",
    "dpo precomputed",
    "dpo by tokens",
    "orpo full",
    "simpo lora",
    "reward full",
    "reward lora",
    "rloo full",
    "rloo lora",
)
SAMPLED = ("loss", "grad_norm", "reward", "objective/kl", "entropy", "completions/mean_length")
EACH = [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES]
WHOLE = [case for case in CASES if "bfloat16" not in case]
HALF = [case for case in CASES if "bfloat16" in case]
DEVICE = Device("cpu", "a CPU that computes in bfloat16", bfloat16=True)


def recipes(model: Path, folder: Path) -> dict[str, Recipe]:
    folder.mkdir()
    data = small_recipe(model, folder)
    data["training"] |= {
        "global_batch_size": 8,  # two micro-batches
        "per_device_train_batch_size": 2,
        "max_steps": 3,
    }
    mixed = write_jsonl(folder / "mixed.jsonl", [{"text": sentence(i, 6)} for i in range(9)])
    loaded = {}
    for case, changes in CASES.items():
        path = folder / f"{case}.yaml"
        this = data | changes | {"output_dir": str(folder / case)}
        if "sft_mix" in changes:
            this["sft_mix"] = changes["sft_mix"] | {"data": {"path": str(mixed)}}
        path.write_text(yaml.safe_dump(this), encoding="utf-8")
        loaded[case] = load(str(path)).recipe
    return loaded


@dataclass
class Runs:
    """Runs of the cases, each made when a test first reads it."""

    recipes: dict[str, Recipe]
    train: Callable[[str, Recipe], None]
    finished: set[str] = field(default_factory=set)

    def folder(self, case: str) -> Path:
        if case not in self.finished:
            self.train(case, self.recipes[case])
            self.finished.add(case)
        return Path(self.recipes[case].output_dir)

    def metrics(self, case: str) -> list[dict]:
        return metric_rows(self.folder(case))

    def record(self, case: str) -> dict:
        return json.loads((self.folder(case) / "run.json").read_text("utf-8"))


def run(case: str, recipe: Recipe) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if case in HALF:
            patch.setattr(run_module, "detect_device", lambda: DEVICE)
        train(recipe, recipe.methods[case.split()[0]])


def run_sharded(case: str, recipe: Recipe) -> None:
    trainers = []

    def make(*args: Any, **kwargs: Any) -> Any:
        trainers.append(make_trainer(*args, **kwargs))
        return trainers[0]

    with fsdp2_on_cpus(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "make_trainer", make)
        if case == "rloo full":
            patch.setattr(
                generation_model, "GATHERED_SHARE", 0.0
            )  # gather each layer for each token
        run(case, recipe)
    models = (trainers[0][0].model, getattr(trainers[0][0], "ref_model", None))
    (Path(recipe.output_dir) / "units.json").write_text(json.dumps([units(m) for m in models]))


def units(model: torch.nn.Module | None) -> int:
    """Count the modules that FSDP2 gathers separately."""
    return sum(isinstance(module, FSDPModule) for module in model.modules()) if model else 0


@pytest.fixture(scope="module")
def no_pages():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "write_report_and_card", lambda *args, **kwargs: None)
        yield patch


@pytest.fixture(scope="module")
def alone(tiny_model, tmp_path_factory, no_pages) -> Runs:
    return Runs(recipes(tiny_model, tmp_path_factory.mktemp("fsdp2") / "alone"), run)


@pytest.fixture(scope="module")
def sharded(tiny_model, tmp_path_factory, no_pages) -> Runs:
    folder = tmp_path_factory.mktemp("fsdp2") / "sharded"

    def run_in_two(case: str, recipe: Recipe) -> None:
        job = functools.partial(run_sharded, case, recipe)
        ended = in_processes([job], folder / f"logs of {case}")
        assert ended.codes == [0, 0], "\n".join(ended.logs)

    return Runs(recipes(tiny_model, folder), run_in_two)


@pytest.mark.parametrize("case", EACH)
def test_fsdp2_run_has_the_losses_of_one_process(alone, sharded, case):
    for name in SAMPLED if case.startswith("rloo") else ("loss",):
        one, two = (
            [row[name] for row in runs.metrics(case) if "loss" in row] for runs in (alone, sharded)
        )
        assert len(two) == 3
        assert two == pytest.approx(one, abs=1e-4 if case in WHOLE else 2e-3)
    assert sharded.record(case)["strategy"] == "fsdp2"


@pytest.mark.parametrize("case", EACH)
def test_fsdp2_run_verifies_its_model(sharded, case):
    assert sharded.record(case)["model"]["max_difference"] <= (1e-4 if case in WHOLE else 0.05)


@pytest.mark.parametrize("case", EACH)
def test_fsdp2_run_scores_every_batch_packed(sharded, case):
    speed = sharded.record(case)["speed"]
    assert speed["shared_prefix"] == "in use"
    assert speed["fast_calls"] > 0
    assert speed["stock_calls"] == 0


@pytest.mark.parametrize("case", [pytest.param("dpo full", marks=pytest.mark.slow), "dpo lora"])
def test_fsdp2_run_samples_the_answers_of_one_process(alone, sharded, case):
    one, two = (
        (runs.folder(case) / "samples.jsonl").read_text("utf-8").splitlines()
        for runs in (alone, sharded)
    )
    assert len(two) == 4  # two before the first step, two at the end
    for row, other in zip(map(json.loads, one), map(json.loads, two), strict=True):
        assert (row["step"], row["policy"]) == (other["step"], other["policy"])


@pytest.mark.parametrize(
    "case",
    [
        "dpo full in bfloat16",
        *(pytest.param(case, marks=pytest.mark.slow) for case in ("dpo full", "kto full")),
    ],
)
def test_fsdp2_run_shards_the_reference_layer_by_layer(sharded, case):
    """Check the number of units: two layers, embeddings, norm, head and the root.

    trl would shard the reference as one unit and gather all of it at once.
    """
    assert json.loads((sharded.folder(case) / "units.json").read_text()) == [6, 6]


@pytest.mark.parametrize("case", [case for case in HALF if case not in SLOW])
def test_fsdp2_run_in_bfloat16_sums_in_float32(sharded, case):
    """Check that the mean of ten sums is not a multiple of 1/40, as it would be in bfloat16."""
    (first,) = (row for row in sharded.metrics(case) if "eval_loss" in row and not row["step"])
    sums = [first[f"eval_logps/{side}"] for side in ("chosen", "rejected")]
    assert all(abs(40 * total - round(40 * total)) > 1e-3 for total in sums)


def stopped(recipe: Recipe) -> None:
    train_until_signal(recipe, 2, fsdp2_on_cpus())


@pytest.mark.parametrize("case", [pytest.param("dpo full", marks=pytest.mark.slow), "dpo lora"])
def test_fsdp2_run_stops_and_resumes_to_the_same_losses(
    case, sharded, tiny_model, tmp_path, no_pages
):
    recipe = recipes(tiny_model, tmp_path / "stopped")[case]
    jobs = [functools.partial(stopped, recipe), functools.partial(run_sharded, case, recipe)]
    ended = in_processes(jobs, tmp_path / "logs")
    assert ended.codes == [0, 0], "\n".join(ended.logs)
    assert "resum" in ended.logs[0]
    losses = [row["loss"] for row in metric_rows(Path(recipe.output_dir)) if "loss" in row]
    expected = [row["loss"] for row in sharded.metrics(case) if "loss" in row]
    assert losses == pytest.approx(expected, abs=1e-6)
    trained, straight = (
        load_file(next((folder / "model").glob("*.safetensors")))
        for folder in (Path(recipe.output_dir), sharded.folder(case))
    )
    assert trained.keys() == straight.keys()
    for name, tensor in trained.items():
        torch.testing.assert_close(tensor, straight[name], rtol=1e-5, atol=1e-7)
