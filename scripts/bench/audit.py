#!/usr/bin/env python3
"""Measure the time and memory of the audit per row, as data grows.

    python scripts/bench/audit.py MODEL [--rows 20000 80000] [--processes 1]

Writes chat pairs, and reads, converts, tokenizes and audits each number of rows in a process of its
own. Prints CPU seconds and peak memory, and what a row adds between the least and the most
rows. Needs the tokenizer of MODEL only; the rows are drawn from its vocabulary.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = ("river", "small", "house", "happy", "dog", "runs", "over", "hills", "finds", "bridge")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_rows(path: Path, rows: int) -> None:
    """Write chat pairs of about 10 words a turn."""
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(5, 15)))

    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            prompt = {"role": "user", "content": f"{number} {text()}"}
            chosen, rejected = ({"role": "assistant", "content": text()} for _ in range(2))
            row = {"prompt": [prompt], "chosen": [chosen], "rejected": [rejected]}
            file.write(json.dumps(row) + "\n")


def measure(path: str, model: str, processes: int) -> None:
    """Print the CPU seconds and the peak memory in MB of one audit."""
    from transformers import AutoTokenizer

    from prefcli.data import Limits, load_split
    from prefcli.recipe.sections import Source

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TEMPLATE
    start = time.process_time()
    load_split(
        [Source(path=path)],
        "data.train",
        "pair",
        tokenizer,
        limits=Limits(1024),
        seed=0,
        num_proc=processes if processes > 1 else None,
    )
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([seconds, peak]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 80_000])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure, options.model, options.processes)
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in options.rows:
            path = Path(folder) / f"{rows}.jsonl"
            write_rows(path, rows)
            command = [sys.executable, __file__, options.model, "--measure", str(path)]
            command += ["--processes", str(options.processes)]
            env = {**os.environ, "HF_DATASETS_CACHE": f"{folder}/cache"}
            out = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
            seconds, peak = json.loads(out.stdout.splitlines()[-1])
            results.append((rows, seconds, peak))
            print(f"{rows:>8} rows  {seconds:6.1f} s  {peak:6.0f} MB", flush=True)
    (least, first_seconds, first_peak), (most, last_seconds, last_peak) = results[0], results[-1]
    if most > least:
        added = most - least
        print(
            f"a row adds {1000 * (last_seconds - first_seconds) / added:.3f} ms and "
            f"{1024 * (last_peak - first_peak) / added:.2f} KB"
        )


if __name__ == "__main__":
    main()
