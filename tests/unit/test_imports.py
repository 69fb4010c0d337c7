"""The light half loads none of the heavy libraries, seen from a fresh interpreter."""

import importlib
import subprocess
import sys

import pytest

from tests.support.light_half import HEAVY

LIGHT = ("prefcli.recipe", "prefcli.methods", "prefcli.formats")


def test_light_half_imports_no_heavy_library():
    script = f"import sys, {', '.join(LIGHT)}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert {"prefcli", "pydantic", "yaml"} <= loaded
    assert not loaded & {*HEAVY, "omegaconf", "numpy", "pandas", "pyarrow", "bitsandbytes"}


@pytest.mark.parametrize("name", HEAVY)
def test_blocker_refuses_heavy_libraries(name):
    with pytest.raises(ImportError, match="tests/unit is the light half"):
        importlib.import_module(name)


def test_command_line_imports_no_drawing_library():
    script = "import sys, prefcli.cli; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not {*done.stdout.split()} & {*HEAVY, "jinja2", "numpy"}
