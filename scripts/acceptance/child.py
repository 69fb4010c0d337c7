"""A part's own process: import everything, wait, run the cases."""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from scripts.acceptance.rows import Sheet


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", type=lambda text: text.split(","))
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    fault = None
    try:
        from scripts.acceptance.setting import Setting

        setting = Setting(options.work, cpu=options.cpu, quick=options.quick)
        modules = [importlib.import_module(f"scripts.acceptance.{n}_part") for n in options.part]
        for module in modules:
            if hasattr(module, "warm"):
                module.warm(setting)
    except Exception as error:
        traceback.print_exc()
        fault = f"{type(error).__name__}: {error}"
    # Collections skip what was imported.
    gc.freeze()
    took = time.monotonic() - began
    given = json.loads(sys.stdin.read() or '{"seconds": 0, "skip": []}')
    ends = time.monotonic() + given["seconds"]
    for name in options.part:
        seconds = ends - time.monotonic()
        sheet = Sheet(
            options.rows, name, skip=given["skip"], seconds=seconds, untimed=options.quick
        )
        if fault is not None:
            sheet.run("import", _raise, fault)
            continue
        print(f"{name}: imported in {took:.1f} s, {seconds:.0f} s to go", flush=True)
        sheet.run_part(modules[options.part.index(name)].run, sheet, setting)
    sys.stdout.flush()
    sys.stderr.flush()
    # A library's clean-up at exit has hung before.
    os._exit(0)


def _raise(fault: str) -> None:
    raise ImportError(fault)
