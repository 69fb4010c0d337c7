"""The device of the policy when its trainer is built."""

from __future__ import annotations

import pytest

from prefcli.model import Device
from prefcli.training.policy import placed
from tests.support.scored_rows import tiny

# Replaces a GPU: weights that have moved to it differ in their device.
META = Device("meta", "no GPU", bfloat16=False)


@pytest.mark.parametrize(
    ("strategy", "where"),
    [("single", "meta"), ("ddp", "meta"), ("zero2", "meta"), ("fsdp2", "cpu"), ("zero3", "cpu")],
)
def test_placed_policy_is_on_its_device_unless_an_engine_shards_it(strategy, where):
    assert placed(tiny("llama"), META, strategy).device.type == where


def test_placed_policy_to_be_sharded_leaves_the_device():
    """Check a policy that check-sft has moved to the device."""
    policy = tiny("llama")
    moved = []
    policy.to = lambda *args: moved.append(args) or policy
    placed(policy, META, "fsdp2")
    assert moved == [("cpu",)]
