"""Frozen base weights in 4 or 8 bits, by bitsandbytes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BitsAndBytesConfig

from prefcli.recipe.sections import Model


def quantized(options: Model, compute: torch.dtype) -> dict[str, Any]:
    """What from_pretrained needs for it; nothing for whole weights.

    4bit is QLoRA's NF4 with double quantisation (Dettmers et al. 2023, arXiv:2305.14314).
    """
    if options.quantization is None:
        return {}
    config = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
        if options.quantization == "4bit"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    # Weights are quantised on their way to the device, and do not move afterwards.
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}
