"""The light half loads none of the heavy libraries, seen from a fresh interpreter."""

import subprocess
import sys

from tests.unit.conftest import HEAVY

LIGHT = ("prefcli.recipe", "prefcli.methods", "prefcli.formats")


def test_light_imports():
    script = f"import sys, {', '.join(LIGHT)}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert {"prefcli", "pydantic", "omegaconf", "yaml"} <= loaded
    assert not loaded & {*HEAVY, "numpy", "pandas", "pyarrow", "bitsandbytes"}
