#!/usr/bin/env python
"""Kill a small run at random moments, start it again, and compare it with one nobody disturbed.

    python scripts/fault_drill.py                       # 20 x kill -9 and 20 x SIGTERM, one process
    python scripts/fault_drill.py --processes 1,2 --moments 5

Prints a Markdown table; exit code 0 if every run ended as it must. Needs no GPU and no network:
the model is made here. The moments are drawn with --seed, in turn from each phase of the run as an
undisturbed one went through it, and counted under the phase in which they really fell.

The runs are forked from this process, which has imported the libraries, and have its environment
as a launcher would set it: with two processes each of them is sent SIGTERM, as prefcli's launcher
does; kill -9 hits one of them, and the other is sent SIGTERM once that one is dead.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import mmap
import os
import random
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import prefcli.training.run as run_module
from prefcli.checkpoints.run_dir import RunDir
from prefcli.cli import main as prefcli
from prefcli.recipe.data_checks import DataChecks
from prefcli.training.mixins.preemption_mixin import PreemptionMixin

PHASES = (
    "before anything",
    "data preparation",
    "loading",
    "training",
    "evaluation",
    "saving a checkpoint",
    "saving the model",
    "after it",
)
WORDS = "red green blue big small kind rude yes no please thanks cat dog sun moon tree".split()  # noqa: SIM905
_NOW = struct.Struct("qq")
PATIENCE = 60.0
"""Seconds after which a process that was to end counts as hung."""

_now = mmap.mmap(-1, 16)
"""Of the run that goes on, for this process to see: its phase, and how many it has entered."""
_timeline: list[tuple[int, float]] | None = None


def phase() -> int:
    return _NOW.unpack_from(_now)[0]


def entered() -> int:
    return _NOW.unpack_from(_now)[1]


def enter(number: int) -> None:
    _NOW.pack_into(_now, 0, number, entered() + 1)
    if _timeline is not None:
        _timeline.append((number, time.monotonic()))


@contextlib.contextmanager
def during(number: int) -> Iterator[None]:
    before = phase()
    enter(number)
    try:
        yield
    finally:
        enter(before)


def watch_phases() -> None:
    """In the process that trains: note where the run is."""

    def inside(owner: Any, name: str, number: int, after: int | None = None) -> None:
        inner = getattr(owner, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            with during(number):
                result = inner(*args, **kwargs)
            if after is not None:
                enter(after)
            return result

        setattr(owner, name, noted)

    inside(run_module, "prepare", 1, after=2)
    inside(PreemptionMixin, "train", 3)
    inside(PreemptionMixin, "evaluate", 4)
    inside(PreemptionMixin, "_save_checkpoint", 5)
    inside(run_module, "save_model", 6, after=7)


# --- A run ---------------------------------------------------------------------------------------


def make_model(folder: Path) -> Path:
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3}
    vocabulary |= {word: i for i, word in enumerate(WORDS, start=len(vocabulary))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        attention_dropout=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_rows(folder: Path, name: str, count: int, columns: tuple[str, ...], seed: int) -> str:
    draw = random.Random(seed)
    path = folder / f"{name}.jsonl"
    rows = [
        {
            c: " " * (c != "prompt") + " ".join(draw.choices(WORDS, k=draw.randint(3, 8)))
            for c in columns
        }
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def make_recipe(folder: Path, steps: int) -> dict[str, Any]:
    pair = ("prompt", "chosen", "rejected")
    anything = {"checks": {name: {"error": None} for name in DataChecks.model_fields}}
    return {
        "model": {"name_or_path": str(make_model(folder / "model"))},
        "lora": {"rank": 4, "dropout": 0.1},
        "dpo": {},
        "data": {
            "train": {"path": make_rows(folder, "train", 60, pair, 1)},
            "eval": {"path": make_rows(folder, "eval", 12, pair, 2)},
            "max_length": 64,
            **anything,
        },
        "sft_mix": {
            "fraction": 0.2,
            "data": {"path": make_rows(folder, "sft", 20, ("prompt", "completion"), 3)},
        },
        "training": {
            "global_batch_size": 8,
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 2,
            "learning_rate": 1e-3,
            "gradient_checkpointing": False,
            "max_steps": steps,
            "logging_steps": 3,
            "eval_steps": 4,
            "save_steps": 5,
        },
        "samples": {"prompts": 2, "max_new_tokens": 16},
        "check_sft": {"max_perplexity": 1e6},
    }


@dataclass
class Started:
    """Processes of one run, each the leader of a session of its own."""

    pids: list[int]
    began: float
    codes: dict[int, int] = field(default_factory=dict)

    def poll(self) -> bool:
        """Have all ended?"""
        for pid in self.pids:
            if pid not in self.codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
        return len(self.codes) == len(self.pids)

    def wait(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not self.poll():
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def send(self, number: int, pids: list[int] | None = None) -> None:
        for pid in pids or self.pids:
            if pid not in self.codes:
                os.kill(pid, number)

    def left_behind(self, seconds: float = 3.0) -> int:
        """Processes of these sessions that are still there, when they have had time to notice."""
        end = time.monotonic() + seconds
        while (found := self._there()) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def _there(self) -> int:
        found = 0
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    found += os.getsid(int(entry.name)) in self.pids
        return found


def start(recipe: Path, run: Path, processes: int, *, timeline: Path | None = None) -> Started:
    """`prefcli dpo RECIPE`, in forked processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _NOW.pack_into(_now, 0, 0, 0)
    pids = []
    for rank in range(processes):
        if not (pid := os.fork()):
            _be_a_run(recipe, run, rank, processes, port, timeline)
        pids.append(pid)
    return Started(pids, time.monotonic())


