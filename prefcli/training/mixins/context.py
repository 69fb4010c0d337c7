"""The run that a trl trainer and its mixins work in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import Trainer as TransformersTrainer

from prefcli.data import Split
from prefcli.evaluation.judges import Judge
from prefcli.memory.gradient_checkpointing import Choice
from prefcli.methods import Method
from prefcli.packed_forward.install import FastForward
from prefcli.training.token_batches import TokenBudget

if TYPE_CHECKING:
    from prefcli.training.mixins.sft_mix import SftMixture


@dataclass(frozen=True)
class TrainerContext:
    """The run around a trainer."""

    method: Method
    train: Split | None = None
    """Rows of the train dataset, in its order; None for the fake rows of a memory prediction."""
    held_out: Split | None = None
    """Rows of the eval dataset, in its order."""
    judge: Judge | None = None
    """Scores the completions of a method that samples them; None in a memory prediction."""
    stop_ids: frozenset[int] = frozenset()
    """Ids at which generation stops after training."""
    packed_forward: FastForward | None = None
    token_budget: TokenBudget | None = None
    checkpointing: Choice | None = None
    reference_is_policy: bool = False
    """The reference is the policy without its trained adapter, so it is always in memory."""
    reference_digest: str = ""
    """Digest of the reference's weights; read on the main process."""
    defers_reads: bool = False
    """Read trl's metrics when they are logged, since each read waits for a GPU."""
    recipe_overrides_checkpoint: bool = False
    """On a resume, optimizer settings come from the recipe instead of the checkpoint."""
    sft_mix: SftMixture | None = None


class ContextMixin(TransformersTrainer):  # type: ignore[misc]  # transformers is untyped
    """Keeps the context for the other mixins, which read it from inside trl's constructor."""

    def __init__(self, *args: Any, context: TrainerContext, **kwargs: Any) -> None:
        self.context = context
        super().__init__(*args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: prefcli writes the model card from the report."""
