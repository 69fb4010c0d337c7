"""SFT terms as means over the tokens of a whole optimizer step, however it is cut into batches.

trl takes the mean inside each device batch and averages those means, so that a token of a batch of
short responses weighs more, and accumulation or another number of processes changes the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Trainer as TransformersTrainer


class TokenMeans(TransformersTrainer):  # type: ignore[misc]  # transformers is untyped
    """For trl's trainers of pairs whose loss holds the chosen side's NLL."""

    _step_tokens: int = 0
    _slots: int = 1
    """Device batches of the step, over all processes."""
    _share: float = 1.0
    """What this device batch's mean counts for; 1 where it is the whole step."""
    loss_weights: list[float]
    _plain_weights: list[float] | None = None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, items = super().get_batch_samples(*args, **kwargs)
        mine = torch.tensor(sum(map(self._tokens, batches)), device=self.args.device)
        self._step_tokens = int(self.accelerator.gather(mine).sum())
        self._slots = len(batches) * self.args.world_size
        return batches, items

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        alone = not self.model.training or self._slots == 1
        self._share = 1.0 if alone else self._tokens(inputs) * self._slots / self._step_tokens
        if hasattr(self, "loss_weights"):  # DPO's, one a loss
            self._plain_weights = self._plain_weights or list(self.loss_weights)
            self.loss_weights = [
                weight * self._share if loss == "sft" else weight
                for loss, weight in zip(self.loss_types, self._plain_weights, strict=True)
            ]
        return super().compute_loss(model, inputs, *args, **kwargs)

    def concatenated_forward(self, model: Any, batch: Any) -> tuple[Any, ...]:
        """ORPO's and CPO's: the fifth of its results is the NLL."""
        results = list(super().concatenated_forward(model, batch))
        # An evaluation comes here without compute_loss.
        results[4] = results[4] * (self._share if self.model.training else 1.0)
        return tuple(results)

    def _tokens(self, batch: Mapping[str, torch.Tensor]) -> int:
        """Tokens that the NLL of this batch is a mean over."""
        if "completion_mask" in batch:
            chosen, _ = batch["completion_mask"].chunk(2, dim=0)
            return int(chosen[:, 1:].sum())
        if hasattr(self, "cpo_alpha"):
            return int((batch["chosen_labels"][:, 1:] != -100).sum())
        # ORPO's covers the prompt, too: all but the first token.
        return int(batch["chosen_attention_mask"][:, 1:].sum())
