"""Linear layers that multiply float32 matrices by oneDNN, on CPUs where MKL is slow.

torch multiplies float32 matrices by MKL, which uses only AVX2 on processors not made by Intel.
oneDNN, which torch includes for convolutions, uses AVX-512 there and is up to twice as fast.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.autograd.function import once_differentiable

_PROCESSOR = Path("/proc/cpuinfo")
_FEW = 16
"""Rows of an operand below which its rearrangement takes longer than the product."""


@cache
def better_by_onednn() -> bool:
    """Return whether oneDNN is used here. The processor decides, so that a resumed run rounds as
    before; a trial could give another answer."""
    if torch.cuda.is_available():
        return False
    mkl, onednn = torch.backends.mkl, torch.backends.mkldnn
    if not mkl.is_available() or not onednn.is_available():  # type: ignore[no-untyped-call]
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not _PROCESSOR.exists():
        return False
    return "GenuineIntel" not in _PROCESSOR.read_text(encoding="utf-8")


def _fits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.device.type == "cpu"
        and a.dtype == b.dtype == torch.float32
        and len(a) >= _FEW
        and a.numel() * b.numel() > 0
        and better_by_onednn()
    )


def times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return a b' (n, m) of a (n, k) and b (m, k), without a gradient."""
    return _product(a, b) if _fits(a, b) else a @ b.T


def _product(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    # oneDNN is a thousand times slower with other strides.
    if not (b.is_contiguous() or b.T.is_contiguous()):
        b = b.contiguous()
    a = a.contiguous()
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product


class _Linear(torch.autograd.Function):
    """A linear layer's product (n, m) of x (n, k), weight (m, k) and bias (m,)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            times(grad, weight.T) if to_x else None,
            _to_weight(grad, x) if to_weight else None,
            grad.sum(0) if to_bias else None,
        )


def _to_weight(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return grad' x, rearranging the narrower operand, which for an adapter is small."""
    if grad.size(1) <= x.size(1):
        return times(grad.T, x.T)
    return times(x.T, grad.T).T.contiguous()


class Linear(torch.nn.Linear):
    """A linear layer that uses oneDNN where that is faster, and torch's forward elsewhere."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = input.reshape(-1, self.in_features)
        if torch.is_autocast_enabled("cpu") or not _fits(rows, self.weight):
            return super().forward(input)
        product: torch.Tensor = _Linear.apply(rows, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return product.view(*input.shape[:-1], self.out_features)


def install_onednn(model: torch.nn.Module) -> Callable[[], None]:
    """Have the model's linear layers use oneDNN. Returns a function that restores them."""
    if not better_by_onednn():
        return lambda: None
    plain = [module for module in model.modules() if type(module) is torch.nn.Linear]
    for module in plain:
        module.__class__ = Linear

    def restore() -> None:
        for module in plain:
            module.__class__ = torch.nn.Linear

    return restore
