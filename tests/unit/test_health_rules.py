"""Each rule: rows that trigger it, and rows that nearly do. The metrics are made by hand."""

import pytest

from prefcli.health import RunContext
from prefcli.methods import Dpo, Ipo, Kto, Orpo, Rloo, Sft, Simpo
from tests.support.metric_rows import advice_of, at, reported, rows

DPO = RunContext(Dpo(), 300, 30, batch=32, starts_at_reference=True)
IPO = RunContext(Ipo(), 300, 30, batch=32, starts_at_reference=True)
KTO = RunContext(Kto(), 300, 30, batch=32, starts_at_reference=True)
ORPO = RunContext(Orpo(), 300, 30, batch=32)
SIMPO = RunContext(Simpo(), 300, 30, batch=32)
SFT = RunContext(Sft(), 300, 30, batch=32)
RLOO = RunContext(Rloo(), 200, 10, batch=32, starts_at_reference=True)


# --- finite


@pytest.mark.parametrize("key", ["loss", "grad_norm", "logps/chosen", "rewards/rejected"])
def test_finite_stops_on_a_value_that_is_not_finite(key):
    assert reported(DPO, [{"step": 10, "loss": 0.7, key: None}]) == [("finite", "stop")]


def test_finite_of_an_evaluation_names_the_metrics():
    (advice,) = advice_of(DPO, [{"step": 10, "eval_loss": float("nan"), "eval_logps/chosen": None}])
    assert str(advice) == (
        "eval_loss, eval_logps/chosen are not finite: the step was too large or a row is broken, "
        "and the weights cannot recover; lower training.learning_rate, and check the rows with "
        "--dry-run"
    )


@pytest.mark.parametrize(
    ("context", "row"),
    [
        (DPO, {"loss": 0.7, "perplexity": None}),  # exp of a large finite number
        (DPO, {"loss": 0.7, "rewards/margins_chosen_longer": None}),
        (RunContext(Dpo(), 300, fp16=True), {"loss": 0.7, "grad_norm": None}),
        (DPO, {"loss": 1e300}),
        (DPO, {"eval_runtime": None, "eval_loss": 0.7}),
    ],
)
def test_finite_ignores_other_values(context, row):
    assert reported(context, [{"step": 10, **row}]) == []


# --- collapse


def test_collapse_below_the_floor_stops():
    (advice,) = advice_of(DPO, [{"step": 40, "logps/rejected_per_token": -50.3}])
    assert (advice.rule, advice.level) == ("collapse", "stop")
    assert "-50.3 nats per token" in advice.seen
    assert "raise dpo.beta" in advice.change
    assert "dpo.loss_type: [sigmoid, sft]" in advice.change


def test_collapse_above_the_floor_is_silent():
    assert reported(DPO, [{"step": 40, "logps/rejected_per_token": -49.9}]) == []


def test_collapse_of_an_evaluation_stops():
    stream = [at(0, {"logps/rejected_per_token": -1.2}), at(40, {"logps/rejected_per_token": -61})]
    assert reported(ORPO, stream) == [("collapse", "stop")]


def test_collapse_uses_the_floor_of_the_recipe():
    row = [{"step": 40, "logps/rejected_per_token": -30.0}]
    assert reported(DPO, row, collapse={"floor": 29.0, "level": "warn"}) == [("collapse", "warn")]


def test_collapse_of_chosen_warns_instead_of_displacement():
    # ipo at beta 0.1: chosen rewards of -35 are -350 nats over 100 tokens, 3.5 nats per token.
    metrics = {"rewards/chosen": -35.0, "tokens/chosen": 100.0}
    (advice,) = advice_of(IPO, rows(3, metrics))
    assert (advice.rule, advice.level) == ("collapse", "warn")
    assert "chosen responses lost 3.5 nats per token (against the start)" in advice.seen
    assert "raise ipo.beta" in advice.change


