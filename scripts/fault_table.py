#!/usr/bin/env python
"""Plant faults in model folders and run folders, and check how prefcli ends.

    python scripts/fault_table.py                               # 300 model faults, 150 run faults
    python scripts/fault_table.py --model 1 --run 0 --start 17  # one fault again, by its number
    python scripts/fault_table.py --run 0 --family gemma3       # faults of a multimodal model

A fault is a generator and a seed: number N of one --seed is always the same. A model fault goes
through `prefcli dpo --dry-run`, and if that says `will run`, through the run. A run fault is
planted in a run that was killed after its second checkpoint, which the same command then resumes.

Prints a Markdown table; exit code 0 if no fault ends as a traceback, hangs, trains other weights
without a word, or fails after `will run`. Needs no GPU and no network. The commands are forked from
this process, which has imported the libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
)

import prefcli.training.finish as finish_module
from prefcli.checkpoints.run_dir import RunDir
from prefcli.model import load_policy
from prefcli.model.loading import weights_digest
from prefcli.recipe.sections import DataChecks, Model

sys.path.append(str(Path(__file__).parent))
from fault_drill import make_model, make_rows, run_prefcli

PATIENCE = 120.0
"""Seconds after which a command counts as hung."""
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1, 3, 5, 7, 10**12, 0.5, float("inf"), "", "x", "nonsense", "float8", [],
    [3], ["x"], {}, {"a": 1}, [[]], "../x", "\x1b[31m",
)  # fmt: skip
TEMPLATES = (
    "{{ 1 / 0 }}", '{{ "a" + 1 }}', "{% include 'x' %}", "{{ range(10**9) | list }}", "{% break %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ '\ud800' }}", "{% for m in %}", "{{",
    "{{ messages[9].content }}", "{{ raise_exception('no') }}", "{{ 'a' * 10**8 }}",
    "{{ undefined.x }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
)  # fmt: skip


@dataclass
class Outcome:
    """How the commands on one kind of folder ended."""

    name: str
    tried: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, list[str]] = field(
        default_factory=lambda: {kind: [] for kind in ("traceback", "hung", "silent", "untrue")}
    )


# --- Faults of files -----------------------------------------------------------------------------


def damage_bytes(path: Path, draw: random.Random) -> str:
    """Cut, extend, empty or replace a file, or flip one of its first bytes."""
    content = path.read_bytes()
    kind = draw.choice(
        ("cut", "cut by one", "longer", "empty", "garbage", "pointer", "flip", "gone")
    )
    if kind == "gone":
        path.unlink()
        if draw.random() < 0.5:
            path.mkdir()
        return kind
    flipped = bytearray(content)
    flipped[draw.randrange(min(len(content), 200))] ^= 1 << draw.randrange(8)
    path.write_bytes(
        {
            "cut": content[: draw.randrange(1, len(content))],
            "cut by one": content[:-1],
            "longer": content + b"12345678",
            "empty": b"",
            "garbage": draw.randbytes(400),
            "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "flip": bytes(flipped),
        }[kind]
    )
    return kind


def damage_json(path: Path, draw: random.Random) -> str:
    """Put an odd value somewhere into a JSON file, remove a key, or make it no object."""
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    kind = draw.choice(("value", "value", "value", "value", "key", "other", "bytes"))
    if kind == "bytes" and path.exists():
        return damage_bytes(path, draw)
    if kind == "other" or not content:
        text = draw.choice(("[]", "null", "3", '"x"', "{", "[" * 100_000, "\ufeff{}"))
        path.write_text(text, encoding="utf-8")
        return f"is {text[:5]}"
    parent, key = content, draw.choice(sorted(content))
    while isinstance(parent[key], dict) and parent[key] and draw.random() < 0.6:
        parent = parent[key]
        key = draw.choice(sorted(parent))
    if kind == "key":
        del parent[key]
        what = f"without {key}"
    else:
        parent[key] = draw.choice(ODD)
        what = f"{key}: {parent[key]!r}"
    path.write_text(json.dumps(content), encoding="utf-8")
    return what


def damage_weights(path: Path, draw: random.Random) -> str:
    """Remove, rename, reshape, cast or spoil tensors, or damage the file."""
    kind = draw.choice(("bytes", "bytes", "missing", "renamed", "shape", "type", "nan", "index"))
    if kind == "bytes":
        return damage_bytes(path, draw)
    tensors = load_file(path)
    name = draw.choice(sorted(tensors))
    what = f"{kind} {name}"
    if kind == "missing":
        for other in draw.sample(sorted(tensors), draw.randint(1, len(tensors) - 1)):
            del tensors[other]
    elif kind == "renamed":
        prefix = draw.choice(("x.", "model.", "base."))
        tensors = {prefix + key: value for key, value in tensors.items()}
    elif kind == "shape":
        tensors[name] = torch.cat([tensors[name]] * 2)
    elif kind == "type":
        dtype = draw.choice((torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.int64))
        tensors[name] = tensors[name].to(dtype)
        what += f" {dtype}"
    elif kind == "nan":
        flat = tensors[name].view(-1)
        flat[draw.randrange(len(flat))] = draw.choice((torch.nan, torch.inf, -torch.inf))
    elif path.name == "model.safetensors":
        return f"index {_damage_index(path, tensors, draw)}"
    save_file(tensors, path, metadata={"format": "pt"})
    return what


def _damage_index(path: Path, tensors: dict[str, Any], draw: random.Random) -> str:
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({k: tensors[k] for k in part}, path.with_name(file), metadata={"format": "pt"})
    path.unlink()
    listed = {key: file for file, part in parts.items() for key in part}
    half = dict.fromkeys(parts["a.safetensors"], "a.safetensors")
    kind = draw.choice(("half", "missing shard", "outside", "list", "map", "metadata", "absolute"))
    index: Any = {"metadata": {}, "weight_map": listed}
    if kind == "half":
        index["weight_map"] = half
    elif kind == "missing shard":
        path.with_name("b.safetensors").unlink()
    elif kind in ("outside", "absolute"):
        away = path.parent.with_name("outside.safetensors")
        path.with_name("b.safetensors").rename(away)
        name = str(away) if kind == "absolute" else "../outside.safetensors"
        index["weight_map"] = {k: v if k in half else name for k, v in listed.items()}
    elif kind == "metadata":
        del index["metadata"]
    elif kind == "map":
        index["weight_map"] = draw.choice(ODD)
    else:
        index = draw.choice(ODD)
    path.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    return kind


# --- Faults of model folders ---------------------------------------------------------------------


@dataclass
class ModelFault:
    """A damaged copy of a model or an adapter, and the overrides that name it."""

    what: str
    overrides: list[str]


def plant_model_fault(sound: Path, folder: Path, draw: random.Random) -> ModelFault:
    kind = draw.choice(("model", "model", "model", "config", "tokenizer", "template", "adapter"))
    if kind == "adapter":
        shutil.copytree(sound / "adapter", folder)
        mode = draw.choice(("continue", "merge", "stack"))
        name = draw.choice(("adapter_model.safetensors", "adapter_config.json"))
        damage = damage_weights if name.endswith(".safetensors") else damage_json
        what = f"{mode} {name}: {damage(folder / name, draw)}"
        lora = ["lora.rank=4"] if mode == "stack" else []
        return ModelFault(what, [f"model.name_or_path={folder}", f"model.adapter={mode}", *lora])
    shutil.copytree(sound / "model", folder)
    overrides = [f"model.name_or_path={folder}"]
    if kind == "template":
        template = draw.choice(TEMPLATES)
        path = folder / "chat_template.jinja"
        path.write_bytes(template.encode("utf-8", "surrogatepass"))
        if draw.random() < 0.5:
            aside = path.rename(folder.with_suffix(".jinja"))
            overrides.append(f"model.chat_template={aside}")
        return ModelFault(f"template {template[:30]}", overrides)
    name = {
        "model": "model.safetensors",
        "config": draw.choice(("config.json", "generation_config.json")),
        "tokenizer": draw.choice(("tokenizer.json", "tokenizer_config.json")),
    }[kind]
    damage = damage_weights if kind == "model" else damage_json
    return ModelFault(f"{name}: {damage(folder / name, draw)}", overrides)


def try_model_fault(outcome: Outcome, number: int, work: Path, seed: int) -> None:
    draw = random.Random(f"{seed} model {number}")
    folder = work / f"model-{number}"
    fault = plant_model_fault(work / "sound", folder, draw)
    run = work / f"run-{number}"
    arguments = [str(work / "recipe.yaml"), f"output_dir={run}", *fault.overrides]
    try:
        code, text = run_command(["dpo", *arguments, "--dry-run"])
        label = _judge(outcome, f"model {number} ({fault.what})", code, text)
        outcome.codes[f"dry-run {label}"] += 1
        if code != 0:
            return
        code, text = run_command(["dpo", *arguments])
        name = f"model {number} ({fault.what})"
        label = _judge(outcome, name, code, text)
        outcome.codes[f"run {label}"] += 1
        if label.isdigit() and code != 0:
            outcome.wrong["untrue"].append(f"{name}: will run, then {_last(text)}")
        elif code == 0 and not _is_expected(work, run, fault, text):
            outcome.wrong["silent"].append(f"{name}: trained other weights")
    finally:
        for path in (folder, run):
            shutil.rmtree(path, ignore_errors=True)


def _is_expected(work: Path, run: Path, fault: ModelFault, text: str) -> bool:
    """Compare the start with that of the sound model; a warning about its tensors is a word."""
    mode = next((o for o in fault.overrides if o.startswith("model.adapter=")), "")
    started = RunDir(str(run)).read_run()["start_weights"]
    expected = json.loads((work / "digests.json").read_text())[mode]
    return started == expected or "does not use" in text


# --- Faults of run folders -----------------------------------------------------------------------


def plant_run_fault(run: Path, draw: random.Random) -> str:
    if draw.random() < 0.5:
        checkpoint = run / draw.choice(("checkpoint-4", "checkpoint-4", "checkpoint-2"))
        path = draw.choice(sorted(checkpoint.iterdir()))
        content = bytearray(path.read_bytes())
        if content and draw.random() < 0.6:
            at = draw.randrange(len(content))
            content[at] ^= 1 << draw.randrange(8)
            path.write_bytes(content)
            return f"{checkpoint.name}/{path.name}: flip at {at}"
        return f"{checkpoint.name}/{path.name}: {damage_bytes(path, draw)}"
    name = draw.choice(
        ("recipe.yaml", "run.json", "run.json", "metrics.jsonl", "health.jsonl", "samples.jsonl")
    )
    path = run / name
    if name == "run.json" and draw.random() < 0.7:
        return f"{name}: {damage_json(path, draw)}"
    if name.endswith(".jsonl"):
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        odd = ("3", "{}", '{"step": "x"}', '{"step": null}', '{"step": 2}', "\x00", "[" * 9999, "")
        line = draw.choice(odd)
        lines.insert(draw.randint(0, len(lines)), line)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return f"{name}: line {line[:20]!r}"
    return f"{name}: {damage_bytes(path, draw)}"


def try_run_fault(outcome: Outcome, number: int, work: Path, seed: int) -> None:
    draw = random.Random(f"{seed} run {number}")
    run = work / "killed-run"  # its recipe.yaml names it
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(work / "killed", run)
    name = f"run {number} ({plant_run_fault(run, draw)})"
    code, text = run_command(["dpo", str(work / "recipe.yaml"), f"output_dir={run}"])
    outcome.codes[_judge(outcome, name, code, text)] += 1
    if code == 0:
        trained = load_file(run / "model" / "model.safetensors")
        expected = load_file(work / "undisturbed" / "model" / "model.safetensors")
        if not all(torch.equal(trained[key], expected[key]) for key in expected):
            outcome.wrong["silent"].append(f"{name}: other weights at the end")


# --- Commands ------------------------------------------------------------------------------------


def run_command(arguments: list[str]) -> tuple[int | None, str]:
    """Run prefcli in a forked process; return its exit code, None if it hung, and its output."""
    with tempfile.TemporaryFile() as log:
        pid = os.fork()
        if not pid:
            _be_prefcli(arguments, log.fileno())
        end = time.monotonic() + PATIENCE
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return None, "hung"
            time.sleep(0.01)
        log.seek(0)
        return os.waitstatus_to_exitcode(ended[1]), log.read().decode("utf-8", "replace")


def _be_prefcli(arguments: list[str], log: int) -> None:
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    finish_module.write_report_and_card = lambda *args, **kwargs: None
    code = run_prefcli(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _judge(outcome: Outcome, name: str, code: int | None, text: str) -> str:
    """Count a traceback or a hang, and return the exit code as text."""
    if code is None:
        outcome.wrong["hung"].append(name)
        return "hung"
    if code not in (0, 2, 3, 4, 5) or "Traceback (most recent call last)" in text:
        outcome.wrong["traceback"].append(f"{name}: exit {code}, {_last(text)}")
        return f"{code} (traceback)"
    return str(code)


def _last(text: str) -> str:
    errors = [line for line in text.splitlines() if line.startswith(("error:", "inconclusive"))]
    return (errors or text.strip().splitlines() or [""])[-1][:300]


# --- The table -----------------------------------------------------------------------------------

FAMILIES = ("llama", "mixtral", "gemma3")


def _family(name: str, llama: LlamaConfig) -> PretrainedConfig:
    """Return the config of a model of another kind with the sizes and tokens of `llama`."""
    if name == "mixtral":
        return MixtralConfig(**_sizes(llama), num_local_experts=4)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    tokens = {name: getattr(llama, name) for name in ("bos_token_id", "eos_token_id")}
    return Gemma3Config(
        text_config=_sizes(llama) | {"head_dim": 8, "sliding_window": 64},
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=5,
        **tokens,
        pad_token_id=llama.pad_token_id,
    )


def _sizes(config: LlamaConfig) -> dict[str, Any]:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    heads = ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(config, name) for name in (*names, *heads, *tokens)}


def prepare(work: Path, family: str) -> None:
    """Make the sound model, adapter and runs."""
    sound = work / "sound"
    make_model(sound / "model")
    if family != "llama":
        torch.manual_seed(0)
        config = _family(family, LlamaConfig.from_pretrained(sound / "model"))
        AutoModelForCausalLM.from_config(config).save_pretrained(sound / "model")
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(sound / "model")
    lora = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    get_peft_model(base, lora).save_pretrained(sound / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(sound / "model" / name, sound / "adapter" / name)
    recipe = {
        "model": {"name_or_path": str(sound / "model")},
        "dpo": {},
        "data": {
            "train": {"path": make_rows(work, "train", 24, ("prompt", "chosen", "rejected"), 1)},
            "max_length": 64,
            "checks": {name: {"error": None} for name in DataChecks.model_fields},
        },
        "training": {
            "global_batch_size": 4,
            "per_device_train_batch_size": 4,
            "gradient_checkpointing": False,
            "learning_rate": 1e-3,
            "max_steps": 6,
            "save_steps": 2,
            "save_total_limit": 3,
            "logging_steps": 1,
        },
        "check_sft": {"on_fail": "skip"},
        "samples": {"prompts": 0},
    }
    path = work / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    code, text = run_command(["dpo", str(path), f"output_dir={work / 'undisturbed'}"])
    if code != 0:
        raise SystemExit(f"the sound model does not train:\n{text}")
    digests = {"": RunDir(str(work / "undisturbed")).read_run()["start_weights"]}
    for mode in ("continue", "merge", "stack"):
        options = Model(name_or_path=str(sound / "adapter"), adapter=mode)
        digests[f"model.adapter={mode}"] = weights_digest(load_policy(options, torch.float32, 0))
    (work / "digests.json").write_text(json.dumps(digests))
    shutil.copytree(work / "undisturbed", work / "killed")
    killed = RunDir(str(work / "killed"))
    shutil.rmtree(killed.model)
    shutil.rmtree(killed.path / "checkpoint-6")
    killed.write_run({**killed.read_run(), "status": "running"})
    text = killed.recipe.read_text("utf-8").replace("undisturbed", "killed-run")
    killed.recipe.write_text(text, encoding="utf-8")


def fault_table(
    work: Path,
    counts: dict[str, int],
    *,
    seed: int,
    start: int = 0,
    family: str = "llama",
    progress: bool = False,
) -> list[Outcome]:
    """Plant that many faults of each kind, and return how the commands ended."""
    prepare(work, family)
    outcomes = []
    attempts: dict[str, Callable[[Outcome, int, Path, int], None]] = {
        "model": try_model_fault,
        "run": try_run_fault,
    }
    for kind, count in counts.items():
        outcome = Outcome(f"{kind} folders")
        for number in range(start, start + count):
            outcome.tried += 1
            attempts[kind](outcome, number, work, seed)
            if progress and outcome.tried % 10 == 0:
                lines = [f"{outcome.name}: {outcome.tried} tried", *_wrong(outcome)]
                print(*lines, sep="\n", file=sys.stderr, flush=True)
        outcomes.append(outcome)
    return outcomes


def _wrong(outcome: Outcome) -> list[str]:
    return [f"{kind}: {name}" for kind, names in outcome.wrong.items() for name in names]


def table(outcomes: list[Outcome]) -> list[str]:
    def line(name: str, values: list[Any]) -> str:
        return f"| {name} | " + " | ".join(map(str, values)) + " |"

    def codes(outcome: Outcome) -> str:
        return "; ".join(f"{code}: {count}" for code, count in sorted(outcome.codes.items()))

    names = {
        "traceback": "tracebacks",
        "hung": f"hung for {PATIENCE:.0f} s",
        "silent": "other weights without a word",
        "untrue": "failed after `will run`",
    }
    return [
        line("", [outcome.name for outcome in outcomes]),
        "|---" * (len(outcomes) + 1) + "|",
        line("faults", [outcome.tried for outcome in outcomes]),
        line("exit codes", [codes(outcome) for outcome in outcomes]),
        *(line(text, [len(o.wrong[kind]) for o in outcomes]) for kind, text in names.items()),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=int, default=300, help="faults of model folders")
    parser.add_argument("--run", type=int, default=150, help="faults of run folders")
    parser.add_argument("--start", type=int, default=0, help="number of the first fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", choices=FAMILIES, default="llama", help="kind of the model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prefcli-faults-") as folder:
        counts = {"model": options.model, "run": options.run}
        outcomes = fault_table(
            Path(folder),
            counts,
            seed=options.seed,
            start=options.start,
            family=options.family,
            progress=True,
        )
    print(*table(outcomes), sep="\n", flush=True)
    wrong = [line for outcome in outcomes for line in _wrong(outcome)]
    print(*(f"WRONG: {line}" for line in wrong), sep="\n", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
