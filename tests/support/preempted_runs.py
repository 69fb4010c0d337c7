"""Runs of two processes that a signal stops."""

from __future__ import annotations

import os
import signal
from contextlib import AbstractContextManager
from typing import Any

import pytest
from transformers import TrainerCallback

from prefcli import preemption
from prefcli.errors import PreemptedError
from prefcli.recipe.schema import Recipe
from prefcli.training.run import train


def train_until_signal(recipe: Recipe, step: int, engine: AbstractContextManager[None]) -> None:
    """Train with dpo until a signal asks the second process to stop after a step.

    engine: sets up FSDP2 or DeepSpeed.
    """

    class Ask(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGTERM)

    preemption.install_handlers()
    with engine, pytest.raises(PreemptedError):
        train(recipe, recipe.dpo, callbacks=[Ask()])
    preemption.install_handlers()  # forgets the signal
