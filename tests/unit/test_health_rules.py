"""Each rule: rows that make it speak, and rows that nearly do. The figures are made by hand."""

import pytest

from prefcli.health import RunContext
from prefcli.methods import Dpo, Ipo, Kto, Orpo, Sft, Simpo
from tests.support.metric_rows import at, rows, told, watch

DPO = RunContext(Dpo(), 300, 30, batch=32, starts_at_reference=True)
IPO = RunContext(Ipo(), 300, 30, batch=32, starts_at_reference=True)
KTO = RunContext(Kto(), 300, 30, batch=32, starts_at_reference=True)
ORPO = RunContext(Orpo(), 300, 30, batch=32)
SIMPO = RunContext(Simpo(), 300, 30, batch=32)
SFT = RunContext(Sft(), 300, 30, batch=32)


# --- finite


@pytest.mark.parametrize("key", ["loss", "grad_norm", "logps/chosen", "rewards/rejected"])
def test_a_lost_number_stops(key):
    assert told(DPO, [{"step": 10, "loss": 0.7, key: None}]) == [("finite", "stop")]


def test_a_lost_eval_loss_stops_and_says_so():
    (advice,) = watch(DPO, [{"step": 10, "eval_loss": float("nan"), "eval_logps/chosen": None}])
    assert str(advice) == (
        "eval_loss, eval_logps/chosen are not finite: the step was too large, or a row is broken; "
        "the weights are lost; lower training.learning_rate, and look for broken rows with "
        "--dry-run"
    )


@pytest.mark.parametrize(
    ("facts", "row"),
    [
        (DPO, {"loss": 0.7, "perplexity": None}),  # exp of a large finite number
        (DPO, {"loss": 0.7, "rewards/margins_chosen_longer": None}),
        (RunContext(Dpo(), 300, fp16=True), {"loss": 0.7, "grad_norm": None}),
        (DPO, {"loss": 1e300}),
        (DPO, {"eval_runtime": None, "eval_loss": 0.7}),
    ],
)
def test_other_lost_numbers_do_not(facts, row):
    assert told(facts, [{"step": 10, **row}]) == []


# --- collapse


def test_50_nats_a_token_stop():
    (advice,) = watch(DPO, [{"step": 40, "logps/rejected_per_token": -50.3}])
    assert (advice.check, advice.level) == ("collapse", "stop")
    assert "-50.3 nats a token" in advice.seen
    assert "raise dpo.beta" in advice.change
    assert "dpo.loss_type: [sigmoid, sft]" in advice.change


def test_49_do_not():
    assert told(DPO, [{"step": 40, "logps/rejected_per_token": -49.9}]) == []


def test_an_evaluation_below_the_floor_stops_too():
    stream = [at(0, {"logps/rejected_per_token": -1.2}), at(40, {"logps/rejected_per_token": -61})]
    assert told(ORPO, stream) == [("collapse", "stop")]


def test_the_floor_is_the_recipes():
    row = [{"step": 40, "logps/rejected_per_token": -30.0}]
    assert told(DPO, row, collapse={"floor": 29.0, "level": "warn"}) == [("collapse", "warn")]


def test_chosen_off_a_cliff_warns_and_is_not_told_twice():
    # ipo at beta 0.1: chosen rewards of -35 are -350 nats over 100 tokens, 3.5 nats a token.
    metrics = {"rewards/chosen": -35.0, "tokens/chosen": 100.0}
    (advice,) = watch(IPO, rows(3, metrics))
    assert (advice.check, advice.level) == ("collapse", "warn")
    assert "chosen responses lost 3.5 nats a token (against the start)" in advice.seen
    assert "raise ipo.beta" in advice.change


def test_rejected_off_a_cliff_warns():
    # Without a reference, and with the same rows at each evaluation: -1 to -11.5 nats a token.
    first = {"logps/chosen_per_token": -1.0, "logps/rejected_per_token": -1.0}
    last = {"logps/chosen_per_token": -1.0, "logps/rejected_per_token": -11.5}
    (advice,) = watch(SIMPO, [at(0, first), at(100, last)])
    assert (advice.check, advice.level) == ("collapse", "warn")
    assert "rejected responses lost 10.5 nats a token (on data.eval" in advice.seen
    assert "simpo.cpo_alpha" in advice.change


