"""A corpus of small configs in the shapes of published ones, each with its recipe or refusals."""

from __future__ import annotations

import json

import pytest

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