def test_collapse_of_rejected_warns():
    # Without a reference, and with the same rows at each evaluation: -1 to -11.5 nats per token.
    first = {"logps/chosen_per_token": -1.0, "logps/rejected_per_token": -1.0}
    last = {"logps/chosen_per_token": -1.0, "logps/rejected_per_token": -11.5}
    (advice,) = advice_of(SIMPO, [at(0, first), at(100, last)])
    assert (advice.rule, advice.level) == ("collapse", "warn")
    assert "rejected responses lost 10.5 nats per token (on data.eval" in advice.seen
    assert "simpo.cpo_alpha" in advice.change


def test_collapse_is_silent_on_a_large_published_fall():
    # Rejected -3 nats per token more than chosen -0.9: far beyond what is published, and no cliff.
    metrics = {
        "rewards/chosen": -18.0,
        "tokens/chosen": 200.0,
        "rewards/rejected": -60.0,
        "tokens/rejected": 200.0,
    }
    assert reported(DPO, rows(3, metrics)) == [("displacement", "note")]


# --- displacement


def fall(nats, tokens=250.0, scale=0.1):
    """Rewards of chosen responses that have lost so much per token."""
    return {"rewards/chosen": -nats * tokens * scale, "tokens/chosen": tokens}


@pytest.mark.parametrize(
    ("nats", "levels"),
    [(0.0, []), (-0.5, []), (0.29, []), (0.31, ["note"]), (0.99, ["note"]), (1.01, ["warn"])],
)
def test_displacement_has_two_thresholds(nats, levels):
    assert reported(DPO, rows(4, fall(nats))) == [("displacement", level) for level in levels]


def test_displacement_of_zephyr_is_a_note():
    # RikkiXu's and abgoswam's reproductions of zephyr-7b-dpo: chosen from -283 to -511 at beta
    # 0.01, over 250 to 300 tokens: rewards of -2.28.
    zephyr = RunContext(Dpo(beta=0.01), 478, 48, batch=128, starts_at_reference=True)
    metrics = {"rewards/chosen": -2.28, "tokens/chosen": 270.0, "rewards/rejected": -3.4}
    (advice,) = advice_of(zephyr, rows(4, {**metrics, "tokens/rejected": 250.0}))
    assert (advice.rule, advice.level) == ("displacement", "note")
    assert advice.seen == (
        "chosen responses lost 0.84 nats per token, rejected ones 1.36 (against the start)"
    )
    assert "normal for dpo" in advice.means


def test_displacement_that_grows_reports_each_level_once():
    stream = [
        *rows(1, fall(0.4)),
        *({"step": 10 * i, **fall(0.1 * i)} for i in range(2, 29)),
    ]
    levels = [entry for entry in reported(DPO, stream) if entry[0] == "displacement"]
    assert levels == [("displacement", "note"), ("displacement", "warn")]


def test_displacement_without_a_reference_compares_evaluations():
    first = {"logps/chosen_per_token": -0.9}
    note = at(100, {"logps/chosen_per_token": -1.25})
    near = at(100, {"logps/chosen_per_token": -1.15})
    assert reported(ORPO, [at(0, first), note]) == [("displacement", "note")]
    assert reported(ORPO, [at(0, first), near]) == []
    assert reported(ORPO, [at(20, first), note]) == []  # no evaluation of the start


def test_displacement_of_different_rows_needs_many_rows():
    first, last = {"logps/chosen_per_token": -1.0}, {"logps/chosen_per_token": -2.2}
    assert reported(SIMPO, rows(3, last, start=first)) == []  # the first 64 pairs are two rows
    big = RunContext(Simpo(), 300, 30, batch=64)
    (advice,) = advice_of(big, rows(3, last, start=first))
    assert (advice.rule, advice.level) == ("displacement", "warn")
    assert "1.20 nats per token (against the first steps)" in advice.seen


# --- margin


@pytest.mark.parametrize(("margin", "reports"), [(4.1, False), (19.0, False), (21.0, True)])
def test_margin_of_rewards_has_a_threshold(margin, reports):
    stream = rows(3, {"rewards/margins": margin})
    assert reported(DPO, stream) == ([("margin", "warn")] if reports else [])


def test_margin_of_a_single_batch_is_silent():
    stream = rows(9, lambda step: {"rewards/margins": 60.0 if step == 5 else 2.0}, every=1)
    assert reported(DPO, stream) == []


