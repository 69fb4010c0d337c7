"""training, performance, launch: how a run trains, and on which processes."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import Field, model_validator

from prefcli.config_base import (
    ConfigBase,
    Count,
    Flag,
    NonNegative,
    Positive,
    RuleError,
)
from prefcli.errors import Problem, RecipeError
from prefcli.methods import Method
from prefcli.metrics import metric
from prefcli.text import did_you_mean


class EarlyStopping(ConfigBase):
    """Stop after `patience` evaluations without improvement; the best checkpoint becomes the
    model."""

    metric: Annotated[str, Field(min_length=1)] = "eval_loss"
    """Any metric of an evaluation, by its name in metrics.jsonl."""
    patience: Count = 3
    """Evaluations without improvement."""
    threshold: NonNegative = 0.0
    """An improvement must be larger than this."""

    @property
    def greater_is_better(self) -> bool:
        return metric(self.metric).better == "higher"

    def check(self, methods: Iterable[Method]) -> None:
        """Raise RuleError if none of the methods measures the metric."""
        known = list(dict.fromkeys(name for method in methods for name in method.eval_metrics))
        if self.metric not in known:
            raise RuleError(
                f"training.early_stopping.metric {self.metric} is not measured by an evaluation; "
                + (did_you_mean(self.metric, known) or f"write one of {', '.join(known)}"),
                code="RCP031",
            )


class Training(ConfigBase):
    """How long and how fast to train, and when to evaluate and save. The keys are transformers'."""

    num_train_epochs: Positive = 1.0
    """Passes over the training rows; 0.5 stops after half of them."""
    max_steps: Count | None = None
    """Stop after this many optimizer steps, whatever num_train_epochs says."""
    global_batch_size: Count = 32
    """Rows per optimizer step over all devices; gradient accumulation follows from it.
    Demonstrations of sft_mix are extra."""
    per_device_train_batch_size: Count | Literal["auto"] = "auto"
    """Rows per forward pass. auto: as many as are predicted to fit on a GPU, preferably without
    gradient checkpointing; at most 8 on a CPU, under an external launcher, and where the loss
    depends on it (kto, aot). A resumed run keeps its value."""
    per_device_eval_batch_size: Count | None = None
    """Default: per_device_train_batch_size."""
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Default: the method's usual value for full or LoRA training, which the run prints and
    saves."""
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "cosine_with_min_lr",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "polynomial",
    ] = "cosine"
    """How the learning rate falls after warm-up."""
    min_lr_ratio: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """The end of cosine_with_min_lr, as a share of the learning rate."""
    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Share of the steps. Default: 0.1, unless warmup_steps is given."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps over which the learning rate rises from zero, in place of warmup_ratio."""
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
    """auto: adamw_torch_fused on a GPU, which is faster there and needs no copies of the weights;
    adamw_torch on a CPU."""
    weight_decay: NonNegative = 0.0
    """AdamW's decay of the weights, applied to all but biases and norms."""
    adam_beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Decay rate of Adam's average of gradients."""
    adam_beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Decay rate of Adam's average of squared gradients."""
    adam_epsilon: Positive = 1e-8
    """Added to the root in Adam's denominator."""
    max_grad_norm: NonNegative = 1.0
    """Gradients with a larger norm are scaled down to it; 0: gradients are not clipped."""
    gradient_checkpointing: Flag | Literal["auto"] = "auto"
    """Recompute activations in the backward pass: less memory, about a third slower. auto: only if
    a step would not fit comfortably into the device's memory without it; the log says so."""
    logging_steps: Count | Literal["auto"] = 10
    """Log the training metrics every so many steps. auto: about 200 times in a run, and every step
    of a run of up to 200 steps."""
    eval_steps: Count | None = None
    """Default: evaluate before the first step and after the last."""
    save_steps: Count = 500
    """Save a checkpoint every so many steps."""
    early_stopping: EarlyStopping | None = None
    """Default: train all steps."""
    save_total_limit: Count | None = 2
    """Older checkpoints are deleted; null keeps all."""

    @model_validator(mode="after")
    def _batch_sizes_divide(self) -> Training:
        if self.per_device_train_batch_size == "auto":
            return self
        if self.global_batch_size % self.per_device_train_batch_size:
            sizes = range(1, min(self.global_batch_size, 1024) + 1)
            divisors = [d for d in sizes if not self.global_batch_size % d]
            raise RuleError(
                f"global_batch_size {self.global_batch_size} is not a multiple of "
                f"per_device_train_batch_size {self.per_device_train_batch_size}; "
                f"write a divisor: {', '.join(map(str, divisors))}"
            )
        return self

    @model_validator(mode="after")
    def _schedule_is_consistent(self) -> Training:
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise RuleError("warmup_ratio and warmup_steps are both given; remove one")
        if (self.lr_scheduler_type == "cosine_with_min_lr") != (self.min_lr_ratio is not None):
            raise RuleError(
                "lr_scheduler_type cosine_with_min_lr needs min_lr_ratio, e.g. 0.1"
                if self.min_lr_ratio is None
                else f"min_lr_ratio has no effect with lr_scheduler_type {self.lr_scheduler_type}; "
                "write cosine_with_min_lr or remove it"
            )
        constant = self.lr_scheduler_type == "constant"
        if constant and (self.warmup_ratio or self.warmup_steps):
            raise RuleError(
                "a warm-up has no effect with lr_scheduler_type constant; "
                "write constant_with_warmup or remove the warm-up"
            )
        return self

    @model_validator(mode="after")
    def _optimizer_uses_its_settings(self) -> Training:
        fields = type(self).model_fields
        adam = sorted(
            k for k in fields if k.startswith("adam_") and getattr(self, k) != fields[k].default
        )
        if adam and self.optim != "auto" and "adam" not in self.optim:
            raise RuleError(f"{', '.join(adam)} has no effect with optim {self.optim}")
        return self

    @model_validator(mode="after")
    def _best_model_is_a_checkpoint(self) -> Training:
        if self.early_stopping is not None and self.save_steps != self.eval_steps:
            raise RuleError(
                "early_stopping needs a checkpoint of each evaluated model: write the same number "
                f"for eval_steps ({self.eval_steps or 'not set'}) and save_steps "
                f"({self.save_steps or 'not set'})"
            )
        return self

    @property
    def warmup(self) -> float:
        """Warm-up as transformers' warmup_steps: below 1 a share of the steps, else a number."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        if self.warmup_ratio is not None:
            return self.warmup_ratio
        return 0.0 if self.lr_scheduler_type == "constant" else 0.1

    def optimizer_on(self, kind: str) -> str:
        """The optimizer on a kind of device: cuda or cpu."""
        if self.optim != "auto":
            return self.optim
        return "adamw_torch_fused" if kind == "cuda" else "adamw_torch"

    @property
    def needs_bitsandbytes(self) -> bool:
        return "8bit" in self.optim or "paged" in self.optim

    @property
    def train_batch_size(self) -> int:
        """per_device_train_batch_size, once auto is resolved."""
        assert self.per_device_train_batch_size != "auto"
        return self.per_device_train_batch_size

    @property
    def eval_batch_size(self) -> int:
        return self.per_device_eval_batch_size or self.train_batch_size


class Performance(ConfigBase):
    """Settings that change the speed of a run but none of its metrics."""

    shared_prefix: Literal["auto", "on", "off"] = "auto"
    """Score rows without padding, a shared prompt once, and logits only at labels. auto: if it is
    verified for the model, else trl's own forward and a line that says why. on: fail instead."""
    compile: Literal["on", "off"] = "off"
    """Fuse each decoder layer with torch.compile, on a GPU with flash attention. Saves launches,
    which is a third of a step of a 1B model on an H100; compiling takes about 20 seconds."""
    tokens_per_batch: Count | Literal["auto", "off"] = "auto"
    """Fill micro-batches up to this many tokens instead of per_device_train_batch_size rows, and
    deal the rows of a step to the processes by length. Each step has the same rows and the same
    loss. At most per_device_train_batch_size times the longest row. auto: about as many as the
    largest micro-batch of rows has, on several GPUs."""


