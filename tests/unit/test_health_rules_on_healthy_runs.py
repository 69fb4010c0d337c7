"""Healthy runs: no rule reports more than a note, at any logging_steps."""

import pytest

from prefcli.health import RunContext
from prefcli.methods import Dpo, Sft
from tests.support.metric_rows import at, reported, rows

QLORA = RunContext(
    Dpo(beta=0.01),
    3821,
    382,
    batch=16,
    eval_rows=2000,
    starts_at_reference=True,
)


def evaluated(step, loss, accuracy, margin, chosen=None):
    return at(
        step,
        {
            "loss": loss,
            "rewards/accuracies": accuracy,
            "rewards/margins": margin,
            **({"rewards/chosen": chosen} if chosen is not None else {}),
        },
    )


@pytest.mark.parametrize(
    ("hundred", "two_hundred", "end"),
    [
        ((0.688, 0.62, 0.011), (0.671, 0.62, 0.05), (0.4877, 0.740, 1.09)),
        ((0.681, 0.66, 0.026), (0.635, 0.68, 0.15), (0.4757, 0.754, 1.30)),
    ],
)
def test_rules_on_qlora_zephyr_only_note_displacement(hundred, two_hundred, end):
    """Model cards of objects76, L1nkee, guoqiang-x, junweiliao and SF-Foundation: both ends."""

    def train(step):
        share = step / 3821
        return {
            "loss": 0.693 - 0.2 * share,
            "grad_norm": 5.0,
            "rewards/margins": end[2] * share,
            "rewards/accuracies": min(0.55 + 0.5 * share, 0.75),
            "rewards/chosen": -3.0 * share,
            "rewards/rejected": -4.2 * share,
            "tokens/chosen": 300.0,
            "tokens/rejected": 260.0,
        }

    start = {"loss": 0.693, "rewards/margins": 0.0, "rewards/accuracies": 0.0, "grad_norm": 4.0}
    stream = [
        *rows(382, train, start=start),
        evaluated(0, 0.693, 0.0, 0.0),
        evaluated(100, *hundred),
        evaluated(200, *two_hundred),
        evaluated(3821, *end),
    ]
    # -3 at beta 0.01 is 300 nats over 300 tokens: as far as published runs fall.
    assert reported(QLORA, stream) == [("displacement", "note")]


def test_rules_on_a_margin_of_0_011_by_step_100_are_silent():
    """The same, were its warm-up as short as 10 %, with 1600 pairs seen by then."""
    early = RunContext(
        Dpo(beta=0.01),
        300,
        30,
        batch=16,
        eval_rows=2000,
        starts_at_reference=True,
    )
    stream = [
        *rows(
            10,
            lambda step: {
                "loss": 0.69,
                "rewards/margins": 0.011 * step / 100,
                "rewards/accuracies": 0.62,
            },
        ),
        evaluated(0, 0.693, 0.0, 0.0),
        evaluated(100, 0.688, 0.62, 0.011),
    ]
    assert reported(early, stream) == []


SMOL = RunContext(
    Dpo(beta=0.5),
    956,
    96,
    batch=128,
    eval_rows=2000,
    starts_at_reference=True,
)


