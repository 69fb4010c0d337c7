#!/usr/bin/env python
"""Kill a small run at random moments, resume it, and compare it with an uninterrupted run.

    python scripts/fault_drill.py                       # 20 x kill -9 and 20 x SIGTERM, one process
    python scripts/fault_drill.py --processes 1,2 --moments 5

Prints a Markdown table; exit code 0 if every run ended as expected. Needs no GPU and no network:
the script makes its model. The moments are drawn with --seed from each phase of an uninterrupted
run in turn, and counted under the phase in which they actually fell.

The runs are forked from this process, which has imported the libraries, with the environment that
a launcher would set. With two processes SIGTERM goes to both, as from prefcli's launcher; kill -9
hits one of them, and the other gets SIGTERM once the first is dead.
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
import traceback
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

import prefcli.training.finish as finish_module
import prefcli.training.run as run_module
from prefcli.checkpoints.run_dir import RunDir
from prefcli.cli import main as prefcli
from prefcli.recipe.sections import DataChecks
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
"""Seconds after which a process that should have ended counts as hung."""

_now = mmap.mmap(-1, 16)
"""Shared with the forked run: its phase, and how many phases it has entered."""
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
    """Record the phase of the run, in the process that trains."""

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
    """Processes of one run, each the leader of its session."""

    pids: list[int]
    began: float
    codes: dict[int, int] = field(default_factory=dict)

    def poll(self) -> bool:
        """Return whether all processes have ended."""
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
        """Count the processes of these sessions that are still alive after a grace period."""
        end = time.monotonic() + seconds
        while (alive := self._alive()) and time.monotonic() < end:
            time.sleep(0.05)
        return alive

    def _alive(self) -> int:
        alive = 0
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    alive += os.getsid(int(entry.name)) in self.pids
        return alive


def start(recipe: Path, run: Path, processes: int, *, timeline: Path | None = None) -> Started:
    """Run `prefcli dpo RECIPE` in forked processes."""
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
    log = os.open(f"{run}.{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # A cache of its rows would leave no time to kill the run while it tokenizes.
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
    code = run_prefcli(["dpo", str(recipe), f"output_dir={run}"])
    if timeline is not None and _timeline is not None:
        began = _timeline[0][1]
        spans = [(number, at - began) for number, at in _timeline]
        timeline.write_text(json.dumps([*spans, (7, time.monotonic() - began)]))
    os._exit(code)


def run_prefcli(arguments: list[str]) -> int:
    """Run prefcli in this process; return its exit code, 1 after a traceback."""
    sys.argv = ["prefcli", *arguments]
    try:
        prefcli()
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


# --- The drill -----------------------------------------------------------------------------------


@dataclass
class Outcome:
    """Results of all runs that were ended by one signal."""

    name: str
    fell: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    saved: list[float] = field(default_factory=list)
    """Seconds from the signal to the end of all processes."""
    finished: int = 0
    equal: int = 0
    logged_once: int = 0
    dropped_checkpoints: int = 0
    left_behind: int = 0
    hung: int = 0
    wrong: list[str] = field(default_factory=list)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(next((run / "model").glob("*.safetensors")))


def newest(run: Path) -> int:
    """Return the step of the newest complete checkpoint, 0 if there is none."""
    checkpoint, _ = RunDir(str(run)).last_checkpoint()
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint is not None else 0


def logged_once(run: Path) -> bool:
    """Return whether every step and every evaluation is in metrics.jsonl exactly once."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    keys = [(row["step"], "eval_loss" in row) for row in rows]
    steps = [(s["step"], s["place"]) for s in map(json.loads, _lines(run / "samples.jsonl"))]
    return len(keys) == len(set(keys)) and len(steps) == len(set(steps))


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines() if path.exists() else []


def moments(
    timeline: list[tuple[int, float]], count: int, draw: random.Random
) -> list[tuple[int, float]]:
    """Draw moments as (phases entered by then, seconds into the last of them), one kind of phase
    after the other."""
    spans: dict[int, list[tuple[int, float]]] = {}
    for i, ((number, begin), (_, end)) in enumerate(itertools.pairwise(timeline)):
        spans.setdefault(number, []).append((i, end - begin))
    order = sorted(spans)
    draw.shuffle(order)
    drawn = [draw.choice(spans[order[i % len(order)]]) for i in range(count)]
    return [(index, draw.uniform(0, seconds)) for index, seconds in drawn]


