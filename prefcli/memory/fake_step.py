"""One optimizer step of trl's trainer on fake tensors, which have shapes but no memory.

The memory of the step is measured as it runs. The only formulas are those for quantized weights
(fake_quantized.py) and for optimizers that torch does not have (optimizer_state_size.py).
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl.trainer.utils import add_fused_lm_head

from prefcli.data import Split
from prefcli.data.run_datasets import active_sft_mix
from prefcli.memory.activations import to_type
from prefcli.memory.dummy_data import demonstrations, one_token_a_word, rows_of
from prefcli.memory.fake_generation import run_generation
from prefcli.memory.fake_models import (
    Architectures,
    compute_as_on,
    make_policy,
    make_reference,
)
from prefcli.memory.optimizer_state_size import BITSANDBYTES, on_device
from prefcli.memory.profiler import Peak, Tracker
from prefcli.methods import Method
from prefcli.model import Device, lora_config
from prefcli.model.lora import train_in_float32
from prefcli.recipe.distributed_env import world_size
from prefcli.recipe.schema import Recipe
from prefcli.recipe.sections import Logging
from prefcli.trl_integration.trl_args import build, trl_options
from prefcli.trl_integration.trl_compat import (
    LOGPROB_TILE_COLUMNS,
    grouped_matmul_off,
    logprob_tiles_replaced,
    modules_moved_by,
)

_DEPTHS = (2, 4)
"""Numbers of layers from which a full model is extrapolated."""

_SCORES = ("ref_chosen_logps", "ref_rejected_logps", "ref_logps", "ref_KL_logps")


class TrainerFactory(Protocol):
    """Builds the trainer of a run; the layer above passes it in."""

    def __call__(
        self,
        recipe: Recipe,
        method: Method,
        tokenizer: PreTrainedTokenizerBase,
        demonstrations: Split | None,
        **arguments: Any,
    ) -> Any:
        """demonstrations: to mix in. arguments: of trl's trainer."""


@dataclass(frozen=True)
class StepPeaks:
    """The peaks of one optimizer step in the middle of training."""

    passes: Peak
    """Forward and backward passes."""
    update: Peak
    """The optimizer's step."""
    states_follow_weights: bool
    """Whether the optimizer's states have the type of the trained weights."""
    generation: Peak = field(default_factory=Peak)
    """Sampling of the completions that a method trains on."""

    @property
    def highest(self) -> Peak:
        return max(self.passes, self.update, self.generation, key=lambda peak: peak.total)


def simulate_step(
    recipe: Recipe,
    method: Method,
    architectures: Architectures,
    device: Device,
    *,
    length: int,
    make_trainer: TrainerFactory,
) -> StepPeaks:
    """Run a step and return its peaks on `device`, which may be that of another machine.

    recipe: of a single process, which trains the whole global batch. method: resolved by the rows.
    length: tokens of each row, prompt and completion.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(_quiet())
        stack.enter_context(_own_accelerate_state())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(modules_moved_by(to_type))
        stack.enter_context(grouped_matmul_off())
        if device.kind == "cuda":
            stack.enter_context(_as_on_a_gpu())
        policy = make_policy(recipe, architectures, device)
        reference = make_reference(recipe, method, architectures, device)
        trainer = _trainer(recipe, method, device, policy, reference, length, folder, make_trainer)
        del reference  # only the trainer may keep it alive
        vocabulary = architectures.policy.get_text_config().vocab_size
        tracker = Tracker((vocabulary, LOGPROB_TILE_COLUMNS))
        if getattr(trainer, "ref_model", None) is not None:
            tracker.holds(trainer.ref_model.parameters(), "reference")
        tracker.holds([*trainer.model.parameters(), *trainer.model.buffers()], "weights")
        phases = _Phases(tracker)
        trainer.add_callback(phases)
        with tracker:
            _warm_up_optimizer(trainer, recipe, device, tracker)
            generation = Peak()
            if method.needs_judge:
                tracker.begin()
                completion = method.sampled_tokens
                together = method.sampled_together(recipe.training.global_batch_size)
                run_generation(trainer, together, max(length - completion, 1), completion)
                generation = tracker.peak
            trainer.train()
        own = recipe.training.optim not in BITSANDBYTES
        return StepPeaks(phases.passes, phases.update, own, generation)


def extrapolate_step(
    recipe: Recipe,
    method: Method,
    architectures: Architectures,
    device: Device,
    *,
    length: int,
    make_trainer: TrainerFactory,
) -> StepPeaks:
    """Extrapolate `simulate_step` from two small depths if the model is much deeper."""
    layers = architectures.policy.get_text_config().num_hidden_layers
    depths = _DEPTHS if layers > _DEPTHS[-1] * 2 else (layers,)
    peaks = [
        simulate_step(
            recipe,
            method,
            architectures.of_depth(depth),
            device,
            length=length,
            make_trainer=make_trainer,
        )
        for depth in depths
    ]
    if len(peaks) == 1:
        return peaks[0]
    low, high = peaks
    factor = (layers - _DEPTHS[0]) / (_DEPTHS[1] - _DEPTHS[0])
    return StepPeaks(
        low.passes.towards(high.passes, factor),
        low.update.towards(high.update, factor),
        low.states_follow_weights,
        low.generation.towards(high.generation, factor),
    )


class _Phases(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Records the peak of each part of the step."""

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


