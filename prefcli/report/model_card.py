"""The model card: README.md of model/, in the hub's format, from the files of the run folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from prefcli.console import visible
from prefcli.report.html import metric_title
from prefcli.report.run_data import (
    Run,
    as_dict,
    as_list,
    format_lineage,
    format_value,
    read_run,
)
from prefcli.report.samples import samples
from prefcli.report.settings import main_settings
from prefcli.report.verdict import verdict
from prefcli.secrets import redact

_MAX_SAMPLES = 4
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_TAG = re.compile("[a-z]+")
_DATA_FILE = (".jsonl", ".json", ".parquet", ".csv")

_CARDS = Environment(
    loader=PackageLoader("prefcli.report"),
    autoescape=False,  # Markdown; model output is in fenced blocks
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_card(folder: Path, about: str = "") -> Path:
    """Write README.md of model/. OSError if there is no model/ or it is not writable.

    about: the method in a sentence, with its paper.
    """
    run = read_run(folder)
    path = run.path / "model" / "README.md"
    path.write_text(card(run, about), encoding="utf-8", errors="backslashreplace")
    return path


def card(run: Run, about: str = "") -> str:
    """Return the model card as Markdown."""
    outcome = verdict(run)
    text = _CARDS.get_template("card.md").render(
        front=yaml.safe_dump(_front(run), sort_keys=False, allow_unicode=True),
        name=_cell(run.name),
        start=_start(run),
        method=run.method,
        prefcli=run.record.get("prefcli", "?"),
        about=" ".join(about.split()),
        verdict=outcome.title,
        snippet=_snippet(run),
        lineage=format_lineage(
            run.lineage, run.method, this="this model", name=lambda model: _code(_public(model))
        ),
        data=list(_data(run)),
        settings=[(_cell(key), _code(value)) for key, value in _settings(run)],
        changes=outcome.changes,
        details=outcome.details,
        expected=run.expected_results,
        source=_cell(run.expected_source) if run.expected_source else None,
        samples=samples(run)[:_MAX_SAMPLES],
        eval_rows=run.eval_rows,
        versions=list(as_dict(run.record.get("versions")).items()),
    )
    return redact(re.sub(r"\n{3,}", "\n\n", text))


def _front(run: Run) -> dict[str, Any]:
    full = _adapter(run) is None
    base = _base(run)
    sources = [*_sources(run, "data.train"), *_sources(run, "sft_mix.data")]
    data = [name for name in map(_path, sources) if _is_hub_id(name)]
    return {
        **({"base_model": base} if base else {}),
        "library_name": "transformers" if full else "peft",
        "pipeline_tag": "text-classification" if run.trains_reward else "text-generation",
        "tags": ["prefcli", "trl", *filter(_TAG.fullmatch, [run.method]), *["lora"] * (not full)],
        **({"datasets": list(dict.fromkeys(data))} if data else {}),
    }


def _base(run: Run) -> str | None:
    """Return the nearest ancestor that is on the hub; for an adapter its base model."""
    adapter = _adapter(run)
    # All other stages are run folders.
    stages = [stage for stage in run.lineage if stage.get("stage") in ("start", "adapter")]
    names = [str(stage.get("model", "")) for stage in stages]
    if adapter is not None:
        names.append(str(adapter.get("base_model_name_or_path") or ""))
    return next((name for name in reversed(names) if _is_hub_id(name)), None)


def _adapter(run: Run) -> dict[str, Any] | None:
    """Return adapter_config.json of model/, if there is one."""
    try:
        text = (run.path / "model" / "adapter_config.json").read_text("utf-8")
        return as_dict(json.loads(text))
    except (OSError, ValueError):
        return None


def _start(run: Run) -> str:
    start = _code(_public(str(run.recipe_value("model.name_or_path") or "?")))
    if run.recipe_value("model.revision"):
        start += f" (revision {_code(run.recipe_value('model.revision'))})"
    if run.recipe_value("model.init") == "random":
        return f"A {start} with random initial weights,"
    return start


def _is_hub_id(name: str) -> bool:
    return (
        bool(_HUB_ID.fullmatch(name)) and not name.endswith(_DATA_FILE) and not Path(name).exists()
    )


def _public(name: str) -> str:
    """Return a hub id as it is, and of a private path only its last telling part."""
    if _is_hub_id(name):
        return name
    path = Path(name)
    return path.parent.name or path.name if path.name == "model" else path.name


def _sources(run: Run, path: str) -> list[dict[str, Any]]:
    value = run.recipe_value(path)
    if share := as_dict(value).get("from_train"):
        return [source | {"fraction": share} for source in _sources(run, "data.train")]
    return [as_dict(source) for source in as_list(value)]


def _path(source: dict[str, Any]) -> str:
    return str(source.get("path", ""))


def _data(run: Run) -> Iterator[dict[str, Any]]:
    paths = {"train": "data.train", "eval": "data.eval", "sft_mix": "sft_mix.data"}
    for name, split in as_dict(run.record.get("data")).items():
        counts = as_dict(split)
        yield {
            "name": _cell(name),
            "sources": ", ".join(map(_source, _sources(run, paths.get(name, "")))),
            "read": counts.get("read", "-"),
            "kept": counts.get("kept", "-"),
        }


def _source(source: dict[str, Any]) -> str:
    part = [_cell(source[key]) for key in ("name", "split") if source.get(key)]
    share = source.get("fraction", 1.0)
    notes = [*part, *([f"{100 * share:.3g} %"] if share != 1.0 else [])]
    if rows := source.get("rows"):
        notes.append(f"{rows} rows")
    return _code(_public(_path(source))) + (f" ({', '.join(notes)})" if notes else "")


def _settings(run: Run) -> Iterator[tuple[str, Any]]:
    yield from main_settings(run)
    yield "steps", run.record.get("steps", run.last_step)


def _snippet(run: Run) -> str:
    return _reward_snippet(run) if run.trains_reward else _generation_snippet(run)


def _reward_snippet(run: Run) -> str:
    adapter = _adapter(run) is not None
    model = "Auto{}ModelForSequenceClassification".format("Peft" if adapter else "")
    inputs = (
        [
            "messages = [",
            '    {"role": "user", "content": "How are you?"},',
            '    {"role": "assistant", "content": "Fine, thank you."},',
            "]",
            "inputs = tokenizer.apply_chat_template(",
            '    messages, return_dict=True, return_tensors="pt"',
            ")",
        ]
        if _has_template(run)
        else [
            'text = "How are you? Fine, thank you." + tokenizer.eos_token',
            'inputs = tokenizer(text, return_tensors="pt")',
        ]
    )
    return "\n".join(
        [
            *(
                [f"from peft import {model}", "from transformers import AutoTokenizer"]
                if adapter
                else [f"from transformers import {model}, AutoTokenizer"]
            ),
            "",
            'folder = "."  # this folder, or its id on the hub',
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            f"model = {model}.from_pretrained(folder, num_labels=1)",
            *inputs,
            "print(model(**inputs).logits[0, 0].item())",
        ]
    )


def _generation_snippet(run: Run) -> str:
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
            'folder = "."  # this folder, or its id on the hub',
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
    """Return text for a table cell or a heading: one line, without | and tags."""
    flat = " ".join(visible(text).split())
    return flat.replace("|", "\\|").replace("<", "&lt;")


def _code(text: object) -> str:
    """Return text as inline code; a | would end a table cell even there."""
    flat = " ".join(visible(text).split()).replace("|", "\\|")
    ticks = "`" * (_longest_ticks(flat) + 1)
    room = " " if "`" in flat else ""
    return f"{ticks}{room}{flat}{room}{ticks}"


def _fenced(text: object) -> str:
    """Return model output as a fenced block, with a fence longer than any in it."""
    body = visible(text)
    fence = "`" * max(3, _longest_ticks(body) + 1)
    return f"{fence}text\n{body}\n{fence}"


def _longest_ticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


_CARDS.globals["format_value"] = format_value
_CARDS.filters["metric_title"] = metric_title
_CARDS.filters["fenced"] = _fenced
