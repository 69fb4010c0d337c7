"""What migrate writes for keys that a trl file leaves out is what the installed trl takes."""

from dataclasses import fields

import pytest
from trl import ModelConfig

from prefcli.methods import METHODS
from prefcli.recipe.migrate.trl import TRL


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "orpo", "simpo"])
def test_defaults(method):
    config, _ = METHODS[method]().trl_classes()
    installed = {field.name: field.default for field in (*fields(config), *fields(ModelConfig))}
    assumed = TRL.defaults(method, {"use_peft": True})
    assert {key: installed[key] for key in assumed} == assumed
    # Those that prefcli has too, and leaves to its own schema.
    assert installed["max_length"] == 1024
    assert installed["seed"] == 42
    assert installed["weight_decay"] == 0.0
    assert installed["max_grad_norm"] == 1.0
    assert installed.get("beta", 0.1) == 0.1
