"""The push section, without a hub."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from prefcli.recipe.sections import PushToHub


def test_it_is_private_unless_it_is_said_not_to_be():
    push = PushToHub(repo_id="me/zephyr-7b.dpo_1")
    assert (push.private, push.revision) == (True, None)
    assert not PushToHub(repo_id="zephyr", private="no").private


@pytest.mark.parametrize(
    "name", ["", "a/b/c", "../run", "/abs", "me/", "https://huggingface.co/me/x", "me/x y", "-x"]
)
def test_a_path_is_no_repository(name):
    with pytest.raises(ValidationError, match="repo_id"):
        PushToHub(repo_id=name)


def test_a_token_has_no_place_in_it():
    with pytest.raises(ValidationError, match="token"):
        PushToHub(repo_id="me/x", token="hf_secret")
