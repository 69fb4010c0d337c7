"""The defaults that migrate writes, against the defaults of the installed trl."""

from dataclasses import fields

import pytest
from trl import ModelConfig

from prefcli.methods import METHODS
from prefcli.recipe.migrate.tools import TOOLS


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "orpo", "simpo"])
def test_trl_defaults_match_the_installed_version(method):
    config, _ = METHODS[method]().trl_classes()
    installed = {field.name: field.default for field in (*fields(config), *fields(ModelConfig))}
    assumed = next(t for t in TOOLS if t.name == "trl").defaults(method, {"use_peft": True})
    assert {key: installed[key] for key in assumed} == assumed
    # Defaults that prefcli shares with trl, and that migrate does not write.
    assert installed["max_length"] == 1024
    assert installed["seed"] == 42
    assert installed["weight_decay"] == 0.0
    assert installed["max_grad_norm"] == 1.0
    assert installed.get("beta", 0.1) == 0.1
