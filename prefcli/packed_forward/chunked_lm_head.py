"""The LM head at tokens that have a label, one tile of tokens at a time."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial
from trl.kernels import ChunkedLogProbFunction
from trl.kernels.chunked_logprob import OPTIONAL_OUTPUTS, _use_triton
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as _TRITON_TILE

_TILE = 2**22
"""Logits per tile: enough for a fast product, and few enough for malloc to reuse their memory
(from 32 MiB on it asks the system each time, which clears every page)."""
_BLOCK = 2**20
"""Logits of a tile that are processed at once: few enough for a processor's cache."""
_KEEP = 2**26
"""Exponentials that a trained head keeps for its gradient, 256 MiB; others are recomputed."""

EVERYWHERE = "mean_logits_everywhere"
"""Output with the mean logit of every token, which forward.py computes without logits."""

SUPPORTED_OUTPUTS = frozenset({"log_probs", "entropy", "mean_logits", "is_top1", EVERYWHERE})

LabelOutputs = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


def gathered(parameter: torch.Tensor | None) -> Any:
    """Gather a parameter of the head that FSDP2 shards. FSDP would gather it in the head's forward,
    which is not called here."""
    if not isinstance(parameter, DTensor):
        return parameter
    # Averaged over processes, as FSDP does.
    return parameter.full_tensor(grad_placements=[Partial("avg")] * parameter.device_mesh.ndim)


def label_outputs(
    hidden: torch.Tensor,
    head: Any,
    targets: torch.Tensor,
    scale: float,
    outputs: tuple[str, ...],
) -> LabelOutputs:
    """Compute the outputs of `Head` for each label, with trl's Triton kernels if available."""
    weight, bias = gathered(head.weight), gathered(head.bias)
    if not _use_triton(hidden.device):
        result: LabelOutputs = Head.apply(hidden, weight, bias, targets, scale, outputs)  # type: ignore[no-untyped-call]
        return result
    optional = tuple(name for name in outputs if name in OPTIONAL_OUTPUTS)
    log_probs, entropy, _, mean_logits, is_top1 = ChunkedLogProbFunction.apply(
        hidden, weight, bias, targets, 1.0, _TRITON_TILE, None, scale, optional
    )
    return log_probs, entropy, mean_logits, is_top1


class Head(torch.autograd.Function):
    """The log-probability log softmax(hidden W' + b)[target], and the other requested outputs.

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
    ) -> LabelOutputs:
        device = hidden.device.type
        dtype = (
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        )
        count, vocabulary = len(hidden), len(weight)
        size = max(16, _TILE // vocabulary)
        log_probs = hidden.new_empty(count, dtype=torch.float32)
        statistics = {
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
        cached: list[torch.Tensor] = []
        cast = weight.to(dtype)
        with torch.autocast(device, enabled=False):
            for at in _slices(count, size):
                logits = _logits(hidden[at].to(dtype), cast, bias, scale)
                if "mean_logits" in statistics:
                    statistics["mean_logits"][at] = logits.mean(1)
                if "is_top1" in outputs:
                    top[at] = logits.argmax(1) == targets[at]
                target_logits = logits.gather(1, targets[at, None]).squeeze(1)
                most = logits.amax(1, keepdim=True)
                # From here on not logits: exponentials, relative to the largest.
                entropy = statistics["entropy"][at] if "entropy" in statistics else None
                _exponentials(logits, most, total[at], entropy)
                log_z[at] = most.squeeze(1) + total[at].log()
                log_probs[at] = target_logits - log_z[at]
                within = at.stop <= keep
                if within or direction is not None:
                    # p - 1[target], times the total
                    logits.scatter_add_(1, targets[at, None], -total[at, None])
                if within:
                    cached.append(logits)
                if direction is not None:
                    product = (logits.to(dtype) @ cast).float()
                    direction[at] = (product * (-scale / total[at, None])).to(hidden.dtype)
        ctx.scale, ctx.size, ctx.dtype = scale, size, dtype
        if direction is not None:
            ctx.save_for_backward(direction)
        else:
            ctx.save_for_backward(hidden, weight, bias, targets, log_z, total, *cached)
        ctx.mark_non_differentiable(*statistics.values(), top)
        ctx.set_materialize_grads(False)
        is_top1 = top if "is_top1" in outputs else None
        return log_probs, statistics.get("entropy"), statistics.get("mean_logits"), is_top1

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        grad = grads[0]
        if grad is None:
            return (None,) * 6
        if len(ctx.saved_tensors) == 1:
            (direction,) = ctx.saved_tensors
            return ((direction * grad[:, None]).to(direction.dtype), *(None,) * 5)
        hidden, weight, bias, targets, log_z, total, *cached = ctx.saved_tensors
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight: torch.Tensor | None = None
        to_bias = log_z.new_zeros(bias.shape) if ctx.needs_input_grad[2] else None
        cast = weight.to(ctx.dtype)
        for at, known in itertools.zip_longest(_slices(len(hidden), ctx.size), cached):
            # d log p[target] / d z = 1[target] - p
            if known is not None:
                shares, factors = known, -grad[at] / total[at]
            else:
                shares = _logits(hidden[at].to(ctx.dtype), cast, bias, ctx.scale)
                factors = -grad[at]
                shares.sub_(log_z[at, None]).exp_()
                shares.scatter_add_(1, targets[at, None], -torch.ones_like(log_z[at, None]))
            if to_bias is not None:
                to_bias += factors @ shares
            factors = (factors * ctx.scale)[:, None]
            if to_hidden is not None and ctx.dtype == torch.float16:
                to_hidden[at] = ((shares * factors).to(ctx.dtype) @ cast).to(hidden.dtype)
            elif to_hidden is not None:
                product = (shares.to(ctx.dtype) @ cast).float()
                to_hidden[at] = (product * factors).to(hidden.dtype)
            if not ctx.needs_input_grad[1]:
                continue
            scaled = hidden[at].float() * factors
            if to_weight is None:
                to_weight = shares.T @ scaled
            else:
                to_weight.addmm_(shares.T, scaled)
        if to_weight is None and ctx.needs_input_grad[1]:
            to_weight = torch.zeros_like(weight)  # of no label
        return (
            to_hidden,
            to_weight.to(weight.dtype) if to_weight is not None else None,
            to_bias.to(bias.dtype) if to_bias is not None else None,
            None,
            None,
            None,
        )


def _slices(count: int, size: int) -> list[slice]:
    """Split the range from 0 to `count` into slices of `size`."""
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]


def _logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Return the logits in float32."""
    logits = (hidden @ weight.T).float()
    if bias is not None:
        logits += bias
    if scale != 1.0:
        logits *= scale
    return logits


def _exponentials(
    logits: torch.Tensor, most: torch.Tensor, total: torch.Tensor, entropy: torch.Tensor | None
) -> None:
    """Replace logits by exp(logits - most); write their sums and the entropy of their shares."""
    rows, vocabulary = logits.shape
    size = max(1, _BLOCK // vocabulary)
    relative = logits.new_empty(min(size, rows), vocabulary) if entropy is not None else None
    for at in _slices(rows, size):
        block = logits[at].sub_(most[at])
        if relative is not None:
            relative[: len(block)] = block
        torch.sum(block.exp_(), 1, out=total[at])
        if relative is not None and entropy is not None:
            # -sum p log p = log sum e^z - sum p z
            terms = relative[: len(block)].mul_(block)
            entropy[at] = total[at].log() - terms.sum(1) / total[at]