def _trainer(
    recipe: Recipe,
    method: Method,
    device: Device,
    policy: Any,
    reference: PreTrainedModel | None,
    length: int,
    folder: str,
    make_trainer: TrainerFactory,
) -> Any:
    batch = recipe.training.train_batch_size
    # The second micro-batch adds to the gradients of the first, and so would every other.
    batches = 2 if recipe.training.global_batch_size > batch else 1
    mix = active_sft_mix(recipe, method)
    rows = Dataset.from_list(rows_of(method, batch * batches, length))
    config_class, _ = method.trl_classes()
    plain = _without_preparation(recipe, batch * batches)
    simulated = {k: v for k, v in _SIMULATED.items() if k not in method.trainer.lacks}
    options = trl_options(plain, method, device) | simulated | {"output_dir": folder}
    options |= method.trainer.simulated_options(batch * batches)
    options["bf16"] = device.autocast(recipe.model) or device.half(recipe.model)
    options["gradient_accumulation_steps"] = batches
    for name in ("packing", "assistant_only_loss"):  # rows already have the length of packed ones
        if name in options:
            options[name] = False
    if recipe.training.optim in BITSANDBYTES:
        options["optim"] = "sgd"
    arguments: dict[str, Any] = {"ref_model": reference} if reference is not None else {}
    if recipe.lora is not None:
        arguments["peft_config"] = lora_config(recipe.lora, policy)
    tokenizer = one_token_a_word()
    trainer = make_trainer(
        plain,
        method,
        tokenizer,
        demonstrations(batch * batches, length) if mix is not None else None,
        model=policy,
        args=build(options, config_class),
        train_dataset=rows,
        processing_class=tokenizer,
        **arguments,
    )
    if recipe.trains_adapter_in_float32:
        train_in_float32(trainer.model, {})
    compute_as_on(trainer.model, recipe, device)
    trainer.remove_callback(PrinterCallback)
    if mix is not None and method.trainer.concatenates_forward:
        add_fused_lm_head(trainer.base_policy)  # trl prepares it for the other trainers
    if method.precomputes_reference and recipe.reference.precompute:
        trainer.ref_model, trainer.precompute_ref_logps = None, True
        for name in _SCORES:
            trainer.train_dataset = trainer.train_dataset.add_column(name, [0.0] * len(rows))
    return trainer


_SIMULATED = {
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
"""Options that a simulated step does not need or cannot have."""


def _without_preparation(recipe: Recipe, rows: int) -> Recipe:
    """Return the recipe for one step of one process, without trl's work before the first step."""
    parts = {
        "reference": recipe.reference.model_copy(update={"precompute": False}),
        "training": recipe.training.model_copy(
            update={"global_batch_size": rows * world_size(), "eval_steps": None}
        ),
        "logging": Logging(),
    }
    return recipe.model_copy(update=parts)


def _warm_up_optimizer(trainer: Any, recipe: Recipe, device: Device, tracker: Tracker) -> None:
    """Create the optimizer with its states, as after the first step, and track gradients."""
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    optimizer = trainer.create_optimizer()
    optim = recipe.training.optim
    if device.kind == "cuda" and "fused" not in recipe.training.optimizer_on(device.kind):
        # torch's choice on a GPU: all tensors at once, with temporary copies of all of them.
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
    """Replace the tiles of trl's head: on a GPU Triton computes them without extra memory."""

    def nothing(*args: Any, **kwargs: Any) -> None:
        pass

    def product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        total.add_(total)

    with logprob_tiles_replaced(nothing, product):
        yield


@contextmanager
def _own_accelerate_state() -> Iterator[None]:
    """Let accelerate start again afterwards: the run of this process has another device."""
    states = (PartialState, AcceleratorState, GradientState)
    before = [dict(state._shared_state) for state in states]
    environment = dict(os.environ)
    for state in states:
        state._shared_state.clear()
    try:
        yield
    finally:
        for state, content in zip(states, before, strict=True):
            state._shared_state.clear()
            state._shared_state.update(content)
        os.environ.clear()
        os.environ.update(environment)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries: their warnings about dummy data and models help no user."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
