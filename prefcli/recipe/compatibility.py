"""Valid settings that do not work together: one table, for runs and dry-runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

from prefcli.errors import Problem, RecipeError
from prefcli.methods import Method
from prefcli.recipe.schema import Recipe

Strategy = Literal["single", "ddp", "fsdp1", "fsdp2", "zero2", "zero3"]
"""single: one device. ddp: the whole model on each. fsdp1, fsdp2: torch's sharding. zero2, zero3:
DeepSpeed's."""

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
SHARDED: tuple[Strategy, ...] = ("fsdp1", "fsdp2", "zero3")
"""Strategies under which no process has the whole model."""


class Case(NamedTuple):
    """A recipe, the method that runs, and how devices share the model."""

    recipe: Recipe
    method: Method
    strategy: Strategy

    @property
    def fsdp(self) -> bool:
        return self.strategy in ("fsdp1", "fsdp2")

    @property
    def sharded(self) -> bool:
        return self.strategy in SHARDED

    @property
    def flash(self) -> bool:
        return self.recipe.model.attn_implementation.startswith("flash_attention")


class Combination(NamedTuple):
    """Settings that do not work together."""

    level: Literal["error", "warning"]
    path: str
    when: Callable[[Case], bool]
    what: str
    instead: str
    source: str
    """Where the problem is documented."""


COMBINATIONS = (
    Combination(
        "error",
        "model.quantization",
        lambda c: c.recipe.model.quantization is not None and c.sharded,
        "quantized weights are loaded whole on each GPU and can't be sharded",
        "use ddp (a 7B base in 4 bits takes 5 GB), or shard a LoRA on weights in 16 bits",
        "huggingface/trl issues 669, 1723; axolotl issue 1494",
    ),
    Combination(
        "error",
        "training.gradient_checkpointing",
        lambda c: (
            c.strategy == "zero3"
            and c.recipe.trains_adapter
            # auto means on if the model is sharded.
            and c.recipe.training.gradient_checkpointing is not False
            and not c.method.trainer.supports_zero3_lora_checkpointing
        ),
        "LoRA under ZeRO-3 recomputes frozen weights that are no longer gathered, unless "
        "checkpointing is reentrant, which this trl trainer does not support",
        "shard with FSDP2, or turn gradient_checkpointing off",
        "huggingface/trl pull request 6343",
    ),
    Combination(
        "error",
        "training.optim",
        lambda c: c.recipe.training.needs_bitsandbytes and c.sharded,
        "bitsandbytes' optimizers do not work on sharded weights",
        "write adamw_torch_fused, whose states are sharded too",
        "bitsandbytes documentation, FSDP",
    ),
    Combination(
        "error",
        "model.attn_implementation",
        lambda c: c.flash and c.recipe.model.dtype == "float32",
        "flash attention computes in 16 bits only",
        "remove dtype, or use sdpa",
        "transformers documentation, attention backends",
    ),
    Combination(
        "error",
        "lora.modules_to_save",
        lambda c: c.recipe.lora is not None and bool(c.recipe.lora.modules_to_save) and c.sharded,
        "whole layers next to an adapter are trained in float32 and its base is frozen in 16 bits, "
        "which prefcli does not shard together",
        "use ddp or zero2, or train all weights",
        "not tested by prefcli",
    ),
    Combination(
        "error",
        "launch.strategy",
        lambda c: c.method.needs_judge and c.strategy == "fsdp1",
        "completions are sampled during training, which prefcli does not do under FSDP1",
        "use fsdp2",
        "not tested by prefcli",
    ),
    Combination(
        "warning",
        "lora.target_parameters",
        lambda c: c.recipe.lora is not None and bool(c.recipe.lora.target_parameters) and c.sharded,
        "adapters on the parameters of experts have only been tried on whole models",
        "check the log-probabilities of the first evaluation, or use ddp",
        "not tested by prefcli",
    ),
    Combination(
        "warning",
        "model.dtype",
        lambda c: c.recipe.model.dtype == "float16" and c.method.rows != "demonstration",
        "float16 overflows easily in preference losses",
        "bfloat16 autocast (dtype: auto) has the range of float32",
        "LLM-Dojo issue 23: NaN from the first steps",
    ),
    Combination(
        "warning",
        "reference.precompute",
        lambda c: (
            c.recipe.reference.precompute
            and c.recipe.trains_adapter
            and c.recipe.reference.name_or_path is None
        ),
        "precompute saves time here but no memory: under an adapter the reference is the policy "
        "with the adapter off",
        "keep it only if several runs share these rows",
        "trl's DPOTrainer",
    ),
    Combination(
        "warning",
        "lora",
        lambda c: c.strategy == "fsdp1" and c.recipe.trains_adapter,
        "FSDP1 needs use_orig_params for an adapter, or it shards what is trained with what is not",
        "set fsdp_version: 2 in accelerate's configuration",
        "accelerate documentation, FSDP1 against FSDP2",
    ),
)


def check_combinations(recipe: Recipe, method: Method, strategy: Strategy) -> list[str]:
    """Return warnings as lines; raise RecipeError for settings that can't work together."""
    case = Case(recipe, method, strategy)
    matches = [combination for combination in COMBINATIONS if combination.when(case)]
    errors = [c for c in matches if c.level == "error"]
    if errors:
        raise RecipeError(
            [Problem(c.what, path=c.path, hint=c.instead, code="RCP020") for c in errors]
        )
    return [f"{c.path}: {c.what}; {c.instead} ({c.source})" for c in matches]