def test_a_published_fall_is_no_collapse():
    # Rejected -3 nats a token more than chosen -0.9: far beyond what is published, and no cliff.
    metrics = {
        "rewards/chosen": -18.0,
        "tokens/chosen": 200.0,
        "rewards/rejected": -60.0,
        "tokens/rejected": 200.0,
    }
    assert told(DPO, rows(3, metrics)) == [("displacement", "note")]


# --- displacement


def fall(nats, tokens=250.0, scale=0.1):
    """Rewards of chosen responses that have lost so much a token."""
    return {"rewards/chosen": -nats * tokens * scale, "tokens/chosen": tokens}


@pytest.mark.parametrize(
    ("nats", "levels"),
    [(0.0, []), (-0.5, []), (0.29, []), (0.31, ["note"]), (0.99, ["note"]), (1.01, ["warn"])],
)
def test_displacement_against_the_reference(nats, levels):
    assert told(DPO, rows(4, fall(nats))) == [("displacement", level) for level in levels]


def test_zephyr_is_a_note():
    # RikkiXu's and abgoswam's reproductions of zephyr-7b-dpo: chosen from -283 to -511 at beta
    # 0.01, over 250 to 300 tokens: rewards of -2.28.
    zephyr = RunContext(Dpo(beta=0.01), 478, 48, batch=128, starts_at_reference=True)
    metrics = {"rewards/chosen": -2.28, "tokens/chosen": 270.0, "rewards/rejected": -3.4}
    (advice,) = watch(zephyr, rows(4, {**metrics, "tokens/rejected": 250.0}))
    assert (advice.check, advice.level) == ("displacement", "note")
    assert advice.seen == (
        "chosen responses lost 0.84 nats a token, rejected ones 1.36 (against the start)"
    )
    assert "normal for dpo" in advice.means


def test_it_gets_louder_once_and_never_stops():
    stream = [
        *rows(1, fall(0.4)),
        *({"step": 10 * i, **fall(0.1 * i)} for i in range(2, 29)),
    ]
    said = [x for x in told(DPO, stream) if x[0] == "displacement"]
    assert said == [("displacement", "note"), ("displacement", "warn")]


def test_displacement_without_a_reference_is_of_the_same_rows():
    first = {"logps/chosen_per_token": -0.9}
    note = at(100, {"logps/chosen_per_token": -1.25})
    near = at(100, {"logps/chosen_per_token": -1.15})
    assert told(ORPO, [at(0, first), note]) == [("displacement", "note")]
    assert told(ORPO, [at(0, first), near]) == []
    assert told(ORPO, [at(20, first), note]) == []  # no evaluation of the start


def test_displacement_of_different_rows_needs_many():
    first, last = {"logps/chosen_per_token": -1.0}, {"logps/chosen_per_token": -2.2}
    assert told(SIMPO, rows(3, last, start=first)) == []  # two rows hold the 64 pairs of the start
    big = RunContext(Simpo(), 300, 30, batch=64)
    (advice,) = watch(big, rows(3, last, start=first))
    assert (advice.check, advice.level) == ("displacement", "warn")
    assert "1.20 nats a token (against the first steps)" in advice.seen


# --- margin


@pytest.mark.parametrize(("margin", "speaks"), [(4.1, False), (19.0, False), (21.0, True)])
def test_reward_margin(margin, speaks):
    stream = rows(3, {"rewards/margins": margin})
    assert told(DPO, stream) == ([("margin", "warn")] if speaks else [])


def test_a_single_batch_is_not_enough():
    stream = rows(9, lambda step: {"rewards/margins": 60.0 if step == 5 else 2.0}, every=1)
    assert told(DPO, stream) == []


