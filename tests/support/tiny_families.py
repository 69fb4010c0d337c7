"""Configs of small models that are not plain decoders: mixtures of experts, a multimodal model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3Config,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

_SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_EXPERTS = {**_SMALL, **_TOKENS, "num_experts": 4, "moe_intermediate_size": 8}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def family(name: str) -> PretrainedConfig:
    """Return the config of a model with one layer of width 16."""
    match name:
        case "mixtral":
            return MixtralConfig(**_SMALL, **_TOKENS, num_local_experts=4)
        case "qwen2_moe":
            return Qwen2MoeConfig(**_EXPERTS, shared_expert_intermediate_size=8)
        case "qwen3_moe":
            return Qwen3MoeConfig(**_EXPERTS, num_experts_per_tok=2)
        case "deepseek_v3":
            return DeepseekV3Config(
                **{**_SMALL, "num_key_value_heads": 2},
                n_routed_experts=4,
                moe_intermediate_size=8,
                first_k_dense_replace=0,
                n_group=1,
                topk_group=1,
            )
        case "gemma3":
            return Gemma3Config(
                text_config={**_SMALL, "sliding_window": 64},
                vision_config=_VISION,
                mm_tokens_per_image=4,
                image_token_index=5,
                boi_token_index=6,
                eoi_token_index=7,
                **_TOKENS,
            )
    raise ValueError(name)


def empty(name: str) -> PreTrainedModel:
    """Build a model on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(family(name))


def save_family(name: str, tokenizer: Path, folder: Path) -> Path:
    """Save a model with random weights and the tokenizer of another folder."""
    folder.mkdir()
    for file in tokenizer.glob("*token*"):
        shutil.copyfile(file, folder / file.name)
    shutil.copyfile(tokenizer / "chat_template.jinja", folder / "chat_template.jinja")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(family(name)).save_pretrained(folder)
    return folder
