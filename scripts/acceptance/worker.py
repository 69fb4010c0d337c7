"""Runs prefcli again and again in one process: a line of JSON in, a line out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> int:
    # What a library prints must not come between.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(1)
    from scripts.acceptance import adapter

    for line in sys.stdin:
        job = json.loads(line)
        answers.write(json.dumps(adapter.run(job["words"], Path(job["log"]))) + "\n")
        answers.flush()
    os._exit(0)
