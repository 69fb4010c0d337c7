"""Every private name of trl, transformers, datasets and torch that training relies on.

The names are checked when this module is imported, so an untested version of a library stops a run
before any model is loaded. Patches of library functions are here as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations import moe
from trl.kernels import chunked_logprob
from trl.trainer import dpo_trainer, kto_trainer, rloo_trainer, sft_trainer
from trl.trainer import utils as trl_utils

from prefcli.trl_integration.hooks import Hook, check_hooks, patched, resolve

_TRAINER = "transformers.trainer.Trainer."
_DPO = "trl.trainer.dpo_trainer.DPOTrainer."
_KTO = "trl.trainer.kto_trainer.KTOTrainer."
_RLOO = "trl.trainer.rloo_trainer.RLOOTrainer."
_SFT = "trl.trainer.sft_trainer.SFTTrainer."
_ORPO = "trl.experimental.orpo.orpo_trainer.ORPOTrainer."
_CPO = "trl.experimental.cpo.cpo_trainer.CPOTrainer."
_RESULTS = ("self", "model", "batch")
_PRECOMPUTE = ("self", "dataset", "name", "batch_size")

HOOKS = (
    # Overridden by the mixins around a trainer.
    Hook(f"{_TRAINER}_run_epoch", ("self",)),
    Hook(f"{_TRAINER}_finalize_training", ("self", "trial", "num_train_samples", "start_time")),
    Hook(
        f"{_TRAINER}_init_training_state",
        (
            "self",
            "max_steps",
            "num_update_steps_per_epoch",
            "num_train_epochs",
            "resume_from_checkpoint",
            "trial",
        ),
    ),
    Hook(
        f"{_TRAINER}_maybe_log_save_evaluate",
        ("self", "tr_loss", "grad_norm", "model", "trial", "epoch"),
    ),
    Hook(f"{_TRAINER}_save_checkpoint", ("self", "model", "trial")),
    Hook(f"{_TRAINER}_load_optimizer_and_scheduler", ("self", "checkpoint")),
    Hook(f"{_TRAINER}_get_output_dir", ("self", "trial")),
    Hook(f"{_TRAINER}_wrap_model", ("self", "model")),
    Hook(f"{_TRAINER}_get_grad_norm", ("self", "model", "grad_norm")),
    Hook(f"{_DPO}_precompute_ref_logps", _PRECOMPUTE),
    Hook(f"{_KTO}_precompute_ref_logps", _PRECOMPUTE),
    Hook(f"{_ORPO}concatenated_forward", _RESULTS),
    Hook(f"{_CPO}concatenated_forward", _RESULTS),
    Hook(f"{_RLOO}_prepare_inputs", ("self", "generation_batch")),
    Hook(f"{_RLOO}_get_train_sampler", ("self", "dataset")),
    Hook(f"{_RLOO}_tokenize_prompts", ("self", "prompts")),
    Hook(f"{_RLOO}_generate_single_turn", ("self", "prompt_ids", "images", "multimodal_fields")),
    Hook(f"{_RLOO}_generate_and_score_completions", ("self", "inputs")),
    Hook(
        f"{_RLOO}_calculate_rewards",
        ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    ),
    Hook(
        f"{_RLOO}_get_per_token_logps_and_entropies",
        ("self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"),
    ),
    # Called or read.
    Hook(f"{_TRAINER}_determine_best_metric", ("self", "metrics", "trial")),
    Hook(f"{_TRAINER}_prepare_inputs", ("self", "inputs")),
    Hook(f"{_TRAINER}_remove_unused_columns", ("self", "dataset", "description")),
    Hook(f"{_DPO}_metrics", set_by="__init__"),
    Hook(f"{_KTO}_metrics", set_by="__init__"),
    Hook(f"{_SFT}_metrics", set_by="__init__"),
    Hook(f"{_RLOO}_metrics", set_by="__init__"),
    Hook(f"{_ORPO}_stored_metrics", set_by="__init__"),
    Hook(f"{_CPO}_stored_metrics", set_by="__init__"),
    Hook(f"{_DPO}_precompute_model_hash", set_by="__init__"),
    Hook(f"{_KTO}_precompute_model_hash", set_by="__init__"),
    Hook("trl.kernels.chunked_logprob._use_triton", ("device",)),
    Hook("trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE"),
    Hook("datasets.Dataset._get_cache_file_path", ("self", "fingerprint")),
    Hook("datasets.Dataset._indices", set_by="__init__"),
    Hook("datasets.Dataset._fingerprint", set_by="__init__"),
    Hook("transformers.PretrainedConfig._attn_implementation"),
    Hook("transformers.PretrainedConfig._name_or_path", set_by="__post_init__"),
    Hook("transformers.integrations.deepspeed._hf_deepspeed_config_weak_ref"),
    Hook("transformers.PreTrainedModel._supports_sdpa"),
    Hook("transformers.PreTrainedModel._supports_flash_attn"),
    Hook("transformers.PreTrainedModel._supports_flex_attn"),
    Hook("torch.optim.lr_scheduler.LambdaLR._last_lr", set_by="_update_lr"),
    Hook("torch.nn.Module._compiled_call_impl"),
    Hook("torch.ops.aten._local_scalar_dense"),
    Hook("torch._C._current_graph_task_id"),
    Hook("torch._C._current_autograd_node"),
    Hook("torch._C._nn._parse_to"),
    Hook("torch._subclasses.FakeTensor"),
    Hook("torch.UntypedStorage._cdata"),
    # Patched.
    Hook("trl.trainer.rloo_trainer.create_model_from_path", ("model_id",)),
    Hook("trl.trainer.rloo_trainer.shuffle_sequence_dict", ("seq_dict",)),
    Hook("trl.trainer.dpo_trainer.add_fused_lm_head", ("model",)),
    Hook("trl.trainer.kto_trainer.add_fused_lm_head", ("model",)),
    Hook("trl.trainer.rloo_trainer.add_fused_lm_head", ("model",)),
    Hook("trl.trainer.sft_trainer.add_fused_lm_head", ("model",)),
    Hook("trl.trainer.dpo_trainer.prepare_fsdp", ("model", "accelerator")),
    Hook("trl.trainer.kto_trainer.prepare_fsdp", ("model", "accelerator")),
    Hook("trl.trainer.rloo_trainer.prepare_fsdp", ("model", "accelerator")),
    Hook("trl.trainer.dpo_trainer.hash_module", ("module",)),
    Hook("trl.trainer.kto_trainer.hash_module", ("module",)),
    Hook("trl.trainer.dpo_trainer.global_then_local_main_first", ()),
    Hook("trl.trainer.kto_trainer.global_then_local_main_first", ()),
    Hook("trl.trainer.sft_trainer.global_then_local_main_first", ()),
    Hook("trl.experimental.orpo.orpo_trainer.global_then_local_main_first", ()),
    Hook("trl.experimental.cpo.cpo_trainer.global_then_local_main_first", ()),
    Hook("trl.kernels.chunked_logprob._forward_tile"),
    Hook("trl.kernels.chunked_logprob._backward_tile"),
    Hook("trl.kernels.chunked_logprob._addmm_fp32", ("acc", "a", "b")),
    Hook("transformers.integrations.moe._can_use_grouped_mm"),
    Hook("accelerate.state.PartialState._shared_state"),
    Hook("accelerate.state.AcceleratorState._shared_state"),
    Hook("accelerate.state.GradientState._shared_state"),
)

check_hooks(HOOKS)

LOGPROB_TILE_COLUMNS: int = trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE
"""Vocabulary entries of a tile of logits in trl's fused head."""


