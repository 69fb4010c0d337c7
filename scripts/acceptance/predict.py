"""Writes what a dry-run predicts for the runs of the memory part: no GPU is needed for it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    from scripts.acceptance.memory_part import CASES, recipe_of
    from scripts.acceptance.setting import Setting

    # Made without a GPU; the parts make the weights that they need.
    setting = Setting(options.work, cpu=True, quick=options.quick)
    running = []
    for name in CASES:
        file = recipe_of(setting, name)
        words = ["dpo", str(file), "--dry-run", "--json", "--devices", "1"]
        words += ["--gpu-memory", "80GB"]
        output = (file.parent / "dry-run.json.new").open("wb")
        running.append(
            (
                file.parent,
                subprocess.Popen(
                    [sys.executable, "-m", "prefcli", *words],
                    stdout=output,
                    env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
                ),
            )
        )
    for folder, process in running:
        process.wait()
        text = (folder / "dry-run.json.new").read_text("utf-8")
        print(folder.name, process.returncode, text[:200], flush=True)
        if text.strip().startswith("{"):
            json.loads(text)
            (folder / "dry-run.json.new").rename(folder / "dry-run.json")
    return 0
