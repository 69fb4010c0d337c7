"""Each method: what its section allows, and the loss it starts from."""

import math
from typing import get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from prefcli.methods import METHODS, Cpo, Dpo, Ipo, Kto, Method, Orpo, Sft, Simpo
from prefcli.methods.dpo import PairLoss
from prefcli.recipe import Recipe
from prefcli.recipe.sections import Training

LN2 = math.log(2)
PAIR_LOSSES = get_args(PairLoss)
every = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def test_recipe_has_a_section_per_method():
    hints = get_type_hints(Recipe)
    sections = {
        name
        for name, hint in hints.items()
        if any(isinstance(t, type) and issubclass(t, Method) for t in get_args(hint))
    }
    assert (
        sections
        == set(METHODS)
        == {"sft", "dpo", "ipo", "kto", "orpo", "simpo", "cpo", "reward", "rloo"}
    )


@every
def test_method_declares_help_rows_and_learning_rates(method):
    first = (method.__doc__ or "").strip().splitlines()[0]
    assert first.endswith(".")
    assert 20 < len(first) <= 110
    assert method.__doc__ != Method.__doc__
    assert method.name == method.__name__.lower()
    assert method.rows in ("pair", "labelled", "demonstration", "prompt")
    assert 0 < method.learning_rates.full < method.learning_rates.lora < 1e-2
    # What is held to a reference must start from a policy worth holding to.
    assert method.needs_sft or method.needs_judge or not method.needs_reference


@every
def test_method_defaults_are_valid_and_frozen(method):
    section, _ = method().for_labels(3, 2)
    assert section.trl_options()
    assert all(isinstance(note, str) for note in section.notes())
    with pytest.raises(ValidationError):
        section.beta = 3


@pytest.mark.parametrize(
    ("section", "loss"),
    [
        (Dpo(), LN2),
        (Dpo(beta=0.01), LN2),
        (Dpo(loss_type="hinge"), 1.0),
        (Dpo(loss_type="robust", label_smoothing=0.2), LN2),
        (Dpo(loss_type="sigmoid_norm"), LN2),
        (Dpo(loss_type="bco_pair"), 2 * LN2),
        (Dpo(loss_type="nca_pair"), 2 * LN2),
        (Dpo(loss_type="apo_zero"), 1.0),
        (Dpo(loss_type="apo_down"), 1.0),
        (Dpo(loss_type=["sigmoid", "hinge"]), LN2 + 1),
        (Dpo(loss_type=["sigmoid", "hinge"], loss_weights=[2.0, 0.5]), 2 * LN2 + 0.5),
        (Dpo(loss_type="sigmoid", loss_weights=[0.5]), LN2 / 2),
        (Dpo(loss_type=["sigmoid", "sft"]), None),
        (
            Dpo(loss_type="exo_pair", label_smoothing=1e-3),
            0.5 * math.log(0.5 / 0.999) + 0.5 * math.log(0.5 / 0.001),
        ),
        (Dpo(loss_type="sppo_hard", beta=0.5), 2.0),
        (Dpo(loss_type="aot", label_smoothing=0.1), LN2),
        (Dpo(loss_type="discopop", discopop_tau=0.3), (LN2 + 1) / 2),
        (Dpo(loss_type="ipo", beta=0.5), 1.0),
        (Dpo(loss_type=["ipo", "sigmoid"], beta=1.0, loss_weights=[2.0, 1.0]), 0.5 + LN2),
        (Dpo(ld_alpha=0.5), LN2),
        (Dpo(f_divergence_type="js_divergence"), LN2),
        (Ipo(beta=0.1), 25.0),
        (Ipo(beta=1.0), 0.25),
        (Ipo(beta=0.5), 1.0),
        (Kto(), None),
        (Kto(desirable_weight=1.0), None),
        (Kto(desirable_weight=1.0, undesirable_weight=1.0), 0.5),
        (Kto(loss_type="apo_zero_unpaired").for_labels(5, 5)[0], 0.5),
        (Kto(desirable_weight=2.0, undesirable_weight=2.0), 1.0),
        (Kto(desirable_weight=1.0, undesirable_weight=1.5), None),
        (Orpo(), None),
        (Simpo(), None),
        (Cpo(), None),
        (Cpo(loss_type="ipo"), None),
        (Sft(), None),
    ],
    ids=repr,
)
def test_start_loss_equals_the_closed_form(section, loss):
    assert section.start_loss() == (loss if loss is None else pytest.approx(loss, rel=1e-12))


