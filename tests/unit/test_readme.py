"""The README, the pages under docs/ and the headers of scripts and recipes match the product."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from prefcli import cli
from prefcli.cli.main import COMMANDS as PRODUCT_COMMANDS
from prefcli.cli.main import command_tree
from prefcli.formats import FORMATS, detect
from prefcli.methods import METHODS
from prefcli.recipe import Recipe, load

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *ROOT.glob("C*.md"), *sorted((ROOT / "docs").glob("*.md"))]
DOCS = [page.name for page in PAGES if page.parent == ROOT / "docs"]
SCRIPTS = sorted(p for p in (ROOT / "scripts").rglob("*") if p.suffix in (".sh", ".py"))
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
READER_FILES = {"recipe.yaml", "config.yaml", "SFT.yaml", "DPO.yaml", "sft.yaml", "dpo.yaml"}
"""Files of the reader, which the repository does not have."""
LIGHT = ("validate", "recipes", "schema", "slurm", "launch", "migrate", "explain")
"""Commands that need no torch, no data and no network."""
SCHEMA = Recipe.model_json_schema(by_alias=True)
TRL_CONFIG = "model_name_or_path: a/b\ndataset_name: a/c\nloss_type: sigmoid\noutput_dir: run\n"


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}: {self.text.splitlines()[0] if self.text else ''}"


def _blocks() -> list[Block]:
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
    return [Block(p, *match) for p in PAGES for match in fence.findall(p.read_text("utf-8"))]


BLOCKS = _blocks()
SHELL = [block for block in BLOCKS if block.language in ("bash", "sh")]
YAML = [block for block in BLOCKS if block.language == "yaml"]
README_RECIPE = next(block.text for block in YAML if block.page == README)


def _shell_lines() -> list[str]:
    """Lines to type: of shell blocks, after prompts, in headers of scripts and recipes."""
    lines = [line for b in SHELL for line in b.text.replace("\\\n", " ").splitlines()]
    outputs = [block.text for block in BLOCKS if block.language in ("", "console")]
    lines += [line[2:] for text in outputs for line in text.splitlines() if line.startswith("$ ")]
    for path in (*SCRIPTS, *RECIPES):
        text = re.sub(r"\\\n#? *", " ", path.read_text("utf-8"))
        header = re.match(r'(#!.*\n)?((#.*\n)+|"""(.|\n)*?""")', text)
        if header is not None:
            lines += re.findall(r"^[# ] {2,4}((?:prefcli|python|scripts/) ?\S.*)", header[0], re.M)
        if path.suffix == ".sh":
            lines += re.findall(r"^(?:step )?(prefcli [^$\n]*)$", text, re.M)
    return [line for line in lines if "..." not in line]


def _commands() -> list[tuple[str, ...]]:
    """The single commands of all lines, without redirections and comments."""
    commands: dict[tuple[str, ...], None] = {}
    for line in _shell_lines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if not set(word) <= set("&|;<>"):
                command.append(word)
            elif command:
                commands[*command] = None
                command = [">"] if ">" in word else []
    return [command for command in commands if command[0] != ">"]


COMMANDS = _commands()
PREFCLI = [command[1:] for command in COMMANDS if command[0] == "prefcli"] + [
    command[command.index("prefcli") + 1 :]
    for command in COMMANDS
    if {"-m", "prefcli"} <= set(command)
]


def _command_tree():
    """The command line, with commands that do nothing."""
    tree = command_tree()

    def disarm(command):
        command.callback = lambda **_: None
        for child in getattr(command, "commands", {}).values():
            disarm(child)

    disarm(tree)
    return tree


def _anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page that GitHub and mkdocs make equal."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    plain = [
        re.sub(r"[^\w\- ]", "", heading.lower()) for heading in re.findall(r"^#+ (.*)$", text, re.M)
    ]
    github = {heading.replace(" ", "-") for heading in plain}
    return github & {re.sub(r"[- ]+", "-", heading) for heading in plain}


def test_examples_are_collected_from_pages_scripts_and_recipes():
    assert {"validate", "data", "dpo", "download", "slurm", "report"} <= {a[0] for a in PREFCLI}
    assert "scripts/slurm/pipeline.sh" in [command[0] for command in COMMANDS]
    assert ("dpo", "recipes/smollm3-apo.yaml", "launch.nodes=2") in PREFCLI


def test_readme_size_is_within_limits():
    text = README.read_bytes()
    assert len(text) <= 10_240
    assert text.count(b"\n") <= 150


def test_readme_has_every_command():
    table = README.read_text("utf-8").partition("## Commands")[2].partition("## Exit codes")[0]
    assert set(PRODUCT_COMMANDS) <= set(re.findall(r"`([\w-]+)`", table))


def test_pages_have_the_number_of_shipped_recipes():
    counts = [
        int(count)
        for page in PAGES
        for count in re.findall(r"(\d+) (?:shipped )?recipes", page.read_text("utf-8"))
    ]
    # The other count is that of a measurement.
    assert set(counts) <= {len(RECIPES), 23}
    assert len(RECIPES) in counts


def test_readme_documents_both_scripts():
    text = README.read_text("utf-8")
    assert "bash scripts/quickstart.sh" in text
    assert "bash scripts/test.sh" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_links_lead_to_existing_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if target.startswith(("https://", "http://")):
            continue
        file, _, heading = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.is_file(), target
        if heading:
            assert heading in _anchors(path), target


def _links(page: Path) -> set[str]:
    return set(re.findall(r"\]\(([\w/-]+\.md)", page.read_text("utf-8")))


def _pages_in(navigation) -> list[str]:
    """The pages of a navigation of mkdocs.yml, through its sections."""
    pages = []
    for entry in navigation:
        (target,) = entry.values()
        pages += [target] if isinstance(target, str) else _pages_in(target)
    return pages


def test_page_of_docs_is_in_the_navigation_of_the_site_once():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    assert sorted(_pages_in(site["nav"])) == sorted(DOCS)


def test_page_of_docs_is_linked_from_the_start_page_which_the_readme_links():
    assert "docs/index.md" in _links(README)
    assert _links(ROOT / "docs" / "index.md") == set(DOCS) - {"index.md"}


@pytest.mark.parametrize("argv", PREFCLI, ids=" ".join)
def test_documented_command_parses(argv):
    _command_tree().main(list(argv), prog_name="prefcli", standalone_mode=False)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_documented_command_names_existing_files(command):
    for word in command:
        if word.endswith((".yaml", ".sh", ".py")) and word not in READER_FILES:
            assert (ROOT / word).is_file(), word


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "mistakes.md"], ids=lambda page: page.name
)
def test_inline_command_names_existing_commands_and_options(page):
    tree = _command_tree()
    for span in re.findall(r"`(prefcli [^`]+)`", page.read_text("utf-8")):
        words = span.partition(" -- ")[0].split()[1:]
        command = tree
        while words and (child := getattr(command, "commands", {}).get(words[0])):
            command, words = child, words[1:]
        if words and (words[0].isupper() or "|" in words[0]):
            continue  # a placeholder such as COMMAND
        assert command is not tree or words[0].startswith("-"), f"`{span}`: no such command"
        options = {name for param in command.params for name in param.opts} | {"--help"}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= options, f"`{span}`: {given - options}"


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_shell_block_is_valid_bash(block):
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


@pytest.mark.parametrize("block", YAML, ids=str)
def test_yaml_block_completes_the_readme_recipe_to_a_valid_one(block, tmp_path):
    keys = set(re.findall(r"^\w+:", block.text, re.M))
    sections = re.findall(r"^\w+:.*\n(?:^[ #].*\n)*", README_RECIPE, re.M)
    others = "".join(text for text in sections if text.partition(":")[0] + ":" not in keys)
    path = tmp_path / "recipe.yaml"
    path.write_text(others + block.text, encoding="utf-8")
    load(str(path))


def _properties(node, definitions):
    """The properties of a schema node, through references and unions."""
    while "$ref" in node:
        node = definitions[node["$ref"].rpartition("/")[2]]
    properties = dict(node.get("properties", {}))
    for choice in [c for key in ("anyOf", "allOf", "oneOf") for c in node.get(key, [])]:
        properties |= _properties(choice, definitions)
    return properties


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_inline_recipe_key_is_in_the_schema(page):
    schema = SCHEMA
    for key in re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)[`=:]", page.read_text("utf-8")):
        node = schema
        for part in key.split("."):
            properties = _properties(node, schema["$defs"])
            if (node is schema and part not in properties) or part in ("jsonl", "yaml"):
                break  # a file or a module
            assert part in properties, key
            node = properties[part]


def test_json_rows_of_the_data_page_show_every_format():
    rows = [
        json.loads(line)
        for block in BLOCKS
        if block.language == "json"
        for line in block.text.splitlines()
    ]
    assert {detect(row) for row in rows} == set(FORMATS)
    for row in rows:
        FORMATS[FORMATS.index(detect(row))].convert(row)


def _write_reader_files(folder: Path) -> None:
    (folder / "recipes").symlink_to(ROOT / "recipes")
    others = "".join(f"{name}: {{}}\n" for name in METHODS if f"\n{name}:" not in README_RECIPE)
    others += "judge: {function: {name: 'judge.py:score'}}\n"
    launch = "launch: {strategy: ddp, processes: 2}\n"
    for name in READER_FILES - {"recipe.yaml", "config.yaml"}:
        (folder / name).write_text(README_RECIPE + others)
    (folder / "recipe.yaml").write_text(README_RECIPE + launch)
    (folder / "config.yaml").write_text(TRL_CONFIG)


@pytest.mark.parametrize(
    "argv", [argv for argv in PREFCLI if argv[0] in LIGHT or "--help" in argv], ids=" ".join
)
def test_light_command_succeeds(argv, monkeypatch, capsys, tmp_path):
    _write_reader_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prefcli", *argv])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code in (0, None), capsys.readouterr().err


def test_architecture_page_names_every_folder_and_top_level_module():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    folders = {path.parent.name for path in (ROOT / "prefcli").glob("*/__init__.py")}
    assert folders == {name for name in folders if f"`{name}/`" in text}
    modules = {path.name for path in (ROOT / "prefcli").glob("[a-z]*.py")}
    assert modules == {name for name in modules if f"`{name}`" in text}


def test_architecture_page_has_the_layers_of_the_import_contract():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contract = project["tool"]["importlinter"]["contracts"][0]
    layers = [layer.replace("prefcli.", "") for layer in contract["layers"]]
    assert "\n".join(layers) in (ROOT / "docs" / "architecture.md").read_text("utf-8")


def test_formulas_page_cites_equations_as_the_tests_of_the_losses_do():
    page = (ROOT / "docs" / "how-dpo-works.md").read_text("utf-8")
    cited = re.findall(r"\[arXiv:([\d.]+)\]\(https://arxiv.org/abs/\1\), eq. (\d+)", page)
    assert len(cited) == 5
    tests = [p.read_text("utf-8") for p in (ROOT / "tests" / "train" / "formulas").glob("*.py")]
    for paper, equation in cited:
        assert any(f"arXiv:{paper}, eq. {equation}" in text for text in tests), paper


def test_formulas_page_has_the_loss_and_weight_of_each_margin():
    page = (ROOT / "docs" / "how-dpo-works.md").read_text("utf-8")
    rows = re.findall(r"^\| (-?\d)[^|]* \| (\d\.\d{3}) \| (\d\.\d\d) \|$", page, re.M)
    assert len(rows) == 5
    for margin, loss, weight in rows:
        wrong = 1 / (1 + math.exp(float(margin)))
        assert f"{-math.log(1 - wrong):.3f} {wrong:.2f}" == f"{loss} {weight}"
