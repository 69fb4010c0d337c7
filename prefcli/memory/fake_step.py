"""One optimizer step of trl's own trainer, on tensors that have shapes but no memory behind them.

What the step holds is read off as it goes. Nothing of it is a formula of ours, but the layout of
quantised weights (packed.py) and of the optimizers that torch does not have.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
)
from trl.trainer.utils import add_fused_lm_head

from prefcli.data.run_datasets import active_sft_mix
from prefcli.memory.activations import to_type
from prefcli.memory.dummy_data import demonstrations, one_token_a_word, rows_of
from prefcli.memory.fake_quantized import pack
from prefcli.memory.optimizer_state_size import BITSANDBYTES, on_device
from prefcli.memory.profiler import Peak, Tracker
from prefcli.methods import Method
from prefcli.model import Device, lora_config
from prefcli.model.lora import train_in_float32, trainable_config
from prefcli.model.remote_code import from_config_kwargs
from prefcli.packed_forward.stand_in import of_depth
from prefcli.recipe.distributed_env import world_size
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Logging
from prefcli.training.mixins.context import TrainerContext
from prefcli.training.mixins.sft_mix import Demonstrations, SftMixture
from prefcli.training.trainer import trainer_class_of
from prefcli.trl_integration.trl_args import build, trl_options
from prefcli.trl_integration.trl_compat import (
    LOGPROB_TILE_COLUMNS,
    grouped_matmul_off,
    logprob_tiles_replaced,
    modules_moved_by,
)

_DEPTHS = (2, 4)
"""Layers from which a whole model is extrapolated."""

_SCORES = ("ref_chosen_logps", "ref_rejected_logps", "ref_logps", "ref_KL_logps")


@dataclass(frozen=True)
class Architectures:
    """What is known of the models without their weights."""

    policy: PretrainedConfig
    adapter: LoraConfig | None = None
    """That is trained on, where model.adapter says continue."""
    reference: PretrainedConfig | None = None
    """Of another model than the starting policy."""

    def of_depth(self, layers: int) -> Architectures:
        """The same with so many layers."""
        other = of_depth(self.reference, layers) if self.reference is not None else None
        return Architectures(of_depth(self.policy, layers), self.adapter, other)


@dataclass(frozen=True)
class StepPeaks:
    """Of one optimizer step in the midst of training."""

    passes: Peak
    """Forward and backward passes."""
    update: Peak
    """The optimizer's step."""
    states_follow_weights: bool
    """Are the optimizer's states of the type that the trained weights are of?"""

    @property
    def highest(self) -> Peak:
        return max(self.passes, self.update, key=lambda peak: peak.total)


