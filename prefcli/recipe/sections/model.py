"""model, lora, reference: the weights that are trained, and those they are compared with."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from prefcli.config_base import ConfigBase, Count, Flag, Positive, RuleError
from prefcli.methods import Head
from prefcli.recipe.paths import PathOrName, is_commit, is_local


def check_pinned(revision: str | None, key: str, name_key: str) -> None:
    """Raise RuleError unless the revision is a full commit: code that runs must not change.

    key, name_key: the keys of the revision, and of the model that it belongs to.
    """
    if not is_commit(revision):
        value = "nothing" if revision is None else repr(revision)
        raise RuleError(
            f"{key} must be a full commit of 40 hex digits, not {value}: trust_remote_code runs "
            f"code that comes with {name_key}, and a branch or a tag can change",
            code="RCP032",
        )


class Model(ConfigBase):
    """The weights that training starts from."""

    head: ClassVar[Head] = "language_model"

    name_or_path: PathOrName
    """Hub id or local folder."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    init: Literal["pretrained", "random"] = "pretrained"
    """random: initialize the weights from the folder's config.json with the recipe's seed."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the weights. auto: float32, with bfloat16 autocast on a GPU that supports it;
    with LoRA on such a GPU the frozen weights are bfloat16."""
    attn_implementation: Literal[
        "auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"
    ] = "auto"
    """auto: what transformers picks on this machine."""
    tokenizer: PathOrName | None = None
    """Hub id or folder of the tokenizer if it is not the model's, e.g. one with the special tokens
    of a chat template in place of unused ones; model/ gets it. Its tokens must have rows in the
    model's embedding."""
    tokenizer_revision: str | None = None
    """Branch, tag or commit of the tokenizer on the hub."""
    chat_template: str | None = None
    """A .jinja file, the template itself, or one of chatml, gemma, llama3, mistral, phi3, zephyr.
    Default: the tokenizer's own."""
    eos_token: Annotated[str, Field(min_length=1)] | None = None
    """The token that ends an answer if it is not the tokenizer's own, e.g. a chat template's
    <|im_end|> on a base model; the trained model keeps it. Default: the tokenizer's."""
    adapter: Literal["continue", "stack", "merge"] | None = None
    """How to use the LoRA adapter in name_or_path. continue: train that adapter further. stack:
    train a new one (lora:) on top of it. merge: merge it into its base and train that in full. The
    reference is always the base with the adapter."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Frozen base weights in NF4 or int8 under an adapter (QLoRA, Dettmers et al. 2023,
    arXiv:2305.14314); needs bitsandbytes."""
    trust_remote_code: Flag = False
    """Run the Python files that come with the model. From the hub, only those of the commit that
    revision names."""

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> Model:
        if self.trust_remote_code and not is_local(self.name_or_path):
            check_pinned(self.revision, "revision", "name_or_path")
        return self

    @model_validator(mode="after")
    def _tokenizer_revision_needs_tokenizer(self) -> Model:
        if self.tokenizer_revision is not None and self.tokenizer is None:
            raise RuleError("tokenizer_revision has no effect without tokenizer; see revision")
        return self

    @model_validator(mode="after")
    def _weights_fit_adapter_and_quantization(self) -> Model:
        if self.init == "random" and (self.adapter or self.quantization):
            key = "adapter" if self.adapter else "quantization"
            raise RuleError(f"{key} has no effect on random weights; remove init or {key}")
        if self.quantization and self.adapter in ("stack", "merge"):
            raise RuleError(
                f"adapter {self.adapter} merges into the base, which quantization does not allow; "
                "write adapter: continue, or merge in 16 bits first"
            )
        if self.quantization and self.dtype == "float32":
            raise RuleError("dtype float32 has no effect with quantization; remove dtype")
        return self


class RewardModel(Model):
    """The weights of a reward model, or of a language model that gets a new head."""

    head: ClassVar[Head] = "reward"

    @classmethod
    def of(cls, options: Model) -> RewardModel:
        """Return the section of a method that trains a reward model."""
        return cls.model_construct(**dict(options))


class Lora(ConfigBase):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685). Without it, all weights are trained."""

    rank: Count = 16
    """Rank of the two matrices that are trained per layer (r in the paper)."""
    alpha: Positive = 32.0
    """The product of the matrices is scaled by alpha/rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Share of an adapter's inputs that are zeroed in training."""
    target_modules: Literal["all-linear"] | Literal["default"] | list[str] = "all-linear"
    """all-linear: every linear layer except the output head. default: the layers that peft chooses
    for the architecture. Or a list of layer names. Vision and audio towers, which rows of text do
    not reach, get no adapter unless the list names layers in them."""
    target_parameters: Literal["experts"] | list[str] | None = None
    """Parameters outside linear layers that get an adapter as well. experts: the weights of the
    routed experts, which transformers keeps in one parameter per layer. Or a list of names. Needs
    dropout: 0 and no use_dora."""
    modules_to_save: list[str] | None = None
    """Whole layers that are trained and saved together with the adapter: the embeddings, the
    output head, or both, e.g. [embed_tokens, lm_head] if the chat template writes tokens that the
    model was not trained on."""
    use_rslora: Flag = False
    """Scale by alpha/sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732)."""
    use_dora: Flag = False
    """Weight-decomposed LoRA (Liu et al. 2024, arXiv:2402.09353)."""

    @field_validator("target_modules", mode="after")
    @classmethod
    def _targets_without_head(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise RuleError("an empty list adapts nothing; name layers or write all-linear")
        if isinstance(value, list) and "lm_head" in value:
            raise RuleError(
                "trl reads lm_head's weight directly, so an adapter there would never be trained; "
                "remove lm_head"
            )
        return value

    @model_validator(mode="after")
    def _parameters_without_dropout(self) -> Lora:
        if self.target_parameters is None:
            return self
        if not self.target_parameters:
            raise RuleError("an empty target_parameters adapts nothing; remove it")
        if self.dropout or self.use_dora:
            key = "dropout" if self.dropout else "use_dora"
            value = "0" if self.dropout else "false"
            raise RuleError(
                f"peft supports no {key} on parameters: with target_parameters, write {key}: "
                f"{value}"
            )
        return self


class Reference(ConfigBase):
    """The model that the policy is compared with. Default: the starting policy."""

    name_or_path: PathOrName | None = None
    """A model other than the starting policy: hub id, folder, or a folder with an adapter."""
    revision: str | None = None
    """Branch, tag or commit of the reference on the hub."""
    precompute: Flag = False
    """Score all rows once, before training, and cache the log-probabilities on disk for later
    runs: the reference needs no memory during training."""

    @model_validator(mode="after")
    def _revision_needs_name(self) -> Reference:
        if self.revision is not None and self.name_or_path is None:
            raise RuleError("revision has no effect without name_or_path; see model.revision")
        return self
