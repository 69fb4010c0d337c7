"""What the README and the heads of scripts tell people to type is what prefcli takes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from prefcli import cli
from prefcli.cli.main import command_tree
from prefcli.methods import METHODS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted(p for p in (ROOT / "scripts").rglob("*") if p.suffix in (".sh", ".py"))
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
SHELL = [text for language, text in BLOCKS if language in ("bash", "sh")]
RECIPE = next(text for language, text in BLOCKS if language == "yaml")
STAND_INS = {"recipe.yaml", "my.yaml", "r.yaml", "sft.yaml", "dpo.yaml", "SFT.yaml", "DPO.yaml"}
"""Recipes of the reader's own."""
AT_ONCE = ("validate", "recipes", "schema", "slurm")
"""Commands that need no torch, no data and no network."""


def _shell_lines() -> list[str]:
    """Of the blocks for a shell; of other blocks, and of the heads of scripts, what is typed."""
    lines = [line for text in SHELL for line in text.replace("\\\n", " ").splitlines()]
    others = [text for language, text in BLOCKS if language in ("", "console")]
    lines += [line[2:] for text in others for line in text.splitlines() if line.startswith("$ ")]
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        head = re.match(r'(#!.*\n)?((#.*\n)+|"""(.|\n)*?""")', text)
        if head is not None:
            lines += re.findall(r"^[# ] {2,4}((?:prefcli|python|scripts/) ?\S.*)", head[0], re.M)
        if path.suffix == ".sh":
            lines += re.findall(r"^(?:step )?(prefcli [^$\n]*)$", text, re.M)
    return lines


def _commands() -> list[tuple[str, ...]]:
    """The single commands of all lines, without redirections."""
    found: dict[tuple[str, ...], None] = {}
    for line in _shell_lines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if not set(word) <= set("&|;<>"):
                command.append(word)
            elif command:
                found[*command] = None
                command = [">"] if ">" in word else []
    return [command for command in found if command[0] != ">"]


COMMANDS = _commands()
OURS = [command[1:] for command in COMMANDS if command[0] == "prefcli"] + [
    command[command.index("prefcli") + 1 :] for command in COMMANDS if "-m" in command
]


def _tree():
    """The command line, whose commands do nothing."""
    tree = command_tree()

    def still(command):
        command.callback = lambda **_: None
        for child in getattr(command, "commands", {}).values():
            still(child)

    still(tree)
    return tree


def test_the_examples_are_found():
    assert len(SHELL) >= 2
    assert {"validate", "data", "dpo"} <= {argv[0] for argv in OURS}
    assert "scripts/slurm/pipeline.sh" in [command[0] for command in COMMANDS]


@pytest.mark.parametrize("argv", OURS, ids=" ".join)
def test_a_command_is_one_that_prefcli_takes(argv):
    _tree().main(list(argv), prog_name="prefcli", standalone_mode=False)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_files_that_are_named_exist(command):
    for word in command:
        if word.endswith((".yaml", ".sh", ".py")) and word not in STAND_INS:
            assert (ROOT / word).is_file(), word


def test_commands_in_the_text_exist():
    tree = _tree()
    for span in re.findall(r"`(prefcli [^`]+)`", README):
        words = span.split()[1:]
        command = tree
        while words and (child := getattr(command, "commands", {}).get(words[0])):
            command, words = child, words[1:]
        if words and words[0].isupper():
            continue  # METHOD, and such
        assert command is not tree or words[0].startswith("-"), f"`{span}`: no such command"
        options = {name for param in command.params for name in param.opts} | {"--help"}
        asked = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert asked <= options, f"`{span}`: {asked - options}"


@pytest.mark.parametrize("text", SHELL, ids=lambda text: text.split("\n")[0])
def test_a_shell_can_read_it(text):
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
    "argv", [a for a in OURS if a[0] in AT_ONCE or "--help" in a], ids=" ".join
)
def test_what_is_done_at_once_works(monkeypatch, capsys, tmp_path, argv):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for name in STAND_INS:
        other = "".join(f"{m}: {{}}\n" for m in METHODS if f"\n{m}:" not in RECIPE)
        (tmp_path / name).write_text(RECIPE if name == "recipe.yaml" else RECIPE + other)
    monkeypatch.setattr(sys, "argv", ["prefcli", *argv])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code in (0, None), capsys.readouterr().err
