"""trl.experimental.orpo.ORPOTrainer, and what it shares with CPO's: two tensors per pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from prefcli.methods.trainers.base import IGNORED, BatchKind, TrainerAdapter

if TYPE_CHECKING:
    import torch

    from prefcli.methods.trainers.base import Batch


class SplitPairsAdapter(TrainerAdapter):
    """A trl trainer whose batches keep the chosen and the rejected rows apart."""

    batches: ClassVar[BatchKind] = "split_pairs"
    token_columns: ClassVar[tuple[str, ...]] = (
        "prompt_input_ids",
        "chosen_input_ids",
        "rejected_input_ids",
    )
    # The trainer reads its own columns by name.
    options: ClassVar[Mapping[str, Any]] = {"remove_unused_columns": False}
    prompt_margin: ClassVar[int] = 1  # a BOS, where the text has none
    adds_special_tokens: ClassVar[bool] = True
    renders_tools: ClassVar[bool] = False
    max_merged_tokens: ClassVar[int | None] = 1  # beyond that it fails, or takes wrong tokens
    concatenates_forward: ClassVar[bool] = True
    supports_zero3_lora_checkpointing: ClassVar[bool] = False

    def packed_length(self, lengths: Mapping[str, Any], max_length: int) -> Any:
        """Count the prompt, with which both sides begin, once."""
        prompt, chosen, rejected = (lengths[name] for name in self.token_columns)
        return chosen + rejected - prompt

    def row_ids(self, row: Mapping[str, Any]) -> list[int]:
        return list(row["chosen_input_ids"])

    def ids_and_mask(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor] | None:
        return batch["chosen_input_ids"], batch["chosen_attention_mask"]

    def scored_rows(self, batch: Batch) -> None:
        """Return nothing: `concatenated_forward` builds the rows from both sides."""

    def attention_masks(self, batch: Batch) -> Sequence[torch.Tensor]:
        return [batch["chosen_attention_mask"], batch["rejected_attention_mask"]]

    def row_count(self, batch: Batch) -> int:
        return len(batch["chosen_labels"])

    def sft_term_tokens(self, batch: Batch) -> int:
        if self.sft_term_scope == "text":  # all but the first token
            return int(batch["chosen_attention_mask"][:, 1:].sum())
        return int((batch["chosen_labels"][:, 1:] != IGNORED).sum())

    def logged_metrics(self, trainer: Any) -> Any:
        return trainer._stored_metrics


class OrpoAdapter(SplitPairsAdapter):
    """trl's ORPOTrainer."""

    metrics: ClassVar[tuple[str, ...]] = ("nll_loss", "log_odds_ratio", "log_odds_chosen")

    sft_term_scope: ClassVar[Literal["response", "text"]] = "text"  # as in the authors' code

    def classes(self) -> tuple[type[Any], type[Any]]:
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOConfig, ORPOTrainer


ORPO = OrpoAdapter()