def test_margin_with_a_small_beta_is_measured_per_token():
    # beta 0.001: a reward margin of 1 is 1000 nats, 5 a token.
    context = RunContext(Dpo(beta=0.001), 300, 30, batch=32, starts_at_reference=True)
    lengths = {"tokens/chosen": 220.0, "tokens/rejected": 180.0}
    (advice,) = advice_of(context, rows(3, {"rewards/margins": 1.0, **lengths}))
    assert (advice.rule, advice.level) == ("margin", "warn")
    assert advice.seen == "margin of 5.0 nats per token (reward margin 1)"
    assert advice.change == "raise dpo.beta, or lower training.learning_rate"
    assert reported(context, rows(3, {"rewards/margins": 0.7, **lengths})) == []


def test_margin_of_ipo_ignores_rewards():
    # trl logs beta times the sum: the target of beta 1, 0.5 nats per token, is 150 over 300 tokens.
    ipo = RunContext(Ipo(beta=1.0), 300, 30, starts_at_reference=True)
    lengths = {"tokens/chosen": 300.0, "tokens/rejected": 300.0}
    assert reported(ipo, rows(3, {"rewards/margins": 150.0, **lengths})) == []


def test_margin_of_simpo_uses_mean_log_probabilities():
    assert reported(SIMPO, rows(3, {"rewards/margins": 7.9})) == []  # 3.95 nats per token
    assert reported(SIMPO, rows(3, {"rewards/margins": 8.1})) == [("margin", "warn")]


def test_margin_of_orpo_names_lambda():
    (advice,) = advice_of(ORPO, rows(3, {"rewards/margins": 0.5}))
    assert "lambda is too high" in advice.means
    assert advice.change.startswith("lower orpo.lambda")


# --- no_learning


def test_no_learning_of_a_margin_near_0_warns():
    stream = rows(12, {"rewards/margins": 2e-4})
    (advice,) = advice_of(DPO, stream)
    assert (advice.rule, advice.level, advice.step) == ("no_learning", "warn", 60)
    assert advice.seen == "reward margin 0.0002, the mean of 30 steps after warm-up"
    assert "lower dpo.beta" in advice.change


@pytest.mark.parametrize(
    ("count", "margin"),
    [
        (12, 2e-3),  # it moves
        (5, 2e-4),  # 20 steps after warm-up
        (12, -2e-3),  # it moves the wrong way
    ],
)
def test_no_learning_is_silent_on_a_margin_that_moves_or_is_early(count, margin):
    assert reported(DPO, rows(count, {"rewards/margins": margin})) == []


@pytest.mark.parametrize(("every", "count"), [(1, 80), (100, 2)])
def test_no_learning_does_not_depend_on_logging_steps(every, count):
    assert reported(DPO, rows(count, {"rewards/margins": 0.0}, every=every)) == [
        ("no_learning", "warn")
    ]


def test_no_learning_without_a_reference_uses_the_eval_loss():
    assert reported(SIMPO, [at(0, {"loss": 1.2}), at(70, {"loss": 1.2004})]) == [
        ("no_learning", "warn")
    ]
    assert reported(SFT, [at(0, {"loss": 1.2}), at(300, {"loss": 1.1999})]) == [
        ("no_learning", "warn")
    ]


@pytest.mark.parametrize(
    ("step", "loss"),
    [(70, 1.19), (50, 1.2)],  # it fell; too early
)
def test_no_learning_is_silent_on_an_eval_loss_that_falls_or_is_early(step, loss):
    assert reported(SIMPO, [at(0, {"loss": 1.2}), at(step, {"loss": loss})]) == []


# --- accuracy


def labels(accuracy, margin=0.05):
    return {"rewards/accuracies": accuracy, "rewards/margins": margin}


@pytest.mark.parametrize(
    ("accuracy", "margin", "reports"),
    [
        (0.50, 0.01, True),
        (0.56, 0.01, False),  # three sigmas of 1280 pairs reach 0.60
        (0.62, 0.05, False),
        (0.40, -0.05, True),
    ],
)
def test_accuracy_near_chance_warns(accuracy, margin, reports):
    stream = rows(8, labels(accuracy, margin))
    assert reported(DPO, stream) == ([("accuracy", "warn")] if reports else [])


