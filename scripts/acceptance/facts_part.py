"""Facts of this machine, and how fast it copies and multiplies."""

from __future__ import annotations

import inspect
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

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
    sheet.note("TFLOP/s, bf16 products", matrix_rate(setting) / 1e12)
    size = 2**20 if setting.quick else 2**29
    source = torch.randn(size, device=setting.device)
    target = torch.empty_like(source)
    seconds = _seconds(lambda: target.copy_(source), setting)
    sheet.note("TB/s, copy, read and written", 2 * source.nbytes / seconds / 1e12)


def matrix_rate(setting: Setting) -> float:
    """Operations a second of a large bf16 product of random numbers (float32 on a CPU)."""
    size = 256 if setting.quick else 8192
    dtype = torch.float32 if setting.cpu else torch.bfloat16
    a, b = (torch.randn(size, size, device=setting.device, dtype=dtype) for _ in "ab")
    out = torch.empty_like(a)
    return 2 * size**3 / _seconds(lambda: torch.matmul(a, b, out=out), setting)


def _seconds(work: Callable[[], object], setting: Setting) -> float:
    """The median of some runs, after some to warm up."""
    took = []
    for turn in range(3 if setting.quick else 13):
        setting.wait()
        began = time.perf_counter()
        work()
        setting.wait()
        if turn > 2 or setting.quick:
            took.append(time.perf_counter() - began)
    return sorted(took)[len(took) // 2]
