"""A corpus of small configs in the shapes of published ones, each with its recipe or refusals."""

from __future__ import annotations

import copy
import json
import random
from contextlib import suppress
from dataclasses import replace

import pytest
import yaml

from prefcli.errors import RecipeError
from tests.support.migration import Case, corpus


@pytest.mark.parametrize("case", corpus(), ids=str)
def test_case_of_the_corpus_migrates_or_is_refused_as_expected(tmp_path, case: Case):
    migration = case.migrate(tmp_path)
    assert {p.path or "": p.code for p in migration.problems} == case.refused
    if not case.refused:
        recipe = {path: case.value(migration, path) for path in case.recipe}
        assert json.loads(json.dumps(recipe).replace(str(tmp_path), "DIR")) == case.recipe
    if case.note:
        assert case.note in " ".join(migration.notes)


ODD_VALUES = (True, 3, -1, 2.5, "x", "a,b", [], ["a"], [[]], [{"a": 1}], {}, {"a": [1]})


def test_migrate_of_odd_values_does_not_crash(tmp_path):
    """Replace a few values of each tool's configs, at any depth."""
    draw = random.Random(0)
    cases = [case for case in corpus() if not case.text.startswith(("trl", "#", "accelerate"))]
    for case in draw.sample(cases, 30):
        data = yaml.safe_load(case.text)
        for _ in range(3):
            node = data
            while isinstance(node, dict | list) and node:
                parent, key = node, draw.choice(list(node) if isinstance(node, dict) else [0])
                node = node[key]
            parent[key] = copy.deepcopy(draw.choice(ODD_VALUES))
        with suppress(RecipeError):
            replace(case, text=yaml.safe_dump(data, sort_keys=False)).migrate(tmp_path)
