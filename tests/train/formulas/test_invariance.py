"""Invariance of a step to accumulation, row order, padding and gradient checkpointing.

transformers' own loop runs the steps, so its scaling and trl's are tested. The gradient is read
before the optimizer uses it.
"""

from __future__ import annotations

import pytest
import torch
from transformers import TrainerCallback

from prefcli.training.run import train
from tests.support.formula_cases import COMPLETIONS, LABELLED, PAIRS, gradients
from tests.support.oracle import deviation
from tests.support.tiny_runs import metric_rows

ROWS = COMPLETIONS
WEIGHTS = {"desirable_weight": 1.5, "undesirable_weight": 0.7}
# method -> (section, rows). KTO's loss with its reference point is tested separately.
CASES = {
    "sft": ({}, ROWS),
    "sft-dft": ({"loss_type": "dft"}, ROWS),
    "dpo": ({"beta": 0.3}, PAIRS),
    "ipo": ({"beta": 1.0}, PAIRS),
    "kto": (WEIGHTS | {"beta": 0.3, "loss_type": "apo_zero_unpaired"}, LABELLED),
    "orpo": ({"lambda": 0.5}, PAIRS),
    "simpo": ({"beta": 2.0, "gamma": 1.0}, PAIRS),
    "cpo": ({"cpo_alpha": 0.0}, PAIRS),
}
cases = pytest.mark.parametrize("case", CASES)
# An adapter changes which parameters have gradients, for every method in the same way.
full_and_one_lora = pytest.mark.parametrize(
    ("case", "lora"),
    [*((case, False) for case in CASES), ("dpo", True)],
    ids=[*CASES, "dpo-lora"],
)


