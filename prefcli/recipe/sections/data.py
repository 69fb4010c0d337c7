"""data, sft_mix, check_sft: the rows that are trained and evaluated on, and checks of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from prefcli.config_base import (
    ConfigBase,
    Count,
    Flag,
    Fraction,
    Positive,
    RuleError,
    section,
)
from prefcli.recipe.paths import PathOrName


def _has_instruction(template: str) -> str:
    if template != "alpaca" and "{instruction}" not in template:
        raise RuleError("the text has no {instruction}; write one, or alpaca")
    return template


class Source(ConfigBase):
    """One dataset; the keys are those of datasets.load_dataset."""

    path: PathOrName
    """.jsonl, .json, .parquet or .csv file, a saved datasets folder, or a hub id."""
    name: str | None = None
    """Configuration of the hub dataset."""
    split: str | None = None
    """Default: train."""
    data_files: str | list[str] | None = None
    """Files inside a folder or hub dataset."""
    revision: str | None = None
    """Branch, tag or commit of the hub dataset."""
    columns: dict[str, str] = Field(default_factory=dict)
    """prefcli's column name: the name of the column in the data."""
    chat: Flag = False
    """Make turns of texts: a prompt is the user's, each answer the assistant's; the chat template
    is applied."""
    prompt_template: Annotated[str, AfterValidator(_has_instruction)] | None = None
    """Text of the prompt with {instruction} and {input}, or alpaca for Stanford Alpaca's: rows of
    instruction, input and answers become texts instead of a chat."""
    fraction: Fraction = 1.0
    """Share of the rows to use, drawn with the recipe's seed."""
    rows: Count | None = None
    """Number of rows to use, drawn with the recipe's seed; all rows if there are fewer."""

    def share_of(self, total: int) -> float:
        """Return the share of the source's rows to use. total: their number."""
        return self.fraction if self.rows is None else min(1.0, self.rows / total)

    @model_validator(mode="after")
    def _rows_or_fraction(self) -> Source:
        if self.rows is not None and self.fraction != 1.0:
            raise RuleError("rows and fraction both limit the source; remove one")
        return self

    @model_validator(mode="after")
    def _chat_or_prompt_template(self) -> Source:
        if self.chat and self.prompt_template is not None:
            raise RuleError("chat makes turns of a prompt and prompt_template a text; remove one")
        return self


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


Sources = Annotated[
    list[Source],
    BeforeValidator(_one_or_many, json_schema_input_type=Source | list[Source]),
    Field(min_length=1),
]


class HeldOut(ConfigBase):
    """Rows of data.train that are evaluated instead of trained on."""

    from_train: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Share of the prompts, drawn with the recipe's seed; all rows of a prompt are held out."""


SOURCES, HELD_OUT = "list of sources", "held-out rows"
"""pydantic's tags of the two forms of data.eval."""


def _form(value: Any) -> str:
    is_held_out = isinstance(value, HeldOut) or (isinstance(value, dict) and "from_train" in value)
    return HELD_OUT if is_held_out else SOURCES


Share = Annotated[float, Field(ge=0.0, le=1.0)]


class CheckText(NamedTuple):
    """A data check as text."""

    what: str
    cure: str
    usual: float = 0.0
    """Up to this share of rows the check is expected to match, so the rows are not listed."""


class Shares(ConfigBase):
    """Shares of a split's rows above which a check warns or is an error. null: never."""

    warn: Share | None = None
    """Warn above this share."""
    error: Share | None = None
    """Stop above this share."""