def test_accuracy_waits_for_enough_pairs():
    (advice,) = advice_of(DPO, rows(8, labels(0.5)))
    assert advice.step == 70  # 30 of warm-up, and 40 that hold 1000 pairs and more
    assert advice.seen == "accuracy 0.50 over the last 1280 training pairs"
    assert "labels are random" in advice.means


def test_accuracy_below_chance_names_contradictions():
    (advice,) = advice_of(DPO, rows(8, labels(0.4, -0.1)))
    assert "contradict each other" in advice.means


def test_accuracy_of_ties_does_not_count_as_below_chance():
    # In bfloat16 many log-probabilities are equal at first, and no tie counts as right.
    (advice,) = advice_of(DPO, rows(8, labels(0.3, 0.02)))
    assert "learning is too slow" in advice.means


@pytest.mark.parametrize(
    ("context", "stream"),
    [
        (DPO, rows(6, labels(0.5))),  # 960 pairs after warm-up
        (SIMPO, rows(30, labels(0.45))),  # begins anywhere
        (RunContext(Dpo(), 3000, 30, starts_at_reference=True), rows(50, labels(0.5))),  # 1/6 of it
        # Small batches: 30 steps of 4 pairs say nothing.
        (RunContext(Dpo(), 60, 6, batch=4, starts_at_reference=True), rows(6, labels(0.4, -0.1))),
    ],
)
def test_accuracy_is_silent_early_and_without_a_reference(context, stream):
    assert reported(context, stream) == []


EVALUATED = RunContext(Dpo(), 300, 30, starts_at_reference=True, eval_rows=2000)


def test_accuracy_of_swapped_eval_labels_warns():
    stream = [*rows(8, labels(0.8, 0.5)), at(0, labels(0, 0)), at(80, labels(0.22, -0.4))]
    (advice,) = advice_of(EVALUATED, stream)
    assert advice.seen == "accuracy 0.22 on the 2000 pairs of data.eval"
    assert "swapped" in advice.means


def test_accuracy_at_chance_on_eval_warns():
    stream = [*rows(8, labels(0.8, 0.5)), at(80, labels(0.5, 0.01))]
    (advice,) = advice_of(EVALUATED, stream)
    assert "does not generalize" in advice.means


def test_accuracy_on_few_eval_rows_is_silent():
    few = RunContext(Dpo(), 300, 30, starts_at_reference=True, eval_rows=16)
    assert reported(few, [at(80, labels(0.44, -0.01))]) == []
    assert reported(EVALUATED, [at(80, labels(0.615, 0.27))]) == []  # SmolLM2-135M's at its end


def test_accuracy_defers_to_no_learning():
    stream = rows(20, {"rewards/accuracies": 0.0, "rewards/margins": 0.0})
    assert reported(DPO, stream) == [("no_learning", "warn")]
    assert reported(DPO, stream, no_learning="off") == [("accuracy", "warn")]


# --- saturation


def test_saturation_of_many_pairs_warns():
    stream = rows(14, labels(1.0, 3.0))
    (advice,) = advice_of(DPO, stream)
    assert (advice.rule, advice.level, advice.step) == ("saturation", "warn", 130)
    assert advice.seen == "accuracy 1.000 over the last 4128 training pairs"


def test_saturation_of_easy_pairs_is_a_note():
    stream = [*rows(14, labels(1.0, 3.0)), at(0, labels(0.0, 0.0)), at(125, labels(0.98, 2.5))]
    assert reported(DPO, stream) == [("saturation", "note")]
    stream = [*rows(14, labels(1.0, 3.0)), at(0, labels(0.0, 0.0)), at(125, labels(0.8, 2.5))]
    assert reported(DPO, stream) == [("saturation", "warn")]


@pytest.mark.parametrize(
    "stream",
    [
        rows(30, labels(0.99, 3.0)),
        rows(12, labels(1.0, 3.0)),  # 3840 pairs
        rows(30, lambda step: labels(0.9 if step % 100 == 0 else 1.0, 3.0)),
    ],
)
def test_saturation_of_too_few_pairs_is_silent(stream):
    assert reported(DPO, stream) == []


