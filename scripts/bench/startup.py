#!/usr/bin/env python3
"""Time the light commands, as a ratio to importing the libraries they use.

    python scripts/bench/startup.py [--runs 15]

Runs `import typer, pydantic, omegaconf` (the floor), `prefcli --help` and `prefcli validate` on
the shipped recipes in turn, so that a change in the machine's speed affects all of them, and prints
medians and the ratio of each to the floor.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

RECIPES = sorted(str(p) for p in (Path(__file__).parents[2] / "recipes").glob("*.yaml"))
COMMANDS = {
    "floor: import typer, pydantic, omegaconf": ["-c", "import typer, pydantic, omegaconf"],
    "prefcli --help": ["-m", "prefcli", "--help"],
    f"prefcli validate ({len(RECIPES)} recipes)": ["-m", "prefcli", "validate", *RECIPES],
}


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    for arguments in COMMANDS.values():
        seconds(arguments)  # warm the disk cache and the byte code
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    floor = statistics.median(times[next(iter(COMMANDS))])
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"{machine}, Python {platform.python_version()}, {runs} runs")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:<42} {median * 1000:6.0f} ms  {median / floor:5.2f} x floor")


if __name__ == "__main__":
    main()