class DataChecks(ConfigBase):
    """Thresholds of the data checks. A missing key keeps its default: `cut: {error: 0.3}` still
    warns at 0.01.

    The thresholds are proposals, except where a source is named.
    """

    unread: Annotated[
        Shares,
        CheckText(
            "columns or keys of messages that change training elsewhere are not read",
            "put their text into the prompt or the messages",
        ),
    ] = Shares(warn=0.0, error=0.5)
    """Rows with a value that prefcli does not read and other tools do, such as a system column
    next to the prompt; not counted where the prompt contains it."""
    parted: Annotated[
        Shares,
        CheckText(
            "the sides differ before their last turn",
            "remove such pairs, or name the turns that both sides share in a prompt column",
        ),
    ] = Shares(warn=0.0, error=0.1)
    """Pairs without a prompt column whose conversations differ before the last answer; they are
    dropped."""
    turns: Annotated[
        Shares,
        CheckText(
            "the turns have an order that can't be trained on",
            "end prompts with a user turn, and conversations and sides with an assistant turn",
        ),
    ] = Shares(warn=0.0, error=0.05)
    """Rows whose prompt ends with an assistant turn, or whose answer is not one; they are
    dropped."""
    bad_label: Annotated[
        Shares,
        CheckText(
            "the label is neither true nor false",
            "write true or false in every row",
        ),
    ] = Shares(warn=0.0, error=0.01)
    """Rows without a valid label; they are dropped."""
    long_prompts: Annotated[
        Shares,
        CheckText(
            "the prompt leaves no room for a completion in max_length",
            "shorten or remove such prompts, or raise data.max_length",
        ),
    ] = Shares(warn=0.0, error=0.01)
    """Rows whose prompt fills max_length; they are dropped."""
    cut: Annotated[
        Shares,
        CheckText(
            "a completion is cut at max_length",
            "raise data.max_length up to the model's context length, or remove such rows",
        ),
    ] = Shares(warn=0.01, error=0.1)
    """Completions that are cut at max_length; the model does not learn to end them."""
    identical: Annotated[
        Shares,
        CheckText(
            "chosen and rejected are identical",
            "remove pairs whose chosen and rejected are identical",
        ),
    ] = Shares(warn=0.0, error=0.05)
    """Pairs whose chosen and rejected are identical; they are dropped."""
    identical_tokens: Annotated[
        Shares,
        CheckText(
            "chosen and rejected differ, but not their tokens",
            "where the chat template removes what differs, name one in model.chat_template that "
            "writes it; else remove such pairs",
        ),
    ] = Shares(warn=0.0, error=0.05)
    """Pairs that the chat template or the tokenizer makes equal, such as a difference in a
    reasoning block that the template removes; they are dropped."""
    identical_after_cut: Annotated[
        Shares,
        CheckText(
            "chosen and rejected are identical after the cut at max_length",
            "raise data.max_length",
        ),
    ] = Shares(warn=0.0, error=0.05)
    """Pairs that are identical after the cut at max_length; they are dropped. 7 % of UltraFeedback
    at 512 tokens (natolambert/rlhf-book, PR 504)."""
    empty: Annotated[
        Shares, CheckText("a text that is trained on is empty", "fill in or remove such rows")
    ] = Shares(warn=0.0, error=0.01)
    """Rows with an empty text; they are dropped."""
    nothing_trained: Annotated[
        Shares,
        CheckText(
            "the row has no token to train on",
            "raise data.max_length where max_length cuts them, and put assistant turns between "
            "{% generation %} and {% endgeneration %} where the chat template marks none",
        ),
    ] = Shares(warn=0.0, error=0.05)
    """Rows without a token to train on; they are dropped."""
    duplicates: Annotated[
        Shares,
        CheckText("duplicate of an earlier row", "remove duplicates unless they are intended"),
    ] = Shares(warn=0.01)
    """Duplicates of earlier rows; they are kept, since some mixtures repeat rows to weight them.
    Effects of duplicates: Lee et al. 2022, arXiv:2107.06499."""
    contradictions: Annotated[
        Shares,
        CheckText(
            "duplicate of an earlier row with the opposite preference",
            "keep one of the two rows, or neither; for noisy labels use ipo",
        ),
    ] = Shares(warn=0.0, error=0.1)
    """Pairs of rows with opposite preferences; both are kept, and their losses cancel out."""
    shared_prompts: Annotated[
        Shares,
        CheckText(
            "the prompt is also in data.train",
            "split the data by prompt, so that no prompt of data.eval is trained on",
        ),
    ] = Shares(warn=0.0, error=0.01)
    """Rows of data.eval whose prompt is in data.train. Some published mixtures train on their test
    split: huggingface/alignment-handbook, recipes/zephyr-7b-beta/dpo, joins train_prefs and
    test_prefs."""
    score_contradictions: Annotated[
        Shares,
        CheckText(
            "chosen has a lower score than rejected",
            "remove such pairs; if they are most of the pairs, compare a few: the sides may be "
            "swapped, which columns: {chosen: rejected, rejected: chosen} of the source corrects",
        ),
    ] = Shares(warn=0.03, error=0.5)
    """Pairs whose score columns (such as score_chosen and score_rejected) contradict their
    order."""
    score_ties: Annotated[
        Shares,
        CheckText(
            "chosen and rejected have the same score", "remove such pairs, or use ipo for them"
        ),
    ] = Shares(warn=0.1)
    """Pairs whose scores are equal, so that the preference is arbitrary."""
    user_turns: Annotated[
        Shares,
        CheckText(
            "an answer holds turns of the user, which are trained as well",
            "move all turns but the last answer into the prompt, or cut the answer before them",
        ),
    ] = Shares(warn=0.0)
    """Rows whose chosen, rejected or completion has several turns, or text with `Human:`."""
    matched_neighbours: Annotated[
        Shares,
        CheckText(
            "the neighbour in the device batch, whose completion estimates the KL, has the same "
            "completion",
            "add rows with other completions, or raise training.per_device_train_batch_size",
        ),
    ] = Shares(warn=0.05)
    """Labelled rows whose KL estimate is not of another completion, so that it is too high."""
    chosen_longer: Annotated[
        Shares,
        CheckText(
            "chosen is longer than rejected",
            "the model may learn length instead of quality; unless the loss is length-normalized "
            "already, use dpo.loss_type: sigmoid_norm, dpo.ld_alpha, or simpo",
            usual=0.6,
        ),
    ] = Shares(warn=0.6)
    """Pairs whose chosen response is longer, among those that are kept. DPO turns the bias into
    longer answers: Park et al. 2024, arXiv:2403.19159."""
    prompt_boundary: Annotated[
        Shares,
        CheckText(
            "the prompt's last tokens merge with the completion",
            "if prompts end with a space, move it to the start of the completions",
        ),
    ] = Shares(warn=0.0, error=0.01)
    """Plain texts whose prompt and completion share a token at the boundary. The merged tokens are
    trained as completion, and generation starts from others (huggingface/trl, issues 2054 and
    5213)."""
    template_boundary: Annotated[
        Shares,
        CheckText(
            "the generation prompt differs from the prefix used in training",
            "use a model.chat_template whose generation prompt is the prefix of an answer",
        ),
    ] = Shares(warn=0.0)
    """Conversations whose generation prompt is not the prefix of the trained answer. Never an error
    by default: some published templates (with a thinking block that is opened for generation
    only) do so intentionally."""

    not_rendered: Annotated[
        Shares,
        CheckText(
            "the chat template does not write all of the messages",
            "name a template in model.chat_template that writes it, or remove it from the rows",
        ),
    ] = Shares(warn=0.0)
    """Conversations with text, reasoning, calls, tools or options that the template does not write.
    Never an error by default: some published templates remove the reasoning of earlier turns."""
    two_bos: Annotated[
        Shares,
        CheckText(
            "the row begins with two BOS tokens: one from the text and one from the tokenizer",
            "remove the BOS token from the text or from the chat template",
        ),
    ] = Shares(warn=0.0, error=0.01)
    """Rows with two BOS tokens, which no model sees in pretraining; results suffer
    (princeton-nlp/SimPO, README)."""
    no_bos: Annotated[
        Shares,
        CheckText(
            "the row begins without a BOS token, but the tokenizer adds one to texts",
            "start the chat template with {{ bos_token }}",
        ),
    ] = Shares(warn=0.0)
    """Rows without a BOS token. Never an error by default: some published models, such as Zephyr,
    were trained so."""
    no_end: Annotated[
        Shares,
        CheckText(
            "the completion does not end with a token that stops generation",
            "end answers with the EOS token in the chat template (inside {% generation %}, if it "
            "has that block), or add the token it writes to eos_token_id in generation_config.json",
        ),
    ] = Shares(warn=0.0, error=0.001)
    """Completions without an end token; the model does not learn to stop (huggingface/trl, issue
    1623)."""

    @model_validator(mode="before")
    @classmethod
    def _missing_shares_keep_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {
            name: {**cls.model_fields[name].default.model_dump(), **value}
            if isinstance(value, dict) and name in cls.model_fields
            else value
            for name, value in values.items()
        }

    @classmethod
    def words(cls, name: str) -> CheckText:
        """The text of a check."""
        return next(m for m in cls.model_fields[name].metadata if isinstance(m, CheckText))


