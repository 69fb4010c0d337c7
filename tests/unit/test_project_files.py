"""Dockerfile, CITATION.cff, constraints.txt and pyproject.toml agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import prefcli

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    if "==" in line
)
DOCKERFILE = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text("utf-8"))
INSTRUCTIONS = re.findall(r"^([A-Z]+) (.*)$", DOCKERFILE, re.M)


def _arguments(name: str) -> list[str]:
    return [value for instruction, value in INSTRUCTIONS if instruction == name]


def test_pins_are_within_the_ranges_of_the_project():
    extras = [text for texts in EXTRAS.values() for text in texts]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        pin = PINS.get(requirement.name)
        assert pin is None or requirement.specifier.contains(pin), requirement


@pytest.mark.parametrize("extra", ["docs", "quant"])
def test_extra_that_a_script_or_the_image_installs_is_pinned(extra):
    assert {Requirement(text).name for text in EXTRAS[extra]} <= PINS.keys()


def test_image_has_no_version_but_those_of_constraints():
    installs = [step for step in _arguments("RUN") if "pip install" in step]
    assert len(installs) == 2
    assert all("--constraint /src/constraints.txt" in step for step in installs)
    assert "==" not in DOCKERFILE
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d+\.\d+", *_arguments("FROM"))


def test_image_copies_what_the_wheel_is_built_from():
    copied = {source for step in _arguments("COPY") for source in step.split()[:-1]}
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    sources = {*wheel["packages"], *wheel["force-include"], *PROJECT["license-files"]}
    assert sources | {PROJECT["readme"], "pyproject.toml", "constraints.txt"} == copied
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.M)
    assert set(allowed) == copied


def test_image_runs_prefcli_as_an_ordinary_user():
    assert _arguments("USER") == ["1000:1000"]
    assert _arguments("ENTRYPOINT") == ['["prefcli"]']
    assert "prefcli" in PROJECT["scripts"]


def test_citation_has_the_version_and_licence_of_the_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == prefcli.__version__
    assert citation["license"] == PROJECT["license"]
