"""Comparison of what a migrated recipe passes to trl with what the source tool passes."""

from __future__ import annotations

import pytest

from prefcli.model import Device
from prefcli.recipe.load import load_text
from prefcli.trl_integration.trl_args import trl_options
from tests.support.migration import Case, corpus

CASES = [case for case in corpus() if case.trl]


def test_at_least_forty_cases_are_compared():
    assert len(CASES) >= 40


@pytest.mark.parametrize("case", CASES, ids=str)
def test_effective_arguments_are_those_of_the_source_tool(tmp_path, monkeypatch, case: Case):
    monkeypatch.chdir(tmp_path)
    migration = case.migrate(tmp_path)
    recipe = load_text(migration.text, "new.yaml").recipe
    (method,) = recipe.methods.values()
    training = recipe.training
    devices = training.global_batch_size // (
        training.per_device_train_batch_size * case.trl.get("gradient_accumulation_steps", 1)
    )
    passed = trl_options(recipe, method, Device("cuda", "GPU", bfloat16=True), world=devices)
    assert {name: passed[name] for name in case.trl} == case.trl
