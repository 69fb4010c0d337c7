"""Facts of this machine, and how fast it copies and multiplies."""

from __future__ import annotations

import inspect
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from scripts.acceptance.rates import copy_rate, product_rates
from scripts.acceptance.rows import Sheet
from scripts.acceptance.setting import Setting

_PACKAGES = (
    "torch transformers trl peft datasets accelerate huggingface_hub tokenizers triton pydantic "
    "omegaconf typer pyarrow numpy bitsandbytes liger_kernel deepspeed"
)


def run(sheet: Sheet, setting: Setting) -> None:
    sheet.run("versions", _versions, sheet, setting)
    sheet.run("attention", _attention, sheet)
    sheet.run("rates", _rates, sheet, setting)


def _versions(sheet: Sheet, setting: Setting) -> None:
    installed = []
    for name in _PACKAGES.split():
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            installed.append(f"{name} -")
    sheet.note("python", f"{platform.python_version()}, {os.cpu_count()} cores")
    sheet.note("packages", ", ".join(installed))
    if not setting.cpu:
        sheet.equal("CUDA is there", torch.cuda.is_available(), True)
        gpu = torch.cuda.get_device_properties(0)
        sheet.note("GPU", f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB")


def _attention(sheet: Sheet) -> None:
    if find_spec("torch.nn.attention.varlen") is None:
        sheet.note("varlen_attn", "not in this torch")
        return
    from torch.nn.attention.varlen import varlen_attn

    sheet.note("varlen_attn", str(inspect.signature(varlen_attn)))


def _rates(sheet: Sheet, setting: Setting) -> None:
    for name, rate in product_rates(setting).items():
        sheet.note(f"TFLOP/s, {name}", rate / 1e12)
    sheet.note("TB/s, copy, read and written", copy_rate(setting) / 1e12)