def test_a_small_beta_hides_it():
    # beta 0.001: a reward margin of 1 is 1000 nats, 5 a token.
    facts = RunContext(Dpo(beta=0.001), 300, 30, batch=32, starts_at_reference=True)
    lengths = {"tokens/chosen": 220.0, "tokens/rejected": 180.0}
    (advice,) = watch(facts, rows(3, {"rewards/margins": 1.0, **lengths}))
    assert (advice.check, advice.level) == ("margin", "warn")
    assert advice.seen == "margin of 5.0 nats a token (reward margin 1)"
    assert "beta is too low" in advice.means
    assert advice.change == "raise dpo.beta, or lower training.learning_rate"
    assert told(facts, rows(3, {"rewards/margins": 0.7, **lengths})) == []


def test_rewards_of_ipo_are_no_measure():
    # trl logs beta times the sum: the target of beta 1, 0.5 nats a token, is 150 over 300 tokens.
    ipo = RunContext(Ipo(beta=1.0), 300, 30, starts_at_reference=True)
    lengths = {"tokens/chosen": 300.0, "tokens/rejected": 300.0}
    assert told(ipo, rows(3, {"rewards/margins": 150.0, **lengths})) == []


def test_simpo_rewards_are_means():
    assert told(SIMPO, rows(3, {"rewards/margins": 7.9})) == []  # 3.95 nats a token
    assert told(SIMPO, rows(3, {"rewards/margins": 8.1})) == [("margin", "warn")]


def test_orpo_has_a_lambda():
    (advice,) = watch(ORPO, rows(3, {"rewards/margins": 0.5}))
    assert "lambda is too high" in advice.means
    assert advice.change.startswith("lower orpo.lambda")


# --- flat


def test_no_margin_long_after_warm_up():
    stream = rows(12, {"rewards/margins": 2e-4})
    (advice,) = watch(DPO, stream)
    assert (advice.check, advice.level, advice.step) == ("no_learning", "warn", 60)
    assert advice.seen == "reward margin 0.0002, the mean of 30 steps after warm-up"
    assert "lower dpo.beta" in advice.change


@pytest.mark.parametrize(
    ("count", "margin"),
    [
        (12, 2e-3),  # it moves
        (5, 2e-4),  # 20 steps after warm-up
        (12, -2e-3),  # the wrong way: no matter of nothing learnt
    ],
)
def test_not_flat(count, margin):
    assert told(DPO, rows(count, {"rewards/margins": margin})) == []


@pytest.mark.parametrize(("every", "count"), [(1, 80), (100, 2)])
def test_flat_whatever_logging_steps(every, count):
    assert told(DPO, rows(count, {"rewards/margins": 0.0}, every=every)) == [
        ("no_learning", "warn")
    ]


def test_flat_by_the_eval_loss():
    assert told(SIMPO, [at(0, {"loss": 1.2}), at(70, {"loss": 1.2004})]) == [
        ("no_learning", "warn")
    ]
    assert told(SFT, [at(0, {"loss": 1.2}), at(300, {"loss": 1.1999})]) == [("no_learning", "warn")]


@pytest.mark.parametrize(
    ("step", "loss"),
    [(70, 1.19), (50, 1.2)],  # it fell; too early to tell
)
def test_not_flat_by_the_eval_loss(step, loss):
    assert told(SIMPO, [at(0, {"loss": 1.2}), at(step, {"loss": loss})]) == []


# --- accuracy


def labels(accuracy, margin=0.05):
    return {"rewards/accuracies": accuracy, "rewards/margins": margin}


@pytest.mark.parametrize(
    ("accuracy", "margin", "speaks"),
    [
        (0.50, 0.01, True),
        (0.56, 0.01, False),  # three sigmas of 1280 pairs reach 0.60
        (0.62, 0.05, False),
        (0.40, -0.05, True),
    ],
)
def test_chance(accuracy, margin, speaks):
    stream = rows(8, labels(accuracy, margin))
    assert told(DPO, stream) == ([("accuracy", "warn")] if speaks else [])


