"""Products of float32 matrices on CPUs where torch's default library is slow.

torch multiplies float32 matrices by MKL, which keeps to AVX2 on processors that are not Intel's;
oneDNN, which torch has for convolutions and bfloat16, takes AVX-512 there and is twice as fast.
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
"""With fewer rows, arranging the operands takes longer than multiplying them."""


@cache
def better_by_onednn() -> bool:
    """Decide by the processor, not by a trial, so that a resumed run rounds in the same way."""
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
    """a (n, k), b (m, k) -> a b' (n, m), without a gradient."""
    return _product(a, b) if _fits(a, b) else a @ b.T


def _product(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    # By other strides than these it takes a path that is a thousand times slower.
    if not (b.is_contiguous() or b.T.is_contiguous()):
        b = b.contiguous()
    a = a.contiguous()
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product


class _Linear(torch.autograd.Function):
    """x (n, k), weight (m, k), bias (m,) -> (n, m)."""

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
    """Return grad' x. The narrower operand, that of an adapter, is the one that is rearranged."""
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
    """Have the model's projections computed so. Returns what gives them back."""
    if not better_by_onednn():
        return lambda: None
    plain = [module for module in model.modules() if type(module) is torch.nn.Linear]
    for module in plain:
        module.__class__ = Linear

    def restore() -> None:
        for module in plain:
            module.__class__ = torch.nn.Linear

    return restore