class Data(ConfigBase):
    """The rows that are trained and evaluated on."""

    train: Sources
    """One source or a list of sources."""
    eval: (
        Annotated[
            Annotated[Sources, Tag(SOURCES)] | Annotated[HeldOut, Tag(HELD_OUT)],
            Discriminator(_form),
        ]
        | None
    ) = None
    """One source or a list of sources; or `{from_train: 0.05}`, a share of the prompts of train."""
    max_length: Annotated[int, Field(ge=8)] = 1024
    """Tokens of prompt and completion; longer completions are cut at the end. The default is
    lowered to the context of a model in a local folder."""
    num_proc: Count | None = None
    """Processes that convert and tokenize rows."""
    checks: DataChecks = section()
    """The share of a split's rows above which a data check warns or is an error."""

    @property
    def eval_sources(self) -> list[Source]:
        """The sources of eval; empty if it is missing or held out from train."""
        return self.eval if isinstance(self.eval, list) else []

    @property
    def held_out(self) -> float | None:
        """The share of train's prompts that is evaluated; None if eval has its own sources."""
        return self.eval.from_train if isinstance(self.eval, HeldOut) else None


class SftMix(ConfigBase):
    """SFT demonstrations mixed into each optimizer step of preference rows, against forgetting.

    The step minimises L_preference + weight * (S / P) * NLL over P preference rows and S
    demonstrations; NLL is the mean over their response tokens.
    """

    fraction: Annotated[float, Field(ge=0.0, le=0.5)] = 0.15
    """Share of demonstrations among the examples of a step: S / (S + P); 0 disables the mix."""
    data: Sources
    """Demonstrations; in a conversation, the last turn is the response."""
    weight: Positive = 1.0
    """1: a demonstration counts as much as a preference row."""


class CheckSft(ConfigBase):
    """The gate before dpo, ipo, kto and simpo: the starting policy must be ready for them."""

    max_perplexity: Annotated[float, Field(gt=1.0)] = 10.0
    """Per token, on chosen (kto: desirable) responses given their prompts."""
    on_fail: Literal["stop", "warn", "skip"] = "stop"
    """stop: exit with 3. warn: print a warning and train. skip: do not measure."""
    max_rows: Count = 512
    """Rows measured, drawn with the recipe's seed."""
