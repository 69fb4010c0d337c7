"""Errors that users can fix."""

from __future__ import annotations

import pickle

import pytest

from prefcli.errors import DataError, Problem, RecipeError


def test_error_of_a_worker_process_arrives_with_its_problems():
    problem = Problem("no such key", place="r.yaml:1:1", path="a.b", hint="fix it", code="RCP001")
    error = pickle.loads(pickle.dumps(DataError(problem)))
    assert type(error) is DataError
    assert error.problems == (problem,)
    assert str(error) == str(problem)


def test_error_without_a_code_is_a_bug():
    with pytest.raises(TypeError, match="code"):
        RecipeError("wrong")
