"""Two processes give the numbers of one with the same global batch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from prefcli.recipe import load
from prefcli.recipe.schema import Recipe
from prefcli.report.run_data import read_run
from prefcli.training import run as run_module
from prefcli.training.run import train
from prefcli.training.trainer import make_trainer
from tests.support.judge import RLOO
from tests.support.processes import in_processes
from tests.support.tiny_runs import (
    metric_rows,
    pairs,
    sentence,
    small_recipe,
    trainer_of,
    write_jsonl,
)

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}
KL = "kto with its KL term"
"""An estimate over the rows of a micro-batch on all processes together, so it is compared with one
process whose device batch has all those rows."""
CASES = {
    "sft full": {},
    "dpo full": {},
    KL: {},
    "dpo precomputed": {"reference": {"precompute": True}},
    # One demonstration per step, so that one of the processes has none.
    "dpo mixed": {"sft_mix": {"fraction": 0.2}, "lora": LORA},
    "dpo by tokens": {"performance": {"tokens_per_batch": 70}, "sft_mix": {"fraction": 0.5}},
    "reward lora": {"lora": LORA},
    "rloo lora": {"lora": LORA, **RLOO},
    "orpo mixed": {"sft_mix": {"fraction": 0.4}, "lora": LORA},
}


def recipes(model: Path, folder: Path) -> dict[str, Recipe]:
    folder.mkdir()
    data = small_recipe(model, folder)
    data["training"] |= {
        "global_batch_size": 4,
        "per_device_train_batch_size": 2,
        "max_steps": 3,
    }
    data["data"]["eval"] = {"path": str(write_jsonl(folder / "eval.jsonl", pairs(39)[30:]))}
    mixed = write_jsonl(folder / "mixed.jsonl", [{"text": sentence(i, 6)} for i in range(9)])
    loaded = {}
    for case, changes in CASES.items():
        this = data | changes | {"output_dir": str(folder / case)}
        this["kto"] = {} if case == KL else {"loss_type": "apo_zero_unpaired"}
        if "sft_mix" in changes:
            this["sft_mix"] = changes["sft_mix"] | {"data": {"path": str(mixed)}}
        path = folder / f"{case}.yaml"
        path.write_text(yaml.safe_dump(this), encoding="utf-8")
        loaded[case] = load(str(path)).recipe
    return loaded


MIXED = ("preference_loss", "sft_mix/fraction", "sft_mix/loss")


@dataclass
class Both:
    """Folders of the runs, by case."""

    alone: Path
    together: Path
    recipes: dict[str, Recipe]
    logs: list[str]


def whole_batches(*args, **kwargs):
    """The trainer of one process, its rows prepared two by two, but trained four at once."""
    trainer, effective = make_trainer(*args, **kwargs)
    trainer._train_batch_size = 4
    trainer.args.per_device_eval_batch_size = 4
    trainer.args.gradient_accumulation_steps = 1
    trainer.accelerator.gradient_accumulation_steps = 1
    return trainer, effective


@pytest.fixture(scope="module")
def both(tiny_model, tmp_path_factory) -> Both:
    folder = tmp_path_factory.mktemp("processes")
    alone = recipes(tiny_model, folder / "alone")
    together = recipes(tiny_model, folder / "together")

    def job(case):
        recipe = together[case]
        return lambda: train(recipe, recipe.methods[case.split()[0]])

    patch = pytest.MonkeyPatch()
    patch.setattr("prefcli.training.finish.write_report_and_card", lambda *args, **kwargs: None)
    jobs = [job(case) for case in CASES]
    ended = in_processes(jobs, folder / "logs", compare_collectives=True)
    assert ended.codes == [0, 0], ended.logs
    for case, recipe in alone.items():
        made = whole_batches if case == KL else make_trainer
        patch.setattr(run_module, "make_trainer", made)
        train(recipe, recipe.methods[case.split()[0]])
    patch.undo()
    return Both(folder / "alone", folder / "together", alone, ended.logs)


def test_processes_that_call_different_collectives_fail(tmp_path):
    """Check that the runs above would not pass if their processes disagreed."""

    def job() -> None:
        torch.distributed.init_process_group("gloo")
        if os.environ["RANK"] == "0":
            torch.distributed.barrier()
        else:
            torch.distributed.all_reduce(torch.zeros(1))

    ended = in_processes([job], tmp_path, compare_collectives=True)
    assert ended.codes == [1, 1]
    assert "Detected mismatch between collectives on ranks" in ended.logs[0]


def figures(row: dict, names: set[str]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name in names}


@pytest.mark.parametrize("case", CASES)
def test_run_with_two_processes_has_the_metrics_of_one(both, case):
    """Also of the evaluations, whose 9 rows do not divide evenly."""
    method = both.recipes[case].methods[case.split()[0]]
    trained = {"loss", "grad_norm", "learning_rate", "epoch", *method.metrics, *MIXED}
    names = trained | {f"eval_{name}" for name in trained}
    one, two = (metric_rows(folder / case) for folder in (both.alone, both.together))
    assert [row["step"] for row in two] == [0, 1, 2, 3, 3]
    for row, other in zip(one, two, strict=True):
        exact = "eval_loss" in row
        assert figures(other, names) == pytest.approx(
            figures(row, names), rel=1e-5, abs=1e-6 if exact else 1e-5
        )
        assert len(figures(row, names)) >= (2 if "eval_loss" in row else 5)
    ranked = [read_run(folder / case).ranked for folder in (both.alone, both.together)]
    assert [row["place"].split()[-1] for row in ranked[0]] == [
        row["place"].split()[-1] for row in ranked[1]
    ]
    assert [row["score"] for row in ranked[0]] == pytest.approx(
        [row["score"] for row in ranked[1]], abs=1e-5
    )
    assert bool(ranked[0]) is (method.rows in ("pair", "labelled"))
    if method.needs_judge:
        one, two = (
            (folder / case / "completions.jsonl").read_text("utf-8").replace(str(folder), "")
            for folder in (both.alone, both.together)
        )
        assert one == two


@pytest.mark.parametrize("case", CASES)
def test_run_with_two_processes_has_the_files_of_one(both, case):
    one, two = both.alone / case, both.together / case
    for folder in ("", "model", "checkpoint-3"):
        names = {path.name for path in (one / folder).iterdir()}
        states = {"rng_state_0.pth", "rng_state_1.pth"} if folder == "checkpoint-3" else set()
        assert {p.name for p in (two / folder).iterdir()} - states == names - {"rng_state.pth"}
    speed = read_run(two).record["speed"]
    assert (speed["shared_prefix"], speed["stock_calls"]) == ("in use", 0)
    (file,) = (two / "model").glob("*.safetensors")
    weights, expected = load_file(file), load_file(one / "model" / file.name)
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)


def test_run_with_two_processes_prints_on_the_first_only(both):
    assert both.logs[1].strip() == ""
    assert both.logs[0].count("done: ") >= len(CASES)


def test_ddp_keeps_gradients_in_its_buckets_alone(tiny_model, tmp_path):
    """Gradients are views of the buckets; a copy would take 4 bytes per weight."""

    def job():
        recipe = recipes(tiny_model, tmp_path / f"rank{os.environ['RANK']}")["dpo full"]
        trainer, _ = trainer_of(recipe, "dpo")
        trainer.train()
        assert trainer.model_wrapped.gradient_as_bucket_view

    ended = in_processes([job], tmp_path / "logs")
    assert ended.codes == [0, 0], ended.logs