class Launch(ConfigBase):
    """The processes of a run, unless an external launcher starts them."""

    strategy: Literal["auto", "single", "ddp", "fsdp2", "zero2", "zero3"] = "auto"
    """single: one process. ddp: the whole model on each GPU. fsdp2: torch's sharding. zero2, zero3:
    DeepSpeed's. auto: single for one process; for several, ddp if a step is predicted to fit on
    each GPU, else fsdp2; ddp on CPUs. A resumed run keeps its strategy."""
    processes: Count | None = None
    """Per node. Default: one per GPU; without GPUs, one."""
    nodes: Count = 1
    """Each node runs the same command; the job's scheduler lets them find each other."""

    @model_validator(mode="after")
    def _single_is_one_process(self) -> Launch:
        count = (self.processes or 1) * self.nodes
        if self.strategy == "single" and count > 1:
            raise RuleError(
                f"launch.strategy single is one process, not {count}; remove processes and nodes, "
                "or write auto"
            )
        return self


def need_deepspeed(path: str | None = None) -> None:
    """Raise RecipeError if DeepSpeed is not installed. path: the key that asks for it."""
    if find_spec("deepspeed") is None:
        raise RecipeError(
            Problem(
                "ZeRO needs DeepSpeed, which is not installed",
                path=path,
                hint="pip install 'prefcli[deepspeed]', or use fsdp2, which needs only torch",
                code="RCP029",
            )
        )
