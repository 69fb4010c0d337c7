"""Two LoRA adapters as one: what a new adapter over an old one becomes when it is saved."""

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
    """Copy an adapter, so that what is stacked on it does not depend on what becomes of it."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    PeftConfig.from_pretrained(name, revision=revision).save_pretrained(str(partial))
    save_file(load_peft_weights(name, device="cpu", revision=revision), partial / _WEIGHTS)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def stack(below: Path, folder: Path) -> None:
    """Rewrite the adapter in `folder` as the one in `below` plus itself, on that one's base.

    B1 A1 s1 + B2 A2 s2 = [s1 B1, s2 B2] [A1; A2], so the ranks add up and the sum is exact.
    """
    first = PeftConfig.from_pretrained(str(below))
    joint = PeftConfig.from_pretrained(str(folder))
    assert isinstance(first, LoraConfig)
    assert isinstance(joint, LoraConfig)
    sides = [
        _pairs(load_peft_weights(str(place), device="cpu"), config)
        for place, config in ((below, first), (folder, joint))
    ]
    ranks = [max(a.shape[0] for a, _ in side.values()) for side in sides]
    names = sorted(sides[0].keys() | sides[1].keys())
    joined = {}
    for name in names:
        a, b = next(side[name] for side in sides if name in side)
        wide, tall = a.shape[1], b.shape[0]
        parts = [
            _padded(side.get(name, (a.new_zeros(0, wide), b.new_zeros(tall, 0))), rank)
            for side, rank in zip(sides, ranks, strict=True)
        ]
        joined[f"{name}.lora_A.weight"] = torch.cat([a for a, _ in parts]).contiguous()
        joined[f"{name}.lora_B.weight"] = torch.cat([b for _, b in parts], dim=1).contiguous()
    joint.r = joint.lora_alpha = sum(ranks)
    joint.use_rslora = False
    joint.rank_pattern, joint.alpha_pattern = {}, {}
    joint.target_modules = {name.removeprefix("base_model.model.") for name in names}
    joint.base_model_name_or_path, joint.revision = first.base_model_name_or_path, first.revision
    save_file(joined, folder / _WEIGHTS, metadata={"format": "pt"})
    joint.save_pretrained(str(folder))


def _pairs(weights: dict[str, torch.Tensor], config: LoraConfig) -> dict[str, _Pair]:
    """Module name -> (A, B scaled as the adapter scales it)."""
    found = {}
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
        found[name] = (a.float(), weights[key.replace(".lora_A.", ".lora_B.")].float() * scale)
    return found


def _padded(pair: _Pair, rank: int) -> _Pair:
    """With rows of zeros in A and columns of zeros in B, up to `rank`."""
    a, b = pair
    missing = rank - a.shape[0]
    return (
        torch.cat([a, a.new_zeros(missing, a.shape[1])]),
        torch.cat([b, b.new_zeros(b.shape[0], missing)], dim=1),
    )
