"""The push section, without a hub."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from prefcli.recipe.sections import PushToHub


def test_push_to_hub_is_private_by_default():
    push = PushToHub(repo_id="me/zephyr-7b.dpo_1")
    assert (push.private, push.revision) == (True, None)
    assert not PushToHub(repo_id="zephyr", private="no").private


@pytest.mark.parametrize(
    "name", ["", "a/b/c", "../run", "/abs", "me/", "https://huggingface.co/me/x", "me/x y", "-x"]
)
def test_push_to_hub_invalid_repo_id_is_an_error(name):
    with pytest.raises(ValidationError, match="repo_id"):
        PushToHub(repo_id=name)


def test_push_to_hub_token_is_an_unknown_key():
    with pytest.raises(ValidationError, match="token"):
        PushToHub(repo_id="me/x", token="hf_secret")
