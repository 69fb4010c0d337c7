"""The verification of model/: it is read back and compared with the trained policy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, Trainer
from transformers.integrations import deepspeed

from prefcli.errors import PrefcliError
from prefcli.evaluation.logprobs import completion_logits
from prefcli.model import Device, load_policy, to_device
from prefcli.model.inference import eval_mode_preserving_rng
from prefcli.model.lora import has_whole_layers
from prefcli.model.reward_head import is_reward_model
from prefcli.model.reward_model import rewards, set_padding
from prefcli.model.tokenizer import saved_tokenizer_fault
from prefcli.recipe.compatibility import SHARDED
from prefcli.recipe.distributed_env import strategy_here
from prefcli.recipe.schema import Recipe

_ROWS = 4
_TOKENS = 64
"""Tokens per row: a few show wrong weights, and a large model may be read back on a CPU."""
_EXACT, _HALF = 1e-4, 0.05
"""Nats per token, averaged over a row, by which float32 and 16 bits may differ on two devices."""
_SHARE = 0.1
"""The same in 16 bits, as a share of the spread of a row's log-probabilities: large logits are
coarse, and other weights would be off by the whole spread."""
SPARE_BYTES = 2**30
"""Bytes in addition to the weights, for the rows' activations and logits."""


@dataclass(frozen=True)
class ReadBack:
    tensors: int
    parameters: int
    difference: float | None
    """Nats per token, of the row where it is largest; None if the model was not loaded."""
    rows: int
    why_not: str = ""
    compared: str = "log-probabilities"

    def line(self) -> str:
        what = f"model/ reads back: {self.tensors} tensors, {_count(self.parameters)} parameters"
        if self.difference is None:
            return f"{what}; not loaded for a trial: {self.why_not}"
        return f"{what}, {self.compared} of {self.rows} rows within {self.difference:.0e}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "tensors": self.tensors,
            "parameters": self.parameters,
            "max_difference": self.difference,
        }


def probe_rows(trainer: Trainer) -> list[list[int]]:
    """Return the token ids of a few training rows, as the trainer reads them."""
    count = min(_ROWS, len(trainer.train_dataset))
    row_ids = trainer.context.method.trainer.row_ids
    rows = [row_ids(trainer.train_dataset[i])[:_TOKENS] for i in range(count)]
    return [row for row in rows if len(row) > 1]


@torch.no_grad()
def score_rows(
    model: torch.nn.Module, rows: Sequence[list[int]], *, autocast: bool
) -> list[torch.Tensor]:
    """Score each token of a row but its first, or with a reward model the row.

    Returns one tensor per row, on the CPU.
    """
    scores = []
    with eval_mode_preserving_rng(model):
        if is_reward_model(model):
            return [torch.tensor([score]) for score in rewards(model, rows, autocast=autocast)]
        for row in rows:
            logits, targets, _ = completion_logits(model, [([], row)], len(row), autocast=autocast)
            scores.append(-cross_entropy(logits.float(), targets, reduction="none").cpu())
    return scores


def verify_model(
    folder: Path,
    trainer: Trainer,
    recipe: Recipe,
    device: Device,
    rows: Sequence[list[int]],
    trained: Sequence[torch.Tensor],
) -> ReadBack:
    """Verify the folder, on the main process. Raises PrefcliError with the first fault.

    rows, trained: as `probe_rows` and `score_rows` of the trained policy gave them.
    """
    policy = trainer.accelerator.unwrap_model(trainer.model)
    tensors, parameters, half = _weights(folder)
    stacked = recipe.model.adapter == "stack"
    expected = _parameters(policy, trained_only=recipe.trains_adapter)
    least = sum(math.prod(shape) for shape in expected.values())
    # Weights that share memory are written once, and an architecture may save more than it trains.
    if parameters < least:
        raise _fault(folder, f"it holds {parameters:,} parameters, and {least:,} were trained")
    _check_config_and_tokenizer(folder, trainer, adapter=recipe.trains_adapter)
    where, why_not = _device_with_room(recipe, device, policy)
    if where is None:
        return ReadBack(tensors, parameters, None, 0, why_not)
    model = _load_saved(folder, recipe, device, where)
    if recipe.model.head == "reward":
        set_padding(model, trainer.processing_class.pad_token_id)
    loaded = _parameters(model, trained_only=recipe.trains_adapter)
    if not stacked and loaded != expected:
        odd = sorted(dict(loaded.items() ^ expected.items()))
        raise _fault(folder, f"its parameters are not those that were trained, e.g. {odd[0]}")
    if not stacked and strategy_here() not in SHARDED:
        check_values(folder, policy, model)
    autocast = (where == "cuda" or has_whole_layers(model)) and device.autocast(recipe.model)
    again = score_rows(model, rows, autocast=autocast)
    differences = [(a - b).abs().mean().item() for a, b in zip(trained, again, strict=True)]
    difference = max(differences, default=0.0)
    computed = {p.dtype for m in (policy, model) for p in m.parameters()}
    half |= device.autocast(recipe.model) or computed != {torch.float32}
    compared = "rewards" if recipe.model.head == "reward" else "log-probabilities"
    for value, row in zip(differences, trained, strict=True):
        if not value <= (max(_HALF, _SHARE * _spread(row)) if half else _EXACT):
            raise _fault(
                folder,
                f"its {compared} differ from those of the trained model by {value:.2g}"
                + (" nats per token" if compared == "log-probabilities" else ""),
            )
    return ReadBack(tensors, parameters, difference, len(rows), compared=compared)


