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
from prefcli.recipe.migrate.tools import TOOLS, Tool
from prefcli.recipe.source_map import Key, Mark, Places
from prefcli.recipe.yaml_reader import parse, read_text, scalar

_TOOLS = {tool.name: tool for tool in TOOLS}


class Word(NamedTuple):
    """A word of a command, and its line and column in a script."""

    text: str
    mark: Mark = (1, 1)
    problem: str | None = None
    """Why its value is not known."""


class Launch(NamedTuple):
    """A training command: whose it is, its arguments, and its number of processes."""

    tool: Tool
    method: str | None
    arguments: list[Word]
    devices: int | None


_SUFFIXES = (".sh", ".bash", ".sbatch", ".slurm", ".job")


def is_script(path: str) -> bool:
    """Return whether a file is a shell script, by its name or its first line."""
    if Path(path).suffix in _SUFFIXES:
        return True
    return Path(path).is_file() and Path(path).suffix == "" and read_text(path).startswith("#!")


def read_script(path: str) -> Config:
    """Read the training command of a shell script. Raises RecipeError unless there is one."""
    commands = _commands(read_text(path), path)
    launches = [
        launch for words in commands if (launch := _launch(words, Path(path).parent)) is not None
    ]
    if len(launches) != 1:
        lines = ", ".join(str(launch.arguments[0].mark[0]) for launch in launches)
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


# Words of a script

_TOKEN = re.compile(
    r"""(?P<space>[ \t]+|\\\n)|(?P<comment>\#[^\n]*)|(?P<end>\n|;|&&|\|\|?|&|\d?>>?&?\d?)"""
    r"""|(?P<word>(?:'[^']*'|"(?:\\.|[^"\\])*"|\\[^\n]|[^\s'"\\;&|>])+)"""
)
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.S)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_LOOPS = ("for", "while", "until")


def _commands(text: str, path: str) -> list[list[Word]]:
    """Split a script into commands, with the variables that it sets plainly."""
    if match := re.search(r"<<-?\s*['\"]?\w", text):
        line = text[: match.start()].count("\n") + 1
        raise RecipeError(
            "a heredoc, which prefcli migrate does not read",
            place=f"{path}:{line}:1",
            hint="copy the training command to its own file",
            code="RCP170",
        )
    variables: dict[str, str | None] = {}
    commands: list[list[Word]] = [[]]
    depth = 0
    for match in _TOKEN.finditer(text):
        if match["end"]:
            commands.append([])
        if not match["word"]:
            continue
        line = text.count("\n", 0, match.start()) + 1
        mark = (line, match.start() - text.rfind("\n", 0, match.start()))
        command = commands[-1]
        if not command and match["word"] in _LOOPS:
            depth += 1
        elif not command and match["word"] == "done":
            depth -= 1
        word = _word(match["word"], mark, variables, in_loop=depth > 0)
        assignment = _ASSIGNMENT.fullmatch(word.text)
        before = all(
            w.text in ("export", "local") or _ASSIGNMENT.fullmatch(w.text) for w in command
        )
        if assignment and before and match["word"][0] not in "'\"":
            known = variables.get(assignment[1], assignment[2])
            plain = word.problem is None and depth == 0 and known == assignment[2]
            variables[assignment[1]] = assignment[2] if plain else None
        command.append(word)
    return [command for command in commands if command]


def _word(raw: str, mark: Mark, variables: Mapping[str, str | None], *, in_loop: bool) -> Word:
    """Return a word without its quotes and with its variables resolved."""
    problem = "it is inside a loop" if in_loop else None
    text = ""
    for part in re.findall(r"'[^']*'|\"(?:\\.|[^\"\\])*\"|\\.|[^'\"\\]+", raw, re.S):
        if part[0] == "'":
            text += part[1:-1]
            continue
        if part[0] == "\\":
            text += part[1:]
            continue
        part = re.sub(r'\\(["$`\\])', r"\1", part[1:-1]) if part[0] == '"' else part
        if re.search(r"\$\(|`|\$\{\w+[^\w}]|\$[@*#?!0-9]", part):
            problem = f"{part} is known only when the script runs"
        for match in _VARIABLE.finditer(part):
            name = match[1] or match[2]
            if variables.get(name) is None:
                problem = f"the script does not set the variable {name} once, to plain text"
        text += _VARIABLE.sub(lambda m: variables.get(m[1] or m[2]) or m[0], part)
    return Word(text, mark, problem)


# The command

