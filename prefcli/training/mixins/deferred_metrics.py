"""trl's metrics of a batch as tensors on the device, which are read when they are logged.

trl reads about 14 numbers per micro-batch with `.item()`, and each read waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from prefcli.trl_integration.hooks import patched


class DeferredNumber(torch.Tensor):
    """A tensor whose `item` is itself, so that code which computes a metric does not wait.

    Code that asks whether a count is positive gets True; a ratio with a count of 0 is 0.
    """

    def item(self) -> Any:
        return self.detach()

    def __bool__(self) -> bool:
        return True

    def __truediv__(self, other: Any) -> Any:
        quotient = super().__truediv__(other)
        return quotient.where(other != 0, 0.0) if torch.is_tensor(other) else quotient


@contextmanager
def reads_deferred(accelerator: Accelerator) -> Iterator[None]:
    """Have the accelerator gather numbers that are not read until `read_metrics`."""

    def deferred(gather: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda tensor: gather(tensor).as_subclass(DeferredNumber)

    with (
        patched(accelerator, "gather", deferred(accelerator.gather)),
        patched(accelerator, "gather_for_metrics", deferred(accelerator.gather_for_metrics)),
    ):
        yield


def read_metrics(logged: dict[str, list[Any]]) -> None:
    """Replace tensors in lists of metrics by numbers, in one read."""
    tensors = [value for values in logged.values() for value in values if torch.is_tensor(value)]
    if not tensors:
        return
    plain = [tensor.detach().as_subclass(torch.Tensor).double() for tensor in tensors]
    numbers = iter(torch.stack(plain).tolist())
    for values in logged.values():
        values[:] = [next(numbers) if torch.is_tensor(value) else value for value in values]
