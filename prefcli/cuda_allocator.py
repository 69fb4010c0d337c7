"""How torch divides the memory of a GPU."""

from __future__ import annotations

import os

_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Environment variables that configure the allocator; the second is the older name of the first."""


def use_expandable_segments() -> None:
    """Let memory be reused for tensors of other sizes, unless the environment configures it.

    A packed row has another length in every step, and would leave gaps between fixed segments.
    To be called before torch is imported. Child processes inherit it.
    """
    if not any(name in os.environ for name in _NAMES):
        os.environ[_NAMES[0]] = "expandable_segments:True"
