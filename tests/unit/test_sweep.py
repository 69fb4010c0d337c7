"""The runs of a sweep."""

from __future__ import annotations

import pytest

from prefcli.errors import RecipeError
from prefcli.launcher.sweep import trials_of


def test_trials_of_a_grid_has_every_combination_per_method():
    settings = ["beta=0.1,0.2", "training.learning_rate=1e-6,5e-7", "seed=1"]
    trials = trials_of(settings, ["dpo", "ipo"])
    assert len(trials) == 8
    assert trials[0].name == "dpo-beta=0.1-learning_rate=1e-6"
    assert trials[0].overrides == ("dpo.beta=0.1", "training.learning_rate=1e-6", "seed=1")
    assert trials[-1].overrides == ("ipo.beta=0.2", "training.learning_rate=5e-7", "seed=1")


def test_trials_of_a_list_is_one_value():
    (trial,) = trials_of(["dpo.loss_type=[sigmoid, sft]"], ["dpo"])
    assert trial.overrides == ("dpo.loss_type=[sigmoid, sft]",)
    two = trials_of(["dpo.loss_type=[sigmoid, sft],hinge"], ["dpo"])
    assert [trial.name for trial in two] == ["dpo-loss_type=_sigmoid_sft_", "dpo-loss_type=hinge"]


def test_trial_adds_the_section_and_precomputed_references():
    simpo, dpo = (trials_of(["seed=1"], [name])[0] for name in ("simpo", "dpo"))
    assert simpo.with_sections(["dpo"], precomputes=True).overrides == ("simpo={}", "seed=1")
    assert dpo.with_sections(["dpo"], precomputes=True).overrides[0] == "reference.precompute=true"
    assert dpo.with_sections(["dpo"], precomputes=False).overrides == ("seed=1",)


@pytest.mark.parametrize(
    ("settings", "code"),
    [(["beta"], "RCP013"), (["beta=0.1,"], "RCP013"), (["beta=0.1,0.1"], "RCP036")],
)
def test_trials_of_a_mistake_raises(settings, code):
    with pytest.raises(RecipeError) as caught:
        trials_of(settings, ["dpo"])
    assert caught.value.problems[0].code == code
