"""The size of optimizer states, in bytes per parameter."""

from __future__ import annotations

from typing import NamedTuple

_WHOLE = 8.0
"""Two moments in float32."""
_EIGHT_BITS = 2.03
"""Two moments of a byte, and for size a scale of 4 bytes a block of 256."""


class States(NamedTuple):
    """device: on the GPU; paged states move to the host's memory. disk: in a checkpoint."""

    device: float
    disk: float


BITSANDBYTES = {
    "adamw_8bit": States(_EIGHT_BITS, _EIGHT_BITS),
    "paged_adamw_8bit": States(0.0, _EIGHT_BITS),
    "paged_adamw_32bit": States(0.0, _WHOLE),
}
_TORCH = {"sgd": 0.0, "adafactor": 0.1, "rmsprop": 4.0}


def on_device(optim: str, parameters: int, embedded: int) -> int:
    """Return the bytes of bitsandbytes' states.

    embedded: parameters of embeddings, whose states transformers keeps in 32 bits.
    """
    size = BITSANDBYTES[optim].device
    return int(size * (parameters - embedded) + (_WHOLE * embedded if size else 0.0))


def on_disk(optim: str, parameters: int) -> int:
    """Return the bytes of the optimizer states in a checkpoint."""
    size = BITSANDBYTES[optim].disk if optim in BITSANDBYTES else _TORCH.get(optim, _WHOLE)
    return int(size * parameters)
