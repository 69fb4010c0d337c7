"""A pause in which a model in training is used for something else, and nothing of it remains."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from prefcli.model.modes import evaluating


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """The model is in eval mode inside; after it, the run draws what it would have drawn anyway."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with evaluating(model), torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
