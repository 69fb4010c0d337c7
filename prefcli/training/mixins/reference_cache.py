"""The reference's log-probabilities, computed once and kept under a key of all they depend on.

trl keys its cache by a fingerprint of the dataset that holds training arguments by accident, and
not `ld_alpha` or the truncation; it also hashes the adapter that is trained. Here the key is made
of token ids, reference weights, architecture, truncation, ld_alpha and precision, so a sweep over
beta or learning rates pays for one pass of the reference. trl does the rest: the pass itself, the
file in datasets' cache, the columns that its loss reads.
"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from datasets.fingerprint import Hasher, is_caching_enabled
from transformers import Trainer as TransformersTrainer

from prefcli.console import is_main_process, say, warn
from prefcli.errors import GateError, Problem, RecipeError
from prefcli.model.inference import eval_mode_preserving_rng
from prefcli.packed_forward.install import ATTENTIONS
from prefcli.training.start_check import Tolerance

_FORMAT = "1"
_IDS = ("prompt_ids", "chosen_ids", "rejected_ids", "completion_ids", "KL_completion_ids")
# Column of trl's: the ids it is about.
_COLUMNS = {
    "ref_chosen_logps": "chosen_ids",
    "ref_rejected_logps": "rejected_ids",
    "ref_logps": "completion_ids",
    "ref_KL_logps": "KL_completion_ids",
}
_CHECKED = 8


def digest(model: torch.nn.Module) -> str:
    """Of every weight, by name. To be taken before a trainer wraps, shards or changes them."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(plain.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class ReferenceCacheMixin(TransformersTrainer):  # type: ignore[misc]  # transformers is untyped
    """trl's trainer with our key on its cache, and a look at what the cache holds."""

    reference_digest: str = ""
    """Set on the class, as trl scores inside its constructor; the main process's counts."""

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        with eval_mode_preserving_rng(self.model):
            return self._scored(dataset, name, batch_size)

    def _scored(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        # With an index of kept rows, joining the columns would leave a copy of them in the cache
        # under a name that does not depend on what they hold.
        keyed = copy.copy(dataset if dataset._indices is None else dataset.flatten_indices())
        keyed._fingerprint = _agreed(self._key(dataset))
        self._precompute_model_hash = _agreed(self.reference_digest)
        kept = self._file(keyed)
        if kept is None and self.args.world_size > 1:
            raise RecipeError(
                Problem(
                    "the processes share these figures in datasets' cache, which can't be written",
                    path="reference.precompute",
                    hint="set HF_DATASETS_CACHE to a folder that all of them can write",
                )
            )
        hit = _agreed(kept is not None and kept.is_file())
        scored = super()._precompute_ref_logps(keyed, name, batch_size)
        off = _agreed(self._disagreement(scored))
        if hit and off:
            warn(f"{name}: the kept reference log-probabilities are stale ({off}); computed again")
            hit = False
            if is_main_process() and kept is not None:
                kept.unlink(missing_ok=True)
            self.accelerator.wait_for_everyone()
            scored = super()._precompute_ref_logps(keyed, name, batch_size)
            off = _agreed(self._disagreement(scored))
        if off:
            raise GateError(
                Problem(
                    f"precomputed reference log-probabilities do not come out again: {off}",
                    path="reference.precompute",
                    hint="the reference is not deterministic on this machine; leave precompute out",
                )
            )
        how = "computed, and kept for later runs"
        if kept is None:
            how = "computed for this run alone, as datasets' cache can't be written"
        elif hit:
            how = "read from an earlier run" + (", and checked" if self._can_look else "")
        say(f"reference: log-probabilities of {len(scored)} {name} rows {how}")
        assert kept is None or kept.is_file(), "trl keeps its reference figures elsewhere now"
        return scored

    def _file(self, keyed: Dataset) -> Path | None:
        """Where trl will look; the name is made as trl makes it. None where nothing is kept."""
        if not is_caching_enabled() or not keyed.cache_files:
            return None
        parts: tuple[Any, ...] = (keyed._fingerprint, self._precompute_model_hash)
        if hasattr(self, "calculate_KL"):
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
        found = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
        columns = [c for c in _IDS if c in dataset.column_names]
        for table in dataset.select_columns(columns).with_format("arrow").iter(1000):
            for column in columns:
                lists = table[column].combine_chunks()
                found.update(lists.value_lengths().to_numpy(zero_copy_only=False).tobytes())
                found.update(lists.flatten().to_numpy(zero_copy_only=False).tobytes())
        return found.hexdigest()[:32]

    @property
    def _can_look(self) -> bool:
        """Under DeepSpeed the model only runs inside its engine; step 0 looks at train rows."""
        return not self.is_deepspeed_enabled

    def _disagreement(self, scored: Dataset) -> str | None:
        """What a live pass says otherwise on a few rows, in words."""
        if not self._can_look:
            return None
        names = [name for name in _COLUMNS if name in scored.column_names]
        count = min(_CHECKED, len(scored))
        rows = [scored[i * len(scored) // count] for i in range(count)]
        inputs = self._prepare_inputs(self.data_collator(rows))
        live = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        tolerance = Tolerance.of_run(self.model, self.args)
        for name, values in zip(names, live, strict=False):
            kept = torch.tensor([row[name] for row in rows])
            lengths = [max(len(row[_COLUMNS[name]]), 1) for row in rows]
            off = ((values.cpu() - kept).abs() / torch.tensor(lengths)).tolist()
            if not tolerance.allows(off, lengths):
                return f"{max(off):.2g} nats a token off in {name}"
        return None


def _attention(name: str) -> str:
    """The fast forward stands for sdpa and gives its figures, far within what is checked below:
    runs with and without it share theirs."""
    return "sdpa" if name in ATTENTIONS else name


def _agreed(mine: Any) -> Any:
    """The main process's value, on every process: what follows is done together or not at all."""
    shared = [mine]
    broadcast_object_list(shared)
    return shared[0]
