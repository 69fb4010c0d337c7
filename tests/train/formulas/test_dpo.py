"""Every pairwise loss of trl's DPO trainer, as its paper writes it.

Throughout, w and l are log(pi/ref) of the chosen and the rejected completion, summed over its
tokens and given the prompt, whose own tokens do not count.
"""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from prefcli.methods.dpo import PairLoss
from tests.support.formula_cases import mean, total
from tests.support.oracle import log_sigmoid

BETA = 0.3
EPSILON = 0.1
# A sum of n log-probabilities is known to float32's spacing at its size, 4e-6 between 32 and 64.
# Losses that exponentiate or magnify it (forward_kl, discopop) get shorter rows.
SHORT = [
    {"prompt": "say red blue", "chosen": " big small", "rejected": " no"},
    {"prompt": "say yes", "chosen": " dog", "rejected": " cat sun"},
    {"prompt": "say please dog sun cat", "chosen": " kind", "rejected": " rude no"},
    {"prompt": "say", "chosen": " sun cat", "rejected": " red"},
]
# Sides of one length: their margins lie close, so that training changes the order of the rows.
EVEN = [
    {"prompt": "say red", "chosen": " big small kind", "rejected": " kind big small"},
    {"prompt": "say", "chosen": " dog cat", "rejected": " cat dog"},
    {"prompt": "say sun", "chosen": " rude no please", "rejected": " please rude no"},
    {"prompt": "say blue", "chosen": " green yes", "rejected": " yes green"},
]

# Under LoRA the reference is the policy without its adapter, so the same formulas hold.
both = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


@both
def test_dpo_sigmoid_matches_the_formula(build, lora):
    """DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7)."""
    case = build("dpo", {"beta": BETA}, lora=lora)
    pairs = case.pairs()
    case.agrees(-log_sigmoid(BETA * (pairs.w - pairs.l)).mean())


@both
def test_dpo_hinge_matches_the_formula(build, lora):
    """RSO's hinge-norm loss (Liu et al. 2023, arXiv:2309.06657); the hinge is SLiC's
    (Zhao et al. 2023, arXiv:2305.10425, sec. 2)."""
    case = build("dpo", {"beta": BETA, "loss_type": "hinge"}, lora=lora)
    pairs = case.pairs()
    margin = 1 - BETA * (pairs.w - pairs.l)
    case.agrees(torch.where(margin > 0, margin, 0.0).mean())


def test_dpo_hinge_beyond_the_margin_is_zero(build):
    """The same, where a large beta puts some pairs past 1 and leaves others short of it."""
    case = build("dpo", {"beta": 3.0, "loss_type": "hinge"})
    pairs = case.pairs()
    margin = 1 - 3.0 * (pairs.w - pairs.l)
    assert (margin > 0).any()
    assert (margin < 0).any()
    case.agrees(torch.where(margin > 0, margin, 0.0).mean())


@both
def test_dpo_robust_matches_the_formula(build, lora):
    """Robust DPO (Chowdhury et al. 2024, arXiv:2403.00409): DPO's loss freed of the bias of
    labels that are swapped at the rate epsilon."""
    section = {"beta": BETA, "loss_type": "robust", "label_smoothing": EPSILON}
    case = build("dpo", section, lora=lora)
    pairs = case.pairs()
    right = -log_sigmoid(BETA * (pairs.w - pairs.l))
    swapped = -log_sigmoid(BETA * (pairs.l - pairs.w))
    case.agrees((((1 - EPSILON) * right - EPSILON * swapped) / (1 - 2 * EPSILON)).mean())


@pytest.mark.parametrize("epsilon", [0.1, 1e-3])
def test_dpo_exo_pair_matches_the_formula(build, epsilon):
    """EXO (Ji et al. 2024, arXiv:2402.00856, eq. 16): KL from the policy's preference to the
    labels', which are 1 - epsilon and epsilon."""
    section = {"beta": BETA, "loss_type": "exo_pair", "label_smoothing": epsilon}
    case = build("dpo", section)
    pairs = case.pairs()
    policy = torch.softmax(BETA * torch.stack([pairs.w, pairs.l]), 0)
    labels = torch.tensor([[1 - epsilon], [epsilon]], dtype=torch.float64)
    case.agrees((policy * (policy.log() - labels.log())).sum(0).mean())


@both
def test_dpo_nca_pair_matches_the_formula(build, lora):
    """NCA for two answers, the better with reward 1 and weight 1 (Chen et al. 2024,
    arXiv:2402.05369, the preference form of its NCA loss)."""
    case = build("dpo", {"beta": BETA, "loss_type": "nca_pair"}, lora=lora)
    pairs = case.pairs()
    absolute = log_sigmoid(-BETA * pairs.w) + log_sigmoid(-BETA * pairs.l)
    case.agrees(-(log_sigmoid(BETA * pairs.w) + absolute / 2).mean())