def compiled_call(module: torch.nn.Module) -> Any:
    """Return what `Module.compile` has set: the compiled call, or None."""
    return module._compiled_call_impl


def set_compiled_call(module: torch.nn.Module, call: Any) -> None:
    """Switch a module between its compiled call and, with None, the eager one."""
    module._compiled_call_impl = call


def uses_triton(device: torch.device) -> bool:
    """Return whether trl's fused head runs its Triton kernels on a device."""
    return bool(chunked_logprob._use_triton(device))


@contextmanager
def fused_head_replaced(add_fused_lm_head: Callable[..., Any]) -> Iterator[None]:
    """Have trl's trainers prepare their models by this function instead of their own."""
    with ExitStack() as stack:
        for module in (dpo_trainer, kto_trainer, rloo_trainer, sft_trainer):
            stack.enter_context(patched(module, "add_fused_lm_head", add_fused_lm_head))
        yield


@contextmanager
def references_sharded_by(prepare: Callable[[Any, Any], Any]) -> Iterator[None]:
    """Have trl's trainers shard their references under FSDP by this function, not their own."""
    with ExitStack() as stack:
        for module in (dpo_trainer, kto_trainer, rloo_trainer):
            stack.enter_context(patched(module, "prepare_fsdp", prepare))
        yield


def reference_of_rloo(model: Any) -> AbstractContextManager[None]:
    """Have trl's RLOO trainer take this reference, which it would load from disk; None: its own."""
    if model is None:
        return nullcontext()
    return patched(rloo_trainer, "create_model_from_path", lambda *args, **options: model)


def completions_in_order() -> AbstractContextManager[None]:
    """Have trl's RLOO trainer not shuffle the completions of a step into other micro-batches."""
    return patched(rloo_trainer, "shuffle_sequence_dict", lambda completions: completions)


@contextmanager
def model_hashes_skipped() -> Iterator[None]:
    """Have trl's trainers not hash their models; the reference cache computes another key."""
    with ExitStack() as stack:
        for module in (dpo_trainer, kto_trainer):
            stack.enter_context(patched(module, "hash_module", lambda model: ""))
        yield


def preparation_serialized(
    trl_class: type[Any], lock: Callable[[], AbstractContextManager[Any]]
) -> AbstractContextManager[None]:
    """Have a trainer prepare its rows under this lock instead of a barrier between processes."""
    return patched(resolve(trl_class.__module__), "global_then_local_main_first", lock)


@contextmanager
def modules_moved_by(to: Callable[..., torch.nn.Module]) -> Iterator[None]:
    """Replace `Module.to`, which cannot move fake parameters."""
    with patched(torch.nn.Module, "to", to), patched(PreTrainedModel, "to", to):
        yield


def grouped_matmul_off() -> AbstractContextManager[None]:
    """Have experts use the general product, which fake tensors support in every dtype."""
    return patched(moe, "_can_use_grouped_mm", lambda *args: False)


@contextmanager
def logprob_tiles_replaced(tile: Callable[..., Any], addmm: Callable[..., Any]) -> Iterator[None]:
    """Replace the products by which trl's fused head makes its tiles."""
    with (
        patched(chunked_logprob, "_forward_tile", tile),
        patched(chunked_logprob, "_backward_tile", tile),
        patched(chunked_logprob, "_addmm_fp32", addmm),
    ):
        yield
