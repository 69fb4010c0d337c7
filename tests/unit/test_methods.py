"""Each method: what its section allows, and the loss it starts from."""

import math
from typing import get_args, get_type_hints

import pytest
from pydantic import ValidationError

from prefcli.methods import METHODS, Dpo, Ipo, Kto, Method, Orpo, Sft
from prefcli.recipe import Recipe

LN2 = math.log(2)
every = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def test_a_method_is_a_section():
    hints = get_type_hints(Recipe)
    sections = {
        name
        for name, hint in hints.items()
        if any(isinstance(t, type) and issubclass(t, Method) for t in get_args(hint))
    }
    assert sections == set(METHODS) == {"sft", "dpo", "ipo", "kto", "orpo"}


@every
def test_the_story_of_a_method(method):
    first = (method.__doc__ or "").strip().splitlines()[0]
    assert first.endswith(".")
    assert 20 < len(first) <= 110
    assert method.__doc__ != Method.__doc__
    assert method.name == method.__name__.lower()
    assert method.rows in ("pair", "labelled", "demonstration")
    assert 0 < method.learning_rates.full < method.learning_rates.lora < 1e-2
    assert method.needs_sft == method.needs_reference


@every
def test_defaults(method):
    section = method()
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
        (Ipo(beta=0.1), 25.0),
        (Ipo(beta=1.0), 0.25),
        (Ipo(beta=0.5), 1.0),
        (Kto(), 0.5),
        (Kto(loss_type="apo_zero_unpaired"), 0.5),
        (Kto(desirable_weight=2.0, undesirable_weight=2.0), 1.0),
        (Kto(desirable_weight=1.0, undesirable_weight=1.5), None),
        (Orpo(), None),
        (Sft(), None),
    ],
    ids=repr,
)
def test_start_loss(section, loss):
    assert section.start_loss() == (loss if loss is None else pytest.approx(loss, rel=1e-12))


@pytest.mark.parametrize(
    "name", ["sigmoid", "hinge", "apo_zero", "apo_down", "nca_pair", "bco_pair"]
)
def test_start_loss_by_its_formula(name):
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
    ("method", "options", "said"),
    [
        (Dpo, {"beta": 0}, "greater than 0"),
        (Dpo, {"beta": math.inf}, "finite"),
        (Dpo, {"beta": "0.1"}, "valid number"),
        (Dpo, {"loss_type": "ipo"}, "Input should be"),
        (Dpo, {"loss_type": []}, "name at least one loss"),
        (Dpo, {"loss_type": "sft"}, "use `prefcli sft`"),
        (Dpo, {"loss_type": ["sft"]}, "use `prefcli sft`"),
        (Dpo, {"loss_type": ["hinge", "hinge"]}, "named twice"),
        (Dpo, {"loss_weights": [1.0, 2.0]}, "one weight for each loss"),
        (Dpo, {"loss_type": ["hinge", "sft"], "loss_weights": [1.0]}, "one weight for each"),
        (Dpo, {"loss_weights": [0.0]}, "nothing would be trained"),
        (Dpo, {"loss_weights": [-1.0]}, "greater than or equal to 0"),
        (Dpo, {"loss_weights": [math.nan]}, "finite"),
        (Dpo, {"label_smoothing": 0.1}, "no effect"),
        (Dpo, {"label_smoothing": 0.5, "loss_type": "robust"}, "less than 0.5"),
        (Dpo, {"loss_type": "exo_pair"}, "1e-3"),
        (Ipo, {"beta": -1.0}, "greater than 0"),
        (Ipo, {"loss_type": "ipo"}, "not permitted"),
        (Ipo, {"label_smoothing": 0.1}, "not permitted"),
        (Kto, {"desirable_weight": 0}, "greater than 0"),
        (Kto, {"loss_type": "bco"}, "Input should be"),
        (Orpo, {"lambda": 0}, "greater than 0"),
        (Orpo, {"beta": 0.1}, "not permitted"),
        (Orpo, {"lambda_": 0.1}, "not permitted"),
        (Sft, {"packing": 1}, "valid boolean"),
        (Sft, {"packing": "maybe"}, "valid boolean"),
        (Sft, {"loss_type": "mse"}, "Input should be"),
        (Sft, {"beta": 0.1}, "not permitted"),
    ],
)
def test_illegal(method, options, said):
    with pytest.raises(ValidationError) as caught:
        method(**options)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("section", "options"),
    [
        (
            Dpo(),
            {"beta": 0.1, "loss_type": ["sigmoid"], "loss_weights": None, "label_smoothing": 0.0},
        ),
        (Ipo(beta=0.5), {"beta": 0.5, "loss_type": ["ipo"]}),
        (Orpo(**{"lambda": 0.2}), {"beta": 0.2}),
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
def test_trl_options(section, options):
    told = section.trl_options()
    assert {name: told[name] for name in options} == options


def test_ipo_says_how_far_it_pulls():
    assert Ipo(beta=0.1).target_gap == pytest.approx(5)
    (far,), (near,) = Ipo(beta=0.1).notes(), Ipo(beta=1.0).notes()
    assert "5 nats a token" in far
    assert "falls apart" in far
    assert "0.5 nats a token" in near
    assert "falls apart" not in near


def test_kto_needs_two_rows_on_a_device():
    assert Kto.min_per_device_batch == 2
    assert Kto.sequential
