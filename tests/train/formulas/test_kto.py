"""KTO and its reference point."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.support.formula_cases import LABELLED

BETA = 0.3
GOOD, BAD = 1.5, 0.7
SECTION = {"beta": BETA, "desirable_weight": GOOD, "undesirable_weight": BAD}
both = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


def read(case, max_length=None):
    """Log-ratios of the rows, and of each prompt with the completion of the row before it."""
    rows, oracle = case.rows, case.oracle

    def ratio(prompt, completion):
        ids = oracle.ids(prompt, completion, max_length=max_length or case.max_length)
        return oracle.policy(*ids).sum() - oracle.reference(*ids).sum()

    return SimpleNamespace(
        reward=torch.stack([ratio(row["prompt"], row["completion"]) for row in rows]),
        label=torch.tensor([row["label"] for row in rows]),
        kl=torch.stack(
            [ratio(row["prompt"], rows[i - 1]["completion"]) for i, row in enumerate(rows)]
        ).detach(),
    )


def value(rewards, labels, z0):
    """lambda_y - v(x, y), arXiv:2402.01306, eq. 7."""
    good = GOOD * (1 - torch.sigmoid(BETA * (rewards - z0)))
    bad = BAD * (1 - torch.sigmoid(BETA * (z0 - rewards)))
    return torch.where(labels, good, bad).mean()


@pytest.mark.parametrize(
    ("lora", "seed", "positive"),
    [(False, 1, False), (False, 2, True), (True, 2, False), (True, 1, True)],
)
def test_kto_matches_the_formula(build, lora, seed, positive):
    """KTO (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7 and the estimate of z0 below it).

    z0 is the mean log-ratio of mismatched prompts and completions of the device batch, no less
    than 0, and no gradient passes through it. The paper takes the next row's completion, trl
    the row's before.
    """
    case = build("kto", SECTION, LABELLED, lora=lora, seed=seed)
    batch = read(case)
    assert (float(batch.kl.mean()) > 0) == positive
    assert set(batch.label.tolist()) == {True, False}
    case.agrees(value(batch.reward, batch.label, batch.kl.mean().clamp(min=0)))


def test_kto_with_equal_labels_in_a_batch_matches_the_formula(build):
    """arXiv:2402.01306, eq. 7, on the desirable and on the undesirable rows alone.

    The completions that z0 is estimated with are chosen before, in the batches of the data set,
    so they stay those of the whole batch.
    """
    case = build("kto", SECTION, LABELLED, seed=2)
    for label in (True, False):
        batch = read(case)
        at = [i for i, label_i in enumerate(batch.label.tolist()) if label_i == label]
        z0 = batch.kl[at].mean().clamp(min=0)
        case.agrees(value(batch.reward[at], batch.label[at], z0), case.batch(at))


@both
def test_kto_apo_zero_unpaired_matches_the_formula(build, lora):
    """APO-zero (D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7) taken apart into its two
    sides, without a reference point."""
    case = build("kto", SECTION | {"loss_type": "apo_zero_unpaired"}, LABELLED, lora=lora)
    batch = read(case)
    good = GOOD * (1 - torch.sigmoid(BETA * batch.reward))
    bad = BAD * torch.sigmoid(BETA * batch.reward)
    case.agrees(torch.where(batch.label, good, bad).mean())


def test_kto_truncated_rows_match_the_formula(build):
    """KTO (arXiv:2402.01306, eq. 7): the mismatched sequences are cut as the others are."""
    case = build("kto", SECTION, LABELLED, max_length=10, seed=2)
    batch, full = read(case), read(case, max_length=64)
    assert not torch.allclose(batch.reward, full.reward)
    assert not torch.allclose(batch.kl, full.kl)
    case.agrees(value(batch.reward, batch.label, batch.kl.mean().clamp(min=0)))