def fake_run(
    recipe: Recipe, method: Method, known: Architectures, machine: Device, *, length: int
) -> StepPeaks:
    """What a step holds on one `machine`, which may be another than this, at rows of `length`.

    recipe: of a single process, which makes the whole global batch. method: settled. length:
    tokens of each row, prompt and completion.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(_quiet())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(modules_moved_by(to_type))
        stack.enter_context(grouped_matmul_off())
        if machine.kind == "cuda":
            stack.enter_context(_as_on_a_gpu())
        policy = _policy(recipe, known, machine)
        reference = _reference(recipe, method, known, machine)
        trainer = _trainer(recipe, method, machine, policy, reference, length, folder)
        del reference  # the trainer's, or nobody's
        tracker = Tracker((known.policy.get_text_config().vocab_size, LOGPROB_TILE_COLUMNS))
        if getattr(trainer, "ref_model", None) is not None:
            tracker.holds(trainer.ref_model.parameters(), "reference")
        tracker.holds([*trainer.model.parameters(), *trainer.model.buffers()], "weights")
        phases = _Phases(tracker)
        trainer.add_callback(phases)
        with tracker:
            _warm(trainer, recipe, machine, tracker)
            trainer.train()
        own = recipe.training.optim not in BITSANDBYTES
        return StepPeaks(phases.passes, phases.update, own)


def estimated_run(
    recipe: Recipe, method: Method, known: Architectures, machine: Device, *, length: int
) -> StepPeaks:
    """`fake_run`, extrapolated from two small depths where that is much quicker."""
    full = known.policy.get_text_config().num_hidden_layers
    if full <= _DEPTHS[-1] * 2:
        return fake_run(recipe, method, known, machine, length=length)
    low, high = (
        fake_run(recipe, method, known.of_depth(depth), machine, length=length) for depth in _DEPTHS
    )
    more = (full - _DEPTHS[0]) / (_DEPTHS[1] - _DEPTHS[0])
    return StepPeaks(
        low.passes.towards(high.passes, more),
        low.update.towards(high.update, more),
        low.states_follow_weights,
    )


class _Phases(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Notes the peak of each part of the step."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.passes = self.update = Peak()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.tracker.begin()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.passes = self.tracker.peak
        self.tracker.begin()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.update = self.tracker.peak


def _policy(recipe: Recipe, known: Architectures, machine: Device) -> Any:
    model = _model(recipe, known.policy, machine)
    if recipe.model.quantization is not None:
        pack(model, recipe.model.quantization)
        model.is_loaded_in_4bit = recipe.model.quantization == "4bit"
        model.is_loaded_in_8bit = recipe.model.quantization == "8bit"
    if recipe.model.adapter != "continue":
        return model
    assert known.adapter is not None
    return get_peft_model(model, trainable_config(known.adapter))


def _reference(
    recipe: Recipe, method: Method, known: Architectures, machine: Device
) -> PreTrainedModel | None:
    """The model that stands beside the policy: see `_reference` in training/trainer.py."""
    if not method.needs_reference:
        return None
    if known.reference is None and recipe.trains_adapter:
        return None
    return _model(recipe, known.reference or known.policy, machine)


def _model(recipe: Recipe, config: PretrainedConfig, machine: Device) -> PreTrainedModel:
    # Attention that runs on a GPU only needs about as much memory as sdpa.
    eager = recipe.model.attn_implementation == "eager"
    return AutoModelForCausalLM.from_config(
        config,
        dtype=machine.dtype(recipe.model, frozen=recipe.trains_adapter),
        **from_config_kwargs(config, recipe.model),
        **({"attn_implementation": "eager"} if eager else {}),
    )


def _trainer(
    recipe: Recipe,
    method: Method,
    machine: Device,
    policy: Any,
    reference: PreTrainedModel | None,
    length: int,
    folder: str,
) -> Any:
    batch = recipe.training.per_device_train_batch_size
    # A second micro-batch meets the gradients of the first; a third would meet the same.
    batches = 2 if recipe.training.global_batch_size > batch else 1
    mix = active_sft_mix(recipe, method)
    rows = Dataset.from_list(rows_of(method, batch * batches, length))
    config_class, _ = method.trl_classes()
    plain = _plain(recipe, batch * batches)
    options = trl_options(plain, method, machine) | _HERE | {"output_dir": folder}
    options["bf16"] = machine.autocast(recipe.model) or machine.half(recipe.model)
    options["gradient_accumulation_steps"] = batches
    for name in ("packing", "assistant_only_loss"):  # rows are as long as packed ones already
        if name in options:
            options[name] = False
    if recipe.training.optim in BITSANDBYTES:
        options["optim"] = "sgd"
    more: dict[str, Any] = {"ref_model": reference} if reference is not None else {}
    if recipe.lora is not None:
        more["peft_config"] = lora_config(recipe.lora)
    tokenizer = one_token_a_word()
    mixture = None
    if mix is not None:
        split = demonstrations(batch * batches, length)
        stream = Demonstrations(split, tokenizer, plain.data.max_length, plain.seed)
        mixture = SftMixture(stream, mix.fraction, mix.weight)
    context = TrainerContext(method, sft_mix=mixture)
    trainer = trainer_class_of(plain, context)(
        context=context,
        model=policy,
        args=build(options, config_class),
        train_dataset=rows,
        processing_class=tokenizer,
        **more,
    )
    if recipe.model.quantization is not None and recipe.model.dtype != "bfloat16":
        train_in_float32(trainer.model, {})
    trainer.remove_callback(PrinterCallback)
    if mix is not None and method.trainer.concatenates_forward:
        add_fused_lm_head(trainer.base_policy)  # which trl prepares for the other trainers
    if method.needs_reference and recipe.reference.precompute:
        trainer.ref_model, trainer.precompute_ref_logps = None, True
        for name in _SCORES:
            trainer.train_dataset = trainer.train_dataset.add_column(name, [0.0] * len(rows))
    return trainer


_HERE = {
    "use_cpu": True,
    "fp16": False,
    "max_steps": 1,
    "warmup_steps": 0,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": [],
    "dataset_num_proc": None,
    "dataloader_pin_memory": False,
}
"""What a step needs no more, or can't have, where it is only rehearsed."""


def _plain(recipe: Recipe, rows: int) -> Recipe:
    """The recipe for one step of one process, without what trl would do before it."""
    parts = {
        "reference": recipe.reference.model_copy(update={"precompute": False}),
        "training": recipe.training.model_copy(
            update={"global_batch_size": rows * world_size(), "eval_steps": None}
        ),
        "logging": Logging(),
    }
    return recipe.model_copy(update=parts)


def _warm(trainer: Any, recipe: Recipe, machine: Device, tracker: Tracker) -> None:
    """The optimizer with its states, as it is after the first step; hooks on the gradients."""
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    optimizer = trainer.create_optimizer()
    optim = recipe.training.optim
    if machine.kind == "cuda" and "fused" not in recipe.training.optimizer_on(machine.kind):
        # torch's choice on a GPU: all tensors at once, with copies of them all in passing.
        for group in optimizer.param_groups:
            if "foreach" in group:
                group["foreach"] = True
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    states = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    if optim in BITSANDBYTES:
        embeddings = [
            m.weight for m in trainer.model.modules() if isinstance(m, torch.nn.Embedding)
        ]
        embedded = sum(w.numel() for w in embeddings if w.requires_grad)
        size = on_device(optim, sum(p.numel() for p in trained), embedded)
        trainer.states_elsewhere = states = [torch.empty(size, dtype=torch.uint8)]
    tracker.holds(states, "optimizer")
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(lambda p: tracker.holds([p.grad], "gradients"))


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """trl's head folds its tiles with Triton there, which needs no memory of its own."""

    def nothing(*args: Any, **kwargs: Any) -> None:
        pass

    def product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        total.add_(total)

    with logprob_tiles_replaced(nothing, product):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """What the libraries have to say of the stand-ins is of no use to anyone."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