def _be_a_run(
    recipe: Path, run: Path, rank: int, processes: int, port: int, timeline: Path | None
) -> None:
    global _timeline
    os.setsid()
    said = os.open(f"{run}.{rank}.said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    # Rows that another run has tokenised already would leave no time to kill this one meanwhile.
    datasets.config.HF_DATASETS_CACHE = Path(f"{run}.cache")
    if processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    if rank == 0:
        watch_phases()
        _timeline = [(0, time.monotonic())] if timeline is not None else None
    code: Any = 1
    try:
        sys.argv = ["prefcli", "dpo", str(recipe), f"output_dir={run}"]
        prefcli()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    if timeline is not None and _timeline is not None:
        began = _timeline[0][1]
        spans = [(number, at - began) for number, at in _timeline]
        timeline.write_text(json.dumps([*spans, (7, time.monotonic() - began)]))
    os._exit(int(code))


# --- The drill -----------------------------------------------------------------------------------


@dataclass
class Answer:
    """What came of one kind of end."""

    name: str
    fell: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    saved: list[float] = field(default_factory=list)
    """Seconds from the signal to the end of all processes."""
    finished: int = 0
    equal: int = 0
    told_once: int = 0
    lost: int = 0
    left: int = 0
    hung: int = 0
    wrong: list[str] = field(default_factory=list)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(next((run / "model").glob("*.safetensors")))


def newest(run: Path) -> int:
    """Step of the newest complete checkpoint, 0 if there is none."""
    found, _ = RunDir(str(run)).last_checkpoint()
    return int(found.name.rpartition("-")[2]) if found is not None else 0


def told_once(run: Path) -> bool:
    """Is every training row, and every evaluation, in metrics.jsonl once?"""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    keys = [(row["step"], "eval_loss" in row) for row in rows]
    steps = [(s["step"], s["place"]) for s in map(json.loads, _lines(run / "samples.jsonl"))]
    return len(keys) == len(set(keys)) and len(steps) == len(set(steps))


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines() if path.exists() else []


def moments(
    timeline: list[tuple[int, float]], count: int, draw: random.Random
) -> list[tuple[int, float]]:
    """(phases entered by then, seconds after the last of these): of each kind of phase in turn
    one that the run goes through, and a moment in that."""
    spans: dict[int, list[tuple[int, float]]] = {}
    for i, ((number, begin), (_, end)) in enumerate(itertools.pairwise(timeline)):
        spans.setdefault(number, []).append((i, end - begin))
    order = sorted(spans)
    draw.shuffle(order)
    drawn = [draw.choice(spans[order[i % len(order)]]) for i in range(count)]
    return [(index, draw.uniform(0, seconds)) for index, seconds in drawn]


def drill(
    told: Answer,
    number: int,
    at: tuple[int, float],
    recipe: Path,
    run: Path,
    processes: int,
    expected: dict[str, torch.Tensor],
    draw: random.Random,
) -> None:
    started = start(recipe, run, processes)
    phases, seconds = at
    while entered() < phases and not started.poll():
        time.sleep(0.0002)
    time.sleep(seconds)
    before = newest(run)
    fell = PHASES[phase()]
    told.fell[fell] += 1
    sent = time.monotonic()
    victims = [draw.choice(started.pids)] if number == signal.SIGKILL else None
    started.send(number, victims)
    if victims and processes > 1:
        while victims[0] not in started.codes:
            started.poll()
        started.send(signal.SIGTERM)
    if not started.wait(PATIENCE):
        told.hung += 1
        told.wrong.append(f"{run.name} ({fell}): did not end in {PATIENCE:.0f} s")
        started.send(signal.SIGKILL)
        started.wait(PATIENCE)
    told.saved.append(time.monotonic() - sent)
    codes = [started.codes[pid] for pid in started.pids]
    told.codes[", ".join(map(str, sorted(codes)))] += 1
    if number != signal.SIGKILL and not set(codes) <= {0, 75}:
        told.wrong.append(f"{run.name} ({fell}): exit codes {codes}")
    told.left += started.left_behind()
    was_finished = (run / "model").is_dir()
    for _ in range(3):
        again = start(recipe, run, processes)
        if again.wait(4 * PATIENCE) and set(again.codes.values()) == {0}:
            told.finished += 1
            break
        again.send(signal.SIGKILL)
        again.wait(PATIENCE)
    else:
        told.wrong.append(f"{run.name} ({fell}): never finished")
        return
    resumed = RunDir(str(run)).read_run().get("resumed", [])
    since = int(resumed[0]["checkpoint"].rpartition("-")[2]) if resumed else 0
    if since < before and not was_finished:
        told.lost += 1
        told.wrong.append(f"{run.name} ({fell}): had checkpoint-{before}, went on from {since}")
    found = weights(run)
    same = found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )
    told.equal += same
    if not same:
        told.wrong.append(f"{run.name} ({fell}): other weights")
    once = told_once(run)
    told.told_once += once
    if not once:
        told.wrong.append(f"{run.name} ({fell}): a step is told twice")