def test_what_chance_sounds_like():
    (advice,) = watch(DPO, rows(8, labels(0.5)))
    assert advice.step == 70  # 30 of warm-up, and 40 that hold 1000 pairs and more
    assert advice.seen == "accuracy 0.50 over the last 1280 train pairs"
    assert "labels are random" in advice.means


def test_below_chance():
    (advice,) = watch(DPO, rows(8, labels(0.4, -0.1)))
    assert "against its own labels" in advice.means


def test_ties_are_no_opposition():
    # In bfloat16 many log-probabilities are equal at first, and no tie counts as right.
    (advice,) = watch(DPO, rows(8, labels(0.3, 0.02)))
    assert "no better than chance" in advice.means


@pytest.mark.parametrize(
    ("facts", "stream"),
    [
        (DPO, rows(6, labels(0.5))),  # 960 pairs after warm-up
        (SIMPO, rows(30, labels(0.45))),  # begins anywhere
        (RunContext(Dpo(), 3000, 30, starts_at_reference=True), rows(50, labels(0.5))),  # 1/6 of it
        # Small batches: 30 steps of 4 pairs say nothing.
        (RunContext(Dpo(), 60, 6, batch=4, starts_at_reference=True), rows(6, labels(0.4, -0.1))),
    ],
)
def test_too_early_or_not_judged(facts, stream):
    assert told(facts, stream) == []


EVALUATED = RunContext(Dpo(), 300, 30, starts_at_reference=True, eval_rows=2000)


def test_swapped_columns_show_on_eval():
    stream = [*rows(8, labels(0.8, 0.5)), at(0, labels(0, 0)), at(80, labels(0.22, -0.4))]
    (advice,) = watch(EVALUATED, stream)
    assert advice.seen == "accuracy 0.22 on the 2000 pairs of data.eval"
    assert "swapped" in advice.means


def test_what_is_memorised_does_not_carry_over():
    stream = [*rows(8, labels(0.8, 0.5)), at(80, labels(0.5, 0.01))]
    (advice,) = watch(EVALUATED, stream)
    assert "does not carry over" in advice.means


def test_few_eval_rows_prove_nothing():
    few = RunContext(Dpo(), 300, 30, starts_at_reference=True, eval_rows=16)
    assert told(few, [at(80, labels(0.44, -0.01))]) == []
    assert told(EVALUATED, [at(80, labels(0.615, 0.27))]) == []  # SmolLM2-135M's at its end


def test_nothing_moved_is_told_once():
    stream = rows(20, {"rewards/accuracies": 0.0, "rewards/margins": 0.0})
    assert told(DPO, stream) == [("no_learning", "warn")]
    assert told(DPO, stream, no_learning="off") == [("accuracy", "warn")]


# --- saturation


def test_all_right_for_long():
    stream = rows(14, labels(1.0, 3.0))
    (advice,) = watch(DPO, stream)
    assert (advice.check, advice.level, advice.step) == ("saturation", "warn", 130)
    assert advice.seen == "accuracy 1.000 over the last 4128 train pairs"


def test_easy_pairs_are_a_note():
    stream = [*rows(14, labels(1.0, 3.0)), at(0, labels(0.0, 0.0)), at(125, labels(0.98, 2.5))]
    assert told(DPO, stream) == [("saturation", "note")]
    stream = [*rows(14, labels(1.0, 3.0)), at(0, labels(0.0, 0.0)), at(125, labels(0.8, 2.5))]
    assert told(DPO, stream) == [("saturation", "warn")]


@pytest.mark.parametrize(
    "stream",
    [
        rows(30, labels(0.99, 3.0)),
        rows(12, labels(1.0, 3.0)),  # 3840 pairs
        rows(30, lambda step: labels(0.9 if step % 100 == 0 else 1.0, 3.0)),
    ],
)
def test_not_yet_saturated(stream):
    assert told(DPO, stream) == []


