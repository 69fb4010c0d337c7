"""A cache for the reference's log-probabilities, keyed by everything they depend on.

trl keys its cache by a dataset fingerprint that contains unrelated training arguments but neither
`ld_alpha` nor the truncation, and by a hash that includes the trained adapter. Here the key covers
token ids, reference weights, architecture, truncation, ld_alpha and precision, so a sweep over beta
or learning rates needs one pass of the reference. trl runs the pass, writes the file in datasets'
cache and adds the columns.
"""

from __future__ import annotations

import copy
import hashlib
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from datasets.fingerprint import Hasher, is_caching_enabled
from transformers import Trainer as TransformersTrainer

from prefcli.console import is_main_process, say, warn
from prefcli.data.row_sampling import spread_indices
from prefcli.data.run_once import file_lock
from prefcli.errors import GateError, Problem, RecipeError
from prefcli.model.inference import eval_mode_preserving_rng
from prefcli.packed_forward.install import ATTENTIONS
from prefcli.training.mixins.context import TrainerContext
from prefcli.training.start_check import Tolerance

_FORMAT = "1"
_IDS = ("prompt_ids", "chosen_ids", "rejected_ids", "completion_ids", "KL_completion_ids")
# trl's column: the ids that it scores.
_COLUMNS = {
    "ref_chosen_logps": "chosen_ids",
    "ref_rejected_logps": "rejected_ids",
    "ref_logps": "completion_ids",
    "ref_KL_logps": "KL_completion_ids",
}
_ROWS_CHECKED = 8


def full_weights_digest(model: torch.nn.Module) -> str:
    """Hash every weight with its name, before a trainer wraps, shards or changes them."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        hasher.update(plain.view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


class ReferenceCacheMixin(TransformersTrainer):  # type: ignore[misc]  # transformers is untyped
    """A trl trainer with this key for its cache, which also checks what it reads from there."""

    context: TrainerContext

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ref_model = None  # trl keeps the model, which nothing reads any more

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        with eval_mode_preserving_rng(self.model):
            return self._score(dataset, name, batch_size)

    def _score(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        # With an index of selected rows, trl would cache a copy of the columns under a name that
        # does not depend on their content.
        keyed = copy.copy(dataset if dataset._indices is None else dataset.flatten_indices())
        keyed._fingerprint = _from_main(self._key(dataset))
        self._precompute_model_hash = _from_main(self.context.reference_digest)
        cached = self._file(keyed)
        if cached is None and self.args.world_size > 1:
            raise RecipeError(
                Problem(
                    "the processes share reference log-probabilities in datasets' cache, which is "
                    "not writable",
                    path="reference.precompute",
                    hint="set HF_DATASETS_CACHE to a folder that all processes can write",
                    code="TRN065",
                )
            )
        with self._one_run_at_a_time(cached):
            hit = _from_main(cached is not None and cached.is_file())
            scored = super()._precompute_ref_logps(keyed, name, batch_size)
        off = _from_main(self._disagreement(scored))
        if hit and off:
            warn(f"{name}: cached reference log-probabilities are stale ({off}); recomputing them")
            hit = False
            if is_main_process() and cached is not None:
                cached.unlink(missing_ok=True)
            self.accelerator.wait_for_everyone()
            scored = super()._precompute_ref_logps(keyed, name, batch_size)
            off = _from_main(self._disagreement(scored))
        if off:
            raise GateError(
                Problem(
                    f"recomputing the reference log-probabilities gave different values: {off}",
                    path="reference.precompute",
                    hint="set reference.precompute: false",
                    code="TRN066",
                )
            )
        how = "computed and cached for later runs"
        if cached is None:
            how = "computed for this run only: datasets' cache is not writable"
        elif hit:
            how = "read from an earlier run" + (" and checked" if self._can_check else "")
        say(f"reference: log-probabilities of {len(scored)} {name} rows {how}")
        assert cached is None or cached.is_file(), (
            "trl caches reference log-probabilities elsewhere"
        )
        return scored

    def _one_run_at_a_time(self, cached: Path | None) -> AbstractContextManager[object]:
        """Let runs that start together wait for the first, whose pass they then read.

        Several processes of one run would wait for each other in a collective, which times out.
        """
        if cached is None or cached.is_file() or self.args.world_size > 1:
            return nullcontext()
        return file_lock(cached.with_suffix(".lock"), "reference")

    def _file(self, keyed: Dataset) -> Path | None:
        """Return the file that trl will read, named as in trl; None if there is no cache."""
        if not is_caching_enabled() or not keyed.cache_files:
            return None
        parts: tuple[Any, ...] = (keyed._fingerprint, self._precompute_model_hash)
        if self.context.method.trainer.batches == "labelled":
            parts += (self.calculate_KL,)
        return Path(keyed._get_cache_file_path(Hasher.hash(parts)))

    def _key(self, dataset: Dataset) -> str:
        model = self.ref_model or self.model
        architecture = {
            k: v
            for k, v in model.config.to_diff_dict().items()
            if k not in ("_name_or_path", "transformers_version", "use_cache")
        }
        facts = {
            "format": _FORMAT,
            "architecture": architecture,
            "attention": _attention(model.config._attn_implementation),
            "max_length": self.args.max_length,
            "truncation": getattr(self.args, "truncation_mode", None),
            "ld_alpha": getattr(self, "ld_alpha", None),
            "precision": [str(model.dtype), self.args.bf16, self.args.fp16],
        }
        hasher = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
        columns = [c for c in _IDS if c in dataset.column_names]
        for table in dataset.select_columns(columns).with_format("arrow").iter(1000):
            for column in columns:
                lists = table[column].combine_chunks()
                hasher.update(lists.value_lengths().to_numpy(zero_copy_only=False).tobytes())
                hasher.update(lists.flatten().to_numpy(zero_copy_only=False).tobytes())
        return hasher.hexdigest()[:32]

    @property
    def _can_check(self) -> bool:
        """False under DeepSpeed, where the model runs only inside its engine."""
        return not self.is_deepspeed_enabled

    def _disagreement(self, scored: Dataset) -> str | None:
        """Compare a few rows with a live pass; describe a difference."""
        if not self._can_check:
            return None
        names = [name for name in _COLUMNS if name in scored.column_names]
        rows = [scored[i] for i in spread_indices(len(scored), _ROWS_CHECKED)]
        inputs = self._prepare_inputs(self.data_collator(rows))
        live = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        tolerance = Tolerance.of_run(self.model, self.args)
        for name, values in zip(names, live, strict=False):
            cached = torch.tensor([row[name] for row in rows])
            lengths = [max(len(row[_COLUMNS[name]]), 1) for row in rows]
            off = ((values.cpu() - cached).abs() / torch.tensor(lengths)).tolist()
            if not tolerance.allows(off, lengths):
                return f"{max(off):.2g} nats per token off in {name}"
        return None


def _attention(name: str) -> str:
    """Return one name for sdpa and the packed attentions, whose values agree: runs share them."""
    return "sdpa" if name in ATTENTIONS else name


def _from_main(value: Any) -> Any:
    """Return the main process's value on every process, so that all take the same branch."""
    shared = [value]
    broadcast_object_list(shared)
    return shared[0]