def test_dpo_bco_pair_matches_the_formula(build):
    """BCO's binary cross-entropy (Jung et al. 2024, arXiv:2404.04656) with its reward shift
    at 0: trl keeps no running mean of the rewards in this trainer."""
    case = build("dpo", {"beta": BETA, "loss_type": "bco_pair"})
    pairs = case.pairs()
    case.agrees(-(log_sigmoid(BETA * pairs.w) + log_sigmoid(-BETA * pairs.l)).mean())


def test_dpo_sppo_hard_matches_the_formula(build):
    """SPPO (Wu et al. 2024, arXiv:2405.00675, eq. 4.7) with win rates of 1 and 0, and beta in
    the place of 1/eta."""
    case = build("dpo", {"beta": BETA, "loss_type": "sppo_hard"})
    pairs = case.pairs()
    winner = (pairs.w - (1 - 0.5) / BETA) ** 2
    loser = (pairs.l - (0 - 0.5) / BETA) ** 2
    case.agrees((winner + loser).mean())


def _violation(apart, epsilon):
    return -(1 - epsilon) * log_sigmoid(BETA * apart) - epsilon * log_sigmoid(-BETA * apart)


@pytest.mark.parametrize("epsilon", [0.0, EPSILON])
def test_dpo_aot_matches_the_formula(build, epsilon):
    """Paired AOT (Melnyk et al. 2024, arXiv:2406.05882): the quantiles of the policy's margins
    against those of the reference's, within the device batch; cDPO's smoothing on top."""
    section = {"beta": BETA, "loss_type": "aot", "label_smoothing": epsilon}
    case = build("dpo", section, EVEN)
    pairs = case.pairs()
    policy = total(pairs.chosen) - total(pairs.rejected)
    reference = total(pairs.chosen_reference) - total(pairs.rejected_reference)
    assert policy.argsort().tolist() != reference.argsort().tolist()  # sorting does something
    case.agrees(_violation(policy.sort().values - reference.sort().values, epsilon).mean())


@pytest.mark.parametrize("epsilon", [0.0, EPSILON])
def test_dpo_aot_unpaired_matches_the_formula(build, epsilon):
    """Unpaired AOT (Melnyk et al. 2024, arXiv:2406.05882): the quantiles of the chosen rewards
    against those of the rejected, within the device batch."""
    section = {"beta": BETA, "loss_type": "aot_unpaired", "label_smoothing": epsilon}
    case = build("dpo", section)
    pairs = case.pairs()
    assert pairs.w.argsort().tolist() != pairs.l.argsort().tolist()
    case.agrees(_violation(pairs.w.sort().values - pairs.l.sort().values, epsilon).mean())


@both
def test_dpo_apo_zero_matches_the_formula(build, lora):
    """APO-zero (D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7), lifted by 1."""
    case = build("dpo", {"beta": BETA, "loss_type": "apo_zero"}, lora=lora)
    pairs = case.pairs()
    paper = -torch.sigmoid(BETA * pairs.w) + torch.sigmoid(BETA * pairs.l)
    case.agrees((paper + 1).mean())


def test_dpo_apo_down_matches_the_formula(build):
    """APO-down (D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 8), lifted by 1."""
    case = build("dpo", {"beta": BETA, "loss_type": "apo_down"})
    pairs = case.pairs()
    paper = torch.sigmoid(BETA * pairs.w) - torch.sigmoid(BETA * (pairs.w - pairs.l))
    case.agrees((paper + 1).mean())


@pytest.mark.parametrize("tau", [None, 1.0])
def test_dpo_discopop_matches_the_formula(build, tau):
    """DiscoPOP's log-ratio modulated loss (Lu et al. 2024, arXiv:2406.08414, eq. 5), whose
    tau is 0.05."""
    section = {"beta": 0.1, "loss_type": "discopop"} | ({"discopop_tau": tau} if tau else {})
    case = build("dpo", section, SHORT)
    pairs = case.pairs()
    margin = 0.1 * (pairs.w - pairs.l)
    blend = torch.sigmoid(margin / (tau or 0.05))
    case.agrees(((1 - blend) * -log_sigmoid(margin) + blend * torch.exp(-margin)).mean())