@pytest.mark.parametrize(
    "name", ["sigmoid", "hinge", "apo_zero", "apo_down", "nca_pair", "bco_pair"]
)
def test_start_loss_of_pair_losses_matches_trls_formula(name):
    """The losses of trl's DPOTrainer with every log-ratio at zero."""
    log_sigmoid, sigmoid = -LN2, 0.5
    formula = {
        "sigmoid": -log_sigmoid,
        "hinge": max(0.0, 1 - 0.0),
        "apo_zero": (1 - sigmoid) + sigmoid,
        "apo_down": sigmoid + (1 - sigmoid),
        "nca_pair": -log_sigmoid - 0.5 * log_sigmoid - 0.5 * log_sigmoid,
        "bco_pair": -log_sigmoid - log_sigmoid,
    }
    assert Dpo(loss_type=name).start_loss() == pytest.approx(formula[name])


@pytest.mark.parametrize(
    ("method", "options", "report"),
    [
        (Dpo, {"beta": 0}, "greater than 0"),
        (Dpo, {"beta": math.inf}, "finite"),
        (Dpo, {"beta": "0.1"}, "valid number"),
        (Dpo, {"loss_type": "kto"}, "Input should be"),
        (Dpo, {"loss_type": []}, "name at least one loss"),
        (Dpo, {"loss_type": "sft"}, "use `prefcli sft`"),
        (Dpo, {"loss_type": ["sft"]}, "use `prefcli sft`"),
        (Dpo, {"loss_type": ["hinge", "hinge"]}, "appears twice"),
        (Dpo, {"loss_weights": [1.0, 2.0]}, "one weight for each loss"),
        (Dpo, {"loss_type": ["hinge", "sft"], "loss_weights": [1.0]}, "one weight for each"),
        (Dpo, {"loss_weights": [0.0]}, "at least one above 0"),
        (Dpo, {"loss_weights": [-1.0]}, "greater than or equal to 0"),
        (Dpo, {"loss_weights": [math.nan]}, "finite"),
        (Dpo, {"label_smoothing": 0.1}, "no effect"),
        (Dpo, {"label_smoothing": 0.5, "loss_type": "robust"}, "less than 0.5"),
        (Dpo, {"loss_type": "exo_pair"}, "1e-3"),
        (Dpo, {"loss_type": ["sigmoid", "exo_pair"]}, "1e-3"),
        (Dpo, {"ld_alpha": -0.1}, "greater than or equal to 0"),
        (Dpo, {"ld_alpha": 1.1}, "less than or equal to 1"),
        (Dpo, {"ld_alpha": 0.5, "loss_type": "ipo"}, "ld_alpha and ipo both"),
        (Dpo, {"ld_alpha": 0.0, "loss_type": ["hinge", "sigmoid_norm"]}, "ld_alpha and sigmoid_no"),
        (Dpo, {"ld_alpha": 1.0, "loss_type": ["ipo", "sigmoid_norm"]}, "ipo, sigmoid_norm both"),
        (Dpo, {"discopop_tau": 0.1}, "no effect with loss_type ['sigmoid']"),
        (Dpo, {"discopop_tau": 0.0, "loss_type": "discopop"}, "greater than 0"),
        (Dpo, {"f_divergence_type": "kl"}, "Input should be"),
        (Dpo, {"f_divergence_type": "alpha_divergence"}, "needs f_alpha_divergence_coef"),
        (Dpo, {"f_alpha_divergence_coef": 0.5}, "no effect with f_divergence_type reverse_kl"),
        (
            Dpo,
            {"f_alpha_divergence_coef": 0.5, "f_divergence_type": "forward_kl"},
            "no effect with f_divergence_type forward_kl",
        ),
        (
            Dpo,
            {"f_alpha_divergence_coef": 0.0, "f_divergence_type": "alpha_divergence"},
            "greater than 0",
        ),
        (Ipo, {"beta": -1.0}, "greater than 0"),
        (Ipo, {"loss_type": "ipo"}, "not permitted"),
        (Ipo, {"label_smoothing": 0.1}, "not permitted"),
        (Kto, {"desirable_weight": 0}, "greater than 0"),
        (Kto, {"undesirable_weight": -1.0}, "greater than 0"),
        (Kto, {"undesirable_weight": "automatic"}, "Input should be 'auto'"),
        (Kto, {"loss_type": "bco"}, "Input should be"),
        (Orpo, {"lambda": 0}, "greater than 0"),
        (Orpo, {"beta": 0.1}, "not permitted"),
        (Orpo, {"lambda_": 0.1}, "not permitted"),
        (Simpo, {"beta": 0.0}, "greater than 0"),
        (Simpo, {"gamma": -0.1}, "greater than or equal to 0"),
        (Simpo, {"cpo_alpha": -0.1}, "greater than or equal to 0"),
        (Simpo, {"gamma": math.nan}, "finite"),
        (Simpo, {"loss_type": "simpo"}, "not permitted"),
        (Simpo, {"label_smoothing": 0.1}, "not permitted"),
        (Cpo, {"loss_type": "simpo"}, "Input should be"),
        (Cpo, {"alpha": 0.1}, "alpha has no effect"),
        (Cpo, {"loss_type": "ipo", "gamma": 0.1}, "gamma has no effect"),
        (Cpo, {"loss_type": "hinge", "label_smoothing": 0.1}, "no effect"),
        (Cpo, {"loss_type": "alphapo", "alpha": 0.0}, "use the simpo section"),
        (Cpo, {"loss_type": "alphapo", "alpha": math.inf}, "finite"),
        (Sft, {"packing": 1}, "valid boolean"),
        (Sft, {"packing": "maybe"}, "valid boolean"),
        (Sft, {"loss_type": "mse"}, "Input should be"),
        (Sft, {"beta": 0.1}, "not permitted"),
    ],
)
def test_method_with_invalid_options_is_rejected(method, options, report):
    with pytest.raises(ValidationError) as caught:
        method(**options)
    assert report in str(caught.value)


