"""The model card: README.md of model/, in the hub's format, from what the run folder says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from prefcli.report.html import visible
from prefcli.report.metrics import figure, in_words
from prefcli.report.run_data import Run, as_dict, as_list, read_run
from prefcli.report.run_page import compared_with_expected
from prefcli.report.samples import Sample, samples
from prefcli.report.verdict import verdict

_SAMPLES = 4
_SETTINGS = (
    "training.global_batch_size",
    "training.num_train_epochs",
    "training.max_steps",
    "training.lr_scheduler_type",
    "training.warmup_ratio",
    "training.warmup_steps",
    "training.optim",
    "training.weight_decay",
    "data.max_length",
    "model.dtype",
    "model.quantization",
    "sft_mix.fraction",
    "sft_mix.weight",
    "seed",
)
"""Beside the sections of the method and of lora, which are told whole."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_TAG = re.compile("[a-z]+")
_DATA_FILE = (".jsonl", ".json", ".parquet", ".csv")

_CARDS = Environment(
    loader=PackageLoader("prefcli.report"),
    autoescape=False,  # markdown; what a model wrote stands in fences
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_card(folder: Path, about: str = "") -> Path:
    """README.md in model/. about: the method in a sentence, with its paper.

    OSError if there is no model/ or it can't be written.
    """
    run = read_run(folder)
    path = run.path / "model" / "README.md"
    path.write_text(card(run, about), encoding="utf-8", errors="backslashreplace")
    return path


def card(run: Run, about: str = "") -> str:
    found = verdict(run)
    told = run.run
    text = _CARDS.get_template("card.md").render(
        front=yaml.safe_dump(_front(run), sort_keys=False, allow_unicode=True),
        name=_cell(run.name),
        start=_start(run),
        method=run.method,
        prefcli=told.get("prefcli", "?"),
        about=" ".join(about.split()),
        verdict=found.title,
        snippet=_snippet(run),
        lineage=_lineage(run),
        data=list(_data(run)),
        settings=[(_cell(key), _code(value)) for key, value in _settings(run)],
        gains=found.gains,
        words=found.words,
        expected=compared_with_expected(run),
        source=run.at("expected.source"),
        samples=[_bare(sample) for sample in samples(run)[:_SAMPLES]],
        eval_rows=run.eval_rows,
        versions=list(as_dict(told.get("versions")).items()),
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _front(run: Run) -> dict[str, Any]:
    full = _adapter(run) is None
    base = _base(run)
    sources = [*_sources(run, "data.train"), *_sources(run, "sft_mix.data")]
    data = [name for name in map(_path, sources) if _is_hub_id(name)]
    return {
        **({"base_model": base} if base else {}),
        "library_name": "transformers" if full else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["prefcli", "trl", *filter(_TAG.fullmatch, [run.method]), *["lora"] * (not full)],
        **({"datasets": list(dict.fromkeys(data))} if data else {}),
    }


def _base(run: Run) -> str | None:
    """The nearest ancestor that others can find; under an adapter that is what it lies on."""
    adapter = _adapter(run)
    stages = map(as_dict, as_list(run.run.get("lineage")))
    # All other stages are folders of runs.
    names = [str(s.get("model", "")) for s in stages if s.get("stage") in ("start", "adapter")]
    if adapter is not None:
        names.append(str(adapter.get("base_model_name_or_path") or ""))
    return next((name for name in reversed(names) if _is_hub_id(name)), None)


def _adapter(run: Run) -> dict[str, Any] | None:
    """adapter_config.json of model/, where there is one."""
    try:
        text = (run.path / "model" / "adapter_config.json").read_text("utf-8")
        return as_dict(json.loads(text))
    except (OSError, ValueError):
        return None


def _start(run: Run) -> str:
    start = _code(_named(str(run.at("model.name_or_path") or "?")))
    if run.at("model.revision"):
        start += f" (revision {_code(run.at('model.revision'))})"
    return f"A {start} of random weights," if run.at("model.init") == "random" else start


def _is_hub_id(name: str) -> bool:
    return (
        bool(_HUB_ID.fullmatch(name)) and not name.endswith(_DATA_FILE) and not Path(name).exists()
    )


def _named(name: str) -> str:
    """A hub id as it is; of a path, which is nobody else's affair, the last name that tells."""
    if _is_hub_id(name):
        return name
    path = Path(name)
    return path.parent.name or path.name if path.name == "model" else path.name


def _lineage(run: Run) -> str:
    words = []
    for stage in map(as_dict, as_list(run.run.get("lineage"))):
        name = _code(_named(str(stage.get("model", "?"))))
        words.append(name if stage.get("stage") == "start" else f"{stage.get('stage')} ({name})")
    return " -> ".join([*words, f"{run.method} (this model)"])


def _sources(run: Run, path: str) -> list[dict[str, Any]]:
    return [as_dict(source) for source in as_list(run.at(path))]


def _path(source: dict[str, Any]) -> str:
    return str(source.get("path", ""))


def _data(run: Run) -> Iterator[dict[str, Any]]:
    paths = {"train": "data.train", "eval": "data.eval", "sft_mix": "sft_mix.data"}
    for name, split in as_dict(run.run.get("data")).items():
        counts = as_dict(split)
        yield {
            "name": _cell(name),
            "sources": ", ".join(_source(each) for each in _sources(run, paths.get(name, ""))),
            "read": counts.get("read", "-"),
            "kept": counts.get("kept", "-"),
        }


def _source(source: dict[str, Any]) -> str:
    part = [str(source[key]) for key in ("name", "split") if source.get(key)]
    share = source.get("fraction", 1.0)
    words = [*part, *([f"{share:.3g} of it"] if share != 1.0 else [])]
    return _code(_named(_path(source))) + (f" ({', '.join(words)})" if words else "")


def _settings(run: Run) -> Iterator[tuple[str, Any]]:
    effective = as_dict(run.run.get("effective"))
    rate = effective.get("learning_rate", run.at("training.learning_rate"))
    for section in (run.method, "lora"):
        for key, value in as_dict(run.at(section)).items():
            if value is not None:
                yield f"{section}.{key}", value
    if rate is not None:
        yield "training.learning_rate", f"{rate:g}" if isinstance(rate, float) else rate
    for path in _SETTINGS:
        if run.at(path) is not None:
            yield path, run.at(path)
    yield "steps", run.run.get("steps", run.last_step)


def _bare(sample: Sample) -> Sample:
    return sample._replace(place="", more=[])


def _snippet(run: Run) -> str:
    model = "AutoModelForCausalLM" if _adapter(run) is None else "AutoPeftModelForCausalLM"
    imports = (
        ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
        if _adapter(run) is None
        else ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer"]
    )
    prompt = (
        [
            'messages = [{"role": "user", "content": "How are you?"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
        if _has_template(run)
        else ['inputs = tokenizer("How are you?", return_tensors="pt")']
    )
    return "\n".join(
        [
            *imports,
            "",
            'folder = "."  # this one, or its id on the hub',
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            f"model = {model}.from_pretrained(folder)",
            *prompt,
            "output = model.generate(**inputs, max_new_tokens=64)",
            'answer = output[0, inputs["input_ids"].shape[1] :]',
            "print(tokenizer.decode(answer, skip_special_tokens=True))",
        ]
    )


def _has_template(run: Run) -> bool:
    folder = run.path / "model"
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(as_dict(config).get("chat_template"))


def _cell(text: object) -> str:
    """Within a table or a heading: one line, no column ends, no tags."""
    flat = " ".join(visible(text).split())
    return flat.replace("|", "\\|").replace("<", "&lt;")


def _code(text: object) -> str:
    """A value as it is written; in a table a | would end its column all the same."""
    flat = " ".join(visible(text).split()).replace("|", "\\|")
    ticks = "`" * (_longest_ticks(flat) + 1)
    room = " " if "`" in flat else ""
    return f"{ticks}{room}{flat}{room}{ticks}"


def _fenced(text: object) -> str:
    """Whatever a model wrote, as text: the fence is longer than any in it."""
    body = visible(text)
    fence = "`" * max(3, _longest_ticks(body) + 1)
    return f"{fence}text\n{body}\n{fence}"


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


_CARDS.filters["figure"] = figure
_CARDS.filters["words"] = in_words
_CARDS.filters["fenced"] = _fenced