@both
def test_dpo_sigmoid_norm_matches_the_formula(build, lora):
    """Length-normalised DPO as in Tulu 3 (Lambert et al. 2024, arXiv:2411.15124), from SimPO's
    ablations (arXiv:2405.14734, app. I): means over the tokens in the place of sums."""
    case = build("dpo", {"beta": BETA, "loss_type": "sigmoid_norm"}, lora=lora)
    pairs = case.pairs()
    w = mean(pairs.chosen) - mean(pairs.chosen_reference)
    l_ = mean(pairs.rejected) - mean(pairs.rejected_reference)
    case.agrees(-log_sigmoid(BETA * (w - l_)).mean())


@both
def test_dpo_sigmoid_with_sft_matches_the_formula(build, lora):
    """RPO (Pang et al. 2024, arXiv:2404.19733, eq. 1), DPO with an NLL term on the chosen side.

    The paper divides the NLL by each answer's length; trl takes the mean over all chosen tokens
    of the device batch, where long answers weigh more.
    """
    section = {"beta": BETA, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.4]}
    case = build("dpo", section, lora=lora)
    pairs = case.pairs()
    nll = -torch.cat(pairs.chosen).mean()
    assert float(nll) != pytest.approx(-float(mean(pairs.chosen).mean()), rel=5e-5)
    case.agrees(-log_sigmoid(BETA * (pairs.w - pairs.l)).mean() + 0.4 * nll)


def test_dpo_three_losses_match_the_weighted_formulas(build):
    """A weighted sum, as in MPO (Wang et al. 2024, arXiv:2411.10442), each loss as above."""
    section = {
        "beta": BETA,
        "loss_type": ["sigmoid", "bco_pair", "sft"],
        "loss_weights": [0.8, 0.2, 1.0],
    }
    case = build("dpo", section)
    pairs = case.pairs()
    sigmoid = -log_sigmoid(BETA * (pairs.w - pairs.l)).mean()
    bco = -(log_sigmoid(BETA * pairs.w) + log_sigmoid(-BETA * pairs.l)).mean()
    case.agrees(0.8 * sigmoid + 0.2 * bco - torch.cat(pairs.chosen).mean())


def test_dpo_loss_weights_default_to_one(build):
    """DPO (arXiv:2305.18290, eq. 7) and RSO's hinge-norm (arXiv:2309.06657), added up."""
    case = build("dpo", {"beta": BETA, "loss_type": ["sigmoid", "hinge"]})
    pairs = case.pairs()
    margin = BETA * (pairs.w - pairs.l)
    case.agrees((-log_sigmoid(margin) + torch.relu(1 - margin)).mean())


def test_dpo_truncated_rows_match_the_formula(build):
    """DPO (arXiv:2305.18290, eq. 7) over the tokens that max_length leaves of either side."""
    case = build("dpo", {"beta": BETA}, max_length=12)
    full, pairs = case.pairs(max_length=64), case.pairs()
    cut = [a != b for a, b in zip(full.lengths, pairs.lengths, strict=True)]
    assert any(cut)
    assert not all(cut)
    case.agrees(-log_sigmoid(BETA * (pairs.w - pairs.l)).mean())


def _all_shortened(pairs, alpha):
    """Return log p of each side up to the length of the shorter one, plus alpha times the rest."""
    sides = (pairs.chosen, pairs.rejected, pairs.chosen_reference, pairs.rejected_reference)
    return [
        torch.stack(
            [
                row[: min(both_sides)].sum() + alpha * row[min(both_sides) :].sum()
                for row, both_sides in zip(rows, pairs.lengths, strict=True)
            ]
        )
        for rows in sides
    ]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@both
def test_dpo_ld_alpha_matches_the_formula(build, alpha, lora):
    """LD-DPO (Liu et al. 2024, arXiv:2409.06411): of the longer side, the tokens beyond the
    shorter one's length count alpha; at 1 it is DPO."""
    case = build("dpo", {"beta": BETA, "ld_alpha": alpha}, lora=lora)
    pairs = case.pairs()
    chosen, rejected, chosen_reference, rejected_reference = _all_shortened(pairs, alpha)
    margin = (chosen - chosen_reference) - (rejected - rejected_reference)
    assert torch.allclose(margin, pairs.w - pairs.l) == (alpha == 1.0)
    case.agrees(-log_sigmoid(BETA * margin).mean())


# f'(u) of the ratio u = pi/ref, up to constants, which cancel between the sides.
# The alpha is trl's, which is 1 less the paper's: at 1 it is the reverse KL, at 0 the forward.
# The paper's lies between 0 and 1; trl takes others too.
F_PRIME = {
    "reverse_kl": lambda u, alpha: torch.log(u),
    "forward_kl": lambda u, alpha: -1 / u,
    "js_divergence": lambda u, alpha: torch.log(2 * u / (1 + u)),
    "alpha_divergence": lambda u, alpha: (1 - u ** -(1 - alpha)) / (1 - alpha),
}


