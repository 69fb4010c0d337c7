"""The device of the policy when its trainer is built."""

from __future__ import annotations

import pytest
import torch

from prefcli.model import Device
from prefcli.model.precision import rounded_on
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


def test_rounded_on_restores_the_weights():
    policy = tiny("llama")
    before = {name: tensor.data_ptr() for name, tensor in policy.state_dict().items()}
    values = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    with rounded_on(policy, "cpu", torch.bfloat16):
        assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
        assert {buffer.dtype for buffer in policy.buffers()} == {torch.float32}
    assert {name: tensor.data_ptr() for name, tensor in policy.state_dict().items()} == before
    assert all(torch.equal(tensor, values[name]) for name, tensor in policy.state_dict().items())
