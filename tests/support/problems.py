"""Assertions about the errors that a user sees, by their code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from prefcli.errors import PrefcliError


@contextmanager
def stops_with(
    code: str, error: type[PrefcliError] = PrefcliError
) -> Iterator[pytest.ExceptionInfo[PrefcliError]]:
    """Expect a PrefcliError whose first problem has the code."""
    with pytest.raises(error) as caught:
        yield caught
    assert caught.value.problems[0].code == code, str(caught.value)
