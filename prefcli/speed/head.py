"""The output projection, where a label is and nowhere else, a tile of tokens at a time."""

from __future__ import annotations

from typing import Any

import torch

_TILE = 2**22
"""Logits of a tile: few enough to stay in a processor's cache while they are worked on."""

EVERYWHERE = "mean_logits_everywhere"
"""mean_logits of every token, which takes no logits: see forward.py. trl knows no such name."""

FIGURES = frozenset({"log_probs", "entropy", "mean_logits", "is_top1", EVERYWHERE})

Figures = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


class Head(torch.autograd.Function):
    """log softmax(hidden W' + b)[target], and what is asked for beside it.

    hidden (labels, width), weight (vocabulary, width), targets (labels,) -> log-probabilities,
    entropy, mean logit and whether the target is the likeliest token, each (labels,) in float32.
    Only the first carries a gradient.

    Products are in the dtype of hidden or, under autocast, in autocast's, forwards and backwards;
    what is summed over the vocabulary or over labels is summed in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        scale: float,
        outputs: tuple[str, ...],
    ) -> Figures:
        device = hidden.device.type
        dtype = (
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        )
        count, vocabulary = len(hidden), len(weight)
        size = max(16, _TILE // vocabulary)
        log_probs = hidden.new_empty(count, dtype=torch.float32)
        more = {
            name: torch.empty_like(log_probs)
            for name in ("entropy", "mean_logits")
            if name in outputs
        }
        top = torch.empty(count, dtype=torch.bool, device=hidden.device)
        log_z = torch.empty_like(log_probs)
        # Frozen, the head needs no second pass: a gradient is this direction times a number. In
        # float16 small shares would be lost before that number, which holds the loss scale.
        frozen = not ctx.needs_input_grad[1] and not ctx.needs_input_grad[2]
        once = ctx.needs_input_grad[0] and frozen and dtype != torch.float16
        direction = torch.empty_like(hidden) if once else None
        cast = weight.to(dtype)
        with torch.autocast(device, enabled=False):
            for start in range(0, count, size):
                at = slice(start, start + size)
                logits = _logits(hidden[at].to(dtype), cast, bias, scale)
                wanted = logits.gather(1, targets[at, None]).squeeze(1)
                if "mean_logits" in more:
                    more["mean_logits"][at] = logits.mean(1)
                if "is_top1" in outputs:
                    top[at] = logits.argmax(1) == targets[at]
                most = logits.amax(1, keepdim=True)
                weighed = (logits - most).exp_() if "entropy" in more else logits.sub_(most).exp_()
                total = weighed.sum(1, keepdim=True)
                log_z[at] = (most + total.log()).squeeze(1)
                log_probs[at] = wanted - log_z[at]
                if "entropy" in more:
                    # -sum p log p = log Z - sum p z
                    mean = torch.einsum("tv,tv->t", weighed, logits) / total.squeeze(1)
                    more["entropy"][at] = log_z[at] - mean
                if direction is not None:
                    shares = weighed.div_(total)
                    shares.scatter_add_(1, targets[at, None], -torch.ones_like(total))
                    direction[at] = (shares.to(dtype) @ cast).mul_(-scale).to(hidden.dtype)
        ctx.scale, ctx.size, ctx.dtype = scale, size, dtype
        if direction is not None:
            ctx.save_for_backward(direction)
        else:
            ctx.save_for_backward(hidden, weight, bias, targets, log_z)
        ctx.mark_non_differentiable(*more.values(), top)
        ctx.set_materialize_grads(False)
        asked = top if "is_top1" in outputs else None
        return log_probs, more.get("entropy"), more.get("mean_logits"), asked

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        grad = grads[0]
        if grad is None:
            return (None,) * 6
        if len(ctx.saved_tensors) == 1:
            (direction,) = ctx.saved_tensors
            return ((direction * grad[:, None]).to(direction.dtype), *(None,) * 5)
        hidden, weight, bias, targets, log_z = ctx.saved_tensors
        cast = weight.to(ctx.dtype)
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = (
            torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        )
        to_bias = (
            torch.zeros_like(bias, dtype=torch.float32)
            if bias is not None and ctx.needs_input_grad[2]
            else None
        )
        for start in range(0, len(hidden), ctx.size):
            at = slice(start, start + ctx.size)
            # d log p[target] / d z = 1[target] - p
            shares = _logits(hidden[at].to(ctx.dtype), cast, bias, ctx.scale)
            shares.sub_(log_z[at, None]).exp_()
            shares.mul_(-grad[at, None])
            shares.scatter_add_(1, targets[at, None], grad[at, None])
            if to_bias is not None:
                to_bias += shares.sum(0)
            if ctx.scale != 1.0:
                shares.mul_(ctx.scale)
            if to_hidden is not None:
                to_hidden[at] = (shares.to(ctx.dtype) @ cast).to(hidden.dtype)
            if to_weight is not None:
                to_weight.addmm_(shares.T, hidden[at].float())
        return (
            to_hidden,
            to_weight.to(weight.dtype) if to_weight is not None else None,
            to_bias.to(bias.dtype) if to_bias is not None else None,
            None,
            None,
            None,
        )


def _logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """In float32."""
    logits = torch.nn.functional.linear(hidden, weight).float()
    if bias is not None:
        logits += bias
    return logits.mul_(scale) if scale != 1.0 else logits