def test_saturation_defers_to_margin():
    assert reported(DPO, rows(30, labels(1.0, 25.0))) == [("margin", "warn")]


# --- gradient


def norms(spikes, usual=1.0, high=30.0):
    return rows(60, lambda step: {"grad_norm": high if step in spikes else usual})


def test_gradient_spike_is_a_note_and_three_are_a_warning():
    (advice,) = advice_of(DPO, norms({400}))
    assert (advice.rule, advice.level, advice.step) == ("gradient", "note", 400)
    assert advice.seen == "gradient norm 30 at step 400, median 1"
    note, warning = advice_of(DPO, norms({400, 420, 450}))
    assert [(a.level, a.step) for a in (note, warning)] == [("note", 400), ("warn", 450)]
    assert "3 such spikes" in warning.seen


@pytest.mark.parametrize(
    "stream",
    [
        norms({400}, high=9.0),
        norms({1, 10, 20}),  # within the warm-up
        norms({50}),  # two rows after it: no median yet
        norms(set(), usual=0.0),
        # The loss is near 0 and a hard pair is a spike, but smaller than earlier norms.
        rows(60, lambda step: {"grad_norm": 1.0 if step < 400 or step == 500 else 0.01}),
    ],
)
def test_gradient_without_spikes_is_silent(stream):
    assert reported(DPO, stream) == []


# --- length


def split(longer, shorter):
    return {
        "rewards/accuracies_chosen_longer": longer,
        "rewards/accuracies_chosen_shorter": shorter,
        "rewards/margins_chosen_longer": 1.2,
        "rewards/margins_chosen_shorter": -0.2,
    }


def test_length_bias_that_loses_short_responses_warns():
    (advice,) = advice_of(DPO, [x for x in rows(14, split(0.9, 0.35)) if x["step"] <= 80])
    assert (advice.rule, advice.level) == ("length", "warn")
    assert advice.seen == (
        "accuracy 0.90 where chosen is longer, 0.35 where it is shorter (margins 1.2 and -0.2)"
    )
    assert "sigmoid_norm" in advice.change


def test_length_gap_is_a_note():
    assert reported(DPO, rows(14, split(0.95, 0.55))) == [("length", "note")]


@pytest.mark.parametrize(
    ("context", "stream"),
    [
        (DPO, rows(14, split(0.85, 0.6))),  # 0.25, and chance
        (DPO, rows(6, split(0.9, 0.3))),  # 960 pairs after warm-up
        (DPO, rows(30, {"rewards/accuracies_chosen_longer": 0.9})),  # all chosen are longer
        (DPO, rows(30, split(0.6, 0.9))),
        (SIMPO, rows(30, split(0.8, 0.7))),
    ],
)
def test_length_is_silent_on_small_gaps_and_few_pairs(context, stream):
    assert reported(context, stream) == []


# --- kto_kl


def kl(value):
    return {"kl": value, "rewards/margins": 0.2}


def test_kto_kl_of_0_since_the_start_warns():
    (advice,) = advice_of(KTO, rows(9, kl(0.0)))
    assert (advice.rule, advice.level, advice.step) == ("kto_kl", "warn", 80)
    assert advice.seen == "kl is 0 in all 80 steps"
    assert "training.per_device_train_batch_size" in advice.change


