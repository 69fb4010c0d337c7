"""The base of all adapters: the classes, rows and batches of a trl trainer.

Adapters call methods of tensors, but import neither torch nor trl until `classes` is called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import torch

    Batch = Mapping[str, torch.Tensor]

BatchKind = Literal["text", "pairs", "labelled", "split_pairs", "scored_pairs", "completions"]
"""text: input_ids and labels. pairs: input_ids and completion_mask of all chosen rows, then of all
rejected ones. labelled: input_ids, completion_mask and label. split_pairs: chosen_input_ids,
rejected_input_ids and so on. scored_pairs: input_ids of all chosen rows, then of all rejected ones,
without a completion_mask. completions: prompt_ids and completion_ids of sampled completions, and
their advantages."""

IGNORED = -100
"""Label of a token that is not scored."""


class TrainerAdapter(ABC):
    """Facts about one trl trainer. The defaults describe a stable trainer of trl."""

    batches: ClassVar[BatchKind]
    token_columns: ClassVar[tuple[str, ...]]
    """Columns of token ids of a prepared row: the prompt, then the completions."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Options of the trl config that every method on this trainer needs."""
    lacks: ClassVar[frozenset[str]] = frozenset()
    """Options that the trl configs of the other trainers have."""
    prepares_rows: ClassVar[bool] = True
    """The trainer tokenizes its rows when it is built."""
    prompt_margin: ClassVar[int] = 0
    """Tokens that the trainer may put before a prompt, in addition to the tokenizer's own."""
    adds_special_tokens: ClassVar[bool] = False
    """The trainer adds a BOS before a row and an EOS after it where they are missing."""
    max_merged_tokens: ClassVar[int | None] = None
    """Tokens of a prompt that may merge with the response; beyond that the trainer fails."""
    renders_tools: ClassVar[bool] = True
    """The trainer passes the `tools` of a row to the chat template."""
    keeps_row_order: ClassVar[bool] = False
    """The trainer does not shuffle, so prefcli shuffles the rows once before training."""
    sft_term_scope: ClassVar[Literal["response", "text"]] = "response"
    """Tokens of the chosen row in the loss's SFT term: the response, or the prompt as well."""
    concatenates_forward: ClassVar[bool] = False
    """The trainer scores pairs in `concatenated_forward`, from the logits of every token."""
    sides_have_prompt: ClassVar[bool] = False
    """The columns of both sides begin with the prompt, which has no separate column."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics that this trainer logs and others do not."""
    duplicate_metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics of this trainer that prefcli logs under the name that they have elsewhere."""
    drops_longer_rows: ClassVar[bool] = False
    """The trainer drops rows with more than max_length tokens instead of cutting them."""
    reads_metrics: ClassVar[bool] = False
    """It reads some metrics at once, such as counts that decide whether others are logged."""
    supports_zero3_lora_checkpointing: ClassVar[bool] = True
    """Gradient checkpointing works with LoRA under ZeRO-3: the trainer makes it reentrant."""

    def simulated_options(self, rows: int) -> dict[str, Any]:
        """Return options of a simulated step with so many rows, in addition to a run's."""
        return {}

    @abstractmethod
    def classes(self) -> tuple[type[Any], type[Any]]:
        """Import trl and return its (config, trainer)."""

    @abstractmethod
    def row_ids(self, row: Mapping[str, Any]) -> list[int]:
        """Return the token ids of a prepared row, of its chosen side if there are two."""

    def packed_length(self, lengths: Mapping[str, Any], max_length: int) -> Any:
        """Return the tokens of each row in a packed batch, where a pair has its prompt once.

        lengths: an array per column of `token_columns`, and `shared`, the tokens that both sides
        of a row begin with, if `sides_have_prompt`.
        """
        prompt, *completions = (lengths[name] for name in self.token_columns)
        return sum((side.clip(max=max_length - prompt) for side in completions), start=prompt)

    def ids_and_mask(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return (input_ids, attention_mask) of the rows, of their chosen sides if there are two.

        None if a batch has no separate rows, as with packing.
        """
        if "attention_mask" not in batch:
            return None
        return batch["input_ids"], batch["attention_mask"]

    def scored_rows(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Return input_ids, attention_mask and labels that the model gets for a batch.

        None if the trainer builds its rows later, or if a batch has no separate rows.
        """
        if "attention_mask" not in batch:
            return None
        ids, mask = batch["input_ids"], batch["attention_mask"]
        return ids, mask, ids.masked_fill(batch["completion_mask"] == 0, IGNORED)

    def attention_masks(self, batch: Batch) -> Sequence[torch.Tensor]:
        """Return the masks that mark every token of the batch which is not padding."""
        return [batch["attention_mask"]] if "attention_mask" in batch else []

    def row_count(self, batch: Batch) -> int:
        """Count the rows of a batch; a pair is one row."""
        return len(batch["input_ids"])

    def sft_term_tokens(self, batch: Batch) -> int:
        """Count the tokens that the SFT term of the loss is a mean over."""
        raise NotImplementedError(f"the loss of {type(self).__name__} has no SFT term")

    def logged_metrics(self, trainer: Any) -> Any:
        """Return what the trainer will log: split, then name, then values."""
        return trainer._metrics