class _Before(TrainerCallback):
    """The accumulated, unclipped gradient that the optimizer receives."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = gradients(model)


def step(case):
    """Return (loss, gradient) of one optimizer step of trainer.train()."""
    trainer, before, losses = case.trainer, _Before(), []
    training_step = trainer.training_step

    def watched(*args, **kwargs):
        losses.append(training_step(*args, **kwargs))
        return losses[-1]

    trainer.training_step = watched
    # A checkpoint and garbage collection take longer than the step.
    trainer.args.save_strategy = "no"
    trainer.accelerator.free_memory = lambda: None
    trainer.add_callback(before)
    trainer.train()
    assert trainer.state.global_step == 1
    assert len(losses) == trainer.args.gradient_accumulation_steps
    loss = torch.stack(losses).sum()
    # The logged loss is that of the step.
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(loss), rel=1e-6)
    return loss, before.gradients


def same(one, other):
    assert deviation(one[0], other[0]) < 1e-5
    doubled = {name: gradient.double() for name, gradient in other[1].items()}
    assert deviation(one[1], doubled) < 1e-5


@pytest.fixture
def stepping(build):
    """Build a case that takes one step, whose gradient is not clipped."""

    def build_one(name, section, rows, **changes):
        # A norm far beyond any gradient's; 1 would scale the larger ones down.
        return build(name, section, rows, max_steps=1, max_grad_norm=1e9, **changes)

    return build_one


@full_and_one_lora
def test_loss_with_accumulation_equals_one_batch(stepping, case, lora):
    """Compare 4 rows at once with 4 x 1 (kto, which needs 2 rows: 2 x 2)."""
    name, (section, rows) = case.partition("-")[0], CASES[case]
    one_batch = step(stepping(name, section, rows, lora=lora))
    size = 2 if name == "kto" else 1
    parts = stepping(name, section, rows, lora=lora, per_device_train_batch_size=size)
    assert parts.trainer.args.gradient_accumulation_steps == 4 // size
    same(step(parts), one_batch)


def test_kto_loss_with_accumulation_at_the_start_equals_one_batch(stepping):
    """Compare KTO (arXiv:2402.01306, eq. 7) as 4 and as 2 x 2 rows, policy and reference equal.

    There the reference point is 0 in any batch. Later it is estimated in each device batch, from
    other mismatched pairs where the batch is another size, and clamped before it is averaged; so
    accumulation changes the loss, and per_device_train_batch_size is part of the method.
    """
    section = WEIGHTS | {"beta": 0.3}
    one_batch = step(stepping("kto", section, LABELLED, size=0))
    parts = stepping("kto", section, LABELLED, size=0, per_device_train_batch_size=2)
    same(step(parts), one_batch)


def test_packed_sft_loss_with_accumulation_equals_one_batch(stepping):
    """Check that sequences weigh by their number of tokens in every micro-batch."""
    changes = {"max_length": 32, "global_batch_size": 2}
    one_batch = stepping("sft", {"packing": True}, ROWS, per_device_train_batch_size=2, **changes)
    assert len(one_batch.trainer.train_dataset) == 2
    parts = stepping("sft", {"packing": True}, ROWS, per_device_train_batch_size=1, **changes)
    same(step(parts), step(one_batch))


@cases
def test_loss_does_not_depend_on_row_order(build, case):
    name, (section, rows) = case.partition("-")[0], CASES[case]
    built = build(name, section, rows)
    same(built.trl_step(built.batch([2, 0, 3, 1])), built.trl_step())


def test_kto_loss_depends_on_row_order_only_through_kl(build):
    """Check a batch in another order; the mismatched completion of a row stays with it."""
    built = build("kto", WEIGHTS | {"beta": 0.3}, LABELLED, seed=2)
    same(built.trl_step(built.batch([2, 0, 3, 1])), built.trl_step())


def widened(batch, by, pad):
    """Pad the batch as if it had one row that is longer by so many tokens."""
    filled = {"input_ids": pad, "labels": -100, "attention_mask": 0, "completion_mask": 0}
    wider = dict(batch)
    for key, value in batch.items():
        for ending, filling in filled.items():
            if key.endswith(ending) and not key.startswith("prompt_"):
                wider[key] = torch.nn.functional.pad(value, (0, by), value=filling)
    assert wider.keys() == batch.keys()
    return wider


@cases
def test_loss_does_not_depend_on_padding(build, case):
    name, (section, rows) = case.partition("-")[0], CASES[case]
    built = build(name, section, rows)
    batch = built.batch()
    wide = widened(batch, 9, built.oracle.tokenizer.pad_token_id)
    assert sum(wide[key] is not batch[key] for key in batch) >= 3  # ids, and two masks or labels
    same(built.trl_step(wide), built.trl_step(batch))


@pytest.mark.parametrize("case", ["sft", "dpo", "ipo", "kto", "simpo"])
def test_loss_does_not_depend_on_longer_rows_in_the_batch(build, case):
    """Compare two rows in one batch with each alone: rows weigh 1/2, for SFT all tokens equally."""
    section, rows = CASES[case]
    built = build(case, section, rows)
    together = built.trl_step(built.batch([0, 1]))
    alone = [built.trl_step(built.batch([i])) for i in (0, 1)]
    share = [0.5, 0.5]
    if case == "sft":
        labels = [built.batch([i])["labels"] for i in (0, 1)]
        counts = [int((row != -100).sum()) for row in labels]
        assert counts[0] != counts[1]
        share = [count / sum(counts) for count in counts]
    loss = sum(part * one[0] for part, one in zip(share, alone, strict=True))
    gradient = {
        name: sum(part * one[1][name] for part, one in zip(share, alone, strict=True))
        for name in together[1]
    }
    same(together, (loss, gradient))


@full_and_one_lora
def test_gradient_checkpointing_does_not_change_the_step(stepping, case, lora):
    name, (section, rows) = case.partition("-")[0], CASES[case]
    results, calls = [], []
    for on in (False, True):
        built = stepping(name, section, rows, lora=lora, gradient_checkpointing=on)
        layer = next(
            m for n, m in built.trainer.model.named_modules() if n.endswith("layers.0.mlp")
        )
        seen = []
        layer.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        results.append(step(built))
        calls.append(len(seen))
    assert calls[1] == calls[0] + 1  # the policy's forward pass, once more
    same(*reversed(results))


# trl's trainers for pairs do not count tokens over accumulation steps, so that their SFT term is a
# mean of means; prefcli makes it the mean over the step's tokens.


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("orpo", {"lambda": 0.5}),
        ("simpo", {"beta": 2.0, "gamma": 1.0, "cpo_alpha": 0.3}),
        ("cpo", {"beta": 0.1}),
        ("dpo", {"beta": 0.3, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.4]}),
    ],
)
def test_sft_terms_with_accumulation_equal_one_batch(stepping, name, section):
    """Compare responses of different lengths, 4 at once with 4 x 1."""
    one_batch = step(stepping(name, section, PAIRS))
    parts = stepping(name, section, PAIRS, per_device_train_batch_size=1)
    same(step(parts), one_batch)


def test_logged_loss_contains_the_weighted_sft_term(stepping):
    """Check that nll_loss of an accumulated step is the mean over its tokens."""
    losses_logged = []
    for size in (4, 1):
        case = stepping("orpo", {"lambda": 0.5}, PAIRS, per_device_train_batch_size=size)
        step(case)
        losses_logged.append(case.trainer.state.log_history[0]["nll_loss"])
    assert losses_logged[1] == pytest.approx(losses_logged[0], rel=1e-5)


@pytest.mark.parametrize(("name", "section"), [("orpo", {}), ("simpo", {"cpo_alpha": 0.5})])
def test_evaluation_after_accumulated_steps_is_unweighted(recipe_data, make_recipe, name, section):
    """Check that the weights of the micro-batches of the last step do not scale the eval loss."""
    recipe_data[name] = section
    recipe_data["training"] |= {"learning_rate": 1e-30, "per_device_train_batch_size": 2}
    recipe = make_recipe(recipe_data).recipe
    train(recipe, recipe.methods[name])
    first, last = (row for row in metric_rows(recipe.output_dir) if "eval_loss" in row)
    assert last["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-6)
