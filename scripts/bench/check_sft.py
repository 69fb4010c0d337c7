#!/usr/bin/env python3
"""Time check-sft's scoring, compared with a plain loop over rows and with plain batches.

    python scripts/bench/check_sft.py [--pairs 48] [--threads 2]

A Llama with random weights (256 wide, 4 layers, 32k vocabulary, float32) scores both sides of pairs
with the lengths of UltraFeedback (prompts around 150 tokens, responses around 250). The plain loop
takes one row at a time and keeps all its logits; plain batches take eight rows in file order,
padded, with all logits; `shared_prefix: off` is check-sft for models without the fast forward.
All must agree on every row. They are timed in turn, in three rounds; the times are medians.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from prefcli.evaluation.logprobs import score
from prefcli.packed_forward.install import FastForward
from prefcli.recipe.sections import Performance

Row = tuple[list[int], list[int]]
VOCABULARY = 32_000
MAX_LENGTH = 1024


def make_rows(count: int) -> list[Row]:
    draw = random.Random(0)

    def ids(mean: float) -> list[int]:
        length = max(4, min(480, round(draw.lognormvariate(0, 0.7) * mean)))
        return [draw.randrange(VOCABULARY) for _ in range(length)]

    prompts = [ids(150) for _ in range(count)]
    return [(prompt, ids(250)) for prompt in prompts for _ in ("chosen", "rejected")]


@torch.no_grad()
def plain_loop(model: LlamaForCausalLM, rows: list[Row]) -> list[float]:
    results = []
    for prompt, completion in rows:
        ids = torch.tensor([prompt + completion])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        results.append(-float(cross_entropy(logits, ids[0, len(prompt) :], reduction="sum")))
    return results


@torch.no_grad()
def plain_batches(model: LlamaForCausalLM, rows: list[Row]) -> list[float]:
    results = []
    for start in range(0, len(rows), 8):
        batch = rows[start : start + 8]
        longest = max(len(p) + len(c) for p, c in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        mask = torch.zeros_like(ids)
        for i, (p, c) in enumerate(batch):
            end = len(p) + len(c)
            ids[i, :end] = torch.tensor(p + c)
            labels[i, len(p) : end] = torch.tensor(c)
            mask[i, :end] = 1
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        nll = cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none").sum(1)
        results += (-nll).tolist()
    return results


def check_sft_scores(model: LlamaForCausalLM, rows: list[Row], *, fast: bool = True) -> list[float]:
    options = Performance(shared_prefix="on" if fast else "off")
    speed = FastForward(options, "single", MAX_LENGTH)
    scores = score(model, rows, max_length=MAX_LENGTH, speed=speed)
    return [s.logp for s in scores if s is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=4,
            num_attention_heads=8,
            max_position_embeddings=MAX_LENGTH,
        )
    ).eval()
    rows = make_rows(options.pairs)
    ways: dict[str, Callable[[LlamaForCausalLM, list[Row]], list[float]]] = {
        "check-sft": check_sft_scores,
        "shared_prefix: off": partial(check_sft_scores, fast=False),
        "plain loop": plain_loop,
        "plain batches of 8": plain_batches,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, list[float]] = {}
    for _ in range(3):
        for name, way in ways.items():
            start = time.perf_counter()
            results[name] = way(model, rows)
            times[name].append(time.perf_counter() - start)
    for other in ways:
        for a, b in zip(results["check-sft"], results[other], strict=True):
            assert abs(a - b) < 1e-4 * abs(b), f"{other} disagrees: {a} and {b}"
    print(
        f"{platform.machine()}, {options.threads} of {os.cpu_count()} cores, "
        f"torch {torch.__version__}, {len(rows)} rows, all agree to 1e-4"
    )
    fastest = statistics.median(times["check-sft"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:<20} {median:6.2f} s  {median / fastest:5.2f} x check-sft's time")


if __name__ == "__main__":
    main()
