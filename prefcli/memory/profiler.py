"""The peak memory of a piece of torch code, by purpose."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Kind = Literal["weights", "reference", "gradients", "optimizer", "logits", "activations"]
KINDS: tuple[Kind, ...] = (
    "weights",
    "reference",
    "gradients",
    "optimizer",
    "activations",
    "logits",
)

_BLOCK = 512
"""CUDA's allocator rounds up to this many bytes."""

_ops = torch.ops.aten


@dataclass
class Peak:
    """The moment with the highest memory."""

    total: int = 0
    parts: Counter[Kind] = field(default_factory=Counter)
    passing: Counter[Kind] = field(default_factory=Counter)
    """Activations and logits at their own peak, which may be another moment."""

    def towards(self, other: Peak, times: float) -> Peak:
        """Extrapolate linearly from this peak through the other, `times` as far."""

        def line(a: Counter[Kind], b: Counter[Kind]) -> Counter[Kind]:
            return Counter({kind: int(a[kind] + times * (b[kind] - a[kind])) for kind in KINDS})

        parts = line(self.parts, other.parts)
        return Peak(parts.total(), parts, line(self.passing, other.passing))


class Tracker(TorchDispatchMode):
    """Tracks every storage from its first use to its end, for real and for fake tensors.

    torch's MemTracker also tracks modules, and therefore refuses a step that runs a model twice,
    as every step with a reference does.

    Fake tensors have no values: where the code reads one, every mask is true and every number is 1,
    as for rows without padding.
    """

    def __init__(self, logits: Iterable[int]) -> None:
        """logits: sizes of a last dimension by which tensors of logits are recognized."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._logits = frozenset(logits)
        self._live: dict[int, tuple[Kind, int]] = {}
        self._now: Counter[Kind] = Counter()
        self._total = 0
        self.peak = Peak()

    def begin(self) -> None:
        """Forget the peak so far."""
        self.peak = Peak(self._total, Counter(self._now), self._passing())

    def holds(self, tensors: Iterable[torch.Tensor], kind: Kind) -> None:
        """Assign a kind to these tensors, whether they are tracked already or not."""
        for tensor in tensors:
            self._see(tensor, kind)

    def _passing(self) -> Counter[Kind]:
        kinds: tuple[Kind, ...] = ("activations", "logits")
        return Counter({kind: self._now[kind] for kind in kinds})

    def _see(self, tensor: torch.Tensor, kind: Kind | None = None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._live.get(key)
        if known is None:
            size = -(-storage.nbytes() // _BLOCK) * _BLOCK
            wide = tensor.dim() > 1 and tensor.shape[-1] in self._logits
            kind = kind or ("logits" if wide else "activations")
            self._live[key] = (kind, size)
            self._now[kind] += size
            self._total += size
            weakref.finalize(storage, self._gone, key)
            if self._total > self.peak.total:
                self.peak.total, self.peak.parts = self._total, Counter(self._now)
            if (now := self._passing()).total() > self.peak.passing.total():
                self.peak.passing = now
        elif kind is not None and kind != known[0]:
            self._live[key] = (kind, known[1])
            self._now[known[0]] -= known[1]
            self._now[kind] += known[1]

    def _gone(self, key: int) -> None:
        kind, size = self._live.pop(key)
        self._now[kind] -= size
        self._total -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        answer = _ANSWERS.get(func)
        result = answer(*args) if answer and _is_fake(args[0]) else NotImplemented
        if _is_fake(args[0] if args else None) and _in_place_elsewhere(func):
            result = args[0]
        if result is NotImplemented:
            result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        return result


def _in_place_elsewhere(func: Any) -> bool:
    """Recognize sums that autograd writes in place unless a dispatch mode is active."""
    if torch._C._current_graph_task_id() == -1:
        return False  # no backward pass
    if func is _ops.add.Tensor:
        # Between two nodes, autograd sums up gradients that arrive on two paths.
        return torch._C._current_autograd_node() is None
    return func is _ops.scatter_add.default


def _is_fake(value: Any) -> bool:
    return isinstance(value, torch._subclasses.FakeTensor)


def _number(tensor: torch.Tensor) -> Any:
    if tensor.dtype is torch.bool:
        return True
    return 1.0 if tensor.dtype.is_floating_point else 1


def _indexed(tensor: torch.Tensor, indices: list[torch.Tensor | None]) -> Any:
    mask = indices[0]
    if mask is None or mask.dtype is not torch.bool:
        return NotImplemented
    return torch.empty(mask.numel(), *tensor.shape[mask.dim() :], dtype=tensor.dtype)


_ANSWERS: dict[Any, Callable[..., Any]] = {
    _ops._local_scalar_dense.default: _number,
    _ops.nonzero.default: lambda t: torch.empty(t.numel(), t.dim(), dtype=torch.long),
    _ops.masked_select.default: lambda t, mask: torch.empty(t.numel(), dtype=t.dtype),
    _ops.index.Tensor: _indexed,
}
"""Results of operations that depend on values, if everything is true."""