@pytest.mark.parametrize(
    ("kind", "alpha"),
    [
        ("reverse_kl", None),
        ("forward_kl", None),
        ("js_divergence", None),
        ("alpha_divergence", 0.3),
        ("alpha_divergence", 0.7),
        ("alpha_divergence", 0.9),
    ],
)
@both
def test_dpo_f_divergence_matches_the_formula(build, kind, alpha, lora):
    """f-DPO (Wang et al. 2023, arXiv:2309.16240, table 1 and the loss built on it)."""
    section = {"beta": BETA, "f_divergence_type": kind}
    if alpha is not None:
        section["f_alpha_divergence_coef"] = alpha
    case = build("dpo", section, SHORT, lora=lora)
    pairs = case.pairs()
    w, l_ = (F_PRIME[kind](torch.exp(side), alpha) for side in (pairs.w, pairs.l))
    case.agrees(-log_sigmoid(BETA * (w - l_)).mean())


def test_dpo_alpha_divergence_of_one_is_reverse_kl(build):
    """The limit of f-DPO's alpha-divergence (arXiv:2309.16240, table 1), and DPO's eq. 7."""
    section = {
        "beta": BETA,
        "f_divergence_type": "alpha_divergence",
        "f_alpha_divergence_coef": 1.0,
    }
    case = build("dpo", section)
    pairs = case.pairs()
    case.agrees(-log_sigmoid(BETA * (pairs.w - pairs.l)).mean())


@pytest.mark.parametrize("loss", ["hinge", "robust", "exo_pair", "discopop", "ipo", "sigmoid_norm"])
def test_dpo_f_divergence_in_other_losses_matches_the_formula(build, loss):
    """f-DPO's scores (arXiv:2309.16240) in the place of the log-ratios, in the losses above."""
    smoothing = {"label_smoothing": EPSILON} if loss in ("robust", "exo_pair") else {}
    section = {"beta": BETA, "loss_type": loss, "f_divergence_type": "js_divergence"}
    case = build("dpo", section | smoothing, SHORT)
    pairs = case.pairs()
    w, l_ = (F_PRIME["js_divergence"](torch.exp(side), None) for side in (pairs.w, pairs.l))
    margin = BETA * (w - l_)
    chosen, rejected = torch.tensor(pairs.lengths, dtype=torch.float64).T
    normed = w / chosen - l_ / rejected
    blend = torch.sigmoid(margin / 0.05)
    right, swapped = -log_sigmoid(margin), -log_sigmoid(-margin)
    expected = {
        "hinge": torch.relu(1 - margin),
        "robust": ((1 - EPSILON) * right - EPSILON * swapped) / (1 - 2 * EPSILON),
        "exo_pair": torch.sigmoid(margin) * (-right - math.log(1 - EPSILON))
        + torch.sigmoid(-margin) * (-swapped - math.log(EPSILON)),
        "discopop": (1 - blend) * right + blend * torch.exp(-margin),
        "ipo": (normed - 1 / (2 * BETA)) ** 2,
        "sigmoid_norm": -log_sigmoid(BETA * normed),
    }
    case.agrees(expected[loss].mean())


@pytest.mark.parametrize("loss", ["apo_zero", "aot", "sppo_hard"])
def test_dpo_ld_alpha_in_other_losses_matches_the_formula(build, loss):
    """LD-DPO's likelihood (arXiv:2409.06411) in the place of the plain one, in the losses above."""
    case = build("dpo", {"beta": BETA, "loss_type": loss, "ld_alpha": 0.5})
    pairs = case.pairs()
    chosen, rejected, chosen_reference, rejected_reference = _all_shortened(pairs, 0.5)
    w, l_ = chosen - chosen_reference, rejected - rejected_reference
    reference = chosen_reference - rejected_reference
    expected = {
        "apo_zero": 1 - torch.sigmoid(BETA * w) + torch.sigmoid(BETA * l_),
        "aot": _violation((chosen - rejected).sort().values - reference.sort().values, 0.0),
        "sppo_hard": (w - 0.5 / BETA) ** 2 + (l_ + 0.5 / BETA) ** 2,
    }
    case.agrees(expected[loss].mean())


def test_every_dpo_loss_has_a_formula_test():
    """A loss that trl adds, and prefcli offers, needs its formula here (ipo: test_ipo.py)."""
    suffix = "_matches_the_formula"
    tested = {
        name.removeprefix("test_dpo_").removesuffix(suffix)
        for name in globals()
        if name.endswith(suffix)
    }
    assert set(get_args(PairLoss)) <= tested | {"ipo", "sft"}