@pytest.mark.parametrize("every", [1, 10, 100])
def test_rules_on_smollm2_135m_are_silent(every):
    """The model card has 0.6741, 0.6151, 0.2687, -0.072 and -0.341 at the end, beta 0.5."""

    def train(step):
        share = step / 956
        return {
            "loss": 0.693 - 0.019 * share,
            "rewards/margins": 0.2687 * share,
            "rewards/accuracies": 0.52 + 0.1 * share,
            "rewards/chosen": -0.072 * share,
            "rewards/rejected": -0.341 * share,
            "tokens/chosen": 300.0,
            "tokens/rejected": 250.0,
        }

    start = {"loss": 0.693, "rewards/margins": 0.0, "rewards/accuracies": 0.0}
    stream = [
        *rows(956 // every, train, every=every, start=start),
        evaluated(0, 0.693, 0.0, 0.0),
        evaluated(956, 0.6741, 0.6151, 0.2687),
    ]
    assert reported(SMOL, stream) == []


@pytest.mark.parametrize(
    ("scale", "batch", "margin", "accuracy", "loss"),
    [
        (0.1, 32, 3.796, 0.7813, 0.7496),  # zephyr-7b-beta, all_results.json
        (0.01, 128, 1.12, 0.770, 0.4983),  # RikkiXu, abgoswam
        (0.05, 128, 0.59, 0.7708, 0.5287),  # li-muyang's zephyr-gemma
        (0.2, 32, 4.11, 0.766, 0.7903),  # tianlinliu0121
        (0.5, 128, 0.5907, 0.6746, 0.5878),  # SmolLM2-1.7B
    ],
)
def test_rules_on_the_ends_of_published_runs_are_silent(scale, batch, margin, accuracy, loss):
    context = RunContext(
        Dpo(beta=scale),
        400,
        40,
        batch=batch,
        eval_rows=2000,
        starts_at_reference=True,
    )

    def train(step):
        share = step / 400
        return {
            "loss": 0.69 - 0.4 * share,
            "rewards/margins": margin * share,
            "rewards/accuracies": 0.6 + 0.35 * share,
            "tokens/chosen": 270.0,
            "tokens/rejected": 250.0,
        }

    stream = [
        *rows(40, train, start={"rewards/margins": 0.0, "rewards/accuracies": 0.0}),
        evaluated(0, 0.693, 0.0, 0.0),
        evaluated(400, loss, accuracy, margin),
    ]
    assert reported(context, stream) == []


def test_rules_on_the_quickstart_are_silent():
    """The dpo stage as measured: (step, loss, gradient norm, accuracy, margin)."""
    context = RunContext(
        Dpo(),
        120,
        12,
        batch=16,
        eval_rows=120,
        starts_at_reference=True,
    )
    figures = [
        (1, 0.6931, 0.92, 0.0, 0.0),
        (10, 0.6899, 0.95, 0.743, 0.0066),
        (20, 0.6682, 1.05, 0.956, 0.0509),
        (40, 0.5777, 0.94, 0.9875, 0.2502),
        (60, 0.4732, 1.34, 0.994, 0.528),
        (80, 0.3315, 1.33, 1.0, 1.0015),
        (100, 0.2359, 1.18, 1.0, 1.422),
        (120, 0.2102, 1.01, 1.0, 1.5543),
    ]
    stream = [
        {
            "step": step,
            "loss": loss,
            "grad_norm": norm,
            "rewards/accuracies": accuracy,
            "rewards/margins": margin,
            "rewards/chosen": margin / 10,
            "rewards/rejected": -margin * 0.9,
            "tokens/chosen": 12.0,
            "tokens/rejected": 10.0,
        }
        for step, loss, norm, accuracy, margin in figures
    ]
    stream += [evaluated(0, 0.6931, 0.0, 0.0), evaluated(120, 0.2422, 1.0, 1.3811)]
    assert reported(context, stream) == []


def test_rules_on_sft_from_random_weights_are_silent():
    """The quickstart's: the loss falls from 7.4 to 0.3."""
    context = RunContext(Sft(), 606, 61, batch=16, eval_rows=100)
    stream = rows(12, lambda step: {"loss": 7.4 / (1 + step / 30), "grad_norm": 2.0}, every=50)
    stream += [at(0, {"loss": 7.42}), at(606, {"loss": 0.389})]
    assert reported(context, stream) == []


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("count", [2, 7, 30, 60])
def test_rules_on_runs_of_a_few_steps_are_silent(count, every):
    """Batches of 4 pairs whose figures jump about."""
    context = RunContext(
        Dpo(),
        count,
        count // 10,
        batch=4,
        eval_rows=8,
        starts_at_reference=True,
    )

    def train(step):
        up = step % 3 - 1  # -1, 0, 1
        return {
            "loss": 0.69 + 0.1 * up,
            "grad_norm": 5.0 + 4 * up,
            "rewards/margins": 0.02 + 0.2 * up,
            "rewards/accuracies": 0.5 + 0.25 * up,
            "rewards/chosen": 0.1 * up,
            "rewards/rejected": -0.1 * up,
            "logps/chosen_per_token": -1.0 + 0.4 * up,
            "logps/rejected_per_token": -1.0 - 0.4 * up,
            "tokens/chosen": 40.0,
            "tokens/rejected": 30.0,
        }

    stream = [
        *rows(count // every, train, every=every),
        evaluated(0, 0.693, 0.0, 0.0),
        evaluated(count, 0.71, 0.375, -0.02),
    ]
    assert reported(context, stream) == []
