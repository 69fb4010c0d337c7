"""The output projection, where a label is and nowhere else, a tile of tokens at a time."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from trl.kernels import ChunkedLogProbFunction
from trl.kernels.chunked_logprob import OPTIONAL_OUTPUTS, _use_triton
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as _TRITON_TILE

_TILE = 2**22
"""Logits that are made at once: enough for a fast product, and memory that malloc hands out again
(from 32 MiB on it asks the system each time, which clears every page)."""
_BLOCK = 2**20
"""Of a tile, those that are worked on at once: few enough to stay in a processor's cache."""
_KEEP = 2**26
"""Exponentials that a trained head keeps for its gradient, 256 MiB; the rest is made again."""

EVERYWHERE = "mean_logits_everywhere"
"""mean_logits of every token, which takes no logits: see forward.py. trl knows no such name."""

FIGURES = frozenset({"log_probs", "entropy", "mean_logits", "is_top1", EVERYWHERE})

Figures = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


def figures(
    hidden: torch.Tensor,
    head: torch.nn.Module,
    targets: torch.Tensor,
    scale: float,
    outputs: tuple[str, ...],
) -> Figures:
    """Of each label, as `Head` gives them; by trl's Triton kernels where there are any."""
    if not _use_triton(hidden.device):
        result: Figures = Head.apply(hidden, head.weight, head.bias, targets, scale, outputs)  # type: ignore[no-untyped-call]
        return result
    asked = tuple(name for name in outputs if name in OPTIONAL_OUTPUTS)
    log_probs, entropy, _, mean_logits, is_top1 = ChunkedLogProbFunction.apply(
        hidden, head.weight, head.bias, targets, 1.0, _TRITON_TILE, None, scale, asked
    )
    return log_probs, entropy, mean_logits, is_top1


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
        log_z, total = torch.empty_like(log_probs), torch.empty_like(log_probs)
        # Frozen, the head needs no second pass: a gradient is this direction times a number. In
        # float16 small shares would be lost before that number, which holds the loss scale.
        trained = any(ctx.needs_input_grad[1:3])
        once = ctx.needs_input_grad[0] and not trained and dtype != torch.float16
        direction = torch.empty_like(hidden) if once else None
        keep = _KEEP // vocabulary if trained and dtype != torch.float16 else 0
        kept = log_probs.new_empty(min(count, keep), vocabulary)
        room = log_probs.new_empty(min(count, size) if len(kept) < count else 0, vocabulary)
        cast = weight.to(dtype)
        with torch.autocast(device, enabled=False):
            for at in _slices(count, size, until=len(kept)):
                within = at.stop <= len(kept)
                logits = kept[at] if within else room[: at.stop - at.start]
                _logits(hidden[at].to(dtype), cast, bias, scale, out=logits)
                if "mean_logits" in more:
                    more["mean_logits"][at] = logits.mean(1)
                if "is_top1" in outputs:
                    top[at] = logits.argmax(1) == targets[at]
                wanted = logits.gather(1, targets[at, None]).squeeze(1)
                most = logits.amax(1, keepdim=True)
                # From here on not logits: exponentials, relative to the largest.
                entropy = more["entropy"][at] if "entropy" in more else None
                _exponentials(logits, most, total[at], entropy)
                log_z[at] = most.squeeze(1) + total[at].log()
                log_probs[at] = wanted - log_z[at]
                if within or direction is not None:
                    # p - 1[target], times the total
                    logits.scatter_add_(1, targets[at, None], -total[at, None])
                if direction is not None:
                    product = (logits.to(dtype) @ cast).float()
                    direction[at] = (product * (-scale / total[at, None])).to(hidden.dtype)
        ctx.scale, ctx.size, ctx.dtype = scale, size, dtype
        if direction is not None:
            ctx.save_for_backward(direction)
        else:
            ctx.save_for_backward(hidden, weight, bias, targets, log_z, kept, total)
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
        hidden, weight, bias, targets, log_z, kept, total = ctx.saved_tensors
        count, whole = len(hidden), len(kept)
        cast = weight.to(ctx.dtype)
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight: torch.Tensor | None = None
        to_bias: torch.Tensor | None = None
        room = log_z.new_empty(min(count, ctx.size) if whole < count else 0, len(weight))
        for at in (slice(0, whole), *_slices(count, ctx.size, start=whole)):
            # d log p[target] / d z = 1[target] - p
            if at.stop <= whole:
                shares, times = kept, -grad[at] / total[at]
            else:
                shares, times = room[: at.stop - at.start], -grad[at]
                _logits(hidden[at].to(ctx.dtype), cast, bias, ctx.scale, out=shares)
                shares.sub_(log_z[at, None]).exp_()
                shares.scatter_add_(1, targets[at, None], -torch.ones_like(log_z[at, None]))
            if bias is not None and ctx.needs_input_grad[2]:
                to_bias = _added(to_bias, shares.T, times[:, None])
            times = (times * ctx.scale)[:, None]
            if to_hidden is not None and ctx.dtype == torch.float16:
                to_hidden[at] = ((shares * times).to(ctx.dtype) @ cast).to(hidden.dtype)
            elif to_hidden is not None:
                product = (shares.to(ctx.dtype) @ cast).float()
                to_hidden[at] = (product * times).to(hidden.dtype)
            if ctx.needs_input_grad[1]:
                to_weight = _added(to_weight, shares.T, hidden[at].float() * times)
        return (
            to_hidden,
            to_weight.to(weight.dtype) if to_weight is not None else None,
            to_bias.squeeze(1).to(bias.dtype) if to_bias is not None else None,
            None,
            None,
            None,
        )


def _slices(count: int, size: int, *, start: int = 0, until: int = 0) -> list[slice]:
    """start ... count in pieces of `size`, one of which ends at `until`."""
    ends = [*range(start + size, until, size), *([until] if start < until else [])]
    begin = max(start, until)
    ends += [min(end, count) for end in range(begin + size, count + size, size)]
    return [slice(a, b) for a, b in itertools.pairwise([start, *ends])]


def _added(total: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b if total is None else total.addmm_(a, b)


def _logits(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    *,
    out: torch.Tensor,
) -> None:
    """In float32, into `out`."""
    if hidden.dtype == torch.float32:
        torch.mm(hidden, weight.T, out=out)
    else:
        out.copy_(torch.nn.functional.linear(hidden, weight))
    if bias is not None:
        out += bias
    if scale != 1.0:
        out *= scale


def _exponentials(
    logits: torch.Tensor, most: torch.Tensor, total: torch.Tensor, entropy: torch.Tensor | None
) -> None:
    """exp(logits - most), in their place; their sums, and the entropy of their shares."""
    rows, vocabulary = logits.shape
    size = max(1, _BLOCK // vocabulary)
    for at in _slices(rows, size):
        block = logits[at].sub_(most[at])
        relative = block.clone() if entropy is not None else None
        torch.sum(block.exp_(), 1, out=total[at])
        if entropy is not None and relative is not None:
            # -sum p log p = log sum e^z - sum p z
            entropy[at] = total[at].log() - torch.linalg.vecdot(block, relative) / total[at]