_SCRIPTS = re.compile(r"(run_)?(sft|dpo|ipo|kto|orpo|simpo|cpo)\.py")
_FACTORY_SCRIPTS = ("train.py", "train_bash.py")
_PROCESSES = {"num_processes", "nproc_per_node", "num_gpus"}
_NODES = {"nnodes", "num_nodes"}
_SWITCHES = {
    "multi_gpu",
    "use_deepspeed",
    "use_fsdp",
    "standalone",
    "cpu",
    "no_python",
    "m",
    "module",
}
"""Launcher's flags without a value."""


class _Processes:
    """The number of processes that a launcher starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.visible: int | None = None
        self.per_node: int | None = None
        self.nodes = 1
        self.is_known = True

    @property
    def total(self) -> int | None:
        if not self.is_known:
            return None
        return self.visible if self.per_node is None else self.per_node * self.nodes

    def read(self, flag: str, value: str) -> None:
        """Read a flag of accelerate, torchrun or DeepSpeed."""
        if flag in _PROCESSES | _NODES and not value.isdigit():
            self.is_known = False  # such as --nproc_per_node=gpu
        elif flag in _PROCESSES:
            self.per_node = int(value)
        elif flag in _NODES:
            self.nodes = int(value)
        elif flag == "include":
            hosts = value.split("@")
            self.per_node = sum(len(host.partition(":")[2].split(",")) for host in hosts)
        elif flag == "config_file" and (path := _find(value, self.folder)):
            count = parse(read_text(str(path)), str(path))[0].get("num_processes")
            if isinstance(count, int) and self.per_node is None:
                self.per_node = count


def _launch(words: list[Word], folder: Path) -> Launch | None:
    """Recognise a training command behind launchers and environment variables."""
    processes = _Processes(folder)
    launcher = False
    i = 0
    while i < len(words):
        text = words[i].text
        name, rest = Path(text).name, words[i + 1 :]
        first = rest[0].text if rest else ""
        if match := _ASSIGNMENT.fullmatch(text):
            if match[1] == "CUDA_VISIBLE_DEVICES" and match[2]:
                processes.visible = len(match[2].split(","))
        elif name in ("accelerate", "torchrun", "deepspeed"):
            launcher = True
        elif text.startswith("-") and launcher:
            flag, _, value = text.lstrip("-").partition("=")
            if not value and flag not in _SWITCHES and rest:
                value, i = first, i + 1
            processes.read(flag.replace("-", "_"), value)
        elif name == "trl" and first in ("sft", "dpo", "kto", "orpo", "cpo"):
            return Launch(_TOOLS["trl"], first, rest, processes.total)
        elif name in ("llamafactory-cli", "lmf") and first == "train":
            return Launch(_TOOLS["LLaMA-Factory"], None, rest, processes.total)
        elif name in ("axolotl", "oumi") and first == "train":
            return Launch(_TOOLS[name], None, rest, processes.total)
        elif text in ("axolotl.cli.train", "oumi.train"):
            return Launch(_TOOLS[text.split(".")[0]], None, words[i:], processes.total)
        elif match := _SCRIPTS.fullmatch(name):
            tool = _TOOLS["alignment-handbook" if match[1] else "trl"]
            return Launch(tool, match[2], words[i:], processes.total)
        elif name in _FACTORY_SCRIPTS and any(w.text.startswith("--stage") for w in rest):
            return Launch(_TOOLS["LLaMA-Factory"], None, words[i:], processes.total)
        elif name in ("swift", "tune") or text.startswith("openrlhf.cli.train"):
            other = {"swift": "ms-swift", "tune": "torchtune"}.get(name, "OpenRLHF")
            raise RecipeError(
                f"this is a command of {other}, whose settings prefcli migrate does not know",
                hint="start from `prefcli recipes list`",
                code="RCP173",
            )
        i += 1
    return None


def _find(name: str, folder: Path) -> Path | None:
    """Return a file that a command names, relative to a folder above the script or to this one."""
    above = [folder.absolute(), *folder.absolute().parents][:4]
    return next((p for base in (Path(), *above) if (p := base / name).is_file()), None)


def _config(launch: Launch, source: str) -> Config:
    """Return the settings of a command: those of the YAML file that it names, and its flags."""
    flags, problems = _flags(launch.arguments[1:], source)
    config, devices, method = Config(launch.tool, {}, Places(source)), launch.devices, launch.method
    for name in ("config", "c", ""):
        if (name,) not in flags:
            continue
        value, word = flags.pop((name,))
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
        if equals:
            values = [word._replace(text=value)]
        elif not name.startswith("-"):
            name, values = "", [word]
        while name and not equals and i + 1 < len(words) and not _is_flag(words[i + 1].text):
            i += 1
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
