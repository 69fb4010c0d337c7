"""Lines for people: terminal escapes are shown, secrets are hidden."""

from __future__ import annotations

import pytest

from prefcli.console import document, say, warn


@pytest.mark.parametrize("show", [say, document, warn])
def test_console_escapes_control_characters(capsys, show):
    show("a prompt\twith \x1b[31mred\x1b[0m, \x9b2J, \x07, \r and \u202eturned\nnew line é 😀")
    text = capsys.readouterr().out
    assert (
        "with \\x1b[31mred\\x1b[0m, \\x9b2J, \\x07, \\x0d and \\u202eturned\nnew line é 😀\n"
        in text
    )
    assert "a prompt\t" in text
