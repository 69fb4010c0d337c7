"""Every method through the command line: it runs, its numbers are a CPU's, nothing is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from scripts.acceptance.commands import last_lines
from scripts.acceptance.judge import COUNT_EVEN
from scripts.acceptance.rows import Sheet
from scripts.acceptance.setting import Setting
from scripts.acceptance.workers import Job, Workers

_ROWS, _HELD_OUT, _BATCH, _STEPS = 32, 16, 8, 4
_PROMPT, _ANSWER = (8, 60), (4, 40)
_LORA = {"rank": 8, "alpha": 16, "dropout": 0.0}
_METHODS: dict[str, dict[str, Any]] = {
    "sft": {"sft": {}},
    "dpo": {"dpo": {}},
    "dpo, sigmoid and sft": {"dpo": {"loss_type": ["sigmoid", "sft"]}},
    "ipo": {"ipo": {}},
    "kto": {"kto": {}},
    "orpo": {"orpo": {}},
    "simpo": {"simpo": {}},
    "reward": {"reward": {}},
    "rloo": {
        "rloo": {"num_generations": 4, "max_completion_length": 16},
        "judge": {"function": {"name": COUNT_EVEN}},
    },
}
_KINDS = {"sft": "demonstration", "kto": "labelled"}
_PLACES = ("bf16", "stock", "fp32", "cpu")
"""As a GPU does by default; with trl's own forward; in float32; in float32 on a CPU."""
_SEEDS = 5

_workers: list[Workers] = []


def warm(setting: Setting) -> None:
    """Start the processes while the part before this one runs."""
    _workers.append(Workers(0, 0) if setting.cpu else Workers(gpu=6, cpu=4))


def run(sheet: Sheet, setting: Setting) -> None:
    workers = _workers.pop()
    try:
        _run(sheet, setting, workers)
    finally:
        workers.end()


def _run(sheet: Sheet, setting: Setting, workers: Workers) -> None:
    variants = _variants(setting)
    places = ("bf16", "cpu") if setting.cpu else _PLACES
    jobs: dict[tuple[str, str], Job] = {}
    for name, sections in variants.items():
        for place in places if not setting.quick or name == "dpo" else places[:1]:
            # For stock trl, the row shows the error of bf16.
            if place == "stock" and name not in _METHODS:
                continue
            jobs[name, place] = _job(setting, name, place, sections)
    seeds = {
        (f"seed {seed}, {kind}", "bf16"): _short(setting, seed, kind)
        for seed in range(1 if setting.quick else _SEEDS)
        for kind in _short_kinds(setting)
    }
    # Longest first; what is compared with others before what stands alone.
    results = workers.run([*jobs.values(), *seeds.values()], lambda: sheet.left - 6)
    adapter = _folder(setting, "dpo, LoRA", "bf16") / "run" / "model"
    if adapter.is_dir():
        adapter_sections = {
            "model": {"name_or_path": str(adapter), "adapter": "continue"},
            "dpo": {},
        }
        jobs["dpo, continued", "bf16"] = job = _job(
            setting, "dpo, continued", "bf16", adapter_sections
        )
        results |= workers.run([job], lambda: sheet.left - 6)
    for name in dict.fromkeys(name for name, _ in jobs):
        sheet.run(name, _judged, sheet, setting, name, jobs, results)
    for kind in _short_kinds(setting):
        sheet.run(f"refusals, {kind}", _refusals, sheet, setting, kind, seeds, results)
    if not setting.quick:
        sheet.run("bf16, over all", _bf16, sheet, setting, jobs)


