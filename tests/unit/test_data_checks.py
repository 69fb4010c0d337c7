"""Thresholds of data checks: defaults, partial sections and mistakes."""

from __future__ import annotations

import pytest

from prefcli.errors import RecipeError
from prefcli.recipe import load
from prefcli.recipe.sections import DataChecks, Shares
from tests.support.broken_recipes import GOOD, write


def checks(folder, *overrides):
    return load(write(folder, GOOD), overrides).recipe.data.checks


def test_data_checks_defaults():
    shares = {name: (s.warn, s.error) for name, s in DataChecks()}
    assert shares == {
        "unread": (0.0, 0.5),
        "parted": (0.0, 0.1),
        "turns": (0.0, 0.05),
        "bad_label": (0.0, 0.01),
        "long_prompts": (0.0, 0.01),
        "cut": (0.01, 0.1),
        "identical": (0.0, 0.05),
        "identical_tokens": (0.0, 0.05),
        "identical_after_cut": (0.0, 0.05),
        "empty": (0.0, 0.01),
        "nothing_trained": (0.0, 0.05),
        "duplicates": (0.01, None),
        "contradictions": (0.0, 0.1),
        "shared_prompts": (0.0, 0.01),
        "score_contradictions": (0.03, 0.5),
        "score_ties": (0.1, None),
        "user_turns": (0.0, None),
        "matched_neighbours": (0.05, None),
        "chosen_longer": (0.6, None),
        "prompt_boundary": (0.0, 0.01),
        "template_boundary": (0.0, None),
        "not_rendered": (0.0, None),
        "two_bos": (0.0, 0.01),
        "no_bos": (0.0, None),
        "no_end": (0.0, 0.001),
    }


def test_data_checks_missing_share_keeps_its_default(tmp_path):
    shares = checks(tmp_path, "data.checks.cut.error=0.3", "data.checks.empty={warn: null}")
    assert shares.cut == Shares(warn=0.01, error=0.3)
    assert shares.empty == Shares(warn=None, error=0.01)
    assert shares.prompt_boundary == Shares(warn=0.0, error=0.01)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("data.checks.cut.error=1.5", "data.checks.cut.error: 1.5 is out of range"),
        ("data.checks.cut.warn=-1", "data.checks.cut.warn: -1 is out of range"),
        ("data.checks.cut.eror=0.3", "did you mean error?"),
        ("data.checks.cuts.error=0.3", "did you mean cut?"),
        ("data.checks.cut=0.3", "data.checks.cut: 0.3 is not a section with keys"),
    ],
)
def test_data_checks_mistake_is_an_error(tmp_path, override, text):
    with pytest.raises(RecipeError) as caught:
        checks(tmp_path, override)
    assert text in str(caught.value)


@pytest.mark.parametrize("name", DataChecks.model_fields)
def test_data_check_has_text_and_cure(name):
    words = DataChecks.words(name)
    assert words.what
    assert words.cure
    assert isinstance(DataChecks.model_fields[name].default, Shares)