def _spread(values: torch.Tensor) -> float:
    return (values - values.mean()).abs().mean().item()


def _weights(folder: Path) -> tuple[int, int, bool]:
    """Count tensors and parameters, and find 16-bit ones; refuse empty and non-finite tensors."""
    tensors = parameters = 0
    half = False
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  # no mapping
                    tensor = file.get_tensor(name)
                    if not tensor.numel():
                        raise _fault(folder, f"{name} is empty in {path.name}")
                    if tensor.is_floating_point() and not tensor.isfinite().all():
                        raise _fault(folder, f"{name} has values that are not finite")
                    tensors += 1
                    parameters += tensor.numel()
                    half |= tensor.dtype != torch.float32
        except SafetensorError as error:
            raise _fault(folder, f"{path.name} can't be read: {error}") from None
    if not tensors:
        raise _fault(folder, "it holds no weights")
    return tensors, parameters, half


def _check_config_and_tokenizer(folder: Path, trainer: Trainer, *, adapter: bool) -> None:
    """Check the config, and the tokenizer with its chat template."""
    config = "adapter_config.json" if adapter else "config.json"
    if not (folder / config).is_file():
        raise _fault(folder, f"it lacks {config}")
    fault = saved_tokenizer_fault(folder, trainer.processing_class)
    if fault is not None:
        raise _fault(folder, fault)


def _parameters(model: torch.nn.Module, *, trained_only: bool) -> dict[str, tuple[int, ...]]:
    """Return names and shapes, also of parameters that a sharding engine has partitioned."""
    return {
        name: tuple(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or not trained_only
    }


def _device_with_room(
    recipe: Recipe, device: Device, policy: torch.nn.Module
) -> tuple[str | None, str]:
    """Choose the device that has room for a second model: cuda, cpu, or None with the reason."""
    if recipe.model.init == "random" and recipe.trains_adapter:
        return (
            None,
            "the base model was randomly initialised, so the adapter cannot be loaded on its own",
        )
    needed = SPARE_BYTES + sum(
        getattr(p, "ds_numel", p.numel()) * p.element_size() for p in policy.parameters()
    )
    unsharded = strategy_here() not in SHARDED
    if device.kind == "cuda":
        torch.cuda.empty_cache()  # after training it holds nearly all of the GPU
    if device.kind == "cuda" and unsharded and torch.cuda.mem_get_info()[0] > needed:
        return "cuda", ""
    if recipe.model.quantization is not None and device.kind == "cuda":
        return None, "the GPU has no room for a second quantized model"
    free = psutil.virtual_memory().available
    if free < needed:
        return None, f"it needs {needed / 1e9:.0f} GB and the machine has {free / 1e9:.0f}"
    return "cpu", ""


def _load_saved(
    folder: Path, recipe: Recipe, device: Device, where: str
) -> PreTrainedModel | PeftModel:
    """Load the saved model as the next stage of a pipeline would."""
    change: dict[str, Any] = {
        "name_or_path": str(folder),
        "revision": None,
        "init": "pretrained",
        "adapter": "continue" if recipe.trains_adapter else None,
    }
    if where == "cpu":
        change["attn_implementation"] = "auto"  # flash attention needs a GPU
    options = recipe.model.model_copy(update=change)
    dtype = device.dtype(recipe.model, frozen=recipe.trains_adapter)
    try:
        with _unpartitioned():
            model = load_policy(options, dtype, recipe.seed)
    except PrefcliError as error:
        raise _fault(folder, error.problems[0].message) from None
    return to_device(model, device) if where == "cuda" else model


@contextmanager
def _unpartitioned() -> Iterator[None]:
    """Let this process load a whole model, although a trainer under ZeRO-3 exists.

    transformers would partition it over all processes.
    """
    reference = deepspeed._hf_deepspeed_config_weak_ref
    config = reference() if reference is not None else None
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            deepspeed.set_hf_deepspeed_config(config)


def check_values(folder: Path, policy: torch.nn.Module, model: torch.nn.Module) -> None:
    """Compare the trained weights bit for bit: outputs would hide a small step."""
    trained = dict(policy.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expected = trained[name].detach()
            if not torch.equal(expected, parameter.to(expected.device, expected.dtype)):
                raise _fault(folder, f"its {name} is not what was trained")


def _fault(folder: Path, what: str) -> PrefcliError:
    return PrefcliError(
        f"the saved model is not what was trained: {what}",
        place=str(folder),
        hint="check the disk and rerun the same command, which saves the model again from the last "
        "checkpoint; report this if it happens again. The faulty files are kept for inspection",
        code="TRN032",
    )


def _count(number: int) -> str:
    for size, word in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {word}"
    return str(number)
