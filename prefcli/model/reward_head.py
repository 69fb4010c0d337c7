"""The head of a reward model: it maps the last token of a text to a score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from prefcli.model.peft_wrapper import base_of

_SUFFIX = "ForSequenceClassification"


def has_reward_head(config: PretrainedConfig) -> bool:
    """Check whether the config is of a saved classifier, such as a reward model."""
    return any(name.endswith(_SUFFIX) for name in config.architectures or [])


def is_reward_model(model: torch.nn.Module) -> bool:
    """Check for a model that gives scores instead of logits of tokens, or an adapter on one."""
    return type(base_of(model)).__name__.endswith(_SUFFIX)


def head_of(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """Return the modules that a reward model has besides its decoder, by name."""
    return {name: m for name, m in model.named_children() if name != model.base_model_prefix}


def output_heads(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the output head of a language model, or the modules of a reward head, outermost."""
    if is_reward_model(model):
        return [*head_of(model).values()]
    head = model.get_output_embeddings()
    return [] if head is None else [head]


@torch.no_grad()
def add_reward_head(model: PreTrainedModel, info: dict[str, Any] | None = None) -> PreTrainedModel:
    """Set a head that is not in the files to zero, and let every head compute in float32.

    From zero, both sides of each pair start with the reward 0 and the loss with ln 2, and nothing
    of a random head remains in the rewards.

    info: what transformers reports about loading; the keys of a new head are removed from it. None
    for a model with random weights.
    """
    if info is None or (info["missing_keys"] and not has_reward_head(model.config)):
        for module in head_of(model).values():
            for parameter in module.parameters():
                parameter.zero_()
    if info is not None:
        info.update(without_new_head(model, info))
    for module in head_of(model).values():
        if type(module) is torch.nn.Linear:
            module.__class__ = _Float32Linear
    return model


def without_new_head(model: PreTrainedModel, info: Mapping[str, Any]) -> dict[str, Any]:
    """Return transformers' report about loading without the keys of heads, if the head is new.

    A language model has no reward head, and its own head is not used. A saved classifier must have
    all of its weights.
    """
    if has_reward_head(model.config):
        return dict(info)
    prefix = f"{model.base_model_prefix}."
    decoder = {
        name: {key for key in info[name] if key.startswith(prefix)}
        for name in ("missing_keys", "unexpected_keys")
    }
    return {**info, **decoder}


class _Float32Linear(torch.nn.Linear):
    """A linear layer outside autocast: bfloat16 would round a reward of 3 to steps of 0.016."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return torch.nn.functional.linear(input.float(), self.weight.float(), bias)
