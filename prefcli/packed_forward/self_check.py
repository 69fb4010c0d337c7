"""The self-check: the packed forward and a model's own on the same rows, before a run starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from prefcli.model.inference import eval_mode
from prefcli.packed_forward.forward import PackedForward
from prefcli.text import first_line

_SEED = 0
_PROMPT, _ANSWER = 24, 8
_DIFFERENCE = {"whole": 1e-4, "half": 0.01}
"""Allowed mean difference, by precision; the order of additions differs."""
_SHARE = {"whole": 1e-3, "half": 0.1}
"""Allowed difference as a share of what other tokens before the labels change: the error of
a wrong layout. In half precision large logits are far apart."""


def disagreement(
    model: PreTrainedModel,
    packed: PackedForward,
    fast: Callable[[], AbstractContextManager[None]],
    *,
    max_length: int,
    precise: bool,
) -> str | None:
    """Describe a disagreement; None if both agree and the last layer has a finite gradient.

    The rows are two answers to one prompt and one answer without a prompt, longer than any window
    of the model that rows of `max_length` tokens exceed. fast: a context in which the model uses
    the packed forward; it uses its own outside. precise: all of the model is float32.
    """
    batch = rows(model, max_length)
    with torch.no_grad(), eval_mode(model):
        there = packed.checked(model, batch)
        with fast():
            try:
                with _last_layer(model) as calls:
                    here = packed.checked(model, batch)
            except Exception as error:  # whatever a model's own code makes of one packed row
                return f"it fails: {_in_words(error)}"
            try:
                finite = all(_gradient(*call).isfinite().all() for call in calls)
            except Exception as error:  # a kernel may have other limits backwards than forwards
                return f"its backward pass fails: {_in_words(error)}"
        elsewhere = packed.checked(model, _after_others(batch, model))
    if not finite:
        return "its gradient is not finite on a few made-up rows"
    off = (here - there).abs().mean().item()
    matters = (elsewhere - there).abs().mean().item()
    kind = "whole" if precise else "half"
    if off <= max(_DIFFERENCE[kind], _SHARE[kind] * matters):
        return None
    return f"{off:.2g} {packed.unit} off trl's own on a few made-up rows"


_Call = tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]


@contextmanager
def _last_layer(model: PreTrainedModel) -> Iterator[list[_Call]]:
    """Record the calls of the model's last layer until the block ends."""
    calls: list[_Call] = []

    def keep(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((module, args, kwargs))

    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ]
    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers[-1:]]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _gradient(
    layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> torch.Tensor:
    """Return the gradient of the layer's input. Only this layer has a backward pass, without the
    gradients of its weights, so that it fits into memory for any model."""
    states = args[0].detach().requires_grad_()
    with torch.enable_grad():
        output = layer(states, *args[1:], **kwargs)
        output = output[0] if isinstance(output, tuple) else output
        gradient: torch.Tensor = torch.autograd.grad(output.float().sum(), states)[0]
    return gradient


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _after_others(
    batch: dict[str, torch.Tensor], model: PreTrainedModel
) -> dict[str, torch.Tensor]:
    ids = batch["input_ids"]
    others = (ids + 1) % model.config.get_text_config().vocab_size
    return {**batch, "input_ids": torch.where(batch["labels"] == -100, others, ids)}


def rows(model: PreTrainedModel, max_length: int) -> dict[str, torch.Tensor]:
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or 0
    prompt = max(_PROMPT, window + 1) if window < max_length else _PROMPT
    prompt = max(1, min(prompt, max_length - _ANSWER))
    draw = torch.Generator().manual_seed(_SEED)

    def tokens(count: int) -> torch.Tensor:
        return torch.randint(0, config.vocab_size, (count,), generator=draw)

    shared = tokens(prompt)
    texts = [
        torch.cat([shared, tokens(_ANSWER)]),
        torch.cat([shared, tokens(_ANSWER // 2)]),
        tokens(_ANSWER),
    ]
    starts = [prompt, prompt, 1]
    length = max(map(len, texts))
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (text, start) in enumerate(zip(texts, starts, strict=True)):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
        labels[row, start : len(text)] = text[start:]
    device = model.device
    return {
        "input_ids": ids.to(device),
        "attention_mask": mask.to(device),
        "labels": labels.to(device),
    }