@pytest.mark.parametrize(
    ("context", "stream"),
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
def test_kto_kl_that_moved_is_silent(context, stream):
    assert reported(context, stream) == []


def test_kto_kl_of_matched_pairs_warns_whatever_its_value():
    matched = RunContext(Kto(), 300, 30, starts_at_reference=True, matched_neighbours=0.6)
    (advice,) = advice_of(matched, rows(3, kl(0.3)))
    assert (advice.rule, advice.level, advice.step) == ("kto_kl", "warn", 1)
    assert advice.seen == "60% of the rows are paired with their own completion"
    few = RunContext(Kto(), 300, 30, starts_at_reference=True, matched_neighbours=0.4)
    assert reported(few, rows(3, kl(0.3))) == []


def test_kto_kl_defers_to_no_learning():
    assert reported(KTO, rows(12, {"kl": 0.0, "rewards/margins": 1e-5})) == [
        ("no_learning", "warn")
    ]


# --- orpo_odds


def odds(value):
    return {"log_odds_chosen": value}


def test_orpo_odds_that_do_not_rise_warn():
    (advice,) = advice_of(ORPO, rows(10, odds(-0.2)))
    assert (advice.rule, advice.level, advice.step) == ("orpo_odds", "warn", 70)
    assert advice.seen == "log odds -0.200, the mean of 40 steps; -0.200 at the start"
    assert "orpo.lambda" in advice.change


@pytest.mark.parametrize(
    ("context", "stream"),
    [
        (ORPO, rows(10, odds(0.05))),
        (ORPO, rows(10, lambda step: odds(-0.8 + step / 100))),  # below 0, and rising
        (ORPO, rows(5, odds(-0.2))),
        (RunContext(Orpo(), 2000, 30), rows(30, odds(-0.2))),  # 15 % of the run
    ],
)
def test_orpo_odds_above_0_or_rising_or_early_are_silent(context, stream):
    assert reported(context, stream) == []


# --- end_token


def ends(probability, step, **others):
    return at(step, {"end_probability": probability, **others})


def test_end_token_that_an_adapter_does_not_learn_warns():
    lora = RunContext(Sft(), 300, 30, batch=32, frozen_head=True)
    stream = [ends(1e-4, 0), ends(2e-4, 80, samples_ended=0.125)]
    (advice,) = advice_of(lora, stream)
    assert (advice.rule, advice.level, advice.step) == ("end_token", "warn", 80)
    assert advice.seen == (
        "the stop token has a mean probability of 0.0002 where held-out answers end, was 0.0001 "
        "at step 0; 12% of the samples stopped by themselves"
    )
    assert "adapter" in advice.means
    assert "lora.modules_to_save" in advice.change
    (advice,) = advice_of(SFT, stream)
    assert "adapter" not in advice.means
    assert "raise training.learning_rate" in advice.change


def test_end_token_that_is_unlearnt_warns():
    (advice,) = advice_of(DPO, [ends(0.6, 0), ends(0.01, 80)])
    assert "unlearned" in advice.means
    assert "lower training.learning_rate" in advice.change


@pytest.mark.parametrize(
    "stream",
    [
        [ends(1e-4, 0), ends(0.3, 80)],
        [ends(1e-4, 0), ends(1e-4, 59)],  # 30 steps of warm-up, and 30 more
        [ends(0.9, 0), ends(0.2, 80)],
    ],
)
def test_end_token_is_silent_on_likely_ends_and_early_steps(stream):
    assert reported(SFT, stream) == []


def test_end_token_of_a_run_that_does_not_learn_defers_to_no_learning():
    stream = [at(0, {"loss": 2.0, "end_probability": 1e-4})]
    stream += [at(80, {"loss": 2.0, "end_probability": 1e-4})]
    assert reported(SFT, stream) == [("no_learning", "warn")]


# --- repetition


def loops(share, step):
    return at(step, {"samples_repeated": share})


def test_repetition_that_rises_warns():
    (advice,) = advice_of(DPO, [loops(0.1, 0), loops(0.3, 40), loops(0.6, 80)])
    assert (advice.rule, advice.level, advice.step) == ("repetition", "warn", 80)
    assert advice.seen == "60% of the 4-grams in greedy samples repeat earlier ones, 10% at step 0"


@pytest.mark.parametrize("shares", [(0.1, 0.5), (0.45, 0.6), (0.7,)])
def test_repetition_is_silent_on_moderate_or_old_loops(shares):
    assert reported(DPO, [loops(share, 40 * i) for i, share in enumerate(shares)]) == []


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


def test_overfitting_of_a_rising_eval_loss_warns():
    (advice,) = advice_of(SFT, [*FALLING, *evaluations([2.0, 1.5, 1.52, 1.56, 1.6])])
    assert (advice.rule, advice.level, advice.step) == ("overfitting", "warn", 400)
    assert advice.seen == (
        "eval loss 1.6, after its best of 1.5 at step 100, while the training loss falls"
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
def test_overfitting_is_silent_on_small_or_short_rises(train, losses):
    assert reported(SFT, [*train, *evaluations(losses)]) == []


def test_overfitting_with_unchanged_accuracy_is_a_note():
    # zephyr-7b-beta's 0.75 at an accuracy of 0.78, after three epochs.
    losses = [0.693, 0.52, 0.6, 0.68, 0.75]
    same = evaluations(losses, [0.0, 0.77, 0.78, 0.78, 0.78])
    lower = evaluations(losses, [0.0, 0.77, 0.75, 0.74, 0.72])
    assert reported(DPO, [*FALLING, *same]) == [("overfitting", "note")]
    assert reported(DPO, [*FALLING, *lower]) == [("overfitting", "warn")]


def test_overfitting_far_above_the_start_warns():
    (advice,) = advice_of(DPO, evaluations([0.693, 1.05]))
    assert advice.seen == "eval loss 1.05, was 0.693 before the first step"
    assert reported(DPO, evaluations([0.693, 1.03])) == []
    assert reported(DPO, [at(100, {"loss": 0.5}), at(200, {"loss": 0.9})]) == []  # no step 0


# --- forgetting


def mixed(loss):
    return {"sft_mix/loss": loss}


@pytest.mark.parametrize(
    ("now", "levels"),
    [(1.5, []), (1.69, []), (1.75, ["note"]), (2.05, ["warn"]), (0.8, [])],
)
def test_forgetting_has_two_thresholds(now, levels):
    stream = rows(8, lambda step: mixed(1.5 if step <= 10 else now))
    assert reported(DPO, stream) == [("forgetting", level) for level in levels]


def test_forgetting_needs_a_start_of_several_steps():
    # With logging_steps 100 the second row belongs to the start as well.
    stream = rows(2, mixed(1.6), every=100, start=mixed(0.9))
    assert reported(DPO, stream) == []


# --- policy_kl, length_hacking, entropy, equal_scores


def sampled(kl=5.0, length=40.0, correlation=0.0, entropy=2.0, equal=0.1):
    return {
        "reward": 1.0,
        "frac_reward_zero_std": equal,
        "objective/kl": kl,
        "completions/mean_length": length,
        "reward_length_correlation": correlation,
        "entropy": entropy,
    }


def test_rloo_with_a_steady_policy_is_silent():
    assert reported(RLOO, rows(20, lambda step: sampled(kl=step / 10))) == []


def test_policy_kl_far_from_the_reference_warns_with_the_cure():
    (advice,) = advice_of(RLOO, rows(20, lambda step: sampled(kl=step / 2)))
    assert (advice.rule, advice.level, advice.step) == ("policy_kl", "warn", 110)
    assert "raise rloo.beta" in advice.change
    assert reported(RLOO, rows(20, sampled(kl=90.0)), policy_kl={"nats": 100.0}) == []


@pytest.mark.parametrize(
    ("growth", "correlation", "expected"),
    [(2.0, 0.6, [("length_hacking", "warn")]), (2.0, 0.1, []), (1.2, 0.6, [])],
)
def test_length_hacking_needs_growth_and_correlation(growth, correlation, expected):
    stream = rows(
        20, lambda step: sampled(length=40 * min(growth, 1 + step / 100), correlation=correlation)
    )
    assert reported(RLOO, stream) == expected


def test_entropy_below_a_tenth_of_its_start_warns():
    stream = rows(20, lambda step: sampled(entropy=2.0 if step < 100 else 0.1))
    assert reported(RLOO, stream) == [("entropy", "warn")]
    stream = rows(20, lambda step: sampled(entropy=2.0 if step < 100 else 0.5))
    assert reported(RLOO, stream) == []


def test_equal_scores_of_most_prompts_warn():
    stream = rows(20, lambda step: sampled(equal=min(1.0, step / 100)))
    (advice,) = advice_of(RLOO, stream)
    assert (advice.rule, advice.level) == ("equal_scores", "warn")
    assert "prompts have completions with equal scores" in advice.seen
    assert reported(RLOO, rows(20, sampled(equal=0.7))) == []