@pytest.mark.parametrize(
    ("section", "options"),
    [
        (
            Dpo(),
            {"beta": 0.1, "loss_type": ["sigmoid"], "loss_weights": None, "label_smoothing": 0.0},
        ),
        (
            Dpo(),
            {
                "ld_alpha": None,
                "f_divergence_type": "reverse_kl",
                "f_alpha_divergence_coef": 0.5,
                "discopop_tau": 0.05,
            },
        ),
        (
            Dpo(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.3, ld_alpha=0.0),
            {
                "ld_alpha": 0.0,
                "f_divergence_type": "alpha_divergence",
                "f_alpha_divergence_coef": 0.3,
            },
        ),
        (
            Dpo(loss_type=["ipo", "discopop"], discopop_tau=0.2),
            {"loss_type": ["ipo", "discopop"], "discopop_tau": 0.2},
        ),
        (Ipo(beta=0.5), {"beta": 0.5, "loss_type": ["ipo"]}),
        (
            Kto(desirable_weight=2.0).for_labels(1, 2)[0],
            {"desirable_weight": 2.0, "undesirable_weight": 1.0},
        ),
        (Orpo(**{"lambda": 0.2}), {"beta": 0.2}),
        (
            Simpo(gamma=0.5, cpo_alpha=0.1),
            {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.1},
        ),
        (
            Cpo(),
            {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0, "alpha": 0.0},
        ),
        (
            Cpo(loss_type="alphapo", label_smoothing=0.1),
            {
                "loss_type": "simpo",
                "beta": 2.5,
                "cpo_alpha": 0.0,
                "alpha": 0.25,
                "simpo_gamma": 0.1,
                "label_smoothing": 0.1,
            },
        ),
        (
            Sft(packing="yes"),
            {
                "packing": True,
                "completion_only_loss": True,
                "assistant_only_loss": False,
                "loss_type": "nll",
            },
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_trl_options_use_trls_names(section, options):
    options_of_trl = section.trl_options()
    assert {name: options_of_trl[name] for name in options} == options


def test_ipo_notes_state_the_target_margin():
    assert Ipo(beta=0.1).target_gap == pytest.approx(5)
    (far,), (near,) = Ipo(beta=0.1).notes(), Ipo(beta=1.0).notes()
    assert "= 5 nats per token" in far
    assert "text degenerates" in far
    assert "= 0.5 nats per token" in near
    assert "text degenerates" not in near


def test_smallest_batch_of_methods_that_compare_rows_is_two():
    assert Kto().smallest_batch()[0] == 2
    assert Dpo(loss_type="aot").smallest_batch()[0] == 2
    assert Dpo().smallest_batch()[0] == 1
    assert Kto.trainer.keeps_row_order


# Read off trl's formulas: what takes the difference of scores, and not the bare log-ratios.
F_DIVERGENCE = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}


@pytest.mark.parametrize("kind", ["forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("loss", [loss for loss in PAIR_LOSSES if loss != "sft"])
def test_f_divergence_is_accepted_only_by_losses_that_read_it(loss, kind):
    options = {"loss_type": [loss, "sft"], "f_divergence_type": kind}
    if kind == "alpha_divergence":
        options["f_alpha_divergence_coef"] = 0.5
    if loss == "exo_pair":
        options["label_smoothing"] = 1e-3
    if loss in F_DIVERGENCE:
        assert Dpo(**options).trl_options()["f_divergence_type"] == kind
    else:
        with pytest.raises(ValidationError, match=f"{loss} has no form for f_divergence_type"):
            Dpo(**options)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("loss", [loss for loss in PAIR_LOSSES if loss != "sft"])
def test_ld_alpha_is_accepted_only_by_losses_that_sum_over_tokens(loss, alpha):
    options = {"loss_type": loss, "ld_alpha": alpha}
    if loss == "exo_pair":
        options["label_smoothing"] = 1e-3
    if loss in ("ipo", "sigmoid_norm"):
        with pytest.raises(ValidationError, match="both correct for length"):
            Dpo(**options)
    else:
        assert Dpo(**options).trl_options()["ld_alpha"] == alpha


@pytest.mark.parametrize("loss", [loss for loss in PAIR_LOSSES if loss != "sft"])
def test_label_smoothing_is_accepted_only_by_losses_that_read_it(loss):
    options = {"loss_type": loss, "label_smoothing": 0.1}
    if loss in ("robust", "exo_pair", "aot", "aot_unpaired"):
        assert Dpo(**options).trl_options()["label_smoothing"] == 0.1
    else:
        with pytest.raises(ValidationError, match="no effect"):
            Dpo(**options)


@pytest.mark.parametrize("loss", [loss for loss in PAIR_LOSSES if loss != "sft"])
def test_start_loss_does_not_depend_on_variants(loss):
    """Check a start where every log-ratio is 0, so that the sum over any tokens is 0 as well."""
    smoothing = {"label_smoothing": 1e-3} if loss == "exo_pair" else {}
    plain = Dpo(loss_type=loss, **smoothing)
    if loss in F_DIVERGENCE:
        other = Dpo(loss_type=loss, f_divergence_type="forward_kl", **smoothing)
        assert other.start_loss() == plain.start_loss()
    if loss not in ("ipo", "sigmoid_norm"):
        assert Dpo(loss_type=loss, ld_alpha=0.5, **smoothing).start_loss() == plain.start_loss()


@pytest.mark.parametrize(
    ("counts", "given", "resolved"),
    [
        # Inside the band already: 1 and 1.
        ((100, 100), {}, (1, 1)),
        ((133, 100), {}, (1, 1)),
        ((4, 3), {}, (1, 1)),
        # true is rare: it weighs more, up to the lower end, (w_D n_D) / (w_U n_U) = 1.
        ((100, 300), {}, (3, 1)),
        ((1, 8), {}, (8, 1)),
        # false is rare: it weighs more, down to the upper end, 4/3.
        ((300, 100), {}, (1, 2.25)),
        ((200, 100), {}, (1, 1.5)),
        # One weight is given, the other is the nearest to 1 that fits.
        ((100, 100), {"desirable_weight": 2.0}, (2, 1.5)),
        ((100, 300), {"desirable_weight": 1.0}, (1, 1 / 3)),
        ((100, 300), {"desirable_weight": 3.0}, (3, 1)),
        ((300, 100), {"undesirable_weight": 1.0}, (4 / 9, 1)),
        ((100, 100), {"undesirable_weight": 2.0}, (2, 2)),
        # Both are given: they stay.
        ((100, 300), {"desirable_weight": 1.0, "undesirable_weight": 1.0}, (1, 1)),
    ],
)
def test_kto_auto_weights_match_values_computed_by_hand(counts, given, resolved):
    """The band of arXiv:2402.01306, eq. 8: (w_D n_D) / (w_U n_U) from 1 to 4/3."""
    method, (line,) = Kto(**given).for_labels(*counts)
    assert (method.desirable_weight, method.undesirable_weight) == pytest.approx(resolved)
    ratio = resolved[0] * counts[0] / (resolved[1] * counts[1])
    assert f"{counts[0]} desirable rows with weight {resolved[0]:.3g}" in line
    assert f"{counts[1]} undesirable rows with weight {resolved[1]:.3g}" in line
    assert f"ratio {ratio:.2f} to 1" in line
    assert ("outside the paper's" in line) == (not 0.99 < ratio < 1.34)


rows = st.integers(1, 10**7)
weights = st.floats(1e-3, 1e3)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(rows, rows, st.just("auto") | weights, st.just("auto") | weights)
def test_kto_auto_weights_are_in_the_band_and_close_to_one(desirable, undesirable, good, bad):
    given_ = {"desirable_weight": good, "undesirable_weight": bad}
    method, _ = Kto(**given_, beta=0.3).for_labels(desirable, undesirable)
    resolved = {name: getattr(method, name) for name in given_}
    Kto(**resolved)  # legal, so positive and finite
    assert method.beta == 0.3
    for name, value in given_.items():
        assert value in ("auto", resolved[name])
    assert method.for_labels(desirable, undesirable)[0] == method
    if "auto" not in given_.values():
        return
    ratio = (
        resolved["desirable_weight"] * desirable / (resolved["undesirable_weight"] * undesirable)
    )
    assert 1 - 1e-9 <= ratio <= 4 / 3 + 1e-9
    chosen = [resolved[name] for name, value in given_.items() if value == "auto"]
    # A weight leaves 1 only for the nearest end of the band.
    assert 1.0 in chosen or ratio == pytest.approx(1) or ratio == pytest.approx(4 / 3)
    if len(chosen) == 2:
        assert min(chosen) == 1.0


@given(st.lists(st.booleans(), min_size=1), weights, weights)
def test_kto_start_loss_is_half_the_mean_weight(labels, good, bad):
    """arXiv:2402.01306, eq. 7 with policy and reference equal: each value is w/2."""
    method = Kto(desirable_weight=good, undesirable_weight=bad)
    values = [(good if label else bad) * (1 - 0.5) for label in labels]
    assert method.start_loss(labels) == pytest.approx(sum(values) / len(values))


@every
def test_for_labels_changes_only_kto(method):
    if method is not Kto:
        section = method()
        assert section.for_labels(10, 90) == (section, [])


@every
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("parameters", [10**5, 135 * 10**6, 7 * 10**9, 7 * 10**10])
def test_bands_are_ranges_of_existing_keys(method, lora, parameters):
    section = method()
    bands = section.bands(lora=lora, parameters=parameters)
    assert bands.keys() >= {"training.learning_rate", "training.global_batch_size"}
    for path, band in bands.items():
        assert 0 < band.low < band.high
        assert len(band.source) > 10
        owner, _, key = path.partition(".")
        options = {"training": Training, method.name: method}[owner].model_fields
        fields = {field.alias or name: name for name, field in options.items()}
        assert key in fields
        if owner == method.name:  # the default is one of the published values
            assert band.low <= getattr(section, fields[key]) <= band.high


@every
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_default_learning_rates_are_in_their_band(method, lora):
    band = method().bands(lora=lora, parameters=7 * 10**9)["training.learning_rate"]
    usual = method.learning_rates.lora if lora else method.learning_rates.full
    assert band.low <= usual <= band.high


@pytest.mark.parametrize(
    ("section", "scale", "is_sum", "saturates"),
    [
        (Sft(), 1.0, False, False),
        (Dpo(beta=0.05), 0.05, True, True),
        (Dpo(loss_type=["hinge", "sft"]), 0.1, True, True),
        (Dpo(loss_type="ipo"), 0.1, True, False),
        (Dpo(loss_type="sppo_hard"), 0.1, True, False),
        (Ipo(beta=1.0), 1.0, True, False),
        (Kto(), 0.1, True, True),
        (Orpo(**{"lambda": 0.2}), 0.2, False, False),
        (Simpo(), 2.0, False, False),
        (Cpo(), 0.1, True, True),
        (Cpo(loss_type="hinge", beta=0.3), 0.3, True, True),
        (Cpo(loss_type="ipo"), 0.1, False, False),
        (Cpo(loss_type="alphapo"), 2.5, False, False),
    ],
    ids=repr,
)
def test_reward_capabilities_follow_the_loss(section, scale, is_sum, saturates):
    facts = (section.reward_scale, section.reward_is_sum, section.loss_saturates)
    assert facts == (scale, is_sum, saturates)


@pytest.mark.parametrize(
    ("section", "weaken", "strengthen"),
    [
        (Ipo(), "raise ipo.beta", "lower ipo.beta"),
        (Orpo(), "lower orpo.lambda", "raise orpo.lambda"),
    ],
)
def test_strength_advice_names_the_key_and_its_direction(section, weaken, strengthen):
    assert (section.weaken, section.strengthen) == (weaken, strengthen)


def test_length_bias_advice_is_given_where_rewards_are_sums():
    assert "sigmoid_norm" in Dpo().length_bias_advice
    assert Dpo(loss_type=["sigmoid_norm"]).length_bias_advice is None
    assert "alphapo" in Cpo().length_bias_advice
    assert Cpo(loss_type="ipo").length_bias_advice is None
    assert Simpo().length_bias_advice is None


def test_start_loss_slack_grows_with_the_slope_of_the_loss():
    assert Dpo().start_loss_slack(1.0, 0.1) == pytest.approx(0.1)
    assert Dpo(loss_type=["sigmoid", "sft"]).start_loss_slack(1.0, 0.1) == pytest.approx(0.2)
    assert Dpo(loss_type="sppo_hard").start_loss_slack(1.0, 0.1) == pytest.approx(10.1)
    for section in (Ipo(), Dpo(loss_type="ipo")):
        assert section.start_loss_slack(1.0, 0.1) == pytest.approx(2.1)


def test_bands_follow_the_section():
    def bands(section):
        return section.bands(lora=False, parameters=7 * 10**9)

    # A mean over tokens has another scale, and no published betas.
    assert "dpo.beta" in bands(Dpo())
    assert "dpo.beta" not in bands(Dpo(loss_type="ipo"))
    assert "dpo.beta" not in bands(Dpo(loss_type=["sigmoid", "sigmoid_norm"]))
    assert bands(Dpo())["dpo.beta"].low == 0.01
    assert bands(Dpo(loss_type="sppo_hard"))["dpo.beta"].low == 0.001
    # gamma's band is a share of beta.
    assert bands(Simpo(beta=10.0))["simpo.gamma"][:2] == pytest.approx((1.0, 8.0))
    # A small model is fine-tuned faster.
    small = Sft().bands(lora=False, parameters=135 * 10**6)["training.learning_rate"]
    assert small.high > bands(Sft())["training.learning_rate"].high
