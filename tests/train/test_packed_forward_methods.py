"""Loss and gradients of each method, by trl's forward and by the packed forward."""

from __future__ import annotations

import pytest
import torch

from tests.support.scored_rows import distance
from tests.support.tiny_runs import labelled, pairs, trainer_of, write_jsonl

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}

CASES = {
    "dpo": ("dpo", {"dpo": {}}, {}),
    "dpo lora": ("dpo", {"dpo": {}, "lora": LORA}, {}),
    "dpo ld_alpha": ("dpo", {"dpo": {"ld_alpha": 0.3}}, {}),
    "dpo rpo lora": (
        "dpo",
        {"dpo": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}, "lora": LORA},
        {},
    ),
    "dpo apo_down": ("dpo", {"dpo": {"loss_type": "apo_down"}}, {}),
    "dpo truncated": ("dpo", {"dpo": {}}, {"max_length": 12}),
    "ipo": ("ipo", {}, {}),
    "ipo lora": ("ipo", {"lora": LORA}, {}),
    "kto": ("kto", {}, {}),
    "kto lora": ("kto", {"lora": LORA}, {}),
    "kto apo": ("kto", {"kto": {"loss_type": "apo_zero_unpaired"}}, {}),
    "sft": ("sft", {}, {}),
    "sft lora": ("sft", {"lora": LORA}, {}),
    "sft whole": ("sft", {"sft": {"completion_only_loss": False}}, {}),
    "sft dft": ("sft", {"sft": {"loss_type": "dft"}}, {}),
    "sft assistant": ("sft", {"sft": {"assistant_only_loss": True}}, {"chat": True}),
    "dpo with demonstrations": ("dpo", {"dpo": {}, "sft_mix": {"fraction": 0.5}}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_step_with_the_packed_forward_equals_trl(case, recipe_data, make_recipe, tmp_path):
    name, sections, data = CASES[case]
    rows = labelled(24) if name == "kto" else pairs(24, chat="chat" in data)
    if name == "kto":  # rows of one prompt side by side
        rows = [{**row, "prompt": rows[i // 3]["prompt"]} for i, row in enumerate(rows)]
    path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    del recipe_data["data"]["eval"]
    recipe_data["data"] |= {"train": {"path": path}, "max_length": data.get("max_length", 64)}
    recipe_data |= sections
    if "sft_mix" in sections:
        recipe_data["sft_mix"] = {**sections["sft_mix"], "data": {"path": path}}
    steps = {}
    for choice in ("off", "on"):
        recipe = make_recipe(recipe_data, f"performance.shared_prefix={choice}").recipe
        trainer, _ = trainer_of(recipe, name)
        steps[choice] = step(trainer, recipe.seed)
    loss, logged, gradients, stock_counts = steps["off"]
    fast_loss, fast_logged, fast_gradients, counts = steps["on"]
    # The loss of ipo is the square of a small difference of sums.
    assert fast_loss == pytest.approx(loss, rel=1e-6, abs=1e-6 if name == "ipo" else 0)
    assert fast_logged.keys() == logged.keys()
    for key, values in logged.items():
        assert fast_logged[key] == pytest.approx(values, rel=1e-5, abs=1e-5), key
    assert gradients.keys() == fast_gradients.keys()
    assert distance(gradients, fast_gradients) <= 1e-5
    # The policy and the reference, for kto each once more for its KL term; demonstrations.
    passes = {"dpo": 2, "ipo": 2, "kto": 4, "sft": 1}[name]
    passes += {"kto apo": -2, "dpo with demonstrations": 1}.get(case, 0)
    assert (stock_counts.fast, counts.fast, counts.stock) == (0, passes, 0)


def step(trainer, seed):
    """Return (loss, metrics, gradients, counts) of the first micro-batch.

    The policy differs a little from the reference.
    """
    torch.manual_seed(seed)
    trainer.current_gradient_accumulation_steps = 1  # as the training loop would
    model = trainer.model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.training_step(model.train(), batch)
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    logged = {key: [float(v) for v in values] for key, values in trainer._metrics["train"].items()}
    return loss.item(), logged, gradients, trainer.context.packed_forward.counts