def drill(
    outcome: Outcome,
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
    outcome.fell[fell] += 1
    sent = time.monotonic()
    victims = [draw.choice(started.pids)] if number == signal.SIGKILL else None
    started.send(number, victims)
    if victims and processes > 1:
        while victims[0] not in started.codes:
            started.poll()
        started.send(signal.SIGTERM)
    if not started.wait(PATIENCE):
        outcome.hung += 1
        outcome.wrong.append(f"{run.name} ({fell}): did not end in {PATIENCE:.0f} s")
        started.send(signal.SIGKILL)
        started.wait(PATIENCE)
    outcome.saved.append(time.monotonic() - sent)
    codes = [started.codes[pid] for pid in started.pids]
    outcome.codes[", ".join(map(str, sorted(codes)))] += 1
    if number != signal.SIGKILL and not set(codes) <= {0, 75}:
        outcome.wrong.append(f"{run.name} ({fell}): exit codes {codes}")
    outcome.left_behind += started.left_behind()
    was_finished = (run / "model").is_dir()
    for _ in range(3):
        again = start(recipe, run, processes)
        if again.wait(4 * PATIENCE) and set(again.codes.values()) == {0}:
            outcome.finished += 1
            break
        again.send(signal.SIGKILL)
        again.wait(PATIENCE)
    else:
        outcome.wrong.append(f"{run.name} ({fell}): never finished")
        return
    resumed = RunDir(str(run)).read_run().get("resumed", [])
    since = int(resumed[0]["checkpoint"].rpartition("-")[2]) if resumed else 0
    if since < before and not was_finished:
        outcome.dropped_checkpoints += 1
        outcome.wrong.append(f"{run.name} ({fell}): had checkpoint-{before}, resumed from {since}")
    trained = weights(run)
    same = trained.keys() == expected.keys() and all(
        torch.equal(trained[name], expected[name]) for name in expected
    )
    outcome.equal += same
    if not same:
        outcome.wrong.append(f"{run.name} ({fell}): other weights")
    once = logged_once(run)
    outcome.logged_once += once
    if not once:
        outcome.wrong.append(f"{run.name} ({fell}): a step is logged twice")


def table(results: list[Outcome], count: int, processes: int) -> list[str]:
    def line(name: str, values: list[Any]) -> str:
        return f"| {name} | " + " | ".join(map(str, values)) + " |"

    def counted(counter: Counter[str]) -> str:
        return "; ".join(f"{key}: {value}" for key, value in sorted(counter.items())) or "-"

    return [
        f"{count} moments each, {processes} process{'es' * (processes > 1)}",
        "",
        line("", [outcome.name for outcome in results]),
        "|---" * (len(results) + 1) + "|",
        *(line(f"phase: {name}", [t.fell[name] for t in results]) for name in PHASES),
        line("exit codes: runs", [counted(t.codes) for t in results]),
        line("slowest end, s", [f"{max(t.saved):.1f}" for t in results]),
        line("finished by the same command", [t.finished for t in results]),
        line("weights equal, bit for bit", [t.equal for t in results]),
        line("each step logged once", [t.logged_once for t in results]),
        line("complete checkpoints lost", [t.dropped_checkpoints for t in results]),
        line("processes left behind", [t.left_behind for t in results]),
        line("hung", [t.hung for t in results]),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=20, help="moments for each signal")
    parser.add_argument("--processes", default="1", help="as in 1 or 1,2")
    parser.add_argument("--signals", default="KILL,TERM", help="of KILL, TERM, USR1")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--no-report",
        action="store_true",
        help="without the report and the model card, which take as long as the run",
    )
    parser.add_argument("--folder", help="keep the runs here; by default they are removed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.no_report:
        finish_module.write_report_and_card = lambda *args, **kwargs: None
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
    """Print a table of one number of processes, and return what went wrong."""
    draw = random.Random(options.seed)
    folder = recipe.parent / f"processes-{processes}"
    folder.mkdir()
    timeline, uninterrupted = folder / "timeline.json", folder / "uninterrupted"
    first = start(recipe, uninterrupted, processes, timeline=timeline)
    if not first.wait(4 * PATIENCE) or set(first.codes.values()) != {0}:
        first.send(signal.SIGKILL)
        log = Path(f"{uninterrupted}.0.log").read_text("utf-8")
        return [f"the uninterrupted run did not finish:\n{log}"]
    expected = weights(uninterrupted)
    spans = [(int(number), float(at)) for number, at in json.loads(timeline.read_text())]
    results = []
    for name in options.signals.split(","):
        number = signal.Signals[f"SIG{name}"]
        outcome = Outcome("kill -9" if name == "KILL" else f"SIG{name}")
        for i, at in enumerate(moments(spans, options.moments, draw)):
            run = folder / f"{name}-{i}"
            drill(outcome, number, at, recipe, run, processes, expected, draw)
        results.append(outcome)
    print(*table(results, options.moments, processes), "", sep="\n", flush=True)
    return [f"{processes} processes: {line}" for outcome in results for line in outcome.wrong]


if __name__ == "__main__":
    sys.exit(main())
