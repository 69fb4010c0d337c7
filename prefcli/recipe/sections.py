"""The plain sections of a recipe; those of methods are in methods/, the rules in schema.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from prefcli.config_base import ConfigBase, Count, Flag, Fraction, NonNegative, Positive
from prefcli.recipe.data_checks import DataChecks
from prefcli.recipe.early_stopping import EarlyStopping
from prefcli.recipe.paths import PathOrName, is_commit, is_local


def check_pinned(revision: str | None, path: str, whose: str) -> None:
    """Code that is run must be code that somebody can have read. Raises ValueError.

    path, whose: the keys of the revision, and of what it is a revision of.
    """
    if not is_commit(revision):
        found = "nothing" if revision is None else repr(revision)
        raise ValueError(
            f"{path} must be a full commit of 40 hex digits, not {found}: with trust_remote_code, "
            f"code that comes with {whose} is run, and a branch or a tag may move"
        )


class Model(ConfigBase):
    """The weights that training starts from."""

    name_or_path: PathOrName
    """Hub id or local folder."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    init: Literal["pretrained", "random"] = "pretrained"
    """random: make the weights from the folder's config.json with the recipe's seed."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights. auto: float32 (with bfloat16 autocast on a GPU that has it); under
    LoRA on such a GPU the frozen weights are bfloat16."""
    attn_implementation: Literal[
        "auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"
    ] = "auto"
    """auto: whatever transformers picks on this machine."""
    chat_template: str | None = None
    """A .jinja file, or the template itself; left out, the tokenizer's own is used."""
    eos_token: Annotated[str, Field(min_length=1)] | None = None
    """The token that ends an answer, where the tokenizer's own is another, as a chat template's
    <|im_end|> on a base model; the trained model keeps it. Left out: the tokenizer's."""
    adapter: Literal["continue", "stack", "merge"] | None = None
    """Where name_or_path holds a LoRA adapter. continue: train that adapter on. stack: a new one
    (lora:) over it. merge: into its base, which is then trained in full. The reference is the
    base with the adapter, in each case."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Frozen base weights in NF4 or int8 under an adapter (QLoRA, Dettmers et al. 2023,
    arXiv:2305.14314); needs bitsandbytes."""
    trust_remote_code: Flag = False
    """Run the Python files that come with the model. On the hub, only those of the very commit that
    revision names."""

    @model_validator(mode="after")
    def _code_of_one_commit(self) -> Model:
        if self.trust_remote_code and not is_local(self.name_or_path):
            check_pinned(self.revision, "revision", "name_or_path")
        return self

    @model_validator(mode="after")
    def _pretrained_for_these(self) -> Model:
        if self.init == "random" and (self.adapter or self.quantization):
            key = "adapter" if self.adapter else "quantization"
            raise ValueError(f"{key} has no meaning for random weights; leave init or {key} out")
        if self.quantization and self.adapter in ("stack", "merge"):
            raise ValueError(
                f"adapter {self.adapter} merges into the base, and quantization leaves no weights "
                "to merge into; write adapter: continue, or merge in 16 bits first"
            )
        if self.quantization and self.dtype == "float32":
            raise ValueError("dtype float32 has no effect with quantization; leave dtype out")
        return self


class Lora(ConfigBase):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685). Leave out for full fine-tuning."""

    rank: Count = 16
    alpha: Positive = 32.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """all-linear: every linear layer but the output head; or the names of layers."""
    use_rslora: Flag = False
    """Scale by alpha/sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732)."""
    use_dora: Flag = False
    """Weight-decomposed LoRA (Liu et al. 2024, arXiv:2402.09353)."""

    @field_validator("target_modules", mode="after")
    @classmethod
    def _not_the_head(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise ValueError("an empty list adapts nothing; name layers or write all-linear")
        if isinstance(value, list) and "lm_head" in value:
            raise ValueError(
                "trl scores with lm_head's weight directly, so an adapter there would never be "
                "trained; leave lm_head out"
            )
        return value


class Reference(ConfigBase):
    """What the policy is held to. Left out: the starting policy, whatever it is made of."""

    name_or_path: PathOrName | None = None
    """Another model than the starting policy: hub id, folder, or a folder with an adapter."""
    revision: str | None = None
    precompute: Flag = False
    """Score all rows once, before training, and keep the figures on disk for later runs: the
    reference needs no memory while training."""

    @model_validator(mode="after")
    def _revision_of_something(self) -> Reference:
        if self.revision is not None and self.name_or_path is None:
            raise ValueError("revision has no effect without name_or_path; see model.revision")
        return self


class Source(ConfigBase):
    """One dataset, in datasets' own words."""

    path: PathOrName
    """.jsonl, .json, .parquet or .csv file, a saved datasets folder, or a hub id."""
    name: str | None = None
    """The hub dataset's configuration."""
    split: str | None = None
    """Left out: train."""
    data_files: str | list[str] | None = None
    """Files inside a folder or hub dataset."""
    revision: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    """Our column name: the name it has in the data."""
    fraction: Fraction = 1.0
    """Share of the rows to take, drawn with the recipe's seed."""


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


