"""The sum of two LoRA adapters as one adapter, for runs with model.adapter: stack."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from peft.utils import load_peft_weights
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file

_Pair = tuple[torch.Tensor, torch.Tensor]
_WEIGHTS = "adapter_model.safetensors"


def copy_adapter(name: str, revision: str | None, folder: Path) -> None:
    """Copy an adapter into a run folder, so that the run does not depend on the original."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    PeftConfig.from_pretrained(name, revision=revision).save_pretrained(str(partial))
    save_file(load_peft_weights(name, device="cpu", revision=revision), partial / _WEIGHTS)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def sum_adapters(below: Path, folder: Path) -> None:
    """Rewrite the adapter in `folder` as the sum of the one in `below` and itself.

    B1 A1 s1 + B2 A2 s2 = [s1 B1, s2 B2] [A1; A2]: the ranks add up, and the sum is exact.
    """
    # peft's add_weighted_adapter(combination_type="cat") is wrong if the first adapter has
    # use_rslora or layers_to_transform, since the sum keeps both settings.
    first = PeftConfig.from_pretrained(str(below))
    joint = PeftConfig.from_pretrained(str(folder))
    assert isinstance(first, LoraConfig)
    assert isinstance(joint, LoraConfig)
    sides = [
        _scaled_pairs(load_peft_weights(str(path), device="cpu"), config)
        for path, config in ((below, first), (folder, joint))
    ]
    ranks = [max(a.shape[0] for a, _ in side.values()) for side in sides]
    names = sorted(sides[0].keys() | sides[1].keys())
    tensors = {}
    for name in names:
        a, b = next(side[name] for side in sides if name in side)
        empty = (a.new_zeros(0, a.shape[1]), b.new_zeros(b.shape[0], 0))
        pairs = [
            _pad_rank(side.get(name, empty), rank) for side, rank in zip(sides, ranks, strict=True)
        ]
        tensors[f"{name}.lora_A.weight"] = torch.cat([a for a, _ in pairs]).contiguous()
        tensors[f"{name}.lora_B.weight"] = torch.cat([b for _, b in pairs], dim=1).contiguous()
    joint.r = joint.lora_alpha = sum(ranks)
    joint.use_rslora = False
    joint.rank_pattern, joint.alpha_pattern = {}, {}
    joint.target_modules = {name.removeprefix("base_model.model.") for name in names}
    joint.base_model_name_or_path, joint.revision = first.base_model_name_or_path, first.revision
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    joint.save_pretrained(str(folder))


def _scaled_pairs(weights: dict[str, torch.Tensor], config: LoraConfig) -> dict[str, _Pair]:
    """Return (A, B scaled as the adapter scales it) by module name."""
    pairs = {}
    for key, a in weights.items():
        name, is_a, _ = key.partition(".lora_A.")
        if not is_a:
            continue
        module = name.removeprefix("base_model.model.")
        rank = a.shape[0]
        alpha = config.alpha_pattern.get(
            get_pattern_key(config.alpha_pattern.keys(), module), config.lora_alpha
        )
        scale = alpha / (rank**0.5 if config.use_rslora else rank)
        pairs[name] = (a.float(), weights[key.replace(".lora_A.", ".lora_B.")].float() * scale)
    return pairs


def _pad_rank(pair: _Pair, rank: int) -> _Pair:
    """Pad a pair to a rank with rows of zeros in A and columns of zeros in B."""
    a, b = pair
    missing = rank - a.shape[0]
    return (
        torch.cat([a, a.new_zeros(missing, a.shape[1])]),
        torch.cat([b, b.new_zeros(b.shape[0], missing)], dim=1),
    )
