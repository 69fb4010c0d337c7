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
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import Trainer as TransformersTrainer

from prefcli.console import say, warn
from prefcli.errors import GateError, Problem

_FORMAT = "1"
_IDS = ("prompt_ids", "chosen_ids", "rejected_ids", "completion_ids", "KL_completion_ids")
_COLUMNS = (("ref_chosen_logps", "ref_rejected_logps"), ("ref_logps", "ref_KL_logps"))
_CHECKED = 8
# As in step_zero: the same numbers from batches of another size.
_NATS_A_TOKEN = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}


class Precomputed(TransformersTrainer):  # type: ignore[misc]  # transformers is untyped
    """trl's trainer with our key on its cache, and a look at what the cache holds."""

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        was_training = self.model.training
        self.model.eval()
        self._precompute_model_hash = self._reference_hash()
        # With an index of kept rows, joining the columns would leave a copy of them in the cache
        # under a name that does not depend on what they hold.
        keyed = copy.copy(dataset if dataset._indices is None else dataset.flatten_indices())
        keyed._fingerprint = self._key(dataset)
        found = self._file(keyed)
        hit = found.is_file()
        scored = super()._precompute_ref_logps(keyed, name, batch_size)
        if hit and (off := self._disagreement(scored)):
            warn(f"{name}: the kept reference log-probabilities are stale ({off}); computed again")
            found.unlink(missing_ok=True)
            hit = False
            scored = super()._precompute_ref_logps(keyed, name, batch_size)
        if not hit and (off := self._disagreement(scored)):
            raise GateError(
                Problem(
                    f"precomputed reference log-probabilities do not come out again: {off}",
                    path="reference.precompute",
                    hint="the reference is not deterministic on this machine; leave precompute out",
                )
            )
        how = (
            "read from an earlier run, and checked" if hit else "computed, and kept for later runs"
        )
        say(f"reference: log-probabilities of {len(scored)} {name} rows {how}")
        self.model.train(was_training)
        return scored

    def _file(self, keyed: Dataset) -> Path:
        """Where trl will look; the name is made as trl makes it."""
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
            "attention": model.config._attn_implementation,
            "max_length": self.args.max_length,
            "truncation": getattr(self.args, "truncation_mode", None),
            "ld_alpha": getattr(self, "ld_alpha", None),
            "precision": [str(model.dtype), self.args.bf16, self.args.fp16],
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
        columns = [c for c in _IDS if c in dataset.column_names]
        for table in dataset.select_columns(columns).with_format("arrow").iter(1000):
            for column in columns:
                lists = table[column].combine_chunks()
                digest.update(lists.value_lengths().to_numpy(zero_copy_only=False).tobytes())
                digest.update(lists.flatten().to_numpy(zero_copy_only=False).tobytes())
        return digest.hexdigest()[:32]

    def _reference_hash(self) -> str:
        """Of the weights the reference is made of, without the adapter that is trained."""
        digest = hashlib.sha256()
        for name, tensor in sorted((self.ref_model or self.model).state_dict().items()):
            if self.ref_model is None and ".default." in name:
                continue
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _disagreement(self, scored: Dataset) -> str | None:
        """What a live pass says otherwise on a few rows, in words."""
        if self.is_deepspeed_enabled:
            return None  # the model only runs inside its engine; step 0 looks at the train rows
        names = next(n for n in _COLUMNS if n[0] in scored.column_names)
        count = min(_CHECKED, len(scored))
        rows = [scored[i * len(scored) // count] for i in range(count)]
        inputs = self._prepare_inputs(self.data_collator(rows))
        live = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        half = self.args.bf16 or self.args.fp16
        tolerance = 1e-2 if half else _NATS_A_TOKEN.get(self.model.dtype, 1e-2)
        for name, values in zip(names, live, strict=True):
            if values is None:
                continue
            kept = torch.tensor([row[name] for row in rows])
            lengths = torch.tensor([max(_response(row, name), 1) for row in rows])
            off = ((values.cpu() - kept).abs() / lengths).max()
            if not off <= tolerance:
                return f"{off:.2g} nats a token off in {name}"
        return None


def _response(row: dict[str, Any], column: str) -> int:
    """Tokens of the response that a column is about."""
    ids = {
        "ref_chosen_logps": "chosen_ids",
        "ref_rejected_logps": "rejected_ids",
        "ref_logps": "completion_ids",
        "ref_KL_logps": "KL_completion_ids",
    }
    return len(row[ids[column]])