def test_an_exploding_margin_says_it_already():
    assert told(DPO, rows(30, labels(1.0, 25.0))) == [("margin", "warn")]


# --- gradient


def norms(spikes, usual=1.0, high=30.0):
    return rows(60, lambda step: {"grad_norm": high if step in spikes else usual})


def test_a_spike_is_a_note_three_are_a_warning():
    (advice,) = watch(DPO, norms({400}))
    assert (advice.check, advice.level, advice.step) == ("gradient", "note", 400)
    assert advice.seen == "gradient norm 30 at step 400, median 1"
    said = watch(DPO, norms({400, 420, 450}))
    assert [(a.level, a.step) for a in said] == [("note", 400), ("warn", 450)]
    assert "3 such spikes" in said[1].seen


@pytest.mark.parametrize(
    "stream",
    [
        norms({400}, high=9.0),
        norms({1, 10, 20}),  # within the warm-up
        norms({50}),  # two rows after it: no median yet
        norms(set(), usual=0.0),
        # All but learnt: hard pairs stand out, yet below what was usual before.
        rows(60, lambda step: {"grad_norm": 1.0 if step < 400 or step == 500 else 0.01}),
    ],
)
def test_no_spike(stream):
    assert told(DPO, stream) == []


# --- length


def split(longer, shorter):
    return {
        "rewards/accuracies_chosen_longer": longer,
        "rewards/accuracies_chosen_shorter": shorter,
        "rewards/margins_chosen_longer": 1.2,
        "rewards/margins_chosen_shorter": -0.2,
    }


def test_shorter_answers_lose():
    (advice,) = watch(DPO, [x for x in rows(14, split(0.9, 0.35)) if x["step"] <= 80])
    assert (advice.check, advice.level) == ("length", "warn")
    assert advice.seen == (
        "accuracy 0.90 where chosen is longer, 0.35 where it is shorter (margins 1.2 and -0.2)"
    )
    assert "sigmoid_norm" in advice.change


def test_a_gap_is_a_note():
    assert told(DPO, rows(14, split(0.95, 0.55))) == [("length", "note")]


@pytest.mark.parametrize(
    ("facts", "stream"),
    [
        (DPO, rows(14, split(0.85, 0.6))),  # 0.25, and chance
        (DPO, rows(6, split(0.9, 0.3))),  # 960 pairs after warm-up
        (DPO, rows(30, {"rewards/accuracies_chosen_longer": 0.9})),  # all chosen are longer
        (DPO, rows(30, split(0.6, 0.9))),
        (SIMPO, rows(30, split(0.8, 0.7))),
    ],
)
def test_no_length(facts, stream):
    assert told(facts, stream) == []


# --- kto_kl


def kl(value):
    return {"kl": value, "rewards/margins": 0.2}


def test_kl_that_never_was():
    (advice,) = watch(KTO, rows(9, kl(0.0)))
    assert (advice.check, advice.level, advice.step) == ("kto_kl", "warn", 80)
    assert advice.seen == "kl is 0 in all 80 steps"
    assert "per_device_train_batch_size of 4 or more" in advice.change


@pytest.mark.parametrize(
    ("facts", "stream"),
    [
        (KTO, rows(7, kl(0.0))),  # 40 steps after warm-up
        (KTO, rows(9, lambda step: kl(0.01 if step == 80 else 0.0))),
        # The quickstart's: it leaves 0, and comes back to stay.
        (KTO, rows(20, lambda step: kl(0.02 if step < 40 else 0.0))),
        (
            RunContext(Kto(loss_type="apo_zero_unpaired"), 300, 30, starts_at_reference=True),
            rows(9, kl(0.0)),
        ),  # apo_zero_unpaired
    ],
)
def test_kl_that_works(facts, stream):
    assert told(facts, stream) == []


def test_without_a_margin_kl_is_0_by_nature():
    assert told(KTO, rows(12, {"kl": 0.0, "rewards/margins": 1e-5})) == [("no_learning", "warn")]


# --- orpo_odds


def odds(value):
    return {"log_odds_chosen": value}


