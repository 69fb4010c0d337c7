"""Training commands: a shell script that has one, or the words of one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from prefcli.errors import Problem, RecipeError
from prefcli.methods import METHODS
from prefcli.recipe.migrate.config_files import Config, read_yaml
from prefcli.recipe.migrate.shell_script import ASSIGNMENT, Word, split_commands
from prefcli.recipe.migrate.tools import TOOLS, Tool
from prefcli.recipe.source_map import Key, Places
from prefcli.recipe.yaml_reader import parse, read_text, scalar

_METHODS = "sft|dpo|ipo|kto|orpo|simpo|cpo|reward|rloo"
_COMMANDS = {
    rf"trl (?P<method>{_METHODS})": "trl",
    r"(llamafactory-cli|lmf) train": "LLaMA-Factory",
    r"(axolotl train|axolotl\.cli\.train)": "axolotl",
    r"(oumi train|oumi\.train)": "oumi",
    rf"run_(?P<method>{_METHODS})\.py": "alignment-handbook",
    rf"(?P<method>{_METHODS})\.py": "trl",
    r"(?P<method>reward)_modeling\.py": "trl",
    r"train(_bash)?\.py": "LLaMA-Factory",
    r"swift": "ms-swift",
    r"tune": "torchtune",
    r"openrlhf\.cli\.train\w*": "OpenRLHF",
}
"""Programs and modules, as one word or two, with their tool."""
_PROCESSES = ("num_processes", "nproc_per_node", "num_gpus")
_NODES = ("nnodes", "num_nodes")
_SWITCHES = (
    *("multi_gpu", "use_deepspeed", "use_fsdp", "standalone", "cpu", "no_python", "m", "module"),
)
"""Launcher's flags without a value."""
_SCRIPT_SUFFIXES = (".sh", ".bash", ".sbatch", ".slurm", ".job")


def is_script(path: str) -> bool:
    """Return whether a file is a shell script, by its name or its first line."""
    if Path(path).suffix in _SCRIPT_SUFFIXES:
        return True
    return Path(path).is_file() and Path(path).suffix == "" and read_text(path).startswith("#!")


def read_script(path: str) -> Config:
    """Read the training command of a shell script. Raises RecipeError unless there is one."""
    commands = split_commands(read_text(path), path)
    launches = [launch for words in commands if (launch := _launch(words, Path(path).parent))]
    if len(launches) != 1:
        lines = ", ".join(str(launch.line) for launch in launches)
        where = f", in lines {lines}" if launches else ""
        raise RecipeError(
            f"{len(launches)} training commands of a known tool{where}; one is expected",
            place=path,
            hint="pass the command itself: prefcli migrate -- trl dpo --model_name_or_path ...",
            code="RCP170",
        )
    return _config(launches[0], path)


def read_command(words: list[str]) -> Config:
    """Read the words of a training command."""
    launch = _launch([Word(word, (1, i + 1)) for i, word in enumerate(words)], Path())
    if launch is None:
        raise RecipeError(
            f"{' '.join(words[:3])}: not a training command of a known tool",
            hint="pass the command of trl, alignment-handbook, LLaMA-Factory, axolotl or oumi",
            code="RCP170",
        )
    return _config(launch, "command")


class Launch(NamedTuple):
    """A training command: whose it is, its arguments, and its number of processes."""

    tool: Tool
    method: str | None
    arguments: list[Word]
    devices: int | None
    line: int


def _launch(words: list[Word], folder: Path) -> Launch | None:
    """Recognise a training command behind launchers and environment variables."""
    launcher: dict[str, str] = {}
    is_launched = skip = False
    for i, word in enumerate(words):
        text, rest = word.text, words[i + 1 :]
        name, after = Path(text).name, rest[0].text if rest else ""
        if skip:
            skip = False
        elif match := ASSIGNMENT.fullmatch(text):
            launcher[match[1]] = match[2]
        elif name in ("accelerate", "torchrun", "deepspeed"):
            is_launched = True
        elif text.startswith("-"):
            flag, _, value = text.lstrip("-").partition("=")
            skip = is_launched and not value and flag not in _SWITCHES
            launcher[flag.replace("-", "_")] = value or after
        elif program := _match(name, after, rest):
            tool, method, count = program
            return Launch(tool, method, rest[count:], _devices(launcher, folder), word.mark[0])
    return None


