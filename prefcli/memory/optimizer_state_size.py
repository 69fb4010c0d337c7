"""What the optimizers keep that torch does not have, in bytes a parameter."""

from __future__ import annotations

from typing import NamedTuple

_WHOLE = 8.0
"""Two moments in float32."""
_EIGHT_BITS = 2.03
"""Two moments of a byte, and for each a scale of 4 bytes a block of 256."""


class States(NamedTuple):
    """device: on the GPU; paged states give way to the host's memory. disk: in a checkpoint."""

    device: float
    disk: float


BITSANDBYTES = {
    "adamw_8bit": States(_EIGHT_BITS, _EIGHT_BITS),
    "paged_adamw_8bit": States(0.0, _EIGHT_BITS),
    "paged_adamw_32bit": States(0.0, _WHOLE),
}
_TORCH = {"sgd": 0.0, "adafactor": 0.1, "rmsprop": 4.0}


def on_device(optim: str, parameters: int, embedded: int) -> int:
    """Bytes of bitsandbytes' states. embedded: of the parameters, those of embeddings, which
    transformers has it keep in 32 bits."""
    each = BITSANDBYTES[optim].device
    return int(each * (parameters - embedded) + (_WHOLE * embedded if each else 0.0))


def on_disk(optim: str, parameters: int) -> int:
    """Bytes of a checkpoint's optimizer states."""
    each = BITSANDBYTES[optim].disk if optim in BITSANDBYTES else _TORCH.get(optim, _WHOLE)
    return int(each * parameters)