def _variants(setting: Setting) -> dict[str, dict[str, Any]]:
    """Return the sections of each kind of run."""
    if setting.quick:
        return {"dpo": {"dpo": {}}}
    sections_of = _METHODS | {
        f"{name}, LoRA": sections | {"lora": _LORA} for name, sections in _METHODS.items()
    }
    rows = setting.drawn("T", 16, "mix", _PROMPT, _ANSWER)
    mix = setting.written(setting.work / "rows" / "mix.jsonl", rows, "demonstration")
    sections_of["dpo, sft_mix"] = {"dpo": {}, "sft_mix": {"data": {"path": str(mix)}}}
    sections_of["dpo, precomputed"] = {"dpo": {}, "reference": {"precompute": True}}
    other = str(setting.model("T", seed=1))
    sections_of["dpo, another reference"] = {"dpo": {}, "reference": {"name_or_path": other}}
    return sections_of


def _folder(setting: Setting, name: str, place: str) -> Path:
    return setting.work / "methods" / f"{name}-{place}".replace(", ", "-").replace(" ", "-")


def _job(setting: Setting, name: str, place: str, sections: dict[str, Any]) -> Job:
    folder = _folder(setting, name, place)
    method = name.partition(",")[0]
    kind = _KINDS.get(method, "pair")
    files = {}
    for part, count in (("train", _ROWS), ("eval", _HELD_OUT)):
        path = setting.work / "rows" / f"{kind}-{part}.jsonl"
        if not path.is_file():
            setting.written(path, setting.drawn("T", count, part, _PROMPT, _ANSWER), kind)
        files[part] = path
    changes = dict(sections)
    samples = place == "bf16" and not setting.quick and method != "reward"
    model = dict(changes.pop("model", {}))
    if place in ("fp32", "cpu"):
        model["dtype"] = "float32"
    if place == "stock":
        changes["performance"] = {"shared_prefix": "off"}
    file = setting.recipe(
        folder,
        setting.model("T"),
        files["train"],
        **{
            "model": model,
            "data": {"eval": {"path": str(files["eval"])}, "max_length": 128},
            "training": {
                "global_batch_size": _BATCH,
                "per_device_train_batch_size": _BATCH,
                "max_steps": 2 if setting.quick else _STEPS,
                "gradient_checkpointing": False,
            },
            "check_sft": {"on_fail": "warn"},
            "samples": {"prompts": 2, "max_new_tokens": 8} if samples else {"prompts": 0},
            **changes,
        },
    )
    return Job((method, str(file)), folder / "log.txt", on_cpu=place == "cpu" and not setting.cpu)


def _judged(
    sheet: Sheet,
    setting: Setting,
    name: str,
    jobs: dict[tuple[str, str], Job],
    results: dict[Job, dict[str, Any]],
) -> None:
    for place in _PLACES:
        if (job := jobs.get((name, place))) is None:
            continue
        done = results.get(job)
        if done is None:
            sheet.note(place, "no time was left")
            continue
        if done["code"] != 0:
            last_output = last_lines(job.log) if job.log.is_file() else ""
            sheet.equal(f"{place}, exit code", f"{done['code']}: {last_output}", 0)
            continue
        folder = _folder(setting, name, place) / "run"
        sheet.equal(f"{place}, model/ is there", (folder / "model").is_dir(), True)
        speed = json.loads((folder / "run.json").read_text("utf-8")).get("speed", {})
        if place == "bf16":
            sheet.note("seconds", done["seconds"])
            sheet.note("shared_prefix", speed.get("shared_prefix"))
            sheet.equal("passes that were trl's own", speed.get("stock_calls"), 0)
    pair = "fp32" if not setting.cpu else "bf16"
    here, there = (_metrics(_folder(setting, name, place)) for place in (pair, "cpu"))
    if not here or not there:
        return
    first = [next(row for row in rows if "loss" in row) for rows in (here, there)]
    before = [next((row for row in rows if "eval_loss" in row), {}) for rows in (here, there)]
    last = [[row for row in rows if "loss" in row][-1] for rows in (here, there)]
    sheet.at_most("loss, GPU to CPU", _apart(first, "loss"), 1e-4)
    # LoRA's matrices are drawn on the device, and rounding may decide between two tokens that rloo
    # samples: only what does not depend on them is the same.
    same = "LoRA" not in name and not name.startswith("rloo")
    sheet.at_most("gradient norm", _apart(first, "grad_norm"), 1e-3, must=same)
    logps = [key for key in first[0] if "logps/" in key and "tok" not in key]
    logps = [(first, key) for key in logps]
    logps += [(before, key) for key in before[0] if "logps/" in key and "tok" not in key]
    if logps:
        tokens = sum(_ANSWER) / 2
        worst = max(abs(pair[0][key] - pair[1][key]) for pair, key in logps) / tokens
        sheet.at_most("log-probabilities a token", worst, 1e-4)
    sheet.note("loss after the last step", _apart(last, "loss"))


