"""The loss at step 0, where the policy equals the reference, has a closed form."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from prefcli.errors import GateError
from prefcli.methods.dpo import PairLoss
from prefcli.training.run import train
from prefcli.training.start_check import Tolerance
from prefcli.training.trainer import make_trainer
from tests.support.tiny_runs import labelled, metric_rows, write_jsonl

LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}


def first_loss(loaded, name: str) -> float:
    train(loaded.recipe, loaded.recipe.methods[name])
    return next(r["loss"] for r in metric_rows(loaded.recipe.output_dir) if "loss" in r)


@pytest.mark.parametrize(
    ("name", "section", "expected"),
    [
        ("dpo", {"beta": 0.1}, math.log(2)),
        ("dpo", {"beta": 0.5, "loss_type": "hinge"}, 1.0),
        ("dpo", {"loss_type": "robust", "label_smoothing": 0.1}, math.log(2)),
        ("dpo", {"loss_type": ["sigmoid", "hinge"], "loss_weights": [1.0, 0.5]}, math.log(2) + 0.5),
        ("ipo", {"beta": 0.1}, 25.0),
        ("ipo", {"beta": 1.0}, 0.25),
        ("dpo", {"ld_alpha": 0.5}, math.log(2)),
        ("dpo", {"f_divergence_type": "forward_kl", "loss_type": "hinge"}, 1.0),
        ("dpo", {"f_divergence_type": "js_divergence"}, math.log(2)),
        (
            "dpo",
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
            math.log(2),
        ),
        ("dpo", {"loss_type": "discopop", "discopop_tau": 1.0}, (math.log(2) + 1) / 2),
        ("kto", {"desirable_weight": 1.0, "undesirable_weight": 1.0}, 0.5),
        ("kto", {"desirable_weight": 1.5, "undesirable_weight": 1.5}, 0.75),
    ],
    ids=lambda v: "-".join(map(str, v.values())) if isinstance(v, dict) else None,
)
def test_start_loss_of_a_run_has_a_closed_form(recipe_data, make_recipe, name, section, expected):
    recipe_data[name] = section
    if name == "kto":
        recipe_data["lora"] = LORA
    loaded = make_recipe(recipe_data)
    assert loaded.recipe.methods[name].start_loss() == pytest.approx(expected)
    assert first_loss(loaded, name) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("loss", [loss for loss in get_args(PairLoss) if loss != "sft"])
def test_start_loss_of_every_pairwise_loss_matches_the_closed_form(recipe_data, make_recipe, loss):
    smoothed = loss in ("robust", "exo_pair", "aot", "aot_unpaired")
    recipe_data["dpo"] = {"beta": 0.2, "loss_type": loss} | (
        {"label_smoothing": 0.1} if smoothed else {}
    )
    loaded = make_recipe(recipe_data, "training.max_steps=1")
    expected = loaded.recipe.dpo.start_loss()
    assert first_loss(loaded, "dpo") == pytest.approx(expected, abs=1e-3)


def test_start_loss_of_kto_is_half_the_mean_label_weight(recipe_data, make_recipe, tmp_path):
    rows = labelled(24)
    recipe_data["data"]["train"]["path"] = str(write_jsonl(tmp_path / "labelled.jsonl", rows))
    del recipe_data["data"]["eval"]
    recipe_data["kto"] = {"desirable_weight": 3.0, "undesirable_weight": 1.0}
    recipe_data["training"] |= {"global_batch_size": 24, "per_device_train_batch_size": 24}
    good = sum(r["label"] for r in rows)
    expected = 0.5 * (3.0 * good + (24 - good)) / 24
    assert first_loss(make_recipe(recipe_data), "kto") == pytest.approx(expected, abs=1e-3)


def test_start_loss_of_kto_uses_the_auto_weights(recipe_data, make_recipe, tmp_path):
    rows = labelled(24)
    recipe_data["data"]["train"]["path"] = str(write_jsonl(tmp_path / "labelled.jsonl", rows))
    del recipe_data["data"]["eval"]
    recipe_data["training"] |= {"global_batch_size": 24, "per_device_train_batch_size": 24}
    labels = [row["label"] for row in rows]
    method, _ = make_recipe(recipe_data).recipe.kto.for_labels(16, 8)
    assert method.undesirable_weight == pytest.approx(1.5)
    expected = method.start_loss(labels)
    assert expected == pytest.approx((16 + 8 * 1.5) / 2 / 24)
    assert first_loss(make_recipe(recipe_data), "kto") == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("tokens", [1, 2, 4, 8, 32, 200])
def test_tolerance_allows_the_noise_of_bfloat16(tokens):
    """Draw noise of 0.02 nats per token in 200 runs of 16 responses.

    Between bfloat16 and float32 it is 0.026, and between two batches in bfloat16 less.
    """
    draw = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(200, 16, tokens, generator=draw)
    for off in noise.mean(2).abs().tolist():
        assert Tolerance(half=True).allows(off, [tokens] * 16)


@pytest.mark.parametrize(
    ("half", "off", "tokens"),
    [
        (True, [0.11, 0.0], [1, 1]),
        (True, [0.011] * 8, [200] * 8),
        (True, [0.06] * 8, [1] * 8),  # one may be noise, but not all
        (False, [2e-4, 0.0], [1, 1]),
        (True, [math.nan, 0.0], [1, 1]),
    ],
)
def test_tolerance_refuses_other_weights(half, off, tokens):
    assert not Tolerance(half).allows(off, tokens)


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_start_check_with_log_probabilities_in_bfloat16_refuses(
    recipe_data, make_recipe, name, monkeypatch
):
    """Cast the log-probabilities, as an engine does that casts the output of the model."""

    def cast(module, args, output):
        output.log_probs = output.log_probs.bfloat16()
        return output

    def make(*args, **kwargs):
        trainer, effective = make_trainer(*args, **kwargs)
        trainer.model.register_forward_hook(cast)
        return trainer, effective

    monkeypatch.setattr("prefcli.training.run.make_trainer", make)
    recipe = make_recipe(recipe_data).recipe
    with pytest.raises(GateError, match="step 0: log-probabilities are in bfloat16"):
        train(recipe, recipe.methods[name])


@pytest.mark.parametrize("name", ["dpo", "ipo", "kto"])
def test_eval_loss_before_the_first_step_is_the_start_loss(recipe_data, make_recipe, name):
    loaded = make_recipe(recipe_data)
    method = loaded.recipe.methods[name]
    train(loaded.recipe, method)
    method, _ = method.for_labels(1, 1)  # pairs: as many of either label
    first = metric_rows(loaded.recipe.output_dir)[0]
    assert first["step"] == 0
    assert first["eval_loss"] == pytest.approx(method.start_loss(), abs=1e-3)


def test_tolerance_dora_in_16_bits_allows_its_rounding():
    """Seen on a GPU: answers of 1 to 8 tokens, 0.08 to 0.1 nats per token off."""
    off, tokens = [0.101, 0.02, 0.06, 0.03], [8, 4, 2, 1]
    assert Tolerance(half=True, dora=True).allows(off, tokens)
    assert not Tolerance(half=True).allows(off, tokens)
    assert not Tolerance(half=True, dora=True).allows([0.8] * 4, tokens)
    assert not Tolerance(half=False, dora=True).allows(off, tokens)


def test_tolerance_of_run_recognises_dora():
    model = torch.nn.ModuleDict({"lora_magnitude_vector": torch.nn.Linear(1, 1)})

    class Arguments:
        bf16, fp16 = True, False

    assert Tolerance.of_run(model, Arguments()) == Tolerance(half=True, dora=True)
