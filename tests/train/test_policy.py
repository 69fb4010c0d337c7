"""Where the policy is when its trainer is built."""

from __future__ import annotations

import pytest

from prefcli.model import Device
from prefcli.training.policy import placed
from tests.support.scored_rows import tiny

# Stands for a GPU: weights that move there can be told from those that stay.
ELSEWHERE = Device("meta", "no GPU", bfloat16=False)


@pytest.mark.parametrize(
    ("strategy", "where"),
    [("single", "meta"), ("ddp", "meta"), ("zero2", "meta"), ("fsdp2", "cpu"), ("zero3", "cpu")],
)
def test_placed_policy_is_on_its_device_unless_an_engine_shards_it(strategy, where):
    assert placed(tiny("llama"), ELSEWHERE, strategy).device.type == where


def test_placed_policy_to_be_sharded_leaves_the_device():
    """check-sft has had it there whole."""
    whole = tiny("llama")
    moved = []
    whole.to = lambda *args: moved.append(args) or whole
    placed(whole, ELSEWHERE, "fsdp2")
    assert moved == [("cpu",)]