Sources = Annotated[
    list[Source],
    BeforeValidator(_one_or_many, json_schema_input_type=Source | list[Source]),
    Field(min_length=1),
]


class Data(ConfigBase):
    """What is trained and evaluated on."""

    train: Sources
    """One source or a list of them."""
    eval: Sources | None = None
    max_length: Annotated[int, Field(ge=8)] = 1024
    """Tokens of prompt and completion; longer completions are cut at the end."""
    num_proc: Count | None = None
    """Processes that convert and tokenise."""
    checks: DataChecks = Field(default_factory=DataChecks)
    """From which share of a split's rows on a finding is a warning, or an error."""


class SftMix(ConfigBase):
    """SFT demonstrations beside the preference rows of each optimizer step, against forgetting.

    The step minimises L_preference + weight * (S / P) * NLL over P preference rows and S
    demonstrations; NLL is the mean over their response tokens.
    """

    fraction: Annotated[float, Field(ge=0.0, le=0.5)] = 0.15
    """Share of demonstrations among the examples of a step: S / (S + P); 0 mixes nothing in."""
    data: Sources
    """Demonstrations; of a conversation, the last turn is the response."""
    weight: Positive = 1.0
    """1: a demonstration counts as much as a preference row."""


class Training(ConfigBase):
    """How long, how fast, how often. Names are transformers' own."""

    num_train_epochs: Positive = 1.0
    max_steps: Count | None = None
    """Stop after this many optimizer steps, whatever the epochs say."""
    global_batch_size: Count = 32
    """Rows per optimizer step over all devices; accumulation is derived from it. Demonstrations of
    sft_mix come on top."""
    per_device_train_batch_size: Count = 8
    per_device_eval_batch_size: Count | None = None
    """Left out: as in training."""
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Left out: the method's usual value for full or LoRA training; it is printed."""
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "cosine_with_min_lr",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "polynomial",
    ] = "cosine"
    min_lr_ratio: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Where cosine_with_min_lr ends, as a share of the learning rate."""
    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Share of the steps; 0.1 if neither this nor warmup_steps is given."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    optim: Literal[
        "auto",
        "adamw_torch",
        "adamw_torch_fused",
        "adamw_8bit",
        "paged_adamw_8bit",
        "paged_adamw_32bit",
        "adafactor",
        "rmsprop",
        "sgd",
    ] = "auto"
    """auto: AdamW, on a GPU adamw_torch_fused, which is faster there and needs no copies of the
    weights; on a CPU adamw_torch."""
    weight_decay: NonNegative = 0.0
    adam_beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    adam_epsilon: Positive = 1e-8
    max_grad_norm: Positive = 1.0
    gradient_checkpointing: Flag | Literal["auto"] = "auto"
    """Recompute activations in the backward pass: less memory, about a third slower. auto: only
    where a step would not fit well into the device's memory without it; the log says so."""
    logging_steps: Count = 10
    eval_steps: Count | None = None
    """Left out: evaluation before the first step and after the last."""
    save_steps: Count = 500
    """A checkpoint to resume from, every so many steps."""
    early_stopping: EarlyStopping | None = None
    """Left out: all steps are trained."""
    save_total_limit: Count | None = 2
    """Older checkpoints are deleted; null keeps all."""

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError("warmup_ratio and warmup_steps are both given; keep one")
        if self.global_batch_size % self.per_device_train_batch_size:
            sizes = range(1, min(self.global_batch_size, 1024) + 1)
            divisors = [d for d in sizes if not self.global_batch_size % d]
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of "
                f"per_device_train_batch_size {self.per_device_train_batch_size}; "
                f"per-device sizes that divide it: {', '.join(map(str, divisors))}"
            )
        fields = type(self).model_fields
        adam = sorted(
            k for k in fields if k.startswith("adam_") and getattr(self, k) != fields[k].default
        )
        if adam and self.optim != "auto" and "adam" not in self.optim:
            raise ValueError(f"{', '.join(adam)} has no effect with optim {self.optim}")
        if (self.lr_scheduler_type == "cosine_with_min_lr") != (self.min_lr_ratio is not None):
            raise ValueError(
                "lr_scheduler_type cosine_with_min_lr needs min_lr_ratio, as in 0.1"
                if self.min_lr_ratio is None
                else f"min_lr_ratio has no effect with lr_scheduler_type {self.lr_scheduler_type}; "
                "write cosine_with_min_lr or leave it out"
            )
        if self.early_stopping is not None and self.save_steps != self.eval_steps:
            raise ValueError(
                f"early_stopping keeps the best of the models that were evaluated, so each must be "
                f"a checkpoint: write eval_steps and save_steps alike, not {self.eval_steps} and "
                f"{self.save_steps}"
            )
        constant = self.lr_scheduler_type == "constant"
        if constant and (self.warmup_ratio or self.warmup_steps):
            raise ValueError(
                "a warm-up has no effect with lr_scheduler_type constant; "
                "write constant_with_warmup or leave the warm-up out"
            )
        return self

    @property
    def warmup(self) -> float:
        """In transformers' spelling: below 1 a share of the steps, else a number of steps."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        if self.warmup_ratio is not None:
            return self.warmup_ratio
        return 0.0 if self.lr_scheduler_type == "constant" else 0.1

    def optimizer_on(self, kind: str) -> str:
        """The one that is named, or the AdamW for a device of this kind: cuda, or cpu."""
        if self.optim != "auto":
            return self.optim
        return "adamw_torch_fused" if kind == "cuda" else "adamw_torch"

    @property
    def needs_bitsandbytes(self) -> bool:
        return "8bit" in self.optim or "paged" in self.optim

    @property
    def eval_batch_size(self) -> int:
        return self.per_device_eval_batch_size or self.per_device_train_batch_size


class SampleOptions(ConfigBase):
    """What the policy answers to a few prompts of data.eval, as training goes on.

    At the start, at each evaluation and at the end: greedily, and drawn with the recipe's seed.
    """

    prompts: Annotated[int, Field(ge=0)] = 4
    """How many, from all over data.eval; 0 answers none."""
    max_new_tokens: Count = 64
    """Where an answer is cut that has not ended by then."""
    temperature: Positive = 1.0
    """Of the answers that are drawn."""

    @model_validator(mode="after")
    def _prompts_to_answer(self) -> SampleOptions:
        rest = sorted(self.model_dump(exclude={"prompts"}, exclude_defaults=True))
        if self.prompts == 0 and rest:
            raise ValueError(f"{', '.join(rest)} has no effect with prompts: 0")
        return self


class Logging(ConfigBase):
    """Where metrics go besides metrics.jsonl, which is always written."""

    report_to: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = Field(
        default_factory=list
    )
    """Trackers; what they need beyond prefcli comes with prefcli[trackers]."""
    run_name: str | None = None
    """Left out: the last part of output_dir."""

    @field_validator("report_to", mode="after")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        twice = sorted({name for name in value if value.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is named twice; name each tracker once")
        return value

    @model_validator(mode="after")
    def _named_for_someone(self) -> Logging:
        if self.run_name is not None and not self.report_to:
            raise ValueError("run_name has no effect without report_to; name a tracker")
        return self


class CheckSft(ConfigBase):
    """The gate before dpo, ipo, kto and simpo: is the starting policy fit for preference tuning?"""

    max_perplexity: Annotated[float, Field(gt=1.0)] = 10.0
    """Per token, on chosen (kto: desirable) responses given their prompts."""
    on_fail: Literal["stop", "warn", "skip"] = "stop"
    """stop: exit 3. warn: say so and train. skip: do not measure."""
    max_rows: Count = 512
    """Rows measured, drawn with the recipe's seed."""
