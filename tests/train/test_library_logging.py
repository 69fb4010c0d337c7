"""Warnings of the libraries in prefcli's log."""

from __future__ import annotations

import logging
import warnings

import pytest

from prefcli.library_logging import quiet_libraries


@pytest.fixture
def quiet():
    """prefcli's handlers, without those of earlier tests."""
    with warnings.catch_warnings():
        quiet_libraries()
        yield


def test_quiet_libraries_prints_warnings_on_one_line(quiet, capsys):
    logging.getLogger("transformers.somewhere").warning("the \x1b[31mconfig has\n  %d layers\r", 2)
    logging.getLogger("transformers.somewhere").info("not this")
    logging.getLogger("torch.distributed").warning("a rank is late")
    warnings.warn_explicit("look here", UserWarning, "/x/site-packages/peft/tuners.py", 1)
    warnings.warn_explicit("for developers", FutureWarning, "/x/site-packages/trl/x.py", 1)
    assert capsys.readouterr().out.splitlines() == [
        "warning: transformers: the config has 2 layers",
        "warning: torch: a rank is late",
        "warning: peft: look here",
    ]


def test_quiet_libraries_prints_warnings_that_differ_in_numbers_once(quiet, capsys):
    for rows in (3, 4):
        logging.getLogger("trl").warning("The dataset has %d rows too many", rows)
    assert capsys.readouterr().out == "warning: trl: The dataset has 3 rows too many\n"