def table(results: list[Answer], count: int, processes: int) -> list[str]:
    def each(name: str, values: list[Any]) -> str:
        return f"| {name} | " + " | ".join(map(str, values)) + " |"

    def counted(counter: Counter[str]) -> str:
        return "; ".join(f"{key}: {value}" for key, value in sorted(counter.items())) or "-"

    return [
        f"{count} moments each, {processes} process{'es' * (processes > 1)}",
        "",
        each("", [told.name for told in results]),
        "|---" * (len(results) + 1) + "|",
        *(each(f"fell into: {name}", [t.fell[name] for t in results]) for name in PHASES),
        each("exit codes: runs", [counted(t.codes) for t in results]),
        each("slowest end, s", [f"{max(t.saved):.1f}" for t in results]),
        each("finished by the same command", [t.finished for t in results]),
        each("weights equal, bit for bit", [t.equal for t in results]),
        each("each step told once", [t.told_once for t in results]),
        each("complete checkpoints lost", [t.lost for t in results]),
        each("processes left behind", [t.left for t in results]),
        each("hung", [t.hung for t in results]),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=20, help="of each signal")
    parser.add_argument("--processes", default="1", help="as in 1 or 1,2")
    parser.add_argument("--signals", default="KILL,TERM", help="of KILL, TERM, USR1")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--no-report", action="store_true", help="without the pages, which take as long as the run"
    )
    parser.add_argument("--folder", help="keep the runs here; left out: removed at the end")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.no_report:
        run_module.write_report_and_card = lambda *args, **kwargs: None
    folder = Path(options.folder or tempfile.mkdtemp(prefix="prefcli-drill-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(make_recipe(folder, options.steps)), encoding="utf-8")
        wrong = []
        for processes in map(int, options.processes.split(",")):
            wrong += drills(recipe, processes, options)
        print(*(f"WRONG: {line}" for line in wrong), sep="\n", file=sys.stderr)
        return 1 if wrong else 0
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


def drills(recipe: Path, processes: int, options: argparse.Namespace) -> list[str]:
    """A table, and what went wrong."""
    draw = random.Random(options.seed)
    folder = recipe.parent / f"processes-{processes}"
    folder.mkdir()
    timeline, undisturbed = folder / "timeline.json", folder / "undisturbed"
    first = start(recipe, undisturbed, processes, timeline=timeline)
    if not first.wait(4 * PATIENCE) or set(first.codes.values()) != {0}:
        first.send(signal.SIGKILL)
        said = Path(f"{undisturbed}.0.said").read_text("utf-8")
        return [f"the run that nobody disturbed did not finish:\n{said}"]
    expected = weights(undisturbed)
    spans = [(int(number), float(at)) for number, at in json.loads(timeline.read_text())]
    results = []
    for name in options.signals.split(","):
        number = signal.Signals[f"SIG{name}"]
        told = Answer("kill -9" if name == "KILL" else f"SIG{name}")
        for i, at in enumerate(moments(spans, options.moments, draw)):
            run = folder / f"{name}-{i}"
            drill(told, number, at, recipe, run, processes, expected, draw)
        results.append(told)
    print(*table(results, options.moments, processes), "", sep="\n", flush=True)
    return [f"{processes} processes: {line}" for told in results for line in told.wrong]


if __name__ == "__main__":
    sys.exit(main())