def _devices(launcher: Mapping[str, str], folder: Path) -> int | None:
    """Return the number of processes by the flags of accelerate, torchrun or DeepSpeed.

    Without them, it is the number of visible devices.
    """
    counts = {name: launcher[name] for name in (*_PROCESSES, *_NODES) if name in launcher}
    if not all(count.isdigit() for count in counts.values()):
        return None  # such as --nproc_per_node=gpu
    nodes = next((int(counts[name]) for name in _NODES if name in counts), 1)
    for name in counts.keys() - {*_NODES}:
        return int(counts[name]) * nodes
    if hosts := launcher.get("include"):
        return sum(len(host.partition(":")[2].split(",")) for host in hosts.split("@"))
    if path := _find(launcher.get("config_file", ""), folder):
        count = parse(read_text(str(path)), str(path))[0].get("num_processes")
        if isinstance(count, int):
            return count
    visible = launcher.get("CUDA_VISIBLE_DEVICES")
    return len(visible.split(",")) if visible else None


def _match(name: str, after: str, rest: list[Word]) -> tuple[Tool, str | None, int] | None:
    """Return a program's tool and method, and the number of its words after the first."""
    for pattern, tool_name in _COMMANDS.items():
        has_two = " " in pattern and re.fullmatch(pattern, f"{name} {after}")
        match = has_two or re.fullmatch(pattern, name)
        if not match:
            continue
        if name.startswith("train") and not any(w.text.startswith("--stage") for w in rest):
            continue
        tool = next((tool for tool in TOOLS if tool.name == tool_name), None)
        if tool is None:
            raise RecipeError(
                f"this is a command of {tool_name}, whose settings prefcli migrate does not know",
                hint="start from `prefcli recipes list`",
                code="RCP173",
            )
        return tool, match.groupdict().get("method"), 1 if has_two else 0
    return None


def _find(name: str, folder: Path) -> Path | None:
    """Return a file that a command names, relative to a folder above the script or to this one."""
    above = [folder.absolute(), *folder.absolute().parents][:4]
    return next((p for base in (Path(), *above) if (p := base / name).is_file()), None)


def _config(launch: Launch, source: str) -> Config:
    """Return the settings of a command: those of the YAML file that it names, and its flags."""
    flags, problems = _flags(launch.arguments, source)
    config, devices, method = Config(launch.tool, {}, Places(source)), launch.devices, launch.method
    for name in (key for key in (("config",), ("c",), ("",)) if key in flags):
        value, word = flags.pop(name)
        path = _find(str(value), Path(source).parent)
        if path is None:
            raise RecipeError(
                f"{value}: no such file",
                place=f"{source}:{word.mark[0]}:{word.mark[1]}",
                hint="pass the file itself, and the flags as KEY=VALUE",
                code="RCP011",
            )
        config = read_yaml(str(path), launch.tool)
    if launch.tool.name == "trl":  # its command takes accelerate's flags, too
        flags.pop(("accelerate_config",), None)
        count, _ = flags.pop(("num_processes",), (devices, None))
        devices = count if isinstance(count, int) else devices
    entries, places = dict(config.entries), config.places
    for key, (value, word) in flags.items():
        if config.entries:
            places.overridden(key, word.text)
        else:
            places.keys[key] = places.values[key] = word.mark
        entries[key] = value
    if method == "cpo" and entries.get(("loss_type",)) in ("simpo", ["simpo"]):
        method = "simpo"
    return replace(
        config,
        entries=entries,
        problems=[*config.problems, *problems],
        devices=devices,
        method=method if method in METHODS and launch.tool.method_key is None else None,
    )


def _flags(words: list[Word], source: str) -> tuple[dict[Key, tuple[Any, Word]], list[Problem]]:
    """Return each flag with its value, as argparse reads them; a positional word has no name."""
    flags: dict[Key, tuple[Any, Word]] = {}
    problems = []
    i = 0
    while i < len(words):
        word, values = words[i], []
        name, equals, value = word.text.partition("=")
        i += 1
        if equals:
            values = [word._replace(text=value)]
        elif not name.startswith("-"):
            name, values = "", [word]
        while name and not equals and i < len(words) and not _is_flag(words[i].text):
            values.append(words[i])
            i += 1
        path = name.lstrip("-").replace("-", "_").split(".")
        for part in (word, *values):
            if part.problem:
                place = f"{source}:{part.mark[0]}:{part.mark[1]}"
                hint = "write the value itself"
                problems.append(Problem(part.problem, place, ".".join(path), hint, code="RCP171"))
        read = [_value(part.text) for part in values]
        if not read and path[-1].startswith("no_"):
            path[-1], read = path[-1].removeprefix("no_"), [False]
        flags[tuple(path)] = (read[0] if len(read) == 1 else read or True, word)
    return flags, problems


def _is_flag(text: str) -> bool:
    return re.match(r"--?[A-Za-z]", text) is not None


def _value(text: str) -> Any:
    try:
        return scalar(text) if text else None
    except RecipeError:
        return text