def test_odds_that_do_not_rise():
    (advice,) = watch(ORPO, rows(10, odds(-0.2)))
    assert (advice.check, advice.level, advice.step) == ("orpo_odds", "warn", 70)
    assert advice.seen == "log odds -0.200, the mean of 40 steps; -0.200 at the start"
    assert "orpo.lambda" in advice.change


@pytest.mark.parametrize(
    ("facts", "stream"),
    [
        (ORPO, rows(10, odds(0.05))),
        (ORPO, rows(10, lambda step: odds(-0.8 + step / 100))),  # below 0, and rising
        (ORPO, rows(5, odds(-0.2))),
        (RunContext(Orpo(), 2000, 30), rows(30, odds(-0.2))),  # 15 % of the run
    ],
)
def test_odds_that_may_yet(facts, stream):
    assert told(facts, stream) == []


# --- overfitting


def evaluations(losses, accuracies=None):
    return [
        at(
            100 * i,
            {"loss": loss}
            | ({"rewards/accuracies": accuracies[i], "rewards/margins": 1.0} if accuracies else {}),
        )
        for i, loss in enumerate(losses)
    ]


FALLING = rows(60, lambda step: {"loss": 2.0 - step / 400})
RISING = rows(60, lambda step: {"loss": 1.0 + step / 400})


def test_eval_rises_while_train_falls():
    (advice,) = watch(SFT, [*FALLING, *evaluations([2.0, 1.5, 1.52, 1.56, 1.6])])
    assert (advice.check, advice.level, advice.step) == ("overfitting", "warn", 400)
    assert advice.seen == (
        "eval loss 1.6, after its best of 1.5 at step 100, while the train loss falls"
    )
    assert "step 100" in advice.change


@pytest.mark.parametrize(
    ("train", "losses"),
    [
        (FALLING, [2.0, 1.5, 1.52, 1.56]),  # two evaluations after the best
        (FALLING, [2.0, 1.5, 1.505, 1.51, 1.52]),  # 1.3 %
        (RISING, [2.0, 1.5, 1.52, 1.56, 1.6]),  # training itself gets worse
        (FALLING, [2.0, 1.5]),
        ([], [2.0, 1.5, 1.6, 1.7, 1.8]),
    ],
)
def test_no_overfitting(train, losses):
    assert told(SFT, [*train, *evaluations(losses)]) == []


def test_confidence_alone_is_a_note():
    # zephyr-7b-beta's 0.75 at an accuracy of 0.78, after three epochs.
    losses = [0.693, 0.52, 0.6, 0.68, 0.75]
    kept = evaluations(losses, [0.0, 0.77, 0.78, 0.78, 0.78])
    lost = evaluations(losses, [0.0, 0.77, 0.75, 0.74, 0.72])
    assert told(DPO, [*FALLING, *kept]) == [("overfitting", "note")]
    assert told(DPO, [*FALLING, *lost]) == [("overfitting", "warn")]


def test_far_above_the_start():
    (advice,) = watch(DPO, evaluations([0.693, 1.05]))
    assert advice.seen == "eval loss 1.05, and 0.693 before the first step"
    assert told(DPO, evaluations([0.693, 1.03])) == []
    assert told(DPO, [at(100, {"loss": 0.5}), at(200, {"loss": 0.9})]) == []  # no step 0


# --- forgetting


def mixed(loss):
    return {"sft_mix/loss": loss}


@pytest.mark.parametrize(
    ("now", "said"),
    [(1.5, []), (1.69, []), (1.75, ["note"]), (2.05, ["warn"]), (0.8, [])],
)
def test_forgetting(now, said):
    stream = rows(8, lambda step: mixed(1.5 if step <= 10 else now))
    assert told(DPO, stream) == [("forgetting", level) for level in said]


def test_the_start_is_never_one_batch():
    # With logging_steps 100 the second row belongs to the start as well.
    stream = rows(2, mixed(1.6), every=100, start=mixed(0.9))
    assert told(DPO, stream) == []
