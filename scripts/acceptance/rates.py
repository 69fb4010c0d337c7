"""How fast this machine multiplies matrices and copies memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from scripts.acceptance.setting import Setting


def product_rate(setting: Setting, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the operations per second of a large product in the dtype that a run computes in:
    bfloat16 on a GPU, float32 on a CPU."""
    return _rate(setting, torch.float32 if setting.cpu else torch.bfloat16, torch.matmul, clock)


def product_rates(
    setting: Setting, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return operations per second by dtype and, on a CPU, by library."""
    if not setting.cpu:
        return {
            name: _rate(setting, dtype, torch.matmul, clock)
            for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32))
        }
    rates = {"float32 by MKL": _rate(setting, torch.float32, torch.matmul, clock)}
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        rates["float32 by oneDNN"] = _rate(setting, torch.float32, _onednn, clock)
        rates["bfloat16 by oneDNN"] = _rate(setting, torch.bfloat16, torch.matmul, clock)
    return rates


def copy_rate(setting: Setting) -> float:
    """Return the bytes per second that a copy reads and writes."""
    size = 2**20 if setting.quick else 2**27 if setting.cpu else 2**29
    source = torch.randn(size, device=setting.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(setting, lambda: target.copy_(source), time.perf_counter)


def _rate(
    setting: Setting,
    dtype: torch.dtype,
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    clock: Callable[[], float],
) -> float:
    size = 256 if setting.quick else 1024 if setting.cpu else 8192
    a, b = (torch.randn(size, size, device=setting.device).to(dtype) for _ in "ab")
    return 2 * size**3 / _seconds(setting, lambda: product(a, b), clock)


def _onednn(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return product


def _seconds(setting: Setting, work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the shortest of at least three runs, in about half a second."""
    took: list[float] = []
    while len(took) < 3 or (sum(took) < 0.5 and not setting.quick):
        setting.wait()
        began = clock()
        work()
        setting.wait()
        took.append(clock() - began)
    return min(took)
