"""What is looked for in every split, in words, and from which share of its rows on it is said.

A finding is a field here and nothing else: its name, its words and its cure have no other home.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from prefcli.config_base import ConfigBase

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Words(NamedTuple):
    """A finding to a person."""

    what: str
    cure: str
    usual: float = 0.0
    """The share up to which it is no news which rows they are."""


_LONGER = "raise data.max_length as far as the model's context goes, or leave such rows out"


class Shares(ConfigBase):
    """Shares of a split's rows; a finding counts when its own share is greater. null: never."""

    warn: Share | None = None
    error: Share | None = None


class DataChecks(ConfigBase):
    """Where a key is left out, its default stands: `cut: {error: 0.3}` still warns at 0.01.

    No shares are published; where a line names no source, it is a proposal.
    """

    long_prompts: Annotated[
        Shares,
        Words(
            "the prompt alone fills max_length",
            "shorten such prompts or leave them out, or raise data.max_length",
        ),
    ] = Shares(warn=0.0, error=0.01)
    """Such rows are dropped."""
    cut: Annotated[Shares, Words("a completion is cut at max_length", _LONGER)] = Shares(
        warn=0.01, error=0.1
    )
    """A cut completion has no end: the model learns none from it."""
    identical: Annotated[
        Shares,
        Words("chosen and rejected are identical", "leave out pairs that prefer nothing"),
    ] = Shares(warn=0.0, error=0.05)
    """Such pairs are dropped."""
    identical_after_cut: Annotated[
        Shares,
        Words(
            "chosen and rejected are identical after the cut at max_length",
            "raise data.max_length",
        ),
    ] = Shares(warn=0.0, error=0.05)
    """Such pairs are dropped. 7 % of UltraFeedback at 512 tokens (natolambert/rlhf-book, PR
    504)."""
    empty: Annotated[
        Shares, Words("a text that is trained on is empty", "fill or leave out such rows")
    ] = Shares(warn=0.0, error=0.01)
    """Such rows are dropped."""
    duplicates: Annotated[
        Shares,
        Words("the same row stands before it", "leave out what repeats, if it is no intention"),
    ] = Shares(warn=0.01)
    """They are kept: some mixtures weigh rows by repeating them. What repetition costs: Lee et al.
    2022, arXiv:2107.06499."""
    contradictions: Annotated[
        Shares,
        Words(
            "the same row stands before it with the opposite preference",
            "keep the side that is meant, or neither; with contested labels take ipo",
        ),
    ] = Shares(warn=0.0, error=0.1)
    """Two such rows cancel each other out: both are kept, and both are in the loss."""
    shared_prompts: Annotated[
        Shares,
        Words(
            "the prompt stands in data.train, too",
            "split by prompts, so that data.eval holds none that is trained on",
        ),
    ] = Shares(warn=0.0, error=0.01)
    """Of the rows of data.eval. Some published mixtures train on their test split:
    huggingface/alignment-handbook, recipes/zephyr-7b-beta/dpo, joins train_prefs and test_prefs."""
    chosen_longer: Annotated[
        Shares,
        Words(
            "chosen is longer than rejected",
            "length alone can tell them apart; unless the loss is normalised by length already, "
            "take dpo.loss_type: sigmoid_norm, dpo.ld_alpha, or simpo",
            usual=0.6,
        ),
    ] = Shares(warn=0.6)
    """Of the pairs that are kept. DPO turns that into longer answers: Park et al. 2024,
    arXiv:2403.19159."""
    prompt_boundary: Annotated[
        Shares,
        Words(
            "the prompt's last tokens merge with the completion",
            "where prompts end with a space, let the completions start with it instead",
        ),
    ] = Shares(warn=0.0, error=0.01)
    """Of texts. The merged tokens are trained as completion, and generation starts from others
    (huggingface/trl, issues 2054 and 5213)."""
    template_boundary: Annotated[
        Shares,
        Words(
            "the chat template starts an answer otherwise than it asks for one",
            "name a model.chat_template whose generation prompt is what stands before an answer",
        ),
    ] = Shares(warn=0.0)
    """The same of messages. No error: some published templates (a thinking block that is opened
    for generation alone) are so by intention."""

    two_bos: Annotated[
        Shares,
        Words(
            "two BOS tokens begin the row, one of the text and one of the tokenizer",
            "take the BOS out of the text, or out of the chat template",
        ),
    ] = Shares(warn=0.0, error=0.01)
    """No model saw that in its pretraining; it spoils figures (princeton-nlp/SimPO, README)."""
    no_bos: Annotated[
        Shares,
        Words(
            "no BOS token begins the row, where the tokenizer begins texts with one",
            "let the chat template begin with {{ bos_token }}",
        ),
    ] = Shares(warn=0.0)
    """No error: published models were trained so, Zephyr among them."""
    no_end: Annotated[
        Shares,
        Words(
            "the completion does not end with a token at which generation stops",
            "let the chat template end an answer with the end token (inside {% generation %}, if "
            "that is there); or name the token it writes in eos_token_id of the "
            "generation_config.json",
        ),
    ] = Shares(warn=0.0, error=0.001)
    """A model that is not taught to stop does not (huggingface/trl, issue 1623)."""

    @field_validator("*", mode="before")
    @classmethod
    def _rest_by_default(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, dict) or info.field_name is None:
            return value
        return {**cls.model_fields[info.field_name].default.model_dump(), **value}

    @classmethod
    def words(cls, name: str) -> Words:
        return next(m for m in cls.model_fields[name].metadata if isinstance(m, Words))