def _apart(pair: list[dict[str, float]], key: str) -> float:
    a, b = (row.get(key, math.nan) for row in pair)
    return abs(a - b) / max(1.0, abs(b))


def _metrics(folder: Path) -> list[dict[str, float]]:
    file = folder / "run" / "metrics.jsonl"
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def _bf16(sheet: Sheet, setting: Setting, jobs: dict[tuple[str, str], Job]) -> None:
    """Root mean square over all methods of what bf16 changes in the first evaluation."""
    errors: dict[str, list[float]] = {"bf16": [], "stock": []}
    for name in dict.fromkeys(name for name, _ in jobs):
        metrics = {place: _metrics(_folder(setting, name, place)) for place in _PLACES[:3]}
        rows = {p: next((r for r in v if "eval_loss" in r), {}) for p, v in metrics.items()}
        if not all(rows.values()):
            continue
        keys = [key for key in rows["fp32"] if "logps/" in key or key == "eval_loss"]
        for place, differences in errors.items():
            differences += [rows[place][key] - rows["fp32"][key] for key in keys]
    sizes = {
        p: math.sqrt(sum(e * e for e in differences) / len(differences))
        for p, differences in errors.items()
    }
    sheet.note("error of stock", sizes["stock"])
    sheet.at_most("ours over stock's", sizes["bf16"] / sizes["stock"], 1.3, must=False)


_SHORT: dict[str, dict[str, Any]] = {
    "precomputed": {"reference": {"precompute": True}},
    "LoRA": {"lora": _LORA},
    "DoRA": {"lora": {**_LORA, "use_dora": True}},
}


def _short_kinds(setting: Setting) -> list[str]:
    return ["DoRA"] if setting.quick else list(_SHORT)


def _short(setting: Setting, seed: int, kind: str) -> Job:
    """One step on answers of a few tokens, where a token's rounding shows most."""
    folder = _folder(setting, f"short {kind}", str(seed))
    rows = setting.drawn("T", 64, f"short {seed}", (8, 90), (1, 8))
    file = setting.recipe(
        folder,
        setting.model("T"),
        setting.written(folder / "rows.jsonl", rows),
        seed=seed,
        dpo={},
        data={"max_length": 128},
        training={
            "global_batch_size": 16,
            "per_device_train_batch_size": 16,
            "max_steps": 1,
            "gradient_checkpointing": False,
        },
        **_SHORT[kind],
    )
    return Job(("dpo", str(file)), folder / "log.txt")


def _refusals(
    sheet: Sheet,
    setting: Setting,
    kind: str,
    seeds: dict[tuple[str, str], Job],
    results: dict[Job, dict[str, Any]],
) -> None:
    mine = [job for (name, _), job in seeds.items() if name.endswith(f", {kind}")]
    done = [results[job] for job in mine if job in results]
    bad = [job for job in mine if job in results and results[job]["code"] != 0]
    sheet.note("runs", f"{len(done)} of {len(mine)}")
    sheet.equal("that did not end with 0", len(bad), 0)
    for job in bad[:2]:
        sheet.note("last lines", f"{results[job]['code']}: {last_lines(job.log)}")
